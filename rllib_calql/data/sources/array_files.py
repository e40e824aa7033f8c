"""Numpy arrays as tables: `.npz` files, read a bounded number of rows at a time, and arrays in memory."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa

from rllib_calql.data.errors import DatasetError
from rllib_calql.data.rows import rows_per_chunk

# An array may be so many times larger than what is stored of it (deflate reaches 1:1032), or so many bytes.
_MAX_COMPRESSION = 1100
_SMALL_BYTES = 64 << 20
_KINDS = "fiubUS"  # numbers, and texts for ids


@dataclass(frozen=True)
class NpzFile:
    """The arrays of a `.npz`; `a/b` and `a/c` are the entries of a nested column `a`. Nothing is unpickled."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def read_schema(self) -> tuple[pa.Schema, int | None]:
        """See `TableFile`."""
        with self._open() as archive:
            headers = _headers(archive)
            lengths = {header.shape[0] for header in headers.values()}
            return _schema(headers), lengths.pop() if len(lengths) == 1 else None

    def batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """See `TableFile`."""
        with self._open() as archive, ExitStack() as stack:
            headers = _of_columns(_headers(archive), columns)
            for header in headers.values():
                _check_dtype(header.file, header.dtype)
            num_rows = _num_rows({name: header.shape[0] for name, header in headers.items()})
            size = rows_per_chunk(sum(header.row_bytes for header in headers.values()))
            readers = {
                name: _RowReader(stack.enter_context(archive.open(header.file)), header)
                for name, header in headers.items()
            }
            for start in range(0, num_rows, size):
                count = min(size, num_rows - start)
                yield _batch({name: reader.read(count) for name, reader in readers.items()}, columns)

    @contextmanager
    def _open(self) -> Iterator[zipfile.ZipFile]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                yield archive
        except DatasetError as error:
            raise DatasetError(f"{self.path}: {error}") from error
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError, TokenError) as error:
            raise DatasetError(f"{self.path} cannot be read as a .npz file (is it complete?): {error}") from error


@dataclass(frozen=True, eq=False)
class ArrayColumns:
    """Arrays in memory, or nested dicts of them, by column."""

    name: str
    columns: Mapping[str, Any]

    def __str__(self) -> str:
        return self.name

    def read_schema(self) -> tuple[pa.Schema, int | None]:
        """See `TableFile`."""
        headers = {name: _Header(name, array.dtype, array.shape, False) for name, array in self._flat.items()}
        lengths = {header.shape[0] for header in headers.values()}
        return _schema(headers), lengths.pop() if len(lengths) == 1 else None

    def batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """See `TableFile`."""
        arrays = _of_columns(self._flat, columns)
        try:
            for name, array in arrays.items():
                _check_dtype(name, array.dtype)
            num_rows = _num_rows({name: len(array) for name, array in arrays.items()})
        except DatasetError as error:
            raise DatasetError(f"{self.name}: {error}") from error
        size = rows_per_chunk(sum(array.nbytes for array in arrays.values()) // max(1, num_rows))
        for start in range(0, num_rows, size):
            yield _batch({name: array[start : start + size] for name, array in arrays.items()}, columns)

    @cached_property
    def _flat(self) -> dict[str, np.ndarray]:
        flat: dict[str, np.ndarray] = {}
        todo: list[tuple[str, Any]] = [(str(name), column) for name, column in self.columns.items()]
        for name, column in todo:
            if isinstance(column, Mapping):
                todo += [(f"{name}/{key}", entry) for key, entry in column.items()]
                continue
            if not isinstance(column, np.ndarray):
                column = _as_array(column)
            if column.ndim:
                flat[name] = column
        return flat


def _as_array(column: Any) -> np.ndarray:
    try:
        return np.asarray(column)
    except ValueError:  # lists of different lengths
        return np.asarray(column, dtype=object)


class _Header(NamedTuple):
    """What is known of an array without reading it."""

    file: str  # in the archive
    dtype: np.dtype
    shape: tuple[int, ...]
    fortran: bool

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape[1:])


class _RowReader:
    """Reads an array of an archive from its start, some rows at a time."""

    def __init__(self, stream: IO[bytes], header: _Header) -> None:
        self._stream, self._header = stream, header
        self._whole: np.ndarray | None = None
        self._row = 0
        if header.fortran and len(header.shape) > 1:  # the numbers of a row do not lie together
            self._whole = np.lib.format.read_array(stream, allow_pickle=False)
        else:
            _header(header.file, stream)

    def read(self, count: int) -> np.ndarray:
        self._row += count
        if self._whole is not None:
            return self._whole[self._row - count : self._row]
        content = self._stream.read(count * self._header.row_bytes)
        if len(content) < count * self._header.row_bytes:
            raise EOFError(f"{self._header.file} ends before its last row")
        return np.frombuffer(content, self._header.dtype).reshape(count, *self._header.shape[1:])


def _headers(archive: zipfile.ZipFile) -> dict[str, _Header]:
    """The columns of an archive. (A single number, such as a seed, is none.)"""
    headers = {}
    for info in archive.infolist():
        if not info.filename.endswith(".npy"):
            continue
        with archive.open(info) as stream:
            header = _header(info.filename, stream)
        size = 0 if header.dtype.hasobject else math.prod(header.shape) * header.dtype.itemsize
        claimed = max(size, info.file_size)
        if claimed > info.file_size or claimed > max(_SMALL_BYTES, _MAX_COMPRESSION * info.compress_size):
            raise DatasetError(
                f"{info.filename} claims {claimed:,} bytes (shape {header.shape}), but the file holds only "
                f"{info.compress_size:,} bytes of it: the file is damaged"
            )
        if header.shape:
            headers[info.filename.removesuffix(".npy")] = header
    return headers


def _header(file: str, stream: IO[bytes]) -> _Header:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    else:  # version 3 is for names of records
        raise DatasetError(f"{file} is an array of records: write each of its columns as an array")
    return _Header(file, dtype, shape, fortran)


def _check_dtype(name: str, dtype: np.dtype) -> None:
    if dtype.hasobject:
        raise DatasetError(
            f"{name} holds Python objects, which would have to be unpickled: write it as an array of numbers"
        )
    if dtype.kind not in _KINDS:
        raise DatasetError(f"{name} is an array of {dtype}: write it as an array of numbers")


def _of_columns(flat: Mapping[str, Any], columns: list[str]) -> dict[str, Any]:
    return {name: entry for name, entry in flat.items() if name.partition("/")[0] in columns}


def _num_rows(lengths: Mapping[str, int]) -> int:
    if len(set(lengths.values())) > 1:
        raise DatasetError(f"columns have different numbers of rows: {dict(lengths)}")
    return next(iter(lengths.values()))


def _schema(headers: Mapping[str, _Header]) -> pa.Schema:
    arrays = {name: np.zeros((0, *header.shape[1:]), header.dtype) for name, header in headers.items()}
    return _batch(arrays, list(dict.fromkeys(name.partition("/")[0] for name in headers))).schema


def _batch(arrays: Mapping[str, np.ndarray], columns: list[str]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([_column(arrays, name) for name in columns], columns)


def _column(arrays: Mapping[str, np.ndarray], name: str) -> pa.Array:
    """One column; nested ones become structs."""
    if name in arrays:
        return _arrow(arrays[name])
    below = dict.fromkeys(
        other[len(name) + 1 :].partition("/")[0] for other in arrays if other.startswith(f"{name}/")
    )
    return pa.StructArray.from_arrays([_column(arrays, f"{name}/{key}") for key in below], list(below))


def _arrow(array: np.ndarray) -> pa.Array:
    if array.dtype.kind not in _KINDS or 0 in array.shape[1:] or (array.ndim > 1 and array.dtype.kind in "US"):
        return pa.nulls(len(array))  # nothing that could be used
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.ndim == 1:
        return pa.array(array)
    if array.dtype.kind == "b":
        array = array.astype(np.float32)  # Arrow's booleans are bits
    kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(array.dtype), array.shape[1:])
    numbers = pa.array(np.ascontiguousarray(array).reshape(-1))
    storage = pa.FixedSizeListArray.from_arrays(numbers, math.prod(array.shape[1:]))
    return pa.ExtensionArray.from_storage(kind, storage)
