"""Streams of logged rows: where chunks end changes nothing, and rows keep their number in the whole source."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_calql.data import DatasetError, DatasetWarning, Metadata, Rows, Transitions, assemble

COLUMNS = ("observations", "actions", "rewards", "terminated", "truncated", "final_observations")


@dataclass
class Chunks:
    """A source of given chunks."""

    rows: list[Rows]
    metadata: Metadata = field(default_factory=Metadata)

    def chunks(self) -> Iterator[Rows]:
        yield from self.rows


def cut(columns: dict[str, Any], cuts: list[int]) -> Chunks:
    """The columns in chunks that end at `cuts`; two equal cuts make an empty chunk."""
    borders = [0, *sorted(cuts), len(columns["rewards"])]
    return Chunks([Rows(**{name: values[a:b] for name, values in columns.items()}) for a, b in pairwise(borders)])


def outcome(make: Callable[[], Transitions]) -> tuple[Any, ...]:
    """Columns, or the error; and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            data = make()
            result: Any = [getattr(data, name).tolist() for name in COLUMNS]
        except DatasetError as error:
            result = str(error)
    return result, [str(warning.message) for warning in caught if warning.category is DatasetWarning]


def logged(flags: list[tuple[bool, bool, bool]], with_next: bool) -> dict[str, Any]:
    """Rows 0, 1, 2, ... with (terminated, truncated, broken) flags."""
    terminated, truncated, broken = np.array(flags, dtype=bool).T
    numbers = np.arange(len(flags), dtype=np.float64)
    columns = {
        "observations": np.stack([numbers, -numbers], axis=1),
        "actions": numbers[:, None] / 10,
        "rewards": numbers,
        "terminated": terminated,
        "truncated": truncated,
    }
    if with_next:
        following = columns["observations"] + [1, -1]
        following[terminated | truncated] += 0.25
        following[broken, 1] = 77.0
        columns["next_observations"] = following
    return columns


ROWS = st.lists(st.tuples(*(st.sampled_from([False] * 5 + [True]) for _ in range(3))), min_size=1, max_size=60)


@given(ROWS, st.booleans(), st.lists(st.integers(0, 60), max_size=8), st.integers(0, 100))
@settings(max_examples=400, deadline=None)
def test_any_cutting_gives_the_same(
    flags: list[tuple[bool, bool, bool]], with_next: bool, cuts: list[int], expected_rows: int
) -> None:
    columns = logged(flags, with_next)
    source = cut(columns, [min(position, len(flags)) for position in cuts])
    source.metadata = Metadata(num_rows=expected_rows)
    with mock.patch.multiple(assemble, EARLY_ROWS=20, MAX_BROKEN_ROWS=0.3):
        assert outcome(lambda: Transitions.from_source(source)) == outcome(
            lambda: Transitions.from_arrays(**columns)
        )


@pytest.mark.parametrize("cuts", [[], [1, 3, 7], list(range(10))])
def test_warnings_count_once_over_the_whole_source(cuts: list[int]) -> None:
    flags = [(t, c, False) for t, c in [(0, 0), (0, 1), (0, 1), (1, 0), (0, 0), (0, 0), (0, 1), (1, 0), (0, 0)]]
    result, messages = outcome(lambda: Transitions.from_source(cut(logged(flags, False), cuts)))  # type: ignore[arg-type]
    assert result[0] == [[row, -row] for row in (0, 3, 4, 5, 7)]
    assert result[5] == [[row, -row] for row in (1, 3, 6, 7)]
    assert [message.split(" rows")[0] for message in messages] == ["1 of 9", "3 of 8"]
    assert "(1 episodes had no other row)" in messages[1]


def test_rows_are_named_by_their_number_in_the_source() -> None:
    columns = logged([(False, False, False)] * 29 + [(True, False, False)], True)
    columns["rewards"][[17, 18]] = np.nan
    with pytest.raises(DatasetError, match=r"rewards has NaN.* in rows 17, 18"):
        Transitions.from_source(cut(columns, [10, 15]))
    columns = logged([(False, False, row == 21) for row in range(29)] + [(True, False, False)], True)
    with pytest.warns(DatasetWarning, match=r"1 rows inside .* \(row 21\)"):
        Transitions.from_source(cut(columns, [10, 21, 22]))


def test_a_badly_ordered_source_is_refused_early() -> None:
    def shuffled() -> Iterator[Rows]:
        for start in range(3):
            yield Rows(**logged([(False, False, True)] * 60, True))
            assert start < 2, "read on"

    source = Chunks([])
    source.chunks = shuffled  # type: ignore[method-assign]
    with (
        mock.patch.object(assemble, "EARLY_ROWS", 100),
        pytest.raises(DatasetError, match=r"100 of 100 rows .* \(rows 0, 1, 2, 3, 4 and 95 more\): rows must"),
    ):
        Transitions.from_source(source)


def test_one_bad_part_of_a_good_source_is_only_cut() -> None:
    """A tenth is counted over the whole: here the second chunk is all broken."""
    flags = [(False, False, 50 <= row < 55) for row in range(99)] + [(True, False, False)]
    with pytest.warns(DatasetWarning, match=r"5 rows inside .* \(rows 50, 51, 52, 53, 54\)"):
        data = Transitions.from_source(cut(logged(flags, True), [50, 55]))
    assert data.num_episodes == 6


def test_chunks_that_do_not_belong_together() -> None:
    one, other = (
        logged([(False, False, False)] * 3 + [(True, False, False)], with_next) for with_next in (False, True)
    )
    with pytest.raises(DatasetError, match="some parts of the data have next_observations and some do not"):
        Transitions.from_source(Chunks([Rows(**one), Rows(**other)]))
    wide = {**one, "observations": np.zeros((4, 3))}
    with pytest.raises(DatasetError, match="observations change their shape or type inside the data"):
        Transitions.from_source(Chunks([Rows(**one), Rows(**wide)]))
    with pytest.raises(DatasetError, match="the dataset is empty"):
        Transitions.from_source(Chunks([]))


def test_columns_that_fit_are_not_copied() -> None:
    columns = logged([(False, False, False)] * 3 + [(True, False, False)] + [(False, False, False)], True)
    for name in ("observations", "actions", "rewards", "next_observations"):
        columns[name] = columns[name].astype(np.float32)
    with pytest.warns(DatasetWarning, match="1 of 5 rows at the end"):
        data = Transitions.from_arrays(**columns)
    for name in ("observations", "actions", "rewards"):
        assert np.shares_memory(getattr(data, name), columns[name])


def test_transitions_are_a_source() -> None:
    columns = logged([(row == 4, row == 9, False) for row in range(10)], True)
    data = Transitions.from_arrays(**columns)
    with mock.patch("rllib_calql.data.rows.CHUNK_BYTES", 70):
        assert len(list(data.chunks())) > 3
        again = Transitions.from_source(data)
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(again, name), getattr(data, name))
    assert again.metadata.num_rows == 10
