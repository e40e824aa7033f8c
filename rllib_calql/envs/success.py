"""How far an episode succeeded, told in its last step's info."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

EPISODE_SUCCESS = "episode_success"


class SuccessWrapper(gym.Wrapper):
    """Adds `episode_success` to the info of an episode's last step.

    Success is the highest `info["success"]` of any step, True or False or the share of the task that is solved,
    from 0 to 1; where no step has it, termination with a positive reward.
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self._success = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        self._success = 0.0
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        if "success" in info:
            self._success = max(self._success, float(info["success"]))
        elif terminated:
            self._success = max(self._success, float(reward > 0.0))
        if terminated or truncated:
            info = {**info, EPISODE_SUCCESS: self._success}
        return observation, reward, terminated, truncated, info
