"""HDF5 files of unknown origin: only plain numbers that lie in the file itself are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from rllib_calql.data.errors import DatasetError

# A column may be so many times larger than what is stored of it (deflate reaches 1:1032), ...
_MAX_COMPRESSION = 1100
# ... and so many bytes of it need not be stored at all (a column of zeros that was never written).
_UNWRITTEN_BYTES = 64 << 20
# One compressed block is read as a whole.
_MAX_BLOCK_BYTES = 1 << 30
# Blocks are kept decompressed for the next chunk of rows.
_CACHE_BYTES = 16 << 20


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """The open file; what HDF5 reports inside the context becomes a `DatasetError` that names the file."""
    if not path.is_file():
        raise DatasetError(f"there is no dataset file {path}: check the path")
    try:
        with h5py.File(path, "r", rdcc_nbytes=_CACHE_BYTES) as file:
            yield file
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read as an HDF5 file (is it complete?): {error}") from error


def find(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset | None:
    """What the file itself holds under a name such as `infos/qpos`; None where there is nothing.

    Raises:
        DatasetError: the name leads through a soft or external link.
    """
    found: h5py.Group | h5py.Dataset = group
    for part in filter(None, name.split("/")):
        link = found.get(part, getlink=True) if isinstance(found, h5py.Group) else None
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            raise DatasetError(
                f"{name!r} is a link to {_target(link)}: links are not followed, copy the data into the file"
            )
        found = found[part]
    return found


def check_numbers(dataset: h5py.Dataset, name: str) -> None:
    """Refuses what is not plain numbers, lies in other files, or is larger than the file can hold.

    Raises:
        DatasetError: says what is wrong with the dataset called `name`.
    """
    if dataset.dtype.kind not in "fiub":
        raise DatasetError(f"{name!r} holds {dataset.dtype}, and only numbers are read: convert it to numbers")
    check_storage(dataset, name)


def check_group(file: h5py.File, name: str) -> None:
    """Checks all that lies below a group, for a reader that takes everything there.

    Numbers, texts and lists of bytes (encoded images) may be there, each once.

    Raises:
        DatasetError: the group is missing, or something below it is a link or must not be read.
    """
    seen: set[Any] = set()
    todo = [name]
    while todo:
        path = todo.pop()
        item = find(file, path)
        if item is None:
            raise DatasetError(f"there is no {path!r}")
        address = h5py.h5o.get_info(item.id).addr
        if address in seen:
            raise DatasetError(f"{path!r} is another name of something in {name!r}: copy the data instead")
        seen.add(address)
        if isinstance(item, h5py.Group):
            todo += [f"{path}/{key}" for key in item]
        elif isinstance(item, h5py.Dataset):
            element = h5py.check_vlen_dtype(item.dtype)
            if h5py.check_string_dtype(item.dtype) is None and element != np.uint8:
                check_numbers(item, path)
            check_storage(item, path)


def check_storage(dataset: h5py.Dataset, name: str) -> None:
    """Refuses data in other files and shapes that the file cannot fill.

    Raises:
        DatasetError: says what is wrong with the dataset called `name`.
    """
    if dataset.external or dataset.is_virtual:
        raise DatasetError(f"{name!r} keeps its values in other files: copy them into this one")
    if dataset.shape is None:
        raise DatasetError(f"{name!r} is empty: it has a type and no values")
    stored = dataset.id.get_storage_size()
    if dataset.nbytes > max(_UNWRITTEN_BYTES, _MAX_COMPRESSION * stored):
        raise DatasetError(
            f"{name!r} claims {dataset.nbytes:,} bytes (shape {dataset.shape}), but the file holds only "
            f"{stored:,} bytes of it: the file is damaged"
        )
    block = np.prod(dataset.chunks, dtype=object) * dataset.dtype.itemsize if dataset.chunks else 0
    if block > _MAX_BLOCK_BYTES:
        raise DatasetError(
            f"{name!r} is stored in blocks of {block:,} bytes (HDF5 chunks {dataset.chunks}), too large to "
            "read a part of it: write it with smaller chunks"
        )


def names(group: h5py.Group, limit: int = 30) -> list[str]:
    """The names of up to `limit` datasets of the file itself, sorted as HDF5 keeps them."""
    found: list[str] = []

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> bool | None:
        if isinstance(item, h5py.Dataset):
            found.append(name)
        return True if len(found) == limit else None

    group.visititems(visit)
    return found


def _target(link: h5py.SoftLink | h5py.ExternalLink) -> str:
    file = getattr(link, "filename", None)
    return f"{link.path!r} of {file!r}" if file else repr(link.path)
