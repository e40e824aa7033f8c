"""Ray Data as a source: datasets that lie on many nodes, in object storage, or come out of a Ray pipeline.

The dataset is streamed once, in order and in bounded memory, into a folder of memory-mapped Arrow files on the
algorithm's node. From there rows are drawn uniformly from the whole dataset, as from any other: a shuffle of a
stream can only reach as far as its buffer, and returns-to-go need whole episodes. The folder takes up the bytes of
the columns once; the limit is that node's disk.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import ray
from filelock import FileLock
from ray.data import Dataset

from rllib_calql.data.columns import ObservationLayout
from rllib_calql.data.errors import DatasetError
from rllib_calql.data.rows import Source
from rllib_calql.data.sources.tables import open_table
from rllib_calql.data.storage import open_folder
from rllib_calql.data.storage_writer import write_dataset
from rllib_calql.data.transitions import Transitions

PATIENCE_S = 5.0  # Ray learns a little late that a task has ended and its CPU is free
_temporary_folders: list[tempfile.TemporaryDirectory[str]] = []  # removed when the process ends


def open(
    dataset: Dataset,
    *,
    columns: Mapping[str, str | Sequence[str]] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Source:
    """The rows of a Ray Dataset in its own order: a step per row, or an episode per row.

    Episodes may go on from one block to the next; their rows must follow each other.

    Args:
        dataset: with columns as tables have them, see `sources.tables.open`.
        columns, shapes: see there.

    Raises:
        DatasetError: a column is missing or not usable, or nothing says where episodes end.
    """
    return open_table([_RayTable(dataset)], columns or {}, shapes)


def stream(
    dataset: Dataset,
    *,
    columns: Mapping[str, str | Sequence[str]] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    observations: ObservationLayout = "flatten",
    cache: str | Path | None = None,
) -> Transitions:
    """Streams a Ray Dataset to this node's disk, and opens it there.

    Args:
        dataset, columns, shapes: see `open`.
        observations: see `open_dataset`; images need "keep".
        cache: the folder to write. Where it exists it is opened and nothing is streamed, so concurrent trials
            and later runs share it; remove it when the dataset has changed. By default a temporary folder that
            is removed when this process ends (TMPDIR says where such folders are).

    Raises:
        DatasetError: see `open`; or there is no room on the disk, or no free CPU to read with.
    """
    if cache is None:
        folder = tempfile.TemporaryDirectory(prefix="calql-")
        _temporary_folders.append(folder)
        source, path = open(dataset, columns=columns, shapes=shapes), Path(folder.name, "data")
        return write_dataset(source, path, observations=observations)
    path = Path(cache).expanduser().absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.stream.lock")):  # others wait, and find it there
        if path.exists():
            return open_folder(path)
        return write_dataset(open(dataset, columns=columns, shapes=shapes), path, observations=observations)


@dataclass(frozen=True)
class _RayTable:
    """A Ray Dataset as a `TableFile`."""

    dataset: Dataset

    def __str__(self) -> str:
        return "the Ray Dataset"

    def read_schema(self) -> tuple[pa.Schema, int | None]:
        """The columns; their number of rows would cost a pass."""
        for table in self._tables(self.dataset.limit(1)):
            return table.schema, None
        raise DatasetError(f"{self} has no rows")

    def batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """The rows, block by block."""
        for table in self._tables(self.dataset.select_columns(columns)):
            yield from table.combine_chunks().to_batches()

    def _tables(self, dataset: Dataset) -> Iterator[pa.Table]:
        give_up = time.monotonic() + PATIENCE_S
        while ray.available_resources().get("CPU", 0.0) < 1.0:
            if time.monotonic() > give_up:
                raise DatasetError(
                    "Ray Data needs a free CPU to read with, and env runners, learners or other trials have taken "
                    "all of this cluster's: leave one free, or call rllib_calql.ray_data.stream(dataset, "
                    "cache=FOLDER) beforehand and train on the folder"
                )
            time.sleep(0.1)
        with _in_order(dataset):
            yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)


@contextmanager
def _in_order(dataset: Dataset) -> Iterator[None]:
    """Blocks come in the dataset's order meanwhile, not as they are ready."""
    options = dataset.context.execution_options
    before, options.preserve_order = options.preserve_order, True
    try:
        yield
    finally:
        options.preserve_order = before
