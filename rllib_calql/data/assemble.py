"""Logged rows become whole, clean rows: the one place that knows what to do with imperfect logs.

It works on a stream of chunks in bounded memory, and where a chunk ends makes no difference.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import tree

from rllib_calql.data.columns import (
    ObservationLayout,
    as_actions,
    as_flags,
    as_floats,
    as_observations,
    check_lengths,
    map_leaves,
)
from rllib_calql.data.errors import NAMED_ROWS, DatasetError, DatasetWarning, name_rows
from rllib_calql.data.rows import COLUMNS, Metadata, Rows, Source, Tree

# The share of rows whose next observation may differ from the next row's before the rows count as out of
# order; and where, in a long dataset, more than half are enough to say so.
MAX_BROKEN_ROWS = 0.1
EARLY_ROWS = 100_000


@dataclass(frozen=True, eq=False, kw_only=True)
class Block:
    """n clean rows in the types of `Transitions`; the last episode may go on in the next block."""

    observations: Tree
    actions: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray  # never where terminated
    final_observations: Tree  # of the episodes that end in this block

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def ends(self) -> np.ndarray:
        """(E,): rows that end an episode, from 0."""
        return np.flatnonzero(self.terminated | self.truncated)


def clean_blocks(source: Source, observations: ObservationLayout = "flatten") -> Iterator[Block]:
    """The rows of a source, cleaned; who reads drops the rows after the last end.

    - A row flagged both terminated and truncated is terminated.
    - The final observation of an episode comes from `next_observations` where the source has them. Otherwise a
      truncated row is dropped, its observation becomes the final one and the row before it the truncated end; a
      terminated row's final observation is its own (it has no part in the TD target).
    - A row inside an episode whose next observation is not the next row's observation ends its episode as
      truncated. More than a tenth of such rows, or more than half of the first 100,000, means that the rows are
      not in time order.
    - Rows after the last end are to be dropped; they are counted here, when all rows have been read.

    Args:
        source: what is read, once.
        observations: whether Dict and Tuple observations become one vector ("flatten", in the order of
            gymnasium's `flatten`) or are kept.

    Raises:
        DatasetError: columns do not fit each other, are not finite or not in time order, or no episode has an
            end. Rows are named by their number in the whole source.

    Warns:
        DatasetWarning: counts rows that were dropped and episodes that were cut, once for the whole source.
    """
    tally = _Tally()
    present: _Chunk | None = None
    for rows in source.chunks():
        chunk = _Chunk.of(rows, source.metadata, observations, tally)
        if len(chunk.rewards) == 0:
            continue
        if present is not None:
            _check_alike(present, chunk)
            yield tally.add(present.clean(chunk, tally))
        present = chunk
    if present is None:
        raise DatasetError("the dataset is empty: it has no rows")
    yield tally.add(present.clean(None, tally))
    tally.conclude()


@dataclass
class _Tally:
    """What was counted so far in the whole source."""

    rows_read: int = 0  # logged rows converted
    rows_cleaned: int = 0  # logged rows cleaned
    rows_to_last_end: int = 0  # logged rows up to the last end
    rows_kept: int = 0  # clean rows
    rows_whole: int = 0  # clean rows up to the last end
    rows_dropped: int = 0  # truncated ends without next observation
    episodes_cut: int = 0  # of these, those whose row before became the end
    broken: int = 0
    first_broken: list[int] = field(default_factory=list)

    def add(self, block: Block) -> Block:
        ends = block.ends
        if len(ends):
            self.rows_whole = self.rows_kept + int(ends[-1]) + 1
        self.rows_kept += len(block)
        return block

    def add_broken(self, broken: np.ndarray) -> None:
        """(n,) bool of the chunk being cleaned."""
        start, rows = self.rows_cleaned, np.flatnonzero(broken) + self.rows_cleaned
        self.first_broken += rows[: NAMED_ROWS - len(self.first_broken)].tolist()
        if start < EARLY_ROWS <= start + len(broken):  # decided at one row number, wherever chunks end
            self._check(self.broken + int(np.searchsorted(rows, EARLY_ROWS)), EARLY_ROWS, 0.5)
        self.broken += len(rows)

    def _check(self, count: int, num_rows: int, share: float) -> None:
        if count > share * num_rows:
            raise DatasetError(
                f"{count} of {num_rows} rows are not followed by their next_observations "
                f"({name_rows(self.first_broken, count)}): rows must be in time order, episode after episode; if "
                "they are, flag each episode's last row"
            )

    def conclude(self) -> None:
        """Warns and refuses, once all rows are cleaned."""
        self._check(self.broken, self.rows_read, MAX_BROKEN_ROWS)
        if self.broken:
            _warn(
                f"{self.broken} rows inside an episode are not followed by their next_observations "
                f"({name_rows(self.first_broken, self.broken)}); the episode was cut there, as truncated"
            )
        if tail := self.rows_read - self.rows_to_last_end:
            _warn(
                f"{tail} of {self.rows_read} rows at the end of the data belong to an episode without an end "
                "(neither terminated nor truncated) and were dropped"
            )
        if self.rows_dropped:
            vanished = self.rows_dropped - self.episodes_cut
            _warn(
                f"{self.rows_dropped} of {self.rows_to_last_end} rows are truncated ends without a next "
                "observation and were dropped; their observation serves as the final one of the row before"
                + (f" ({vanished} episodes had no other row)" if vanished else "")
            )
        if not self.rows_whole:
            raise DatasetError(
                "no complete episode remains: flag the last row of each episode as terminated or truncated, "
                "and give next_observations (or the row after it) if episodes are cut off"
            )


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Logged rows in the layout's types."""

    observations: Tree
    actions: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    following: Tree | None

    @classmethod
    def of(cls, rows: Rows, metadata: Metadata, layout: ObservationLayout, tally: _Tally) -> _Chunk:
        first, space = tally.rows_read, metadata.observation_space
        terminated = as_flags("terminated", rows.terminated, first)
        following = None
        if rows.next_observations is not None:
            following = as_observations("next_observations", rows.next_observations, layout, space, first)
        chunk = cls(
            observations=as_observations("observations", rows.observations, layout, space, first),
            actions=as_actions(rows.actions, metadata.action_space, first),
            rewards=as_floats("rewards", rows.rewards, 1, first),
            terminated=terminated,
            truncated=as_flags("truncated", rows.truncated, first),
            following=following,
        )
        num_rows = check_lengths({name: getattr(chunk, name) for name in COLUMNS})
        if following is not None:
            ours, theirs = (
                [leaf.shape for leaf in tree.flatten(column)] for column in (chunk.observations, following)
            )
            if ours != theirs:
                raise DatasetError(f"next_observations has shape {_short(theirs)}, observations {_short(ours)}")
        object.__setattr__(chunk, "truncated", chunk.truncated & ~terminated)
        tally.rows_read += num_rows
        return chunk

    def clean(self, successor: _Chunk | None, tally: _Tally) -> Block:
        """The clean rows; `successor` are the rows after these."""
        num_rows = len(self.rewards)
        logged_ends = np.flatnonzero(self.terminated | self.truncated)
        if self.following is None:
            block = self._without_truncated_rows(successor, tally)
        else:
            broken = self._broken(successor)
            tally.add_broken(broken)
            truncated = self.truncated | broken
            logged_ends = np.flatnonzero(self.terminated | truncated)
            block = self._block(None, truncated, map_leaves(lambda leaf: leaf[logged_ends], self.following))
        if len(logged_ends):
            tally.rows_to_last_end = tally.rows_cleaned + int(logged_ends[-1]) + 1
        tally.rows_cleaned += num_rows
        return block

    def _broken(self, successor: _Chunk | None) -> np.ndarray:
        """(n,) bool: rows inside an episode that are not followed by the next row's observation."""
        assert self.following is not None
        inside = ~(self.terminated | self.truncated)
        broken = np.zeros(len(inside), dtype=bool)
        leaves = tree.flatten(self.following), tree.flatten(self.observations)
        for following, observations in zip(*leaves, strict=True):
            broken[:-1] |= _differ(following[:-1], observations[1:])
        if successor is not None:
            for following, observations in zip(leaves[0], tree.flatten(successor.observations), strict=True):
                broken[-1:] |= _differ(following[-1:], observations[:1])
        return broken & inside

    def _without_truncated_rows(self, successor: _Chunk | None, tally: _Tally) -> Block:
        """Drops truncated rows, whose next observation is unknown."""
        dropped = self.truncated
        followed_by_dropped = np.append(dropped[1:], successor is not None and successor.truncated[0])
        truncated = followed_by_dropped & ~self.terminated & ~dropped
        ends = np.flatnonzero(self.terminated | truncated)
        # A terminated row's next observation is unknown and without effect: its own stands in for it.
        final_rows = ends + truncated[ends]
        last_is_next = len(ends) > 0 and final_rows[-1] == len(dropped)

        def final(leaf: np.ndarray, next_leaf: np.ndarray) -> np.ndarray:
            values = leaf.take(final_rows, axis=0, mode="clip")
            if last_is_next:
                values[-1] = next_leaf[0]
            return values

        after = self if successor is None else successor
        tally.rows_dropped += int(dropped.sum())
        tally.episodes_cut += int(truncated.sum())
        keep = ~dropped if dropped.any() else None
        return self._block(keep, truncated, map_leaves(final, self.observations, after.observations))

    def _block(self, keep: np.ndarray | None, truncated: np.ndarray, final_observations: Tree) -> Block:
        def kept(column: np.ndarray) -> np.ndarray:
            return column if keep is None else column[keep]

        return Block(
            observations=map_leaves(kept, self.observations),
            actions=kept(self.actions),
            rewards=kept(self.rewards),
            terminated=kept(self.terminated),
            truncated=kept(truncated),
            final_observations=final_observations,
        )


def _check_alike(one: _Chunk, other: _Chunk) -> None:
    if (one.following is None) != (other.following is None):
        raise DatasetError("some parts of the data have next_observations and some do not")
    for name in ("observations", "actions"):
        shapes = [
            [(leaf.shape[1:], leaf.dtype) for leaf in tree.flatten(getattr(chunk, name))] for chunk in (one, other)
        ]
        if shapes[0] != shapes[1]:
            raise DatasetError(f"{name} change their shape or type inside the data: {shapes[0]}, then {shapes[1]}")


def _differ(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """(n,) bool: rows that differ by more than rounding."""
    axes = tuple(range(1, ours.ndim))
    differ = (ours != theirs).any(axis=axes)
    if ours.dtype.kind == "f" and differ.any():
        rows = np.flatnonzero(differ)
        differ[rows] = ~np.isclose(ours[rows], theirs[rows], rtol=1e-4, atol=1e-5).all(axis=axes)
    return differ


def _short(shapes: list[tuple[int, ...]]) -> object:
    return shapes[0] if len(shapes) == 1 else shapes


def _warn(message: str) -> None:
    warnings.warn(message, DatasetWarning, stacklevel=4)
