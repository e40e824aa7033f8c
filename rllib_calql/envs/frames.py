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
    """The environment, its observations as frames where they have images."""
    return StackedFrames(env, frame_stack) if has_images(env.observation_space) else env
