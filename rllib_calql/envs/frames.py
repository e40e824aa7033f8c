"""Environments with images as the networks see them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium.wrappers import FrameStackObservation, TransformObservation

from rllib_calql.data.frames import as_frame, frames_space, has_images


class StackedFrames(FrameStackObservation):
    """Observations with images as the last k frames, (k, P) uint8; at first the first frame k times."""

    def __init__(self, env: gym.Env, frame_stack: int) -> None:
        space = frames_space(env.observation_space, frame_stack)
        one = gym.spaces.Box(0, 255, space.shape[1:], space.dtype)
        super().__init__(TransformObservation(env, as_frame, one), frame_stack)
        self.observation_space = space


def with_frames(env: Any, frame_stack: int) -> Any:
    """The environment, its observations as frames where they have images.

    Raises:
        ValueError: see `_check_key_order`.
    """
    _check_key_order(env.observation_space)
    return StackedFrames(env, frame_stack) if has_images(env.observation_space) else env


def _check_key_order(space: gym.Space) -> None:
    """Refuses (ValueError) Dicts whose keys are not in sorted order.

    gymnasium flattens them in the space's order and RLlib in sorted order: offline rows and online ones would be
    of the same width, and mean different things.
    """
    if isinstance(space, gym.spaces.Dict):
        if (keys := list(space.spaces)) != sorted(keys):
            raise ValueError(
                f"the environment's observations are a Dict with the keys {keys}, which are not sorted: wrap it "
                "in gymnasium.wrappers.FlattenObservation, or sort its keys"
            )
        for inner in space.spaces.values():
            _check_key_order(inner)
    elif isinstance(space, gym.spaces.Tuple):
        for inner in space.spaces:
            _check_key_order(inner)
