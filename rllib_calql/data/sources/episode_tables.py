"""Tables with an episode per row, read like tables with a step per row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rllib_calql.data.errors import DatasetError
from rllib_calql.data.sources.table_columns import FLAGS, Chosen, TableFile

# The column that counts the steps of an episode.
STEP = "number of the step"


def is_episode_per_row(schema: pa.Schema, chosen: Chosen) -> bool:
    """Whether rewards are lists, and observations lists of vectors (or several columns of lists)."""
    observations = chosen["observations"]
    inner = _list_of(schema, str(chosen["rewards"]))
    if isinstance(observations, str):
        vectors = _list_of(schema, observations)
        return inner is not None and vectors is not None and _is_list(vectors.type)
    return inner is not None and all(_list_of(schema, name) is not None for name in observations)


def steps_of(chosen: Chosen, with_final: bool) -> Chosen:
    """The columns of the table of steps."""
    kept = {role: names for role, names in chosen.items() if role not in ("episode_id", "step")}
    if with_final:
        names = chosen["observations"]
        kept["next_observations"] = _following(names) if isinstance(names, str) else tuple(map(_following, names))
    return {**kept, "step": STEP}


@dataclass(frozen=True)
class EpisodeTable:
    """The steps of a file that has an episode per row."""

    file: TableFile
    columns: Chosen  # of the file
    with_final: bool  # observations have one entry more than rewards: what followed the last step

    def __str__(self) -> str:
        return str(self.file)

    def read_schema(self) -> tuple[pa.Schema, int | None]:
        """See `TableFile`; the number of steps is not known."""
        schema, _ = self.file.read_schema()
        fields = {field.name: (_list_of(schema, field.name) or field).with_name(field.name) for field in schema}
        for name in _names(self.columns["observations"]) if self.with_final else ():
            fields[_following(name)] = fields[name].with_name(_following(name))
        return pa.schema([*fields.values(), pa.field(STEP, pa.int64())]), None

    def batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """See `TableFile`."""
        schema, _ = self.read_schema()
        following = {_following(name): name for name in _names(self.columns["observations"])}
        stored = [name for name in columns if name != STEP and name not in following]
        first = 0
        for batch in self.file.batches(stored):
            lengths = self._lengths(batch, str(self.columns["rewards"]), first)
            arrays = []
            for name in columns:
                if name == STEP:
                    starts = np.cumsum(lengths) - lengths
                    arrays.append(pa.array(np.arange(lengths.sum()) - np.repeat(starts, lengths)))
                else:
                    arrays.append(self._steps(batch, following.get(name, name), lengths, first, name in following))
            yield pa.RecordBatch.from_arrays(arrays, schema=pa.schema([schema.field(name) for name in columns]))
            first += len(lengths)

    def _known(self, batch: pa.RecordBatch, name: str, first: int) -> pa.Array:
        """The column; DatasetError where an entry of it is null or NaN."""
        column = batch.column(name)
        unknown = column.is_null(nan_is_null=True).to_numpy(zero_copy_only=False)
        if unknown.any():
            raise DatasetError(f"{self.file}: column {name!r}, row {first + int(np.argmax(unknown))} is null")
        return column

    def _lengths(self, batch: pa.RecordBatch, name: str, first: int) -> np.ndarray:
        column = self._known(batch, name, first)
        if pa.types.is_fixed_size_list(column.type):
            return np.full(len(column), column.type.list_size)
        return pc.list_value_length(column).to_numpy(zero_copy_only=False)

    def _steps(
        self, batch: pa.RecordBatch, name: str, lengths: np.ndarray, first: int, following: bool
    ) -> pa.Array:
        """A column's entries, one per step."""
        column = batch.column(name)
        ends = np.cumsum(lengths)
        if not _is_list(column.type):
            if name not in [self.columns.get(role) for role in FLAGS]:
                return column.take(pa.array(np.repeat(np.arange(len(lengths)), lengths)))
            # A flag of the episode is one of its last step.
            flags = np.zeros(int(lengths.sum()), dtype=bool)
            flags[ends[lengths > 0] - 1] = (
                self._known(batch, name, first).to_numpy(zero_copy_only=False)[lengths > 0] != 0
            )
            return pa.array(flags)
        own = self._lengths(batch, name, first)
        more = int(self.with_final and name in _names(self.columns["observations"]))
        if len(different := np.flatnonzero(own != lengths + more)):
            row = int(different[0])
            raise DatasetError(
                f"{self.file}: column {name!r}, row {first + row} has {own[row]} steps, the rewards "
                f"{lengths[row]}"
                + (" and observations are expected to have one more, as in the first row" if more else "")
            )
        entries = column.flatten()
        if not more:
            return entries
        borders = np.cumsum(own)
        kept = np.ones(len(entries), dtype=bool)
        kept[borders - own if following else borders - 1] = False
        return entries.filter(pa.array(kept))


def has_final(file: TableFile, chosen: Chosen) -> bool:
    """Whether the first episode has one observation more than rewards."""
    rewards, observations = str(chosen["rewards"]), _names(chosen["observations"])[0]
    for batch in file.batches([rewards, observations]):
        if batch.num_rows:
            row = batch.slice(0, 1)
            return len(row.column(observations).flatten()) == len(row.column(rewards).flatten()) + 1
    return False


def _names(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _following(name: str) -> str:
    return f"{name} that followed"


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _list_of(schema: pa.Schema, name: str) -> pa.Field | None:
    """The field of a list's values; None where the column is no list."""
    kind = schema.field(name).type
    return kind.value_field if _is_list(kind) else None
