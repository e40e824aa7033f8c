"""What every source of data gives: chunks of logged rows, and what it knows about itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import gymnasium as gym
import numpy as np
import tree

from rllib_calql.data.errors import DatasetError

# A column: leaves of shape (n, ...), nested as gymnasium's Dict and Tuple spaces nest them.
Tree: TypeAlias = "np.ndarray | Mapping[str, Tree] | tuple[Tree, ...]"

# A chunk is at most about so large, so that reading any dataset needs a bounded amount of memory.
CHUNK_BYTES = 64 << 20
# What every row has.
COLUMNS = ("observations", "actions", "rewards", "terminated", "truncated")


@dataclass(frozen=True, eq=False, kw_only=True)
class Rows:
    """n consecutive logged rows, in time order, as a source has them; where a chunk ends means nothing."""

    observations: Tree
    actions: Tree
    rewards: np.ndarray  # (n,)
    terminated: np.ndarray  # (n,) bool: the task ended after this row
    truncated: np.ndarray  # (n,) bool: the episode was cut off after this row
    next_observations: Tree | None = None  # in every chunk of a source or in none

    def __len__(self) -> int:
        return len(self.rewards)

    def take(self, rows: Any) -> Rows:
        """The rows of a slice (views), a mask (n,) or row numbers."""
        columns = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return Rows(**tree.map_structure(lambda leaf: None if leaf is None else leaf[rows], columns))


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """What a source knows about its data; nothing of it is needed to train.

    Attributes:
        observation_space, action_space: as logged, before flattening.
        environment: JSON of gymnasium's `EnvSpec` (`spec.to_json()`), where it was recorded.
        num_rows: rows that `chunks` will give in all (about), for progress bars.
        score_range: episode returns that count as scores 0 and 1.
        actions_normalized: actions are in [-1, 1], whatever the bounds of `action_space`.
        source: where the data come from, for people to read.
    """

    observation_space: gym.Space | None = None
    action_space: gym.Space | None = None
    environment: str | None = None
    num_rows: int | None = None
    score_range: tuple[float, float] | None = None
    actions_normalized: bool = False
    source: str | None = None


class Source(Protocol):
    """A dataset that can be read again and again, a chunk at a time."""

    @property
    def metadata(self) -> Metadata:
        """What is known without reading the rows."""
        ...

    def chunks(self) -> Iterator[Rows]:
        """All rows from the start, at each call; a chunk has at most about `CHUNK_BYTES`."""
        ...


@dataclass(frozen=True, eq=False)
class OneChunk:
    """The source of rows that are in memory already."""

    rows: Rows
    metadata: Metadata = Metadata()

    def chunks(self) -> Iterator[Rows]:
        """The rows, all at once."""
        yield self.rows


def rows_per_chunk(bytes_per_row: int) -> int:
    """How many rows of so many bytes make a chunk; at least one."""
    return max(1, CHUNK_BYTES // max(1, bytes_per_row))


def cut_off(rows: Rows) -> Rows:
    """The same rows, the last one ending its episode."""
    truncated = rows.truncated.copy()
    truncated[-1] |= not rows.terminated[-1]
    return replace(rows, truncated=truncated)


def join(parts: Sequence[Rows]) -> Rows:
    """One after the other; `parts` have the same structure."""
    if len(parts) == 1:
        return parts[0]
    columns = [vars(part) for part in parts]

    def joined(*leaves: np.ndarray | None) -> np.ndarray | None:
        present = [leaf for leaf in leaves if leaf is not None]
        if present and len(present) < len(leaves):
            raise ValueError("some have no next observations")
        return np.concatenate(present) if present else None

    try:
        return Rows(**tree.map_structure(joined, *columns))
    except (TypeError, ValueError) as error:
        raise DatasetError(f"steps have different columns or shapes: {error}") from error


def gather(chunks: Iterator[Rows]) -> Iterator[Rows]:
    """The same rows in chunks of a good size: small ones (a file may hold a single step) are put together."""
    waiting: list[Rows] = []
    size = 0
    for rows in chunks:
        num_bytes = sum(leaf.nbytes for leaf in tree.flatten(vars(rows)) if leaf is not None)
        if waiting and size + num_bytes > CHUNK_BYTES // 8:
            yield join(waiting)
            waiting, size = [], 0
        if num_bytes > CHUNK_BYTES:
            step = rows_per_chunk(num_bytes // len(rows))
            yield from (rows.take(slice(start, start + step)) for start in range(0, len(rows), step))
        else:
            waiting.append(rows)
            size += num_bytes
    if waiting:
        yield join(waiting)
