"""Memory-mapped columns: where they lie, and how the system is to read them."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, eq=False)
class MappedFolder:
    """The folder that memory-mapped columns lie in, and their maps."""

    path: Path
    maps: tuple[mmap.mmap, ...]

    def expect_random_reads(self) -> None:
        """Tells the system to read single pages, where the files do not fit into memory.

        Reading ahead around each of 256 scattered rows is what makes a batch slow that is not in memory.
        """
        if sum(map(len, self.maps)) > 0.5 * _memory():
            self._advise(mmap.MADV_RANDOM)

    @contextmanager
    def reading_through(self) -> Iterator[None]:
        """Reads ahead again, while the block reads whole columns from start to end."""
        self._advise(mmap.MADV_NORMAL)
        yield
        self.expect_random_reads()

    def _advise(self, how: int) -> None:
        for mapped in self.maps:
            mapped.madvise(how)


def _memory() -> int:
    """Bytes of memory that this process may use at most."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdecimal():
        sizes.append(int(text))
    return min(sizes)
