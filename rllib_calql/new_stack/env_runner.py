"""The env runner: RLlib's own, whose episodes are functions of their seeds and know their success."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from gymnasium.wrappers.vector import DictInfoToList
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.env.env_context import EnvContext
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_calql.data import Transitions
from rllib_calql.envs.creation import env_creator
from rllib_calql.envs.frames import with_frames
from rllib_calql.envs.success import EPISODE_SUCCESS, SuccessWrapper
from rllib_calql.metrics import EPISODE_RETURN_SUM, NUM_SUCCESSES
from rllib_calql.runners import episode_seeds, other_entropy
from rllib_calql.stack import Episode

EPISODE_NUMBER, EPISODE_SEED = "episode_number", "episode_seed"
# Steps per environment between two looks at whether enough episodes of several environments have ended.
STEPS_PER_LOOK = 10


class CalQLEnvRunner(SingleAgentEnvRunner):
    """Samples whole episodes; number i of a runner depends on (seed, runner, i) and the policy alone.

    With one environment per runner, every sample begins with a reset under the present weights, so a run that
    is restored goes on exactly as it would have. Evaluation runners do the same with their own seed, from the
    first episode again at every evaluation. Of n environments, environment k plays the episodes k, k + n,
    k + 2n, ..., and goes on with the one it is in at the next sample.
    """

    env: Any

    def __init__(self, *, config: AlgorithmConfig, **kwargs: Any) -> None:
        entropy: Any = np.random.SeedSequence().entropy
        if config.seed is not None:  # as the Policy stack's runners
            entropy = config.seed + (kwargs.get("worker_index") or 0) + 10_000 * config.in_evaluation
        self._count_from(entropy, 0, config.num_envs_per_env_runner)
        super().__init__(config=config, **kwargs)

    def make_env(self) -> None:
        """Creates the environments; those that replace broken ones go on with the next episodes."""
        if self.env is not None:
            self.env.close()
        num_envs = self.config.num_envs_per_env_runner
        context = EnvContext(
            self.config.env_config,
            worker_index=self.worker_index or 0,
            num_workers=self.num_workers,
            remote=self.config.remote_worker_envs,
        )
        factories = [
            partial(
                EpisodeEnv,
                env_creator(self.config.env),
                context.copy_with_overrides(vector_index=index),
                self._entropy,
                next_episode,
                num_envs,
                self.config.frame_stack,
            )
            for index, next_episode in enumerate(self._next_episodes)
        ]
        asynchronous = gym.VectorizeMode(self.config.gym_env_vectorize_mode) == gym.VectorizeMode.ASYNC
        vector = AsyncVectorEnv(factories) if asynchronous else SyncVectorEnv(factories)
        self.env = DictInfoToList(vector)
        self.num_envs = num_envs
        self._needs_initial_reset = True
        make_callback(
            "on_environment_created",
            callbacks_objects=self._callbacks,
            callbacks_functions=self.config.callbacks_on_environment_created,
            kwargs={
                "env_runner": self,
                "metrics_logger": self.metrics,
                "env": self.env.unwrapped,
                "env_context": context,
            },
        )

    def collect(self) -> tuple[list[Episode], dict[str, Any]]:
        """Whole episodes, one per environment or more, and RLlib's metrics of them."""
        episodes = [[episode] for episode in self.sample()] if self.num_envs == 1 else self._sample_on()
        return [_joined(parts) for parts in episodes], self.get_metrics()

    def _sample_on(self) -> list[list[SingleAgentEpisode]]:
        """Episodes of several environments, in parts; those that have not ended go on at the next call.

        (RLlib's own way of sampling whole episodes throws away what has not ended.)
        """
        finished: list[list[SingleAgentEpisode]] = []
        while len(finished) < self.num_envs:
            for part in self.sample(num_timesteps=STEPS_PER_LOOK * self.num_envs):
                parts = [*self._begun.pop(part.id_, []), part]
                if part.is_done:
                    finished.append(parts)
                else:
                    self._begun[part.id_] = parts
        return finished

    def restart_episodes(self) -> None:
        """Counts episodes from the first again."""
        self.set_episode_state({"entropy": self._entropy, "next_episode": 0})

    def episode_state(self) -> dict[str, int]:
        """Where this runner stands: its entropy and its next episode."""
        return {"entropy": self._entropy, "next_episode": 1 + max(self._next_episodes) - len(self._next_episodes)}

    def set_episode_state(self, state: dict[str, int]) -> None:
        """Goes on where `episode_state` was taken."""
        self._count_from(state["entropy"], state["next_episode"], len(self._next_episodes))
        self._needs_initial_reset = True
        if self.env is not None:
            self.env.unwrapped.set_attr("entropy", self._entropy)
            self.env.unwrapped.set_attr("next_episode", self._next_episodes)

    def begin_other_episodes(self, *numbers: int) -> None:
        """Begins episodes that neither this runner nor the one it replaces has had; others for other numbers."""
        self.set_episode_state({"entropy": other_entropy(self._entropy, *numbers), "next_episode": 0})

    def _count_from(self, entropy: Any, next_episode: int, num_envs: int) -> None:
        self._entropy = int(entropy)
        self._next_episodes = [next_episode + index for index in range(num_envs)]
        self._begun: dict[str, list[SingleAgentEpisode]] = {}  # parts of episodes that have not ended

    def _make_on_episode_callback(self, which: str, idx: int, episodes: Sequence[SingleAgentEpisode]) -> None:
        if which == "on_episode_start":
            info = episodes[idx].get_infos(0)
            self._next_episodes[idx] = int(info[EPISODE_NUMBER]) + self.num_envs
            if self.module is not None:
                self.module.begin_episode(idx, int(info[EPISODE_SEED]))
        super()._make_on_episode_callback(which, idx, episodes)

    def get_metrics(self) -> dict[str, Any]:
        """RLlib's metrics, with sums of returns and successes (RLlib's means weigh runners, not episodes)."""
        for episode in self._done_episodes_for_metrics:
            parts = [*self._ongoing_episodes_for_metrics.get(episode.id_, []), episode]
            self.metrics.log_value(EPISODE_RETURN_SUM, sum(part.get_return() for part in parts), reduce="sum")
            self.metrics.log_value(NUM_SUCCESSES, _success(episode), reduce="sum")
        return super().get_metrics()


class EpisodeEnv(SuccessWrapper):
    """An environment that resets with the seeds of its own episodes, and names them in the reset's info."""

    def __init__(
        self,
        create: Callable[[EnvContext], Any],
        context: EnvContext,
        entropy: int,
        next_episode: int,
        stride: int,
        frame_stack: int,
    ) -> None:
        created = create(context)
        if not isinstance(created, gym.Env):
            raise ValueError(f"CalQL needs a single-agent gymnasium.Env, and the environment is a {type(created)}")
        created = with_frames(created, frame_stack)
        if not isinstance(created.observation_space, gym.spaces.Box):
            created = gym.wrappers.FlattenObservation(created)
        super().__init__(created)
        self.entropy, self.next_episode, self._stride = entropy, next_episode, stride

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        number = self.next_episode
        self.next_episode += self._stride
        begin, explore = episode_seeds(self.entropy, number)
        observation, info = super().reset(seed=begin, options=options)
        return observation, {**info, EPISODE_NUMBER: number, EPISODE_SEED: explore}


def _success(episode: SingleAgentEpisode) -> float:
    return float((episode.get_infos(-1) or {}).get(EPISODE_SUCCESS, 0.0))


def _joined(parts: Sequence[SingleAgentEpisode]) -> Episode:
    """One episode from its consecutive parts, each of which begins with the observation the last ended with."""
    observations = [np.asarray(part.get_observations()) for part in parts]
    rows = Transitions.from_episode(
        np.concatenate([*(part[:-1] for part in observations[:-1]), observations[-1]]),
        np.concatenate([np.asarray(part.get_actions()) for part in parts]),
        np.concatenate([np.asarray(part.get_rewards()) for part in parts]),
        parts[-1].is_terminated,
    )
    return Episode(rows, _success(parts[-1]))
