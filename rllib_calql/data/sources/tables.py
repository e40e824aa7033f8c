"""Tables: Parquet, Arrow IPC and Feather files, one step per row, or one episode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tree

from rllib_calql.data.errors import DatasetError
from rllib_calql.data.rows import Metadata, Rows, Source, cut_off, gather
from rllib_calql.data.sources import rllib_logs
from rllib_calql.data.sources.arrow_files import SUFFIXES, ArrowFile, read_schema
from rllib_calql.data.sources.episode_tables import EpisodeTable, has_final, is_episode_per_row, steps_of
from rllib_calql.data.sources.files import data_files
from rllib_calql.data.sources.table_columns import (
    FLAGS,
    VECTORS,
    Chosen,
    TableBatch,
    TableFile,
    choose_columns,
    columns_of,
    ends,
)

# The number of files whose lengths are added up when a dataset is opened.
_MAX_COUNTED_FILES = 1000


def open(
    path: str | Path,
    *,
    columns: Mapping[str, str | Sequence[str]] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    allow_pickle: bool = False,
) -> Source:
    """A table, or many of the same columns read one after the other.

    A vector may lie in one column (lists, nested or of fixed size, tensors, raw bytes of uint8), in one column per
    number (`obs_0`, `obs_1`, ...), or, for Dict observations, in a struct. A column of single integers makes
    Discrete actions.

    A row may also be an episode: rewards are a list then, and observations a list of vectors, as long or one
    longer (with what followed the last step); flags are lists, or one flag for the whole episode.

    An episode ends at a row flagged terminated or truncated, where the episode's id changes, and where step
    numbers fall back; it may go on in the next file. Ends that are only known from ids or steps are truncations.
    `dones` tells that an episode ended: a termination, unless the row is flagged truncated.

    Args:
        path: a file, a glob, or a folder; files are read in natural order (part-2 before part-10).
        columns: what the columns are called, e.g. `{"observations": "state", "truncated": "timed_out"}`; also a
            list of columns that make up a vector: `{"observations": ["x", "y", "speed"]}`. The keys and the
            names tried by default are in `table_columns.NAMES`.
        shapes: shape of one row where a column has its numbers flat: `{"observations": (84, 84, 3)}`.
        allow_pickle: for RLlib's own logs, which are recognised (see `rllib_logs.open_parquet`); tables are not
            pickled.

    Raises:
        DatasetError: nothing to read, a column is missing or not usable (with file, column and row), or nothing
            says where episodes end.
    """
    files = data_files(path, SUFFIXES)
    schema, _ = read_schema(files[0])
    if rllib_logs.is_log(schema) and columns is None and shapes is None:
        return rllib_logs.open_parquet(files, schema, allow_pickle)
    if allow_pickle:
        raise DatasetError(f"{files[0]} is no log of RLlib and holds no pickles: leave out allow_pickle")
    return open_table([ArrowFile(file) for file in files], columns or {}, shapes or {})


def open_table(
    files: Sequence[TableFile],
    columns: Mapping[str, str | Sequence[str]],
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Tables:
    """Files of the same columns, see `open`."""
    schema, _ = files[0].read_schema()
    chosen = choose_columns(schema, columns, files[0])
    if is_episode_per_row(schema, chosen):
        with_final = has_final(files[0], chosen)
        files = [EpisodeTable(file, chosen, with_final) for file in files]
        chosen = steps_of(chosen, with_final)
    for role in shapes or {}:
        if role not in VECTORS:
            raise DatasetError(f"shapes has no {role!r}: it takes {', '.join(VECTORS)}")
    counts = [file.read_schema()[1] for file in files] if len(files) <= _MAX_COUNTED_FILES else [None]
    known = [count for count in counts if count is not None]
    num_rows = sum(known) if len(known) == len(files) else None
    source = f"table, {len(files)} file{'s' if len(files) > 1 else ''}"
    return Tables(tuple(files), chosen, dict(shapes or {}), Metadata(num_rows=num_rows, source=source))


@dataclass(frozen=True)
class Tables:
    """Files of the same columns; see `open`."""

    files: tuple[TableFile, ...]
    columns: Chosen
    shapes: Mapping[str, Sequence[int]]
    metadata: Metadata

    def chunks(self) -> Iterator[Rows]:
        """All rows, file after file."""
        return gather(self._closed())

    def _closed(self) -> Iterator[Rows]:
        """Rows with the ends that ids and step numbers tell."""
        held: Rows | None = None  # its last row ends an episode if the next row begins one
        for rows, begins in self._pieces():
            if held is not None:
                yield cut_off(held) if begins else held
            held = rows
        if held is not None:
            yield cut_off(held) if "episode_id" in self.columns or "step" in self.columns else held

    def _pieces(self) -> Iterator[tuple[Rows, bool]]:
        """Rows, and whether the first of them is known to begin an episode."""
        names = columns_of(self.columns)
        marks = _Marks()
        layout: dict[str, Any] | None = None
        for file in self.files:
            schema, _ = file.read_schema()
            if missing := [name for name in names if name not in schema.names]:
                raise DatasetError(
                    f"{file} has no column {missing[0]!r}, which {self.files[0]} has: files of one dataset "
                    "must have the same columns"
                )
            first_row = 0
            marks.file = file
            for batch in file.batches(names):
                if batch.num_rows:
                    reader = TableBatch(file, first_row, batch, self.columns, self.shapes)
                    starts = marks.starts(reader)
                    rows = _rows(reader, starts)
                    layout = layout or _layout(rows)
                    if layout != (other := _layout(rows)):
                        raise DatasetError(
                            f"{file}, rows from {first_row}: shapes per row are {other}, those before {layout}"
                        )
                    yield rows, bool(starts[0])
                first_row += batch.num_rows


class _Marks:
    """Finds where ids and step numbers say that an episode begins, across batches and files."""

    def __init__(self) -> None:
        self._last_id: Any = None
        self._last_step: Any = None
        self._seen: set[Any] = set()
        self._file: TableFile | None = None

    @property
    def file(self) -> TableFile | None:
        return self._file

    @file.setter
    def file(self, file: TableFile) -> None:
        """Ids may be counted anew in each file."""
        self._file, self._seen = file, set()

    def starts(self, reader: TableBatch) -> np.ndarray:
        """(n,) bool: rows that are known to begin an episode."""
        starts = np.zeros(reader.batch.num_rows, dtype=bool)
        if "step" in reader.columns:
            steps = reader.numbers("step")
            before = steps[:1] if self._last_step is None else [self._last_step]
            starts |= steps <= np.append(before, steps[:-1])
            starts[0] &= self._last_step is not None
            self._last_step = steps[-1]
        if "episode_id" in reader.columns:
            ids = reader.ids()
            changes = np.append(self._last_id is not None and ids[0] != self._last_id, ids[1:] != ids[:-1])
            if not changes[0]:
                self._seen.add(ids[0])
            for row in np.flatnonzero(changes):
                if ids[row] in self._seen:
                    raise reader.error(
                        str(reader.columns["episode_id"]),
                        f"comes back to episode {ids[row]}, whose rows must follow each other: sort the rows by "
                        "episode and time",
                        int(row),
                    )
                self._seen.add(ids[row])
            self._last_id = ids[-1]
            starts |= changes.astype(bool)
        return starts


def _rows(reader: TableBatch, starts: np.ndarray) -> Rows:
    flags = {role: reader.flags(role) for role in FLAGS if role in reader.columns}
    terminated, truncated = ends(flags, len(starts))
    return Rows(
        observations=reader.vectors("observations"),
        actions=reader.vectors("actions"),
        rewards=reader.numbers("rewards"),
        terminated=terminated,
        truncated=truncated | (np.append(starts[1:], False) & ~terminated),
        next_observations=reader.vectors("next_observations") if "next_observations" in reader.columns else None,
    )


def _layout(rows: Rows) -> dict[str, Any]:
    """The shape of one row of each column."""
    columns = {role: getattr(rows, role) for role in VECTORS if getattr(rows, role) is not None}
    return {".".join(map(str, path)): leaf.shape[1:] for path, leaf in tree.flatten_with_path(columns)}
