"""Observations with images as frames: rows of bytes, stored once and stacked when they are drawn.

A frame is one row: its images and, as float32, its vectors, one after the other as uint8, entries of a Dict in the
order of sorted keys. What networks see of a step is `frame_stack` frames, (k, P), the oldest first; before the
first frame of an episode stands that frame again, as gymnasium's `FrameStackObservation` does it. So images of any
number, with vectors or without, are one uint8 array wherever they go, and four times smaller than as floats.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import tree
from gymnasium import spaces

from rllib_calql.data.errors import DatasetError

# More channels than any camera has: the axes are in another order, or frames are stacked already.
MAX_CHANNELS = 16


class Part(NamedTuple):
    """An entry of a frame."""

    first: int  # its first byte
    size: int  # its bytes
    shape: tuple[int, ...]  # (height, width, channels) of an image, (n,) float32 of a vector


class FrameLayout(NamedTuple):
    """Where in k frames of P bytes the images and vectors are."""

    images: tuple[Part, ...]
    vectors: tuple[Part, ...]
    frame_bytes: int  # P
    frame_stack: int  # k

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of all frames' images together."""
        height, width, _ = self.images[0].shape
        return height, width, self.frame_stack * sum(part.shape[-1] for part in self.images)

    @property
    def vector_size(self) -> int:
        """Numbers of all frames' vectors together."""
        return self.frame_stack * sum(part.shape[0] for part in self.vectors)


def has_images(space: gym.Space | None) -> bool:
    """Whether some entry of a space is an image: a uint8 Box of two axes or more."""
    return space is not None and any(_is_image(entry) for entry in _entries(_original(space)))


def frames_space(space: gym.Space, frame_stack: int) -> spaces.Box:
    """The space of stacked frames, (k, P) uint8, which remembers the space that one frame is made of.

    Raises:
        DatasetError: entries that are neither images (height, width, channels) of one size nor vectors.
    """
    original = _original(space)
    if hasattr(space, "frames_of"):
        assert isinstance(space, spaces.Box)
        return space
    frames = spaces.Box(0, 255, (frame_stack, _parts(original)[-1]), np.uint8)
    frames.frames_of = original
    return frames


def frame_layout(space: gym.Space) -> FrameLayout | None:
    """The layout of a space that `frames_space` made; None for other spaces."""
    original = getattr(space, "frames_of", None)
    if original is None:
        return None
    images, vectors, size = _parts(original)
    assert space.shape is not None
    return FrameLayout(tuple(images), tuple(vectors), size, space.shape[0])


def check_frames(observations: Any, space: gym.Space) -> None:
    """Refuses (DatasetError) rows of observations other than those that `frames_space` made a space of."""
    original = _original(space)
    needed = [(_is_image(entry), entry.shape) for entry in _entries(original)]
    leaves = [np.asarray(leaf) for leaf in tree.flatten(observations)]
    given = [(leaf.dtype == np.uint8 and leaf.ndim > 2, leaf.shape[1:]) for leaf in leaves]
    if [(image, shape if image else (math.prod(shape or ()),)) for image, shape in needed] != given:
        raise DatasetError(
            f"the dataset's observations are {[shape for _, shape in given]}, the environment's {original}: "
            "dataset and environment do not belong together, or open it with observations='keep'"
        )


def as_stack(observation: Any, space: gym.Space) -> np.ndarray:
    """What an environment observed, as frames (k, P) of `frames_space`.

    Args:
        observation: k of them on a first axis, as `FrameStackObservation` gives; a single one where k is 1.
        space: made by `frames_space`; its own observations are returned as they are.

    Raises:
        ValueError: one observation for several frames.
    """
    leaves = tree.flatten(observation)
    if len(leaves) == 1 and np.shape(leaves[0]) == space.shape:
        return np.asarray(leaves[0], np.uint8)
    single = np.ndim(leaves[0]) == len(next(_entries(_original(space))).shape or ())
    count = 1 if single else len(leaves[0])
    if space.shape is None or count != space.shape[0]:
        raise ValueError(
            f"the policy sees frame_stack={space.shape and space.shape[0]} frames, and here is {count}: wrap the "
            "environment with gymnasium's FrameStackObservation"
        )
    return as_frame(observation)[None] if single else as_frames(observation)


def as_frames(observations: Any) -> np.ndarray:
    """Rows of observations, or frames already, as frames (n, P); a view where they are images alone."""
    columns = [_bytes(np.asarray(leaf)) for leaf in tree.flatten(observations)]
    return columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1)


def as_frame(observation: Any) -> np.ndarray:
    """One observation as a frame, (P,)."""
    return as_frames(tree.map_structure(lambda leaf: np.asarray(leaf)[None], observation))[0]


def stacked(frames: np.ndarray, following: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """From k frames of each row (B, k, P) and the one after them (B, P) to the row's and the next row's stack."""
    return frames, np.concatenate([frames[:, 1:], following[:, None]], axis=1)


def stack_rows(rows: np.ndarray, episode_ends: np.ndarray, frame_stack: int) -> np.ndarray:
    """(B, k): the rows whose frames each of `rows` is shown with, oldest first, none of an earlier episode."""
    episodes = np.searchsorted(episode_ends, rows)
    starts = np.where(episodes > 0, episode_ends[episodes - 1] + 1, 0)
    return np.maximum(rows[:, None] + np.arange(1 - frame_stack, 1), starts[:, None])


def _bytes(leaf: np.ndarray) -> np.ndarray:
    if leaf.dtype != np.uint8:
        leaf = leaf.astype(np.float32, copy=False)
    return np.ascontiguousarray(leaf).reshape(len(leaf), -1).view(np.uint8)


def _original(space: gym.Space) -> gym.Space:
    """What RLlib's preprocessors or `frames_space` made a space of, else itself."""
    return getattr(space, "frames_of", getattr(space, "original_space", space))


def _is_image(space: gym.Space) -> bool:
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) > 1


def _entries(space: gym.Space) -> Iterator[gym.Space]:
    """The entries of nested spaces, in the order in which `tree.flatten` gives observations."""
    if isinstance(space, spaces.Dict):
        for key in sorted(space.spaces):
            yield from _entries(space[key])
    elif isinstance(space, spaces.Tuple):
        for entry in space:
            yield from _entries(entry)
    else:
        yield space


def _parts(space: gym.Space) -> tuple[list[Part], list[Part], int]:
    images: list[Part] = []
    vectors: list[Part] = []
    first = 0
    for entry in _entries(space):
        if not isinstance(entry, spaces.Box) or (entry.dtype == np.uint8 and not _is_image(entry)):
            raise DatasetError(f"beside images an observation may have Boxes of floats only, not {entry}")
        if _is_image(entry):
            part = Part(first, math.prod(entry.shape), _image_shape(entry.shape))
            images.append(part)
        else:
            numbers = math.prod(entry.shape)
            part = Part(first, 4 * numbers, (numbers,))
            vectors.append(part)
        first += part.size
    if len({part.shape[:2] for part in images}) > 1:
        raise DatasetError(f"images of one observation must have one size: {[part.shape for part in images]}")
    return images, vectors, first


def _image_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    height, width, channels = shape if len(shape) == 3 else (*shape, 1)[:3]
    if len(shape) > 3 or channels > MAX_CHANNELS:
        raise DatasetError(
            f"images must be (height, width) or (height, width, channels) of uint8, not {shape}: transpose them, "
            "or leave stacking to frame_stack"
        )
    return height, width, channels
