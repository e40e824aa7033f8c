"""Parquet, Arrow IPC and Feather files, read a bounded number of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from rllib_calql.data.errors import DatasetError
from rllib_calql.data.rows import rows_per_chunk

SUFFIXES = (".parquet", ".pq", ".arrow", ".ipc", ".feather")
# So many rows are looked at to know how large a row of a Parquet file is.
_SAMPLE = 64


@dataclass(frozen=True)
class ArrowFile:
    """A Parquet, Arrow IPC or Feather file, see `TableFile`."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def read_schema(self) -> tuple[pa.Schema, int | None]:
        """See `read_schema`."""
        return read_schema(self.path)

    def batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """See `batches`."""
        return batches(self.path, columns)


@contextmanager
def _reading(path: Path) -> Iterator[bytes]:
    """What is reported inside names the file; gives the file's first bytes, which tell its format."""
    try:
        with path.open("rb") as file:
            magic = file.read(8)
        if not magic:
            raise DatasetError(f"{path} is empty (0 bytes): delete it, or write it again")
        if magic.startswith(b"FEA1"):
            raise DatasetError(
                f"{path} is in Feather's old format: write it again with pyarrow.feather.write_feather, or as "
                "Parquet"
            )
        yield magic
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        message = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DatasetError(
            f"{path} cannot be read as a Parquet or Arrow file (is it complete?): {message}"
        ) from error


def read_schema(path: Path) -> tuple[pa.Schema, int | None]:
    """The columns of a file and its number of rows (None for a stream, which does not tell).

    Raises:
        DatasetError: missing, or damaged, or of another format.
    """
    with _reading(path) as magic:
        if magic.startswith(b"PAR1"):
            with pq.ParquetFile(path) as parquet:
                schema, num_rows = parquet.schema_arrow, parquet.metadata.num_rows
        else:
            with pa.memory_map(str(path)) as memory:
                opened = pa.ipc.open_file if magic.startswith(b"ARROW1") else pa.ipc.open_stream
                schema, num_rows = opened(memory).schema, None
        for index in range(len(schema)):
            _decode_names(schema.field(index))
        return schema, num_rows


def _decode_names(field: pa.Field) -> None:
    """Damaged names fail when they are looked at: here."""
    kind = field.type
    if field.name and pa.types.is_struct(kind):
        for index in range(kind.num_fields):
            _decode_names(kind.field(index))
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        _decode_names(kind.value_field)


def batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The rows of a file in order, about `CHUNK_BYTES` of these columns at a time.

    Raises:
        DatasetError: missing, or damaged, or of another format.
    """
    with _reading(path) as magic:
        if magic.startswith(b"PAR1"):
            # Without pre-buffering a row group is read page by page, however large it is.
            with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as parquet:
                yield from _parquet_batches(parquet, columns)
            return
        with pa.memory_map(str(path)) as memory:
            if magic.startswith(b"ARROW1"):
                reader = pa.ipc.open_file(memory)
                stored = (reader.get_batch(index) for index in range(reader.num_record_batches))
            else:
                stored = pa.ipc.open_stream(memory)
            for batch in stored:
                selected = batch.select(columns)
                selected.validate(full=True)  # offsets in a damaged file may point anywhere
                yield from _slices(selected)


def _parquet_batches(parquet: pq.ParquetFile, columns: list[str]) -> Iterator[pa.RecordBatch]:
    if parquet.metadata.num_rows <= _SAMPLE:
        yield from parquet.iter_batches(columns=columns, use_threads=False)
        return
    sample = next(parquet.iter_batches(_SAMPLE, columns=columns, use_threads=False))
    # Decoding takes several times what comes out.
    size = rows_per_chunk(4 * sample.nbytes // max(1, sample.num_rows))
    yield from parquet.iter_batches(min(size, parquet.metadata.num_rows), columns=columns, use_threads=False)


def _slices(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    size = rows_per_chunk(batch.nbytes // max(1, batch.num_rows))
    for start in range(0, batch.num_rows, size):
        yield batch.slice(start, size)
