"""Whether an episode succeeded, told in its last step's info."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

EPISODE_SUCCESS = "episode_success"


class SuccessWrapper(gym.Wrapper):
    """Adds `episode_success` to the info of an episode's last step.

    Success is `info["success"]` at any step, else termination with a positive reward.
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self._succeeded = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        self._succeeded = False
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
