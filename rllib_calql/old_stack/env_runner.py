"""The env runner: RLlib's own sampler, whose episodes are functions of their seeds and know their success."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from ray.rllib.env.vector_env import VectorEnvWrapper
from ray.rllib.evaluation.rollout_worker import RolloutWorker
from ray.rllib.evaluation.sampler import SyncSampler
from ray.rllib.policy.sample_batch import DEFAULT_POLICY_ID

from rllib_calql.envs.frames import with_frames
from rllib_calql.envs.success import SuccessWrapper
from rllib_calql.runners import episode_seeds, other_entropy


class CalQLRolloutWorker(RolloutWorker):
    """Samples whole episodes from the environment whatever `input_` says: the dataset is the algorithm's.

    With one environment per runner, every sample begins with a reset under the present weights, and episode
    number i of a runner depends on (seed, runner, i) and the policy alone: a run that is restored goes on exactly
    as it would have. Evaluation runners do the same with their own seed, from the first episode again at every
    evaluation. Several environments per runner go on with the episodes they are in, as RLlib's sampler does.
    """

    async_env: Any
    sampler: Any

    def __init__(self, *, env_creator: Callable[[Any], Any], **kwargs: Any) -> None:
        self.constructed = False
        frame_stack = kwargs["config"].frame_stack
        super().__init__(env_creator=partial(_create_env, self, env_creator, frame_stack), **kwargs)
        entropy = np.random.SeedSequence().entropy if self.seed is None else self.seed
        self._episode_entropy = int(entropy)  # type: ignore[arg-type]
        self._next_episode = 0
        self._pending = False  # RLlib's sampler has begun an episode that no sample holds yet
        self._kept_metrics: list[Any] = []  # of samplers that have been replaced
        self.constructed = True

    def begin_episode(self) -> int:
        """Starts the exploration noise of the next episode; returns the seed its environment is reset with."""
        reset, explore = episode_seeds(self._episode_entropy, self._next_episode)
        self._next_episode += 1
        self._pending = True
        self.policy_map[DEFAULT_POLICY_ID].begin_episode(explore)
        return reset

    def sample(self, **kwargs: Any) -> Any:
        """Whole episodes, one per environment or more."""
        self._drop_pending_episode()
        return super().sample(**kwargs)

    def get_metrics(self) -> list[Any]:
        """Metrics of the episodes since the last call."""
        kept, self._kept_metrics = self._kept_metrics, []
        return kept + super().get_metrics()

    def add_metrics(self, metrics: list[Any]) -> None:
        """Takes other runners' metrics, to be given with its own."""
        self._kept_metrics += metrics

    def restart_episodes(self) -> None:
        """Counts episodes from the first again."""
        self._drop_episodes()
        self._next_episode = 0

    def _drop_pending_episode(self) -> None:
        """Undoes the sampler's beginning of the next episode, whose first action came from the old weights."""
        if self._pending and self.config.num_envs_per_env_runner == 1:
            self._next_episode -= 1
            self._kept_metrics += self.sampler.get_metrics()
            self._drop_episodes()

    def _drop_episodes(self) -> None:
        """Every environment begins another episode at the next sample; those under way come to nothing."""
        if not (self._pending and isinstance(self.async_env, VectorEnvWrapper)):
            return
        self._pending = False
        self.async_env = VectorEnvWrapper(self.async_env.vector_env)
        whole = self.config.batch_mode == "complete_episodes"  # not where evaluations count steps
        self.sampler = SyncSampler(
            worker=self,
            env=self.async_env,
            clip_rewards=False,
            rollout_fragment_length=float("inf") if whole else self.total_rollout_fragment_length,
            count_steps_by=self.config.count_steps_by,
            callbacks=self.callbacks,
            multiple_episodes_in_batch=not whole,
            normalize_actions=self.config.normalize_actions,
            clip_actions=self.config.clip_actions,
            observation_fn=self.config.observation_fn,
            sample_collector_class=self.config.sample_collector,
            render=self.config.render_env,
        )
        self.input_reader = self.sampler

    def episode_state(self) -> dict[str, int]:
        """Where this runner stands: its entropy and its next episode."""
        return {"entropy": self._episode_entropy, "next_episode": self._next_episode - self._pending}

    def set_episode_state(self, state: dict[str, int]) -> None:
        """Goes on where `episode_state` was taken."""
        self._drop_episodes()
        self._episode_entropy, self._next_episode = state["entropy"], state["next_episode"]

    def begin_other_episodes(self, *numbers: int) -> None:
        """Begins episodes that neither this runner nor the one it replaces has had; others for other numbers."""
        self.set_episode_state({"entropy": other_entropy(self._episode_entropy, *numbers), "next_episode": 0})

    def get_weights(self, policies: Any = None, inference_only: bool = False) -> dict[str, Any]:
        """Weights by policy; `inference_only` leaves the critics out."""
        if inference_only:
            names = list(self.policy_map.keys()) if policies is None else policies
            return {name: self.policy_map[name].inference_weights() for name in names}
        return super().get_weights(policies)

    def _get_input_creator_from_config(self) -> Callable[[Any], Any]:
        return lambda context: context.default_sampler_input()


class EpisodeWrapper(SuccessWrapper):
    """Resets with the runner's seeds, and tells whether an episode succeeded."""

    def __init__(self, env: gym.Env, runner: CalQLRolloutWorker) -> None:
        super().__init__(env)
        self._runner = runner

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        if self._runner.constructed:  # RLlib also resets while it builds the runner: no episode begins there
            seed = self._runner.begin_episode()
        return super().reset(seed=seed, options=options)


def _create_env(
    runner: CalQLRolloutWorker, env_creator: Callable[[Any], Any], frame_stack: int, context: Any
) -> Any:
    env = env_creator(context)
    if env is None:  # offline only
        return None
    if not isinstance(env, gym.Env):
        raise ValueError(f"CalQL needs a single-agent gymnasium.Env, and the environment is a {type(env)}")
    return EpisodeWrapper(with_frames(env, frame_stack), runner)
