"""`PolicyStack`: the update lives in the local runner's policy, episodes come from rollout workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.policy.sample_batch import DEFAULT_POLICY_ID
from ray.rllib.utils.checkpoints import get_checkpoint_info
from ray.rllib.utils.metrics import (
    NUM_AGENT_STEPS_SAMPLED,
    NUM_AGENT_STEPS_TRAINED,
    NUM_ENV_STEPS_SAMPLED,
    NUM_ENV_STEPS_TRAINED,
)
from ray.rllib.utils.metrics.learner_info import LEARNER_STATS_KEY

from rllib_calql.core.graphs import DeviceSteps
from rllib_calql.core.update import Update
from rllib_calql.data.frames import as_stack
from rllib_calql.data.resident import ResidentReplay
from rllib_calql.data.transitions import Batch
from rllib_calql.envs.success import EPISODE_SUCCESS
from rllib_calql.replay_buffer import episode_of, split_episodes
from rllib_calql.runners import Runners
from rllib_calql.stack import Episode


class PolicyStack:
    """RLlib's Policy stack (`rllib_calql.stack.Stack` says what the methods do)."""

    def __init__(self, algorithm: Algorithm) -> None:
        self._algorithm = algorithm
        self._runners = Runners(algorithm, _sample)
        self._on_device: bool | None = None
        self._resident: tuple[ResidentReplay, DeviceSteps] | None = None

    @property
    def _policy(self) -> Any:
        return self._algorithm.get_policy()

    @property
    def update(self) -> Update:
        """The one update of this run."""
        return self._policy.update

    @property
    def spaces(self) -> tuple[Box, Box | Discrete]:
        return self._policy.observation_space, self._policy.action_space

    @property
    def env(self) -> Any:
        return self._algorithm.env_runner.env

    @property
    def num_updates(self) -> int:
        return self.update.num_updates

    def learn(self, sample: Callable[[], Batch], num_updates: int, online: bool) -> dict[str, float]:
        self.update.online = online
        if self._draws_on_device():
            resident, steps = self._resident or self._make_resident()
            resident.refresh(online=online)
            figures = steps.run(num_updates)
        else:
            figures = self.update.run(sample, num_updates)
        self._policy.num_grad_updates += num_updates
        num_rows = num_updates * self._algorithm.config.total_train_batch_size
        self._algorithm._counters[NUM_ENV_STEPS_TRAINED] += num_rows
        self._algorithm._counters[NUM_AGENT_STEPS_TRAINED] += num_rows
        return figures

    def _draws_on_device(self) -> bool:
        if self._on_device is None:
            chosen, device = self._algorithm.config.replay_device, self.update.device
            self._on_device = bool(chosen == "update")
            if chosen == "auto" and device.type == "cuda" and self.update.encoder is None:
                needed = ResidentReplay.bytes_needed(self._algorithm.local_replay_buffer.replay, self.update.dtype)
                self._on_device = bool(2 * needed <= torch.cuda.mem_get_info(device)[0])
        return self._on_device

    def _make_resident(self) -> tuple[ResidentReplay, DeviceSteps]:
        replay, size = self._algorithm.local_replay_buffer.replay, self._algorithm.config.total_train_batch_size
        resident = ResidentReplay(replay, size, self.update.device, self.update.dtype)
        self._resident = resident, DeviceSteps(self.update, resident)
        return self._resident

    def request(self, random_actions: bool = False) -> None:
        self._algorithm.env_runner_group.sync_weights(policies=[DEFAULT_POLICY_ID], inference_only=True)
        self._runners.ask(random_actions)

    @property
    def requested(self) -> bool:
        return self._runners.num_asked > 0

    def collect(self, random_actions: bool = False) -> list[Episode]:
        if self._runners.remote and not self.requested:
            self.request(random_actions)
        results = self._runners.results(random_actions)
        for _, metrics in results:  # RLlib asks the local runner for them
            self._algorithm.env_runner.add_metrics(metrics)
        parts = [part for batch, _ in results for part in split_episodes(batch)]
        steps = sum(part.env_steps() for part in parts)
        self._algorithm._counters[NUM_ENV_STEPS_SAMPLED] += steps
        self._algorithm._counters[NUM_AGENT_STEPS_SAMPLED] += steps
        return [Episode(episode_of(part), float(part[EPISODE_SUCCESS][0])) for part in parts]

    def training_results(self, figures: Mapping[str, float]) -> dict[str, Any]:
        return {DEFAULT_POLICY_ID: {LEARNER_STATS_KEY: dict(figures)}}

    def save(self, folder: Path) -> None:
        Algorithm.save_checkpoint(self._algorithm, str(folder))

    def load(self, folder: Path) -> None:
        state = Algorithm._checkpoint_info_to_algorithm_state(get_checkpoint_info(str(folder)))
        Algorithm.__setstate__(self._algorithm, state)
        self._resident = None  # recorded steps hold the optimiser's former tensors

    def load_update(self, state: Mapping[str, Any]) -> None:
        self.update.set_state(state)
        self._resident = None
        self._policy.num_grad_updates = self.update.num_updates
        for runners in (self._algorithm.env_runner_group, self._algorithm.eval_env_runner_group):
            if runners is not None:
                runners.sync_weights(
                    policies=[DEFAULT_POLICY_ID], from_worker_or_learner_group=self._algorithm.env_runner
                )

    def weights(self) -> dict[str, np.ndarray]:
        return self.update.weights()

    def act(self, observation: Any, explore: bool) -> np.ndarray:
        if self.update.encoder is not None:
            observation = as_stack(observation, self.spaces[0])
        return Algorithm.compute_single_action(self._algorithm, observation, explore=explore)

    def load_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        self.update.load_weights(weights)


def _sample(runner: Any, random_actions: bool) -> tuple[Any, list[Any]]:
    runner.policy_map[DEFAULT_POLICY_ID].random_actions = random_actions
    return runner.sample(), runner.get_metrics()
