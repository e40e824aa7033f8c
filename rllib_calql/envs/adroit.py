"""The binary Adroit tasks: gymnasium-robotics' hand with the rewards and episode ends of Cal-QL's experiments.

Every step costs 1, a successful one nothing, and ends the episode. What counts as success, observations, actions
and starts are gymnasium-robotics' `AdroitHandPen-v1`, `AdroitHandDoor-v1` and `AdroitHandRelocate-v1`, whose
thresholds are those of the original `pen-binary-v0`, `door-binary-v0` and `relocate-binary-v0`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rllib_calql.envs.robotics import robotics

_Pen: Any = robotics("adroit_hand:AdroitHandPenEnv")
_Door: Any = robotics("adroit_hand:AdroitHandDoorEnv")
_Relocate: Any = robotics("adroit_hand:AdroitHandRelocateEnv")


class Binary:
    """Comes before one of gymnasium-robotics' hands, whose own rewards it replaces."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """As gymnasium-robotics'; `options={"initial_state_dict": ...}` sets the simulation's state."""
        observation, _ = super().reset(seed=seed, options=options)  # type: ignore[misc]
        return observation, {"success": False}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One control step of 5 simulation steps; reward 0 and the end at success, -1 otherwise."""
        observation, _, _, _, info = super().step(action)  # type: ignore[misc]
        success = bool(info["success"])
        return observation, float(success) - 1.0, success, False, {"success": success}


class Pen(Binary, _Pen):
    """Turn a pen in the hand: 45 numbers, 24 joints. Within 7.5 cm, and cosine above 0.95 to the target's pose."""


class Door(Binary, _Door):
    """Open a door by its latch: 39 numbers, 28 joints. Success is a hinge angle of 1.35 rad or more."""


class Relocate(Binary, _Relocate):
    """Carry a ball to a place in the air: 39 numbers, 30 joints. Success is to be within 10 cm of it."""
