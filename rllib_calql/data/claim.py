"""The place that a dataset is written to: one process at a time, and plain words where the disk refuses."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rllib_calql.data.errors import DatasetError

# Files of HDF5 need a little more than what is written into them.
HDF5_OVERHEAD = 1 << 20

# What to do about something that is in the way, and about a dataset, which may be replaced.
FREE = "remove it, or choose another name"
REPLACE = "overwrite it (overwrite=True, --overwrite), or choose another name"


@contextmanager
def claimed(path: str | Path) -> Iterator[Path]:
    """The full path, whose folder exists, for this process alone while the block runs.

    Raises:
        DatasetError: another process is writing there, or the disk refuses something in the block.
    """
    path = Path(path).expanduser().absolute()
    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock, timeout=0):
            try:
                yield path
            finally:
                lock.unlink(missing_ok=True)
    except Timeout as error:
        raise DatasetError(f"another process is writing {path}: wait for it, or choose another name") from error
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        reason = "the disk is full" if full else error.strerror or error
        raise DatasetError(f"{path} could not be written: {reason}. Nothing was left there") from error


@contextmanager
def new_file(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A file to write, which takes the name `path` when the block ends well; else nothing is left.

    Raises:
        DatasetError: there is something already, or see `claimed`.
    """
    with claimed(path) as place:
        if place.is_dir() or (place.exists() and not overwrite):
            raise DatasetError(f"there is something at {place} already: {FREE if place.is_dir() else REPLACE}")
        partial = place.with_name(f".{place.name}.partial")
        try:
            yield partial
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            partial.replace(place)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A folder to fill, which takes the name `path` when the block ends well; else nothing is left.

    Raises:
        DatasetError: there is something already, or see `claimed`.
    """
    with claimed(path) as place:
        if place.exists():
            raise DatasetError(f"there is something at {place} already: {FREE}")
        partial = place.with_name(f".{place.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        partial.mkdir()
        try:
            yield partial
            partial.rename(place)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def check_room(file: Path, num_bytes: int) -> None:
    """Asks the file system for room behind the end of a file, and gives it back.

    HDF5 ends the process when it cannot write, so what it is about to write is tried out first.

    Raises:
        OSError: the disk is full, or a quota or a limit on files is reached.
    """
    with file.open("rb+") as opened:
        size = os.fstat(opened.fileno()).st_size
        try:
            os.posix_fallocate(opened.fileno(), size, num_bytes + HDF5_OVERHEAD)
        finally:
            opened.truncate(size)
