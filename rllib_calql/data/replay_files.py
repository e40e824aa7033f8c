"""The online rows of a checkpoint in write-once files, so that a checkpoint writes only what is new."""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from rllib_calql.data.replay import EpisodeStore
from rllib_calql.data.rows import COLUMNS
from rllib_calql.data.transitions import Transitions

# A file of so many bytes is full: it is never written again, only linked into the next checkpoint.
FULL = 4 << 20
INDEX = "index.json"
STORED = (*COLUMNS, "mc_returns")


@dataclass(frozen=True)
class Segment:
    """Whole episodes in a file of their own; rows are numbered from the first ever added to the store."""

    first: int
    end: int
    name: str  # never used twice, so a name stands for a content


class ReplayFiles:
    """Keeps a store's rows in the folders of successive checkpoints.

    A folder holds everything that is needed to restore the store. Full files of the last checkpoint become
    hard links in the next one (where the file system has none, or the last checkpoint is gone, they are
    written again); files whose rows have all been evicted are left out. So a checkpoint of a million rows costs
    the rows that are new and less than one full file, and two checkpoints share what they have in common.
    """

    def __init__(self, store: EpisodeStore) -> None:
        self.store = store
        self.folder: Path | None = None  # of the last checkpoint: set it where the folder has been renamed
        self._segments: list[Segment] = []

    def save(self, folder: Path) -> None:
        """Writes or links everything into `folder`, which must not exist yet."""
        folder.mkdir(parents=True)
        end = self.store.num_rows_added
        start = end - len(self.store)
        segments = [segment for segment in self._segments if segment.end > start]
        if segments and segments[-1].end < end and self._num_bytes(segments[-1]) < FULL:
            segments.pop()
        kept = [self._linked(segment, folder) or self._written(segment, folder) for segment in segments]
        first = max(start, kept[-1].end if kept else 0)
        new = [self._written(segment, folder) for segment in self._cut(first, end)]
        self._segments, self.folder = kept + new, folder
        index = {
            "num_rows": len(self.store),
            "num_rows_added": end,
            "num_episodes_added": self.store.num_episodes_added,
            "segments": [asdict(segment) for segment in self._segments],
        }
        (folder / INDEX).write_text(json.dumps(index, indent=1))

    def restore(self, folder: Path) -> None:
        """Fills the store with what `save` wrote.

        Raises:
            ValueError: the store is too small, or has other dimensions.
        """
        index = json.loads((folder / INDEX).read_text())
        if index["num_rows"] > self.store.capacity:
            raise ValueError(
                f"the checkpoint holds {index['num_rows']} online rows, more than online_capacity="
                f"{self.store.capacity}: enlarge it"
            )
        self.store.clear()
        start = index["num_rows_added"] - index["num_rows"]
        segments = [Segment(**segment) for segment in index["segments"]]
        for segment in segments:
            with np.load(folder / segment.name) as columns:
                rows = Transitions.unchecked(**columns)
            self.store.append(_between(rows, max(0, start - segment.first), len(rows)))
        self.store.num_rows_added = index["num_rows_added"]
        self.store.num_episodes_added = index["num_episodes_added"]
        self._segments, self.folder = segments, folder

    def _num_bytes(self, segment: Segment) -> int:
        return (segment.end - segment.first) * self._bytes_per_row

    @property
    def _bytes_per_row(self) -> int:
        return sum(getattr(self.store.rows, name)[:1].nbytes for name in STORED)

    def _cut(self, first: int, end: int) -> list[Segment]:
        """Rows `first` to `end` as segments that are just full, but for the last."""
        segments = []
        while first < end:
            start = self.store.num_rows_added - len(self.store)
            ends = start + self._rows.episode_ends + 1
            wanted = first + -(-FULL // self._bytes_per_row)
            stop = end if wanted >= end else int(ends[np.searchsorted(ends, wanted)])
            segments.append(Segment(first, stop, ""))
            first = stop
        return segments

    @property
    def _rows(self) -> Transitions:
        assert self.store.rows is not None
        return self.store.rows

    def _linked(self, segment: Segment, folder: Path) -> Segment | None:
        if self.folder is None:
            return None
        try:
            os.link(self.folder / segment.name, folder / segment.name)
        except OSError:
            return None
        return segment

    def _written(self, segment: Segment, folder: Path) -> Segment:
        """Writes those of a segment's rows that are still in the store."""
        start = self.store.num_rows_added - len(self.store)
        first = max(segment.first, start)
        rows = _between(self._rows, first - start, segment.end - start)
        name = f"rows-{first}-{segment.end}-{uuid.uuid4().hex[:12]}.npz"
        columns = {name: getattr(rows, name) for name in (*STORED, "final_observations")}
        np.savez(folder / name, **columns)
        return Segment(first, segment.end, name)


def share(folder: Path, earlier: Path) -> None:
    """Makes files of a copied folder that `earlier` holds too one with `earlier`'s, where there are links."""
    for file in folder.glob("rows-*.npz"):
        same, link = earlier / file.name, file.with_suffix(".link")
        if same.exists() and same.stat().st_size == file.stat().st_size:
            try:
                os.link(same, link)
            except OSError:
                return
            link.replace(file)


def _between(rows: Transitions, first: int, end: int) -> Transitions:
    """A view of rows `first` to `end`, both borders of episodes."""
    episodes = slice(*np.searchsorted(rows.episode_ends, (first, end)))
    return Transitions.unchecked(
        **{name: getattr(rows, name)[first:end] for name in STORED},
        final_observations=rows.final_observations[episodes],
    )
