"""Logs that go on after the task is solved: where their episodes end."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from rllib_calql.data.errors import DatasetError, DatasetWarning
from rllib_calql.data.rows import Metadata, Rows, Source


@dataclass(frozen=True)
class UpToSuccesses:
    """A source whose rows go through `up_to_successes`."""

    source: Source
    success_reward: float

    @property
    def metadata(self) -> Metadata:
        """The source's."""
        return self.source.metadata

    def chunks(self) -> Iterator[Rows]:
        """See `up_to_successes`."""
        return up_to_successes(self.source.chunks(), self.success_reward)


def up_to_successes(chunks: Iterable[Rows], success_reward: float) -> Iterator[Rows]:
    """Ends an episode at each successful row, and drops the rows that lead to none.

    The rule of Cal-QL's reference code for the binary Adroit tasks (`success_reward` 0 there): of each logged
    episode remain the rows up to its last success.

    Args:
        chunks: rows in time order; only the rows since the last end are held back.
        success_reward: reward of a successful row.

    Raises:
        DatasetError: no row is successful.

    Warns:
        DatasetWarning: counts the rows that were dropped.
    """
    total = kept = 0
    pending: list[Rows] = []
    for chunk in chunks:
        total += len(chunk)
        success = np.isclose(chunk.rewards, success_reward)
        rows = replace(chunk, terminated=chunk.terminated | success)
        ends = np.flatnonzero(rows.terminated | rows.truncated)
        keeps = success[ends]
        if len(ends):
            if keeps[0]:
                kept += sum(map(len, pending))
                yield from pending
            pending = []
        lengths = np.diff(ends, prepend=-1)
        whole = np.repeat(keeps, lengths)
        kept += int(whole.sum())
        if whole.any():
            yield rows.take(slice(0, len(whole))).take(whole)
        if len(whole) < len(rows):
            pending.append(rows.take(slice(len(whole), None)))
    if kept == 0:
        raise DatasetError(f"no row has the success_reward {success_reward:g}, so no episode is successful")
    if kept < total:
        warnings.warn(
            f"{total - kept} of {total} rows do not lead to a success (reward {success_reward:g}) and were "
            "dropped",
            DatasetWarning,
            stacklevel=2,
        )


def at_successes(rows: Rows, success: np.ndarray) -> Rows:
    """Ends one logged episode at each of its successful rows, `success` (n,) bool, and keeps what follows.

    A successful row right after another one is dropped: there the task was solved before it began.
    """
    begun_solved = success & np.append(False, success[:-1])
    ended = replace(rows, terminated=rows.terminated | success, truncated=rows.truncated & ~success)
    return ended.take(~begun_solved)
