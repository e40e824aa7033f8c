"""`CalQL`: offline pre-training, the switch, and online fine-tuning as an RLlib algorithm."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.cql import CQL
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.execution.rollout_ops import synchronous_parallel_sample
from ray.rllib.policy.policy import Policy
from ray.rllib.policy.sample_batch import DEFAULT_POLICY_ID, SampleBatch
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    EVALUATION_RESULTS,
    NUM_AGENT_STEPS_SAMPLED,
    NUM_AGENT_STEPS_TRAINED,
    NUM_ENV_STEPS_SAMPLED,
    NUM_ENV_STEPS_TRAINED,
)
from ray.rllib.utils.metrics.learner_info import LEARNER_STATS_KEY

from rllib_calql.config import CalQLConfig
from rllib_calql.core.update import CalQLUpdate
from rllib_calql.data import Preparation, Transitions, check_fits, open_dataset
from rllib_calql.metrics import RunSummary, WeightedMeans, evaluation_scores, normalized_score
from rllib_calql.old_stack.env_runner import CalQLRolloutWorker
from rllib_calql.old_stack.policy import EPISODE_SUCCESS, CalQLTorchPolicy
from rllib_calql.old_stack.replay_buffer import CalQLReplayBuffer, episode_of, split_episodes

logger = logging.getLogger(__name__)


class CalQL(CQL):
    """Cal-QL (Nakamoto et al., 2023) on RLlib's Policy stack.

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
        """Builds runners and policy (RLlib), then opens the dataset and checks that it fits."""
        super().setup(config)
        self.summary = RunSummary()
        policy = self.get_policy()
        offline = open_offline_data(self.config, policy.observation_space, policy.action_space)
        self.local_replay_buffer = CalQLReplayBuffer(
            policy.observation_space.shape[0],
            policy.action_space.shape[0],
            offline,
            self.config.preparation(),
            self.config.online_capacity,
            self.config.mixing_ratio,
            self.config.seed,
        )
        check_capacity(self.config, self.env_runner.env)
        if offline is not None and self.config.normalize_observations:
            set_normalizer(self.update, offline)
        # At the first iteration: a restored run has its own weights, and the old checkpoint may be gone.
        self._weights_to_load = self.config.load_weights_from

    @property
    def update(self) -> CalQLUpdate:
        """The one update of this run; it lives in the local runner's policy."""
        return self.get_policy().update

    @property
    def phase(self) -> str:
        """The phase of the next update: "offline" or "online"."""
        return "offline" if self.update.num_updates < self.config.num_offline_updates else "online"

    @property
    def complete(self) -> bool:
        """Whether both phases have run to their ends."""
        online_done = self.summary.num_online_env_steps >= self.config.num_online_env_steps
        return self.phase == "online" and online_done

    # ---- training

    def step(self) -> dict[str, Any]:
        """One training iteration; always evaluated where it ends a phase, if evaluation is configured at all."""
        phase, was_complete = self.phase, self.complete
        results = super().step()
        ended = self.phase != phase or (self.complete and not was_complete)
        # Parallel evaluation has used the weights from before this iteration.
        missing = EVALUATION_RESULTS not in results or self.config.evaluation_parallel_to_training
        if ended and missing and self.eval_env_runner_group is not None:
            results[EVALUATION_RESULTS] = self.evaluate()
        results["calql"] = self._calql_block(phase, results)
        results["done"] = self.complete
        return results

    def training_step(self) -> dict[str, Any]:
        """A share of the offline phase, or rounds of whole online episodes, each with the updates it earns."""
        self._means, self._seconds, self._steps = WeightedMeans(), 0.0, 0
        updates_before = self.update.num_updates
        if self._weights_to_load is not None:
            self.update.load_weights(checkpoint_weights(self._weights_to_load))
            self._weights_to_load = None
        if self.complete:
            logger.warning("both phases are complete: this iteration trains nothing")
        self.update.online = self.phase == "online"
        if not self.update.online:
            left = self.config.num_offline_updates - self.update.num_updates
            self._learn(min(left, self.config.min_train_updates_per_iteration))
        while self.update.online and self._steps < self.config.min_env_steps_per_iteration and not self.complete:
            self._collect()
            earned = math.floor(self.summary.num_online_env_steps * self.config.utd_ratio)
            self._learn(self.config.num_offline_updates + earned - self.update.num_updates)
        self._figures = self._means.result()
        if num_updates := self.update.num_updates - updates_before:
            self._figures["updates_per_second"] = num_updates / self._seconds
        return {DEFAULT_POLICY_ID: {LEARNER_STATS_KEY: dict(self._figures)}}

    def _learn(self, num_updates: int) -> None:
        replay, batch_size = self.local_replay_buffer.replay, self.config.train_batch_size
        online = self.update.online
        start = time.perf_counter()
        figures = self.update.run(lambda: replay.sample(batch_size, online=online), num_updates)
        self._seconds += time.perf_counter() - start
        self._means.add(figures, num_updates)
        self.get_policy().num_grad_updates += num_updates
        self._counters[NUM_ENV_STEPS_TRAINED] += num_updates * batch_size
        self._counters[NUM_AGENT_STEPS_TRAINED] += num_updates * batch_size

    def _collect(self) -> None:
        """Whole episodes, one per runner or more, into the replay."""
        start = time.perf_counter()
        runners = self.env_runner_group
        if runners.num_remote_workers() > 0:
            runners.sync_weights(policies=[DEFAULT_POLICY_ID], inference_only=True)
        batch = synchronous_parallel_sample(worker_set=runners)
        for part in split_episodes(batch):
            episode = episode_of(part)
            self.local_replay_buffer.add_episode(episode)
            self.summary.add_episode(len(episode), self._training_score(part))
        steps = batch.env_steps()
        self._steps += steps
        self._counters[NUM_ENV_STEPS_SAMPLED] += steps
        self._counters[NUM_AGENT_STEPS_SAMPLED] += steps
        # The mean pace of a phase is the harmonic one: steps over seconds, so weigh by seconds.
        seconds = time.perf_counter() - start
        self._means.add({"env_steps_per_second": steps / seconds}, seconds)

    def _training_score(self, part: SampleBatch) -> float:
        if self.config.score_range is None:
            return float(part[EPISODE_SUCCESS][0])
        return normalized_score(float(part[SampleBatch.REWARDS].sum()), self.config.score_range)

    def _calql_block(self, phase: str, results: Mapping[str, Any]) -> dict[str, Any]:
        scores: dict[str, float] = {}
        if EVALUATION_RESULTS in results:
            evaluation = results[EVALUATION_RESULTS].get(ENV_RUNNER_RESULTS, {})
            scores = evaluation_scores(evaluation, self.config.score_range)
            if "normalized_score" in scores:
                self.summary.add_evaluation(scores["normalized_score"], online=phase == "online")
        figures = {"phase": phase, "num_updates": self.update.num_updates, **self.summary.figures()}
        return {**figures, **self._figures, **scores}

    def _before_evaluate(self) -> None:
        """Every evaluation runs the same episode seeds, so that a curve shows the policy and not the draw."""
        if self.eval_env_runner_group is not None:
            self.eval_env_runner_group.foreach_env_runner(lambda runner: runner.restart_episodes())

    # ---- state

    def __getstate__(self) -> dict[str, Any]:
        """RLlib's state, with the run's summary and where every runner stands."""
        return {**super().__getstate__(), "calql": self._run_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes over a state; runners that had no counterpart start their own episodes."""
        super().__setstate__(state)
        self._weights_to_load = None
        run_state = state["calql"]
        self.summary = RunSummary.from_state(run_state["summary"])
        for name, group in self._runner_groups():
            states = run_state["runners"].get(name, {})

            def restore(runner: CalQLRolloutWorker, states: dict[int, dict[str, Any]] = states) -> None:
                if runner.worker_index in states:
                    runner.set_episode_state(states[runner.worker_index])

            group.foreach_env_runner(restore)

    def _run_state(self) -> dict[str, Any]:
        runners = {
            name: dict(group.foreach_env_runner(lambda runner: (runner.worker_index, runner.episode_state())))
            for name, group in self._runner_groups()
        }
        return {"summary": self.summary.get_state(), "runners": runners}

    def _runner_groups(self) -> list[tuple[str, EnvRunnerGroup]]:
        groups = [("training", self.env_runner_group), ("evaluation", self.eval_env_runner_group)]
        return [(name, group) for name, group in groups if group is not None]

    def _create_local_replay_buffer_if_necessary(self, config: AlgorithmConfig) -> None:
        """None yet: the replay is made once the spaces are known."""
        return None


def open_offline_data(config: CalQLConfig, observation_space: Any, action_space: Any) -> Transitions | None:
    """The config's dataset, checked against the spaces and prepared; None where there is none.

    Raises:
        DatasetError: missing, unreadable, invalid, or of other dimensions than the environment.
    """
    if config.input_ == "sampler":
        return None
    options = dict(config.input_config)
    normalized = options.pop("actions_normalized", False)
    if options and not isinstance(config.input_, str):
        raise ValueError(f"input_config {options} is for datasets opened by name or path, not for given ones")
    if isinstance(config.input_, Transitions):
        raw = config.input_
    elif callable(config.input_):
        raw = config.input_()
    else:
        raw = open_dataset(config.input_, **options)
    check_fits(raw, observation_space, action_space)
    bounds = {} if normalized else {"action_low": action_space.low, "action_high": action_space.high}
    prepared: Preparation = config.preparation(**bounds)
    return prepared(raw)


def check_capacity(config: CalQLConfig, env: Any) -> None:
    """Refuses (ValueError) a replay that an episode of the environment's time limit would not fit."""
    limit = getattr(getattr(env, "spec", None), "max_episode_steps", None)
    if limit is not None and limit > config.online_capacity and config.num_online_env_steps > 0:
        raise ValueError(
            f"online_capacity={config.online_capacity} cannot hold an episode of up to {limit} steps: enlarge it"
        )


def set_normalizer(update: CalQLUpdate, data: Transitions) -> None:
    """Mean and standard deviation of the offline observations; a constant entry keeps its scale."""
    std = data.observations.std(axis=0, dtype=np.float64)
    mean = data.observations.mean(axis=0, dtype=np.float64)
    update.obs_mean.copy_(torch.as_tensor(mean))
    update.obs_std.copy_(torch.as_tensor(np.where(std > 1e-6, std, 1.0)))


def checkpoint_weights(path: str) -> dict[str, np.ndarray]:
    """Networks, temperatures and normaliser of a CalQL checkpoint (networks know no other normaliser)."""
    folder = Path(path).expanduser().resolve()
    if not folder.is_dir():
        raise ValueError(f"load_weights_from={path!r} is not the folder of a checkpoint")
    policies = Policy.from_checkpoint(str(folder), policy_ids=[DEFAULT_POLICY_ID])
    policy = policies[DEFAULT_POLICY_ID] if isinstance(policies, dict) else policies
    return policy.get_weights()
