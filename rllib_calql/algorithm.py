"""`CalQL`: offline pre-training, the switch, and online fine-tuning as an RLlib algorithm."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from gymnasium.spaces import Discrete
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.cql import CQL
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.evaluation.metrics import summarize_episodes
from ray.rllib.policy.policy import Policy
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, EVALUATION_RESULTS

from rllib_calql.callbacks import fire_switch_to_online
from rllib_calql.checkpoint import Checkpoints, checkpoint_weights
from rllib_calql.config import CalQLConfig
from rllib_calql.core.reference import ReferenceValue
from rllib_calql.core.update import Update
from rllib_calql.data import Preparation
from rllib_calql.data.frames import frame_layout
from rllib_calql.data.prepare import action_width, bounds_of
from rllib_calql.data.replay_files import ReplayFiles
from rllib_calql.dataset import (
    check_capacity,
    check_environment,
    fitted_reference_value,
    observation_statistics,
    on_this_node,
    open_offline_data,
    reference,
    without_rows,
)
from rllib_calql.envs.creation import make_env
from rllib_calql.metrics import RunSummary, WeightedMeans, evaluation_scores, normalized_score
from rllib_calql.new_stack.training import LearnerStack
from rllib_calql.old_stack.policy import CalQLTorchPolicy
from rllib_calql.old_stack.training import PolicyStack
from rllib_calql.replay_buffer import CalQLReplayBuffer
from rllib_calql.runners import play_in_shares, wait_for_one
from rllib_calql.stack import Episode

logger = logging.getLogger(__name__)


class CalQL(Checkpoints, CQL):
    """Cal-QL (Nakamoto et al., 2023), on either of RLlib's API stacks.

    A training iteration is `min_train_updates_per_iteration` updates in the offline phase, and one or more
    whole episodes with `utd_ratio` updates per step in the online phase. Nothing is thrown away at the switch:
    the same update, optimiser and target networks go on. `result["calql"]` reports on both alike, and
    `result["done"]` is set when both phases are complete.
    """

    config: CalQLConfig
    # Columns of Tune's reporter.
    _progress_metrics = (
        "calql/phase",
        "calql/num_updates",
        "calql/num_online_env_steps",
        "calql/updates_per_second",
        "calql/normalized_score",
    )

    @classmethod
    def get_default_config(cls) -> CalQLConfig:
        """A config with Cal-QL's defaults."""
        return CalQLConfig()

    @classmethod
    def get_default_policy_class(cls, config: AlgorithmConfig) -> type[Policy]:
        """The policy on RLlib's Policy stack."""
        return CalQLTorchPolicy

    def setup(self, config: AlgorithmConfig) -> None:
        """Builds runners and networks (RLlib), then opens the dataset and checks that it fits."""
        given = on_this_node(self.config)  # before runners take the CPUs that Ray Data reads with
        self.config = without_rows(self.config)
        super().setup(config)
        self.summary = RunSummary()
        self.summary.earn_by(self.config.utd_ratio, self.config.warmup_env_steps)
        self.stack = LearnerStack(self) if config.enable_rl_module_and_learner else PolicyStack(self)
        observation_space, action_space = self.stack.spaces
        data = open_offline_data(given, observation_space, action_space)
        offline, self.reward_factor, self.score_range = data
        self.dataset = reference(self.config, offline)
        env = self.stack.env
        if env is None and self.config.env is not None:  # it is in other processes
            env = make_env(self.config.env, self.config.env_config)
            env.close()
        if offline is not None:
            check_environment(offline, env)
        check_capacity(self.config, env)
        self.local_replay_buffer = CalQLReplayBuffer(
            observation_space.shape[-1],
            action_width(action_space),
            offline,
            self._preparation(None),
            self.config.online_capacity,
            self.config.mixing_ratio,
            self.config.seed,
            None if frame_layout(observation_space) is None else self.config.frame_stack,
        )
        self._replay_files = ReplayFiles(self.local_replay_buffer.replay.online)
        if offline is not None and self.config.normalize_observations:
            self.stack.load_weights(observation_statistics(offline))
        # When they are first needed, as a restored run has its own: the reference value is fitted, and weights
        # loaded (whose checkpoint may be gone later).
        self.reference_value: ReferenceValue | None = None
        self._weights_to_load = self.config.load_weights_from
        self._num_restarts = 0  # of env runners

    @property
    def update(self) -> Update:
        """The one update of this run, where it lives in this process."""
        return self.stack.update

    @property
    def phase(self) -> str:
        """The phase of the next update: "offline" or "online"."""
        return "offline" if self.stack.num_updates < self.config.num_offline_updates else "online"

    @property
    def complete(self) -> bool:
        """Whether both phases have run to their ends."""
        return self.phase == "online" and self._collected and self.summary.num_updates_due == 0

    @property
    def _collected(self) -> bool:
        return self.summary.num_online_env_steps >= self.config.num_online_env_steps

    @property
    def _random_actions(self) -> bool:
        """Whether the next episodes are to be explored at random."""
        warming_up = self.summary.num_online_env_steps < self.config.warmup_env_steps
        return warming_up and self.config.warmup_actions == "random"

    # ---- training

    def step(self) -> dict[str, Any]:
        """One training iteration; always evaluated where it ends a phase, if evaluation is configured at all."""
        phase, was_complete, self._evaluated = self.phase, self.complete, False
        self.load_initial_weights()  # before a parallel evaluation could do so at the same time
        results = super().step()
        if not self._evaluated:  # the new API stack repeats older results
            results.pop(EVALUATION_RESULTS, None)
        results.setdefault(ENV_RUNNER_RESULTS, {})
        ended = self.phase != phase or (self.complete and not was_complete)
        # Parallel evaluation has used the weights from before this iteration.
        missing = EVALUATION_RESULTS not in results or self.config.evaluation_parallel_to_training
        if ended and missing and self.eval_env_runner_group is not None:
            results[EVALUATION_RESULTS] = self.evaluate()
        results["calql"] = self._calql_block(phase, results)
        results["done"] = self.complete
        return results

    def training_step(self) -> dict[str, Any] | None:
        """A share of the offline phase, or rounds of whole online episodes, each with the updates it earns."""
        self._means, self._seconds, self._steps = WeightedMeans(), 0.0, 0
        updates_before = self.stack.num_updates
        if self.config.learns_reference and self.reference_value is None:
            offline, failure = (
                self.local_replay_buffer.replay.offline,
                self.local_replay_buffer.preparation.failure_reward,
            )
            self.use_reference(fitted_reference_value(self.config, offline, failure))
        if self.complete:
            logger.warning("both phases are complete: this iteration trains nothing")
        online = self.phase == "online"
        if online and not self.complete and not self.summary.switched:
            self.summary.switched = True
            fire_switch_to_online(self)
        if not online:
            left = self.config.num_offline_updates - self.stack.num_updates
            self._learn(min(left, self.config.min_train_updates_per_iteration), online)
        if online:
            self._learn(self.summary.num_updates_due, online)  # by episodes that a checkpoint has waited for
        while online and self._steps < self.config.min_env_steps_per_iteration and not self._collected:
            self._collect()
            if self.config.overlap_sampling and not self._collected:
                self.stack.request(self._random_actions)
            self._learn(self.summary.num_updates_due, online)
        self._figures = self._means.result()
        if num_updates := self.stack.num_updates - updates_before:
            self._figures["updates_per_second"] = num_updates / self._seconds
        return self.stack.training_results(self._figures)

    def load_initial_weights(self) -> None:
        """Takes over the weights that the run is to start from, once; before anything that uses or saves them."""
        if self._weights_to_load is None:
            return
        self.stack.load_weights(checkpoint_weights(self._weights_to_load, self.stack.weights()))
        self._weights_to_load = None

    def use_reference(self, value: ReferenceValue) -> None:
        """Bounds Q by this learned value from now on, as the config says, in offline rows and online episodes."""
        self.reference_value = value
        self.local_replay_buffer.prepare_with(self._preparation(value))
        logger.info("reference value: %s", value.figures)

    def _preparation(self, value: ReferenceValue | None) -> Preparation:
        """What is done to online episodes, whose actions are in [-1, 1], or of the Discrete space."""
        action_space = self.stack.spaces[1]
        bounds = bounds_of(action_space) if isinstance(action_space, Discrete) else {}
        return self.config.preparation(self.reward_factor, value, **bounds)

    def _learn(self, num_updates: int, online: bool) -> None:
        replay, batch_size = self.local_replay_buffer.replay, self.config.total_train_batch_size
        start = time.perf_counter()
        figures = self.stack.learn(lambda: replay.sample(batch_size, online=online), num_updates, online)
        self.summary.num_online_updates += num_updates * online
        self._seconds += time.perf_counter() - start
        self._means.add(figures, num_updates)

    def _collect(self) -> None:
        """Whole episodes, one per runner or more, into the replay."""
        start, ahead = time.perf_counter(), self.stack.requested
        episodes = self.stack.collect(self._random_actions)
        for episode in episodes:
            self.local_replay_buffer.add_episode(episode.rows)
            self.summary.add_episode(len(episode.rows), self._training_score(episode))
        steps = sum(len(episode.rows) for episode in episodes)
        self._steps += steps
        if not ahead:  # of episodes that were collected during updates nobody knows how long they took
            # The mean pace of a phase is the harmonic one: steps over seconds, so weigh by seconds.
            seconds = time.perf_counter() - start
            self._means.add({"env_steps_per_second": steps / seconds}, seconds)

    def take_in_requested(self) -> None:
        """Waits for the episodes that are being collected; the updates they earn follow in the next iteration."""
        if self.stack.requested:
            self._collect()

    def _training_score(self, episode: Episode) -> float:
        if self.score_range is None:
            return episode.success
        return normalized_score(float(episode.rows.rewards.sum()), self.score_range)

    def _calql_block(self, phase: str, results: Mapping[str, Any]) -> dict[str, Any]:
        scores: dict[str, float] = {}
        if EVALUATION_RESULTS in results:
            evaluation = results[EVALUATION_RESULTS].get(ENV_RUNNER_RESULTS, {})
            scores = evaluation_scores(evaluation, self.score_range)
            if "normalized_score" in scores:
                self.summary.add_evaluation(scores["normalized_score"], online=phase == "online")
        figures = {"phase": phase, "num_updates": self.stack.num_updates, **self.summary.figures()}
        if self.reference_value is not None:
            figures |= self.reference_value.figures
        return {**figures, **self._figures, **scores}

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Plays the configured episodes with the present weights (RLlib)."""
        self._evaluated = True
        self.load_initial_weights()
        return super().evaluate(*args, **kwargs)

    def _evaluate_with_fixed_duration(self) -> Any:
        """Remote evaluation runners play equal shares of the episodes, so that short ones do not count more often.

        (RLlib takes the first that come, on the Policy stack and, in older versions, on the new one.)
        """
        if self.config.evaluation_duration_unit != "episodes":
            return super()._evaluate_with_fixed_duration()
        group, limit = self.eval_env_runner_group, self.config.evaluation_sample_timeout_s
        metrics, steps = play_in_shares(group, self.config.evaluation_duration, limit)
        if self.config.enable_rl_module_and_learner:
            self.metrics.aggregate(metrics, key=(EVALUATION_RESULTS, ENV_RUNNER_RESULTS))
            return None, steps, steps, []
        return summarize_episodes(metrics, metrics), steps, steps, []

    def _before_evaluate(self) -> None:
        """Every evaluation runs the same episode seeds, so that a curve shows the policy and not the draw."""
        group = self.eval_env_runner_group
        if group is None:
            return
        # On the Policy stack RLlib's evaluations leave samples under way, which the next would count as its own.
        group.fetch_ready_async_reqs(tags="env_runner_sample_and_get_metrics", timeout_seconds=None)
        group.foreach_env_runner(lambda runner: runner.restart_episodes())  # also notices which have died
        if group.num_remote_env_runners() > 0 and group.num_healthy_remote_workers() == 0:
            wait_for_one(self, group)  # restored runners begin with their first episode anyway

    def compute_single_action(
        self, observation: Any = None, *args: Any, explore: bool | None = None, **kwargs: Any
    ) -> Any:
        """The action for one observation of the environment, within its bounds; on both API stacks.

        Args:
            observation: as the environment gives it.
            explore: a sample of the policy, or its best action; by default as the config says.
            args, kwargs: RLlib's other arguments; only the Policy stack has a use for them.
        """
        self.load_initial_weights()
        if args or kwargs:
            if self.config.enable_rl_module_and_learner:
                raise ValueError("on the new API stack compute_single_action takes an observation and explore")
            return super().compute_single_action(observation, *args, explore=explore, **kwargs)
        return self.stack.act(observation, self.config.explore if explore is None else explore)

    # ---- runners

    def restore_env_runners(self, env_runner_group: EnvRunnerGroup) -> list[int]:
        """Brings back runners that have died (RLlib); those of the training phase begin new episodes."""
        restored = super().restore_env_runners(env_runner_group)
        if restored and env_runner_group is self.env_runner_group:
            self._num_restarts += 1  # several may come before another step does
            numbers = self.summary.num_online_env_steps, self._num_restarts
            env_runner_group.foreach_env_runner(
                lambda runner: runner.begin_other_episodes(*numbers),
                local_env_runner=False,
                remote_worker_ids=restored,
            )
        return restored

    def _create_local_replay_buffer_if_necessary(self, config: AlgorithmConfig) -> None:
        """None yet: the replay is made once the spaces are known."""
        return None
