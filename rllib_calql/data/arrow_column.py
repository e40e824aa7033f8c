"""A column in an Arrow IPC file of its own: written as a stream, read back without copying.

A file holds one record batch with one column of numbers or fixed-shape tensors, so its rows lie in one piece
and a memory map of the file is a NumPy array.
"""

from __future__ import annotations

import math
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rllib_calql.data.errors import DatasetError

# What our columns are made of.
_TYPES = {np.dtype(kind): pa.from_numpy_dtype(kind) for kind in ("float32", "int64", "uint8")}


class ColumnWriter:
    """Appends rows to a file; the file is an Arrow file once `close` has run.

    Arrow's header tells the number of rows but always has one length: its place is left free and filled at the
    end, so no row is held in memory or written twice.
    """

    def __init__(self, path: Path, name: str, row_shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._name, self._row_shape, self._dtype = name, row_shape, dtype
        self._header_size = len(_frame(name, row_shape, dtype, pa.py_buffer(bytes(self._row_bytes)))[0])
        self._file = path.open("w+b", buffering=0)
        self._file.write(bytes(self._header_size))
        self.num_rows = 0

    @property
    def _row_bytes(self) -> int:
        return self._dtype.itemsize * math.prod(self._row_shape)

    def append(self, rows: np.ndarray) -> None:
        """Adds (n, *row_shape) rows."""
        assert (rows.shape[1:], rows.dtype) == (self._row_shape, self._dtype)
        left = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
        while left:  # an unbuffered write may stop in the middle
            left = left[self._file.write(left) :]
        self.num_rows += len(rows)

    def close(self, num_rows: int) -> None:
        """Keeps the first `num_rows` (at least one) and completes the file."""
        end = self._header_size + num_rows * self._row_bytes
        self._file.truncate(end)
        with mmap.mmap(self._file.fileno(), end, access=mmap.ACCESS_READ) as mapped:
            body = pa.py_buffer(mapped)[self._header_size :]
            header, footer = _frame(self._name, self._row_shape, self._dtype, body)
            del body
        assert len(header) == self._header_size
        self._file.seek(0)
        self._file.write(header)
        self._file.seek(end)
        self._file.write(footer)
        self._file.close()

    def abandon(self) -> None:
        """Closes the file as it is."""
        self._file.close()


def map_column(path: Path, name: str) -> tuple[np.ndarray, mmap.mmap]:
    """The rows of a column file as a read-only array, (N,) or (N, *row_shape), and the map it looks into.

    Raises:
        DatasetError: missing, not an Arrow file, cut short, or not made as `ColumnWriter` makes them.
    """
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if mapped[:6] != b"ARROW1":  # pyarrow looks at the end only
            raise DatasetError("it is no Arrow file")
        reader = pa.ipc.open_file(pa.py_buffer(mapped))
        if reader.num_record_batches != 1 or reader.schema.names != [name]:
            raise DatasetError(f"it does not hold the one column {name!r} in one record batch")
        column = reader.get_batch(0).column(0)
    except (OSError, ValueError, pa.ArrowException, DatasetError) as error:
        raise DatasetError(f"{path} is no column of a dataset (is it complete?): {error}") from error
    kind: Any = column.type
    shape: tuple[int, ...] = ()
    if isinstance(kind, pa.FixedShapeTensorType):
        shape, kind = tuple(kind.shape), kind.value_type
    dtype = next((dtype for dtype, ours in _TYPES.items() if ours == kind), None)
    *validity, values = column.buffers()
    if dtype is None or values is None or any(buffer is not None for buffer in validity):
        raise DatasetError(f"{path} holds {column.type} where whole columns of numbers are expected")
    if values.size != len(column) * math.prod(shape) * dtype.itemsize:
        raise DatasetError(f"{path} is damaged: {len(column)} rows do not fit {values.size} bytes")
    return np.frombuffer(values, dtype).reshape(len(column), *shape), mapped


def _frame(name: str, row_shape: tuple[int, ...], dtype: np.dtype, body: pa.Buffer) -> tuple[bytes, bytes]:
    """What an Arrow IPC file has before and after the bytes of its only column."""
    values = pa.Array.from_buffers(_TYPES[dtype], body.size // dtype.itemsize, [None, body])
    if row_shape:
        kind = pa.fixed_shape_tensor(_TYPES[dtype], row_shape)
        values = pa.ExtensionArray.from_storage(
            kind, pa.FixedSizeListArray.from_arrays(values, math.prod(row_shape))
        )
    batch = pa.RecordBatch.from_arrays([values], [name])
    parts = _Parts(body.address)
    with pa.PythonFile(parts, "w") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    assert parts.after is not None
    return b"".join(parts.before), b"".join(parts.after)


class _Parts:
    """A file that keeps what is written before and after the buffer at `address`, and not that buffer."""

    closed = False

    def __init__(self, address: int) -> None:
        self._address = address
        self.before: list[bytes] = []
        self.after: list[bytes] | None = None

    def write(self, data: Any) -> int:
        if self.after is None and isinstance(data, pa.Buffer) and data.address == self._address:
            self.after = []
        else:
            (self.before if self.after is None else self.after).append(bytes(data))
        return len(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True
