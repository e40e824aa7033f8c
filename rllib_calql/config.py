"""`CalQLConfig`: the settings of `TrainingSettings`, environment and data, on either API stack; checked."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from ray.data import Dataset
from ray.rllib.algorithms.algorithm_config import NotProvided
from ray.rllib.algorithms.cql import CQLConfig
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from rllib_calql.checks import ALIASES, MODEL_SETTINGS
from rllib_calql.core.reference import ReferenceValue
from rllib_calql.data import Preparation, Transitions, open_source
from rllib_calql.data.mixture import entries_of
from rllib_calql.envs.creation import FROM_DATASET, RECORDED
from rllib_calql.presets import PRESET, with_preset
from rllib_calql.settings import TrainingSettings, checked
from rllib_calql.validation import check_data, check_ranges, check_rllib_settings

# What the RLModule of the new API stack is built from.
MODULE_SETTINGS = (
    "policy_model_config",
    "encoder_config",
    "frame_stack",
    "q_model_config",
    "num_critics",
    "critic_layer_norm",
    "orthogonal_init",
    "precision",
    "num_exploration_actions",
)


class CalQLConfig(TrainingSettings):
    """Defines a configuration from which a `CalQL` algorithm can be built.

    .. code-block:: python

        config = (
            CalQLConfig()
            .environment("rllib_calql/AntMaze-UMaze-v2")
            .offline_data(input_="d4rl://antmaze-umaze-v2")
            .training(reward_scale=10.0, reward_bias=-5.0, sparse_failure_reward=0.0, lagrangian=True)
            .evaluation(evaluation_interval=10, evaluation_duration=20)
        )
        algo = config.build_algo()
        result = algo.train()
    """

    env_runner_cls: Any
    replay_buffer_config: dict[str, Any]

    def __init__(self, algo_class: type | None = None) -> None:
        # Imported here: that room imports this one.
        from rllib_calql.algorithm import CalQL

        super().__init__(algo_class=algo_class or CalQL)
        self.api_stack(enable_rl_module_and_learner=False, enable_env_runner_and_connector_v2=False)
        self.framework_str = "torch"
        # what RLlib's settings must be for this algorithm
        self.num_env_runners = 0
        self.evaluation(evaluation_config={"explore": False, "num_envs_per_env_runner": 1})
        self.lr = None
        self.batch_mode = "complete_episodes"
        self.rollout_fragment_length = 1
        self.store_buffer_in_checkpoints = False  # the replay is stored in files of its own
        self.min_time_s_per_iteration = None
        self.min_train_timesteps_per_iteration = 0
        self.min_sample_timesteps_per_iteration = 0
        self.num_steps_sampled_before_learning_starts = 0

    # ---- RLlib's two API stacks

    def api_stack(
        self,
        enable_rl_module_and_learner: bool = NotProvided,
        enable_env_runner_and_connector_v2: bool = NotProvided,
    ) -> Self:
        """Chooses RLlib's API stack: both True for the new one, both False (the default) for the Policy stack.

        Both train the same networks with the same update; `docs/rllib.md` tells them apart.

        Returns:
            This updated config.
        """
        from rllib_calql.new_stack.env_runner import CalQLEnvRunner
        from rllib_calql.old_stack.env_runner import CalQLRolloutWorker

        super().api_stack(enable_rl_module_and_learner, enable_env_runner_and_connector_v2)
        new = self.enable_rl_module_and_learner
        if self.env_runner_cls in (None, CalQLEnvRunner, CalQLRolloutWorker):
            self.env_runner_cls = CalQLEnvRunner if new else CalQLRolloutWorker
        # Values without effect here, that RLlib's own validation asks for.
        buffer = "EpisodeReplayBuffer" if new else "MultiAgentPrioritizedReplayBuffer"
        self.replay_buffer_config = {**getattr(self, "replay_buffer_config", {}), "type": buffer}
        self.dataset_num_iters_per_learner = 1 if new else None
        return self

    @property
    def is_online(self) -> bool:
        """Whether there is an environment."""
        return self.env is not None

    @property
    def is_offline(self) -> bool:
        """False: RLlib shall not open the dataset."""
        return False

    @property
    def _model_config_auto_includes(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in MODULE_SETTINGS}

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """The RLModule on the new API stack."""
        from rllib_calql.new_stack.rl_module import CalQLTorchRLModule

        return RLModuleSpec(module_class=CalQLTorchRLModule)

    def get_default_learner_class(self) -> type[Learner]:
        """The Learner on the new API stack."""
        from rllib_calql.new_stack.learner import CalQLTorchLearner

        return CalQLTorchLearner

    # ---- environment and data

    def environment(self, env: str | type | None = NotProvided, **kwargs: Any) -> Self:
        """Sets the environment.

        Args:
            env: As in RLlib, or "from_dataset": the environment that the dataset names (Minari's do), its
                evaluation environment where it names two. `env_config` may then hold arguments that differ.
            **kwargs: As in RLlib.

        Returns:
            This updated config.
        """
        if env is not NotProvided and env != self.env:
            self.env_config.pop(RECORDED, None)
        super().environment(env, **kwargs)
        return self

    def offline_data(
        self,
        *,
        input_: str | Path | Transitions | Dataset | Callable[[], Any] | Sequence[Any] = NotProvided,
        input_config: Mapping[str, Any] = NotProvided,
        **kwargs: Any,
    ) -> Self:
        """Sets the offline dataset.

        Args:
            input_: What `open_dataset` opens: `d4rl://NAME`, `pointmaze://NAME` or a file; or `Transitions`,
                or a Ray Dataset (`ray_data.stream` says what becomes of it); or a function without arguments that
                returns one of these. Or several: a list of such, whose rows are
                all as likely, or of `{"input": ..., "weight": 2.0}`, whose rows are drawn in proportion to the
                weights (`Mixture` has the rule); further keys are options of that dataset's reader.
            input_config: Options of the reader (`open_dataset`'s keywords), and `actions_normalized=True`
                where the data's actions are in [-1, 1] and not in the environment's bounds (as they are in
                RLlib's own logs, where it is the default).

        Returns:
            This updated config.
        """
        if input_ is not NotProvided:
            self.env_config.pop(RECORDED, None)
            self.input_ = str(input_) if isinstance(input_, Path) else input_
        if input_config is not NotProvided:
            self.input_config = dict(input_config)
        super().offline_data(**kwargs)
        return self

    @classmethod
    def preset(cls, name: str) -> Self:
        """A config of a method by its name, such as "cql-sac"; `docs/presets.md` has them all.

        .. code-block:: python

            config = CalQLConfig.preset("cql-sac").environment(...).offline_data(...).training(...)

        Raises:
            ValueError: there is no such preset.
        """
        return cls().update_from_dict({PRESET: name})

    # ---- checked setting of values, from Python, dicts and YAML alike

    def update_from_dict(self, config_dict: Mapping[str, Any]) -> Self:
        """Merges a dict or YAML block; refuses what is unknown, and reads numbers that YAML gave as text.

        A key `preset` stands for the settings of `CalQLConfig.preset(NAME)`: what comes before it is replaced.
        """
        known = set(vars(self)) | ALIASES
        rest: dict[str, Any] = {}
        for key, value in with_preset(config_dict).items():
            if key.startswith("__"):  # Tune's own notes for the trial, such as __stdout_file__
                continue
            name = self._translate_special_keys(key, warn_deprecated=False)
            if name not in known and key not in known:
                close = difflib.get_close_matches(key, sorted(known), n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ValueError(f"CalQL has no setting {key!r}{hint}")
            if name in MODEL_SETTINGS:
                self._set(name, value)
            else:
                rest[key] = checked(name, value)
        super().update_from_dict(rest)
        return self

    def get_state(self) -> dict[str, Any]:
        """RLlib's, from which every algorithm makes its config, and the settings that are -1.

        RLlib leaves those out as deprecated, so that `mixing_ratio=-1` would be the default again.
        """
        deprecated = {name for name, value in vars(CQLConfig()).items() if value == -1}
        minus_one = {
            name: value
            for name, value in vars(self).items()
            if isinstance(value, int | float) and value == -1 and name not in deprecated
        }
        return minus_one | super().get_state()

    @property
    def learns_reference(self) -> bool:
        """Whether a reference value is fitted before the first update."""
        return self.reference_value != "return_to_go" or self.truncation_mode == "bootstrap"

    def preparation(
        self, reward_factor: float = 1.0, value: ReferenceValue | None = None, **bounds: Any
    ) -> Preparation:
        """What is done to rewards, actions and returns.

        Args:
            reward_factor: the offline data's `return_factor`, where `normalize_reward` is set.
            value: the learned reference value. Until there is one, the reference is the return-to-go, with
                nothing after ends that are to be bootstrapped: what the value is fitted to.
            **bounds: `action_low` and `action_high`.
        """
        if value is not None:
            bounds |= {"reference": self.reference_value, "value": value}
        bootstraps_later = value is None and self.truncation_mode == "bootstrap"
        return Preparation(
            gamma=self.gamma,
            reward_scale=self.reward_scale * reward_factor,
            reward_bias=self.reward_bias,
            sparse_failure_reward=self.sparse_failure_reward,
            truncation="stop" if bootstraps_later else self.truncation_mode,
            clip_action=self.clip_action,
            **bounds,
        )

    def plan(self) -> dict[str, dict[str, Any]]:
        """What a run would do: opens dataset and environment, trains nothing. Sections of named figures."""
        from rllib_calql.plan import make_plan

        return make_plan(self)

    # ---- validation

    def validate(self) -> None:
        """Refuses settings that are unknown, out of range, in conflict, or would be ignored."""
        self._find_recorded_environment()
        check_rllib_settings(self)
        super().validate()
        check_ranges(self)
        check_data(self)

    def _find_recorded_environment(self) -> None:
        """Asks the dataset in which environment it was recorded, once."""
        if self.env != FROM_DATASET or RECORDED in self.env_config:
            return
        source: Any = self.input_
        options = dict(self.input_config)
        if isinstance(source, (list, tuple)):
            first = entries_of(source)[0]
            source, options = first.input, options | first.options
        if source == "sampler" or not (isinstance(source, (str, Path, Mapping)) or hasattr(source, "metadata")):
            raise ValueError(f"environment({FROM_DATASET!r}) needs a dataset: set offline_data(input_=...) to one")
        reader = {
            name: value for name, value in options.items() if name not in ("actions_normalized", "observations")
        }
        environment = open_source(source, **reader).metadata.environment
        if environment is None:
            raise ValueError(
                "the dataset does not say in which environment it was recorded: set environment(...) to one"
            )
        self.env_config[RECORDED] = environment
