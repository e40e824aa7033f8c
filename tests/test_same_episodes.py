"""Whatever the format, the same episodes come back as the same transitions."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_calql.data import DatasetError, DatasetWarning, Transitions, open_dataset
from tests.episode_files import FORMATS, SLOW, WITH_NEXT, Episode, Opened, Writer, expected


@st.composite
def some_episodes(draw: st.DrawFn) -> tuple[list[Episode], np.random.Generator]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dims = draw(st.tuples(st.integers(1, 3), st.integers(1, 2)))
    ends = draw(st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=6))
    return [Episode.random(rng, steps, terminated, dims) for steps, terminated in ends], rng


def assert_reads(writer: Writer, episodes: list[Episode], with_next: bool, rng: np.random.Generator) -> None:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", DatasetWarning)  # counts of rows dropped at time-outs
        if not with_next and all(len(episode) == 1 and not episode.terminated for episode in episodes):
            with pytest.raises(DatasetError, match="no complete episode remains"):
                read(writer(Path(folder), episodes, with_next, rng))
            return
        data, right = read(writer(Path(folder), episodes, with_next, rng)), expected(episodes, with_next)
        for name in ("observations", "actions", "rewards", "terminated", "truncated", "final_observations"):
            np.testing.assert_array_equal(getattr(data, name), getattr(right, name), err_msg=name)


def read(opened: Opened) -> Transitions:
    path, options = opened
    return open_dataset(path, **options)


@pytest.mark.parametrize("name", FORMATS)
@given(some=some_episodes(), with_next=st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_format(name: str, some: tuple[list[Episode], np.random.Generator], with_next: bool) -> None:
    assert_reads(FORMATS[name], some[0], with_next, some[1])


@pytest.mark.parametrize("name", WITH_NEXT)
@given(some=some_episodes())
@settings(max_examples=60, deadline=None)
def test_formats_with_next_observations(name: str, some: tuple[list[Episode], np.random.Generator]) -> None:
    assert_reads(WITH_NEXT[name], some[0], True, some[1])


@pytest.mark.parametrize("name", SLOW)
@given(some=some_episodes())
@settings(max_examples=12, deadline=None)
def test_formats_slow_to_write(name: str, some: tuple[list[Episode], np.random.Generator]) -> None:
    assert_reads(SLOW[name], some[0], True, some[1])
