"""Cal-QL's own settings: their defaults, `training()`, which documents them, and their types."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from types import NoneType
from typing import Any, Literal, Self, get_args, get_type_hints

from ray.rllib.algorithms.algorithm_config import NotProvided
from ray.rllib.algorithms.cql import CQLConfig

from rllib_calql.checks import MODEL_SETTINGS, is_search_space
from rllib_calql.core.hyperparameters import ActorQ, ActorUpdates, Precision, UpdateRule
from rllib_calql.core.reference import ReferenceConfig
from rllib_calql.data.prepare import ReferenceMode
from rllib_calql.data.returns import Truncation

ReplayDevice = Literal["auto", "host", "update"]
WarmUpActions = Literal["policy", "random"]


class TrainingSettings(CQLConfig):
    """What Cal-QL adds to CQL's settings, and its defaults of those that CQL has."""

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class)
        # phases
        self.num_offline_updates = 1_000_000
        self.num_online_env_steps = 1_000_000
        self.min_train_updates_per_iteration = 1000
        self.min_env_steps_per_iteration = 1
        self.overlap_sampling = False
        self.utd_ratio = 1.0
        self.warmup_env_steps = 0
        self.warmup_actions: WarmUpActions = "policy"
        self.num_exploration_actions = 1
        self.mixing_ratio: float | list[list[float]] = 0.5
        self.online_capacity = 1_000_000
        self.replay_device: ReplayDevice = "auto"
        self.load_weights_from: str | None = None
        # data
        self.reward_scale = 1.0
        self.reward_bias = 0.0
        self.sparse_failure_reward: float | None = None
        self.truncation_mode: Truncation = "stop"
        self.reference_value: ReferenceMode = "return_to_go"
        self.reference_config = vars(ReferenceConfig()).copy()
        self.clip_action = 0.99999
        self.normalize_observations = False
        self.normalize_reward = False
        self.score_range: tuple[float, float] | str | None = None
        # networks
        self.num_critics = 2
        self.num_target_critics: int | None = None
        self.actor_q: ActorQ = "min"
        self.actor_updates: ActorUpdates = "every_update"
        self.critic_layer_norm = False
        self.orthogonal_init = True
        self.precision: Precision = "float32"
        self.policy_model_config = {"fcnet_hiddens": [256, 256], "fcnet_activation": "relu"}
        self.q_model_config = {"fcnet_hiddens": [256, 256], "fcnet_activation": "relu"}
        self.encoder_config = {"conv_filters": [[32, 3, 2], [32, 3, 1], [32, 3, 1], [32, 3, 1]], "feature_dim": 50}
        self.image_augmentation: str | None = "random_shift"
        self.frame_stack = 1
        # learning
        self.update_rule: UpdateRule = "sac"
        self.beta = 1.0
        self.beta_online: float | None = None
        self.expectile = 0.8
        self.gamma = 0.99
        self.tau = 0.005
        self.target_network_update_freq = 1
        self.train_batch_size = 256
        self._train_batch_size_per_learner: int | None = None
        self.actor_lr = 1e-4
        self.critic_lr = 3e-4
        self.alpha_lr = 1e-4
        self.lagrangian_lr = 3e-4
        self.learn_alpha = True
        self.alpha_multiplier = 1.0
        self.bc_iters = 0
        # conservative term and TD target
        self.min_q_weight_online: float | None = None
        self.calibrate = True
        self.calibrate_online = True
        self.lagrangian_thresh = 0.8
        self.initial_alpha_prime = math.e
        self.importance_sampling = True
        self.max_target_backup = True
        self.num_target_actions = 10
        self.clip_diff_min = -math.inf
        self.clip_diff_max = math.inf

    def training(
        self,
        *,
        num_offline_updates: int = NotProvided,
        num_online_env_steps: int = NotProvided,
        min_train_updates_per_iteration: int = NotProvided,
        min_env_steps_per_iteration: int = NotProvided,
        overlap_sampling: bool = NotProvided,
        utd_ratio: float = NotProvided,
        warmup_env_steps: int = NotProvided,
        warmup_actions: WarmUpActions = NotProvided,
        num_exploration_actions: int = NotProvided,
        mixing_ratio: float | Sequence[Sequence[float]] = NotProvided,
        online_capacity: int = NotProvided,
        replay_device: ReplayDevice = NotProvided,
        load_weights_from: str | None = NotProvided,
        reward_scale: float = NotProvided,
        reward_bias: float = NotProvided,
        sparse_failure_reward: float | None = NotProvided,
        truncation_mode: Truncation = NotProvided,
        reference_value: ReferenceMode = NotProvided,
        reference_config: Mapping[str, Any] = NotProvided,
        clip_action: float = NotProvided,
        normalize_observations: bool = NotProvided,
        normalize_reward: bool = NotProvided,
        score_range: Sequence[float] | str | None = NotProvided,
        num_critics: int = NotProvided,
        num_target_critics: int | None = NotProvided,
        actor_q: ActorQ = NotProvided,
        actor_updates: ActorUpdates = NotProvided,
        critic_layer_norm: bool = NotProvided,
        orthogonal_init: bool = NotProvided,
        precision: Precision = NotProvided,
        policy_model_config: Mapping[str, Any] = NotProvided,
        q_model_config: Mapping[str, Any] = NotProvided,
        update_rule: UpdateRule = NotProvided,
        beta: float = NotProvided,
        beta_online: float | None = NotProvided,
        expectile: float = NotProvided,
        encoder_config: Mapping[str, Any] = NotProvided,
        image_augmentation: str | None = NotProvided,
        frame_stack: int = NotProvided,
        lagrangian_lr: float = NotProvided,
        learn_alpha: bool = NotProvided,
        alpha_multiplier: float = NotProvided,
        min_q_weight_online: float | None = NotProvided,
        calibrate: bool = NotProvided,
        calibrate_online: bool = NotProvided,
        initial_alpha_prime: float = NotProvided,
        importance_sampling: bool = NotProvided,
        max_target_backup: bool = NotProvided,
        num_target_actions: int = NotProvided,
        clip_diff_min: float = NotProvided,
        clip_diff_max: float = NotProvided,
        **kwargs: Any,
    ) -> Self:
        """Sets the training-related configuration; what is not given stays.

        Args:
            num_offline_updates: Gradient updates of the offline phase; 0 skips it.
            num_online_env_steps: Environment steps of the online phase, whole episodes, so the last may end
                after it; 0 ends the run after pre-training.
            min_train_updates_per_iteration: Updates of a training iteration in the offline phase.
            min_env_steps_per_iteration: Environment steps of an online iteration at the least. It is made of
                rounds: whole episodes, one per env runner or more, then the updates they earn.
            overlap_sampling: Let remote env runners collect the next round's episodes during the updates of
                this one, under the weights from before them. Counters and `utd_ratio` stay exact; a checkpoint
                waits for the episodes that are being collected, and holds them.
            utd_ratio: Updates per online environment step.
            warmup_env_steps: First online environment steps, in whole episodes, that earn no updates.
            warmup_actions: "policy": they are the pre-trained policy's; "random": uniform.
            num_exploration_actions: Of as many sampled actions, training episodes take the critics' best.
            mixing_ratio: Share of offline rows in an online batch: a number in [0, 1]; -1 for their share of
                all rows seen so far; or a schedule [[env_steps, ratio], ...], linear between points.
            online_capacity: Online rows kept; the oldest whole episodes go first.
            replay_device: Where batches are drawn: "host"; "update", which copies all rows to the update's
                device, draws there and runs whole steps as CUDA graphs (Policy stack); "auto" is "update" on a
                GPU with twice the memory it needs, else "host".
            load_weights_from: Path of a CalQL checkpoint whose networks, temperatures and observation
                normaliser a new run starts from; counters, optimisers and data start anew.
            reward_scale: Rewards are multiplied by it ...
            reward_bias: ... and this is added, in both phases; evaluation reports raw rewards.
            sparse_failure_reward: The environment's reward of an unsuccessful step of a sparse task (AntMaze
                0, Adroit binary -1). With it, an episode that has no other reward gets the return of failing
                for ever, r / (1 - gamma). None for dense rewards.
            truncation_mode: Return-to-go at a time-out: "stop" (0 afterwards, the reference), "infinite"
                (the last reward for ever), "bootstrap" (a learned value of the last state, see
                `reference_value`) or "drop" (no bound for such episodes).
            reference_value: What bounds Q from below: the "return_to_go"; "learned", a network V(s) that is
                fitted to the offline returns before the first update (appendix G); or the "max" of both.
            reference_config: Fields of `core.reference.ReferenceConfig`, merged into the present ones.
            clip_action: Data actions are kept inside +-this (atanh(1) is infinite).
            normalize_observations: Normalise by the offline data's mean and standard deviation, everywhere.
            normalize_reward: Before `reward_scale`, multiply rewards by 1000 over the range of the offline
                data's episode returns (CORL's rule for locomotion).
            score_range: Episode returns that count as 0 and 1 in `normalized_score`: two numbers, or the name
                of a D4RL task for its reference scores. By default what the dataset knows of itself, else the
                score is the success rate.
            num_critics: Size E of the ensemble of critics.
            num_target_critics: Random subset of target critics whose minimum makes the TD target (all).
            actor_q: The actor maximises the critics' "min" or, in large ensembles, their "mean".
            actor_updates: Actor and temperature move at "every_update" or, in the online phase, once at
                "every_step" of the environment, which is every `utd_ratio` updates, rounded.
            critic_layer_norm: LayerNorm before each hidden activation of the critics.
            orthogonal_init: Orthogonal weights and zero biases; False for torch's default.
            precision: "float32", or "bfloat16" for the critics' matrix products (parameters, reductions and
                log-probabilities stay float32), or "float64".
            policy_model_config: {"fcnet_hiddens", "fcnet_activation"} of the actor, merged into the present.
            q_model_config: The same of each critic.
            update_rule: "sac", whose actor follows the critics; or the actor clones logged actions by their
                advantage: "awac", "iql".
            beta: Inverse temperature of these advantages: weights are exp(beta A). AWAC's lambda is 1 / beta.
            beta_online: The same in the online phase; None keeps `beta`.
            expectile: Of IQL's V, in (0, 1).
            encoder_config: {"conv_filters": [[channels, kernel, stride], ...], "feature_dim"} of the encoder of
                uint8 images, merged into the present. Critics and actor share it; the critics train it.
            image_augmentation: "random_shift" (DrQ: by up to 4 pixels), or None.
            frame_stack: Last frames that an observation with images is made of; each is stored once.
            lagrangian_lr: Learning rate of the Lagrange multiplier alpha'.
            learn_alpha: Tune the entropy temperature; False fixes it at `initial_alpha * alpha_multiplier`.
            alpha_multiplier: Factor on the entropy temperature.
            min_q_weight_online: Weight of the conservative term in the online phase: None keeps
                `min_q_weight`, 0 goes on as SAC.
            calibrate: Bound the policy's actions by the return-to-go (equation 5.1). False is CQL.
            calibrate_online: Keep doing so in the online phase.
            initial_alpha_prime: Start of the Lagrange multiplier.
            importance_sampling: Importance weights in the log-sum-exp over actions.
            max_target_backup: TD target from the best of `num_target_actions` actions.
            num_target_actions: Sampled actions at the next state.
            clip_diff_min: Lower limit of (log-sum-exp - Q(s, a)) per row.
            clip_diff_max: Upper limit of it.
            **kwargs: RLlib's own: `gamma`, `train_batch_size`, `tau`, `target_network_update_freq`,
                `actor_lr`, `critic_lr`, `alpha_lr`, `initial_alpha`, `target_entropy`, `num_actions`,
                `temperature` (of the log-sum-exp), `min_q_weight`, `lagrangian`, `lagrangian_thresh`,
                `deterministic_backup`, `bc_iters` (updates in which the actor clones the data's actions).

        Returns:
            This updated config.
        """
        given = {k: v for k, v in locals().items() if k not in ("self", "kwargs", "__class__")}
        for name, value in given.items():
            if value is not NotProvided:
                self._set(name, value)
        super().training(**{name: checked(name, value) for name, value in kwargs.items()})
        return self

    def _set(self, name: str, value: Any) -> None:
        if name in MODEL_SETTINGS and not is_search_space(value):
            known = MODEL_SETTINGS[name]
            if not isinstance(value, Mapping):
                raise ValueError(f"{name} must be a dict with {', '.join(known)}, not {value!r}")
            if unknown := sorted(set(value) - set(known)):
                raise ValueError(f"{name} has no {unknown[0]!r}: it takes {', '.join(known)}")
            setattr(self, name, {**getattr(self, name), **value})
        else:
            setattr(self, name, checked(name, value))


_KIND_NAMES = {bool: "true or false", int: "a whole number", float: "a number"}
# Type, and whether None is a value too, of RLlib's settings that are single numbers; those of our own are told by
# the annotations of `training()`.
_RLLIB_NUMBERS: dict[str, tuple[type, bool]] = {
    **dict.fromkeys(
        (
            "target_network_update_freq",
            "train_batch_size",
            "bc_iters",
            "num_actions",
            "num_env_runners",
            "num_learners",
        ),
        (int, False),
    ),
    **dict.fromkeys(("seed", "evaluation_interval"), (int, True)),
    **dict.fromkeys(
        (
            "gamma",
            "tau",
            "actor_lr",
            "critic_lr",
            "alpha_lr",
            "initial_alpha",
            "min_q_weight",
            "lagrangian_thresh",
            "temperature",
            "num_gpus",
            "num_gpus_per_learner",
        ),
        (float, False),
    ),
    **dict.fromkeys(("deterministic_backup", "lagrangian"), (bool, False)),
}


def checked(name: str, value: Any) -> Any:
    """The value in its setting's type; text that is a number becomes one (YAML reads 3e-4 as text).

    Raises:
        ValueError: of another type.
    """
    if is_search_space(value):
        return value
    if name in ("mixing_ratio", "score_range", "target_entropy"):
        return _numbers_inside(value)
    kind, optional = _kinds().get(name, (None, False))
    if kind is None:
        return value
    if value is None and optional:
        return None
    try:
        return _as_number(value, kind)
    except ValueError as error:
        raise ValueError(f"{name} must be {_KIND_NAMES[kind]}, not {value!r}") from error


def _as_number(value: Any, kind: type) -> Any:
    if kind is bool:
        if not isinstance(value, bool):
            raise ValueError
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError
    number = float(value)
    if math.isnan(number):
        raise ValueError
    if kind is int:
        if not number.is_integer():
            raise ValueError
        return int(number)
    return number


def _numbers_inside(value: Any) -> Any:
    """Text that is a number becomes one, also inside lists; everything else stays."""
    if isinstance(value, (list, tuple)):
        return [_numbers_inside(item) for item in value]
    try:
        return _as_number(value, float)
    except ValueError:
        return value


@cache
def _kinds() -> dict[str, tuple[type, bool]]:
    found = dict(_RLLIB_NUMBERS)
    for name, hint in get_type_hints(TrainingSettings.training).items():
        kinds = set(get_args(hint)) or {hint}
        number, *others = kinds - {NoneType}
        if number in _KIND_NAMES and not others:
            found[name] = number, NoneType in kinds
    return found
