"""`LearnerStack`: the update lives in the learner group, episodes come from env runners."""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import gymnasium as gym
import numpy as np
import ray
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import SyncVectorEnv
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.policy.sample_batch import MultiAgentBatch
from ray.rllib.utils.checkpoints import Checkpointable
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, LEARNER_RESULTS

from rllib_calql.checkpoint import saved_update
from rllib_calql.core.update import Update
from rllib_calql.data.frames import as_stack, frame_layout
from rllib_calql.data.transitions import Batch
from rllib_calql.data.whole import CheckpointError
from rllib_calql.envs.creation import observation_space_of
from rllib_calql.metrics import WeightedMeans
from rllib_calql.replay_buffer import to_sample_batch
from rllib_calql.runners import Runners
from rllib_calql.stack import Episode

# Minibatches that one call hands to the learners: enough for the call to cost nothing beside its updates.
UPDATES_PER_CALL = 50


class LearnerStack:
    """RLlib's new API stack (`rllib_calql.stack.Stack` says what the methods do)."""

    def __init__(self, algorithm: Algorithm) -> None:
        self._algorithm = algorithm
        self._learners = algorithm.learner_group
        self._runners = Runners(algorithm, _collect)
        if self._learners.is_remote:
            # Before Ray ends: RLlib's own clean-up would start another Ray while the interpreter exits, and hang.
            atexit.register(_shut_down, weakref.ref(self._learners))
        self._refresh()

    @property
    def update(self) -> Update:
        """The update of this process (ValueError: with remote learners there is none)."""
        if self._learners.is_remote:
            raise ValueError("the update is in the remote learners: use algo.learner_group.foreach_learner(...)")
        return self._learners._learner.calql

    @property
    def spaces(self) -> tuple[Box, Box | Discrete]:
        return self._of_a_learner(
            lambda learner: (
                learner.module[DEFAULT_MODULE_ID].observation_space,
                learner.module[DEFAULT_MODULE_ID].action_space,
            )
        )

    @property
    def env(self) -> Any:
        runner = self._algorithm.env_runner
        vector = None if runner is None or runner.env is None else runner.env.unwrapped
        return vector.envs[0] if isinstance(vector, SyncVectorEnv) else None

    @property
    def num_updates(self) -> int:
        return self._num_updates

    def _refresh(self) -> None:
        """Reads what is remembered here of the learners' state, which has been set from outside."""
        self._num_updates = self._of_a_learner(lambda learner: learner.calql.num_updates)

    def learn(self, sample: Callable[[], Batch], num_updates: int, online: bool) -> dict[str, float]:
        means = WeightedMeans()
        for done in range(0, num_updates, UPDATES_PER_CALL):
            count = min(UPDATES_PER_CALL, num_updates - done)
            means.add(self._learn([sample() for _ in range(count)], online), count)
        self._num_updates += num_updates
        return means.result()

    def _learn(self, minibatches: list[Batch], online: bool) -> dict[str, float]:
        """The means over learners; each learner gets every n-th row of every minibatch."""
        if self._learners.is_remote and self._learners._worker_manager.num_healthy_actors() < len(self._learners):
            raise RuntimeError("a learner has died: go on from the last checkpoint")  # others would wait for it
        num_learners = max(1, len(self._learners))
        shards = [
            _multi_agent(
                {
                    name: np.concatenate([batch[name][index::num_learners] for batch in minibatches])  # type: ignore[literal-required]
                    for name in minibatches[0]
                }
            )
            for index in range(num_learners)
        ]
        results = self._learners.update(
            **({"batches": shards} if self._learners.is_remote else {"batch": shards[0]}),
            minibatch_size=len(minibatches[0]["rewards"]) // num_learners,
            online=online,
        )
        figures = WeightedMeans()
        for result in results:
            of_learner = {name: float(stats.peek()) for name, stats in result[DEFAULT_MODULE_ID].items()}
            figures.add(of_learner, 1.0)
        self._algorithm.metrics.aggregate(results, key=LEARNER_RESULTS)
        return figures.result()

    def request(self, random_actions: bool = False) -> None:
        self._send_weights()
        self._runners.ask(random_actions)

    @property
    def requested(self) -> bool:
        return self._runners.num_asked > 0

    def collect(self, random_actions: bool = False) -> list[Episode]:
        if not self.requested:
            self._send_weights()
        results = self._runners.results(random_actions)
        self._algorithm.metrics.aggregate([metrics for _, metrics in results], key=ENV_RUNNER_RESULTS)
        return [episode for episodes, _ in results for episode in episodes]

    def _send_weights(self) -> None:
        """The actor's present weights to every runner that collects; remote ones take them before they go on."""
        state = self._learners.get_state(
            components=f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}", inference_only=True
        )[COMPONENT_LEARNER]
        if (local := self._algorithm.env_runner) is not None:
            local.set_state(state)  # RLlib brings back runners that have died with this one's weights
        if not self._runners.remote:
            return
        reference = ray.put(state)
        self._algorithm.env_runner_group.foreach_env_runner(
            lambda runner: runner.set_state(ray.get(reference)), local_env_runner=False, timeout_seconds=0.0
        )

    def training_results(self, figures: Mapping[str, float]) -> None:
        """None: RLlib takes them from its metrics logger."""

    def save(self, folder: Path) -> None:
        try:
            Checkpointable.save_to_path(self._algorithm, str(folder))
            if self._learners.is_remote:
                saved_update(folder)  # RLlib passes over the errors of remote learners that write
        except (IndexError, EOFError, FileNotFoundError, UnpicklingError) as error:
            # RLlib lets learners that could not write take no further part, but they can still learn.
            self._learners.foreach_learner(lambda learner: None, healthy_only=False, mark_healthy=True)
            raise CheckpointError(
                "no learner has written its part of the checkpoint: there is no room where they run, or they have "
                "died (then go on from the last checkpoint)"
            ) from error

    def load(self, folder: Path) -> None:
        Algorithm.restore_from_path(self._algorithm, str(folder))
        self._refresh()

    def load_update(self, state: Mapping[str, Any]) -> None:
        self._of_a_learner(lambda learner: learner.calql.set_state(state))
        self._refresh()

    def weights(self) -> dict[str, np.ndarray]:
        return self._of_a_learner(lambda learner: learner.calql.weights())

    def load_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        self._of_a_learner(lambda learner: learner.calql.load_weights(weights))

    def act(self, observation: Any, explore: bool) -> np.ndarray:
        if frame_layout(space := self.spaces[0]) is not None:
            observation = as_stack(observation, space)
        elif not isinstance(observation, np.ndarray):
            observation = gym.spaces.flatten(self._given_space, observation)
        return self._of_a_learner(lambda learner: learner.module[DEFAULT_MODULE_ID].act(observation, explore))

    @cached_property
    def _given_space(self) -> gym.Space:
        """The environment's observations, before they are flattened."""
        config = self._algorithm.config
        return observation_space_of(config.env, config.env_config) if config.env else self.spaces[0]

    def _of_a_learner(self, function: Callable[[Any], Any]) -> Any:
        """Calls the function with every learner; its result for the first."""
        results = [result.get() for result in self._learners.foreach_learner(function)]
        for result in results:
            if isinstance(result, Exception):
                raise result
        return results[0]


def _multi_agent(batch: Mapping[str, np.ndarray]) -> MultiAgentBatch:
    rows = to_sample_batch(batch)
    return MultiAgentBatch({DEFAULT_MODULE_ID: rows}, rows.count)


def _shut_down(learners: Callable[[], Any]) -> None:
    if (group := learners()) is not None and not group._is_shut_down:
        group.shutdown()


def _collect(runner: Any, random_actions: bool) -> tuple[list[Episode], dict[str, Any]]:
    runner.module.random_actions = random_actions
    return runner.collect()
