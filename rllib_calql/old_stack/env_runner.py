"""The env runner: RLlib's own sampler, whose episodes are functions of their seeds and know their success."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from ray.rllib.evaluation.rollout_worker import RolloutWorker
from ray.rllib.policy.sample_batch import DEFAULT_POLICY_ID

from rllib_calql.old_stack.policy import EPISODE_SUCCESS


class CalQLRolloutWorker(RolloutWorker):
    """Samples whole episodes from the environment whatever `input_` says: the dataset is the algorithm's.

    Episode number i of a runner depends on (seed, runner, i) and the policy alone, so a run that is restored
    goes on exactly as it would have. Evaluation runners do the same with their own seed, from the first again at
    every evaluation.
    """

    def __init__(self, *, env_creator: Callable[[Any], Any], **kwargs: Any) -> None:
        self.constructed = False
        super().__init__(env_creator=partial(_create_env, self, env_creator), **kwargs)
        entropy = np.random.SeedSequence().entropy if self.seed is None else self.seed
        self._episode_entropy = int(entropy)  # type: ignore[arg-type]
        self._next_episode = 0
        self._begun: int | None = None  # the episode that RLlib's sampler is in
        # Of a restored run: the episode it was in, and that episode's first action.
        self._to_repeat: tuple[int, np.ndarray | None] | None = None
        self.constructed = True

    def begin_episode(self) -> int:
        """Starts the exploration noise of the next episode; returns the seed its environment is reset with."""
        first_action = None
        if self._to_repeat is not None:
            self._begun, first_action = self._to_repeat
            self._to_repeat = None
        else:
            self._begun = self._next_episode
            self._next_episode += 1
        seeds = np.random.SeedSequence([self._episode_entropy, self._begun]).generate_state(2)
        self.policy_map[DEFAULT_POLICY_ID].begin_episode(int(seeds[1]), first_action)
        return int(seeds[0] >> 1)  # some environments take 31 bits

    def restart_episodes(self) -> None:
        """Counts episodes from the first again; one that has begun is finished before."""
        self._next_episode = 0

    def episode_state(self) -> dict[str, Any]:
        """Where this runner stands; RLlib's sampler has always begun the next episode already."""
        to_repeat = self._to_repeat
        if to_repeat is None and self._begun is not None:
            to_repeat = (self._begun, self.policy_map[DEFAULT_POLICY_ID].first_action)
        return {"entropy": self._episode_entropy, "next_episode": self._next_episode, "to_repeat": to_repeat}

    def set_episode_state(self, state: dict[str, Any]) -> None:
        """Goes on where `episode_state` was taken; before the first sample of this runner."""
        self._episode_entropy = state["entropy"]
        self._next_episode = state["next_episode"]
        self._to_repeat = state["to_repeat"]

    def get_weights(self, policies: Any = None, inference_only: bool = False) -> dict[str, Any]:
        """Weights by policy; `inference_only` leaves the critics out."""
        if inference_only:
            names = list(self.policy_map.keys()) if policies is None else policies
            return {name: self.policy_map[name].inference_weights() for name in names}
        return super().get_weights(policies)

    def _get_input_creator_from_config(self) -> Callable[[Any], Any]:
        return lambda context: context.default_sampler_input()


class EpisodeWrapper(gym.Wrapper):
    """Resets with the runner's seeds; the last step's info says whether the episode succeeded.

    Success is `info["success"]` at any step, else termination with a positive reward.
    """

    def __init__(self, env: gym.Env, runner: CalQLRolloutWorker) -> None:
        super().__init__(env)
        self._runner = runner
        self._succeeded = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        self._succeeded = False
        if self._runner.constructed:  # RLlib also resets while it builds the runner: no episode begins there
            seed = self._runner.begin_episode()
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        if "success" in info:
            self._succeeded |= bool(info["success"])
        elif terminated:
            self._succeeded |= float(reward) > 0.0
        if terminated or truncated:
            info = {**info, EPISODE_SUCCESS: self._succeeded}
        return observation, reward, terminated, truncated, info


def _create_env(runner: CalQLRolloutWorker, env_creator: Callable[[Any], Any], context: Any) -> Any:
    env = env_creator(context)
    if env is None:  # offline only
        return None
    if not isinstance(env, gym.Env):
        raise ValueError(f"CalQL needs a single-agent gymnasium.Env, and the environment is a {type(env)}")
    return EpisodeWrapper(env, runner)
