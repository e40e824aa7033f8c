"""Frames stored once and stacked when they are drawn, against gymnasium's own stacking of the same episodes."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rllib_calql.data import DatasetError, Preparation, Transitions, check_fits
from rllib_calql.data.frames import as_stack, frame_layout, frames_space, has_images
from rllib_calql.data.prepare import require_trainable
from rllib_calql.envs.frames import StackedFrames
from rllib_calql.replay_buffer import CalQLReplayBuffer

IMAGE = gym.spaces.Box(0, 255, (4, 5, 3), np.uint8)
SPEED = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
BOTH = gym.spaces.Dict({"image": IMAGE, "speed": SPEED})
ACTION = gym.spaces.Box(-1, 1, (1,), np.float32)
LENGTHS = [3, 1, 6, 2, 4]


class Recording(gym.Env[Any, Any]):
    """Plays given observations, episode after episode."""

    def __init__(self, space: gym.Space, episodes: list[list[Any]]) -> None:
        self.observation_space, self.action_space = space, ACTION
        self.episodes = iter(episodes)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        self.steps = iter(next(self.episodes))
        return next(self.steps), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        return next(self.steps), 1.0, False, False, {}


def episodes_of(space: gym.Space) -> list[list[Any]]:
    space.seed(0)
    return [[space.sample() for _ in range(length + 1)] for length in LENGTHS]


def seen(space: gym.Space, frame_stack: int) -> list[np.ndarray]:
    """What an agent sees, step by step: (T + 1, k, P) of each episode."""
    env = StackedFrames(Recording(space, episodes_of(space)), frame_stack)
    observed = []
    for length in LENGTHS:
        steps = [env.reset()[0], *(env.step(None)[0] for _ in range(length))]
        assert all(step in env.observation_space for step in steps)
        observed.append(np.stack(steps))
    return observed


def columns(space: gym.Space, steps: list[Any]) -> Any:
    if isinstance(space, gym.spaces.Dict):
        return {name: np.stack([step[name] for step in steps]) for name in space}
    return np.stack(steps)


def logged(space: gym.Space) -> Transitions:
    parts = [
        Transitions.from_episode(columns(space, steps), np.zeros((n, 1), np.float32), np.ones(n), n % 2 == 0)
        for n, steps in zip(LENGTHS, episodes_of(space), strict=True)
    ]
    return Preparation()(Transitions.concatenate(parts))


@pytest.mark.parametrize("frame_stack", [1, 3])
@pytest.mark.parametrize("space", [IMAGE, BOTH], ids=["image", "image_and_vector"])
def test_stacking_at_sampling_is_stacking_in_the_environment(space: gym.Space, frame_stack: int) -> None:
    observed = seen(space, frame_stack)
    before, after = (np.concatenate([steps[rows] for steps in observed]) for rows in (slice(-1), slice(1, None)))
    data = logged(space).changed(frame_stack=frame_stack)
    rows = np.random.default_rng(0).permutation(len(data))
    batch = data.take(rows)
    assert batch["observations"].dtype == np.uint8
    np.testing.assert_array_equal(batch["observations"], before[rows])
    np.testing.assert_array_equal(batch["next_observations"], after[rows])


@pytest.mark.parametrize("space", [IMAGE, BOTH], ids=["image", "image_and_vector"])
def test_online_episodes_are_stored_frame_by_frame(space: gym.Space) -> None:
    observed = seen(space, 3)
    frame_bytes = observed[0].shape[-1]
    buffer = CalQLReplayBuffer(frame_bytes, 1, capacity=10, frame_stack=3)
    for number, steps in enumerate(observed):
        n = len(steps) - 1
        buffer.add_episode(Transitions.from_episode(steps, np.zeros((n, 1)), np.full(n, number), False))
    rows = buffer.replay.online.rows
    assert rows is not None
    kept = observed[-2:]  # [3, 1, 6] have made room for [2, 4]
    assert len(rows) == 6
    assert rows.observations.nbytes == 6 * frame_bytes  # each frame once, not three times
    batch = rows.take(np.arange(6))
    np.testing.assert_array_equal(batch["observations"], np.concatenate([steps[:-1] for steps in kept]))
    np.testing.assert_array_equal(batch["next_observations"], np.concatenate([steps[1:] for steps in kept]))


def test_offline_and_online_rows_go_into_one_batch() -> None:
    observed = seen(BOTH, 2)
    data = logged(BOTH).changed(frame_stack=2)
    buffer = CalQLReplayBuffer(data.obs_dim, 1, data, capacity=10, mixing_ratio=0.5, seed=0, frame_stack=2)
    buffer.add_episode(Transitions.from_episode(observed[0], np.zeros((3, 1)), np.ones(3), True))
    batch = buffer.replay.sample(8, online=True)
    assert batch["observations"].shape == (8, 2, 68)
    assert data.obs_dim == 68  # 4 x 5 x 3 pixels and two float32


def test_where_the_parts_of_a_frame_are() -> None:
    layout = frame_layout(frames_space(BOTH, 3))
    assert layout is not None
    assert (layout.image_shape, layout.vector_size, layout.frame_bytes) == ((4, 5, 9), 6, 68)
    assert frame_layout(SPEED) is None
    assert [has_images(space) for space in (IMAGE, BOTH, SPEED)] == [True, True, False]
    assert not has_images(gym.spaces.Box(0, 255, (7,), np.uint8))


def test_one_observation_becomes_what_the_policy_sees() -> None:
    space, steps = frames_space(BOTH, 2), episodes_of(BOTH)[0]
    expected = seen(BOTH, 2)[0][1]
    np.testing.assert_array_equal(as_stack(columns(BOTH, steps[:2]), space), expected)
    np.testing.assert_array_equal(as_stack(expected, space), expected)
    with pytest.raises(ValueError, match=r"frame_stack=2 frames, and here is 1: .*FrameStackObservation"):
        as_stack(steps[0], space)
    np.testing.assert_array_equal(as_stack(steps[1], frames_space(BOTH, 1)), expected[1:])


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (gym.spaces.Box(0, 255, (3, 64, 64), np.uint8), "images must be .*transpose them"),
        (gym.spaces.Box(0, 255, (2, 8, 8, 3), np.uint8), "leave stacking to frame_stack"),
        (gym.spaces.Dict({"a": IMAGE, "b": gym.spaces.Box(0, 255, (5, 5, 3), np.uint8)}), "must have one size"),
        (gym.spaces.Dict({"a": IMAGE, "b": gym.spaces.Discrete(3)}), "Boxes of floats only, not Discrete"),
    ],
)
def test_spaces_that_cannot_be_frames_are_refused(space: gym.Space, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        frames_space(space, 1)


def test_data_and_environment_must_fit() -> None:
    check_fits(logged(BOTH), frames_space(BOTH, 2), ACTION)
    with pytest.raises(DatasetError, match=r"dataset's observations are \[\(4, 5, 3\)\]"):
        check_fits(logged(IMAGE), frames_space(BOTH, 2), ACTION)
    with pytest.raises(DatasetError, match=r"images of shape \(4, 5, 3\), the environment's are no uint8 images"):
        check_fits(logged(IMAGE), SPEED, ACTION)
    with pytest.raises(DatasetError, match=r"flat Box \(one axis\), not .*images are uint8"):
        require_trainable(gym.spaces.Box(0, 1, (4, 5, 3), np.float32), ACTION)
