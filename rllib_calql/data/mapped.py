"""Memory-mapped columns: where they lie, and how the system is to read them."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True, eq=False)
class MappedColumn:
    """A column's file in memory: row k begins at `offset + k * row_bytes`."""

    memory: mmap.mmap
    offset: int
    row_bytes: int
    per_row: bool  # has a row for each transition, and is read when batches are drawn

    @classmethod
    def of(cls, rows: np.ndarray, memory: mmap.mmap, per_row: bool) -> MappedColumn:
        """Of an array that looks into the map."""
        start = np.frombuffer(memory, np.uint8).ctypes.data
        return cls(memory, rows.ctypes.data - start, rows.strides[0], per_row)

    def will_need(self, rows: np.ndarray) -> None:
        """Lets the system begin to read these rows and those after them, all at the same time."""
        starts = (self.offset + rows * self.row_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
        for start in np.unique(starts).tolist():
            length = min(2 * self.row_bytes + mmap.PAGESIZE, len(self.memory) - start)
            self.memory.madvise(mmap.MADV_WILLNEED, start, length)


class MappedFolder:
    """The folder that memory-mapped columns lie in."""

    def __init__(self, path: Path, columns: Sequence[MappedColumn]) -> None:
        self.path = path
        self.columns = tuple(columns)
        self._single_pages = False

    def expect_random_reads(self) -> None:
        """Tells the system to read single pages, where the files do not fit into half of the memory.

        Reading ahead around each of 256 scattered rows would read much of the dataset for every batch.
        """
        if sum(len(column.memory) for column in self.columns) > 0.5 * _memory():
            self._single_pages = True
            self._advise(mmap.MADV_RANDOM)

    def will_need(self, rows: np.ndarray) -> None:
        """Where single pages are read: begins to read these rows (row numbers from 0)."""
        if self._single_pages:
            for column in self.columns:
                if column.per_row:
                    column.will_need(rows)

    @contextmanager
    def reading_through(self) -> Iterator[None]:
        """Reads ahead while the block reads whole columns from start to end."""
        self._advise(mmap.MADV_NORMAL)
        try:
            yield
        finally:
            if self._single_pages:
                self._advise(mmap.MADV_RANDOM)

    def _advise(self, how: int) -> None:
        for column in self.columns:
            column.memory.madvise(how)


def _memory() -> int:
    """Bytes of memory that this process may use at most."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdecimal():
        sizes.append(int(text))
    return min(sizes)
