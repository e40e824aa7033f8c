"""Which column of a table is which, and what a batch of its rows holds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pyarrow as pa

from rllib_calql.data.errors import DatasetError
from rllib_calql.data.rows import Tree
from rllib_calql.data.sources.arrow_values import ColumnError, values

# What columns are called where the caller does not say; the first that is there counts.
NAMES: dict[str, tuple[str, ...]] = {
    "observations": ("observations", "observation", "obs", "states", "state"),
    "actions": ("actions", "action"),
    "rewards": ("rewards", "reward"),
    "terminated": ("terminated", "terminateds", "terminals", "terminal", "terminations"),
    "truncated": ("truncated", "truncateds", "timeouts", "timeout", "truncations"),
    "dones": ("dones", "done"),
    "next_observations": ("next_observations", "next_observation", "next_obs", "new_obs", "next_states"),
    "episode_id": ("episode_id", "episode_ids", "eps_id", "episode_index", "episode"),
    "step": ("step", "time_step", "timestep", "frame_index", "t"),
}
_REQUIRED = ("observations", "actions", "rewards")
VECTORS = ("observations", "actions", "next_observations")
FLAGS = ("terminated", "truncated", "dones")
# A role's column, or the columns that make up its vector.
Chosen = dict[str, str | tuple[str, ...]]


def ends(flags: Mapping[str, np.ndarray], num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """`terminated` and `truncated`, (n,) bool each, from those `FLAGS` that there are.

    What is done and not terminated was truncated; where nothing tells what was terminated, all is that is done
    and not truncated.
    """
    no = np.zeros(num_rows, dtype=bool)
    truncated, dones = flags.get("truncated", no), flags.get("dones", no)
    if "terminated" in flags:
        return flags["terminated"], truncated | (dones & ~flags["terminated"])
    return dones & ~truncated, truncated


class TableFile(Protocol):
    """A file of columns, or what is read like one; `str` names it in messages."""

    def read_schema(self) -> tuple[pa.Schema, int | None]:
        """The columns and their number of rows, where that is known without reading them."""
        ...

    def batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """The rows in order, about `CHUNK_BYTES` of these columns at a time."""
        ...


def columns_of(chosen: Chosen) -> list[str]:
    """All columns that are read, once each."""
    names = (names if isinstance(names, tuple) else (names,) for names in chosen.values())
    return list(dict.fromkeys(name for group in names for name in group))


def choose_columns(schema: pa.Schema, given: Mapping[str, str | Sequence[str]], file: object) -> Chosen:
    """The column or columns of each role that a table has.

    Raises:
        DatasetError: a role is unknown, or a column is missing or ambiguous.
    """
    if unknown := sorted(set(given) - set(NAMES)):
        raise DatasetError(f"columns has no {unknown[0]!r}: it takes {', '.join(NAMES)}")
    chosen: Chosen = {}
    for role, names in NAMES.items():
        found: str | tuple[str, ...] | None
        if role in given:
            found = _given(schema, role, given[role], file)
        else:
            candidates = (_find(schema, role, name, file) for name in names)
            found = next((column for column in candidates if column is not None), None)
            if role == "step" and found is not None and not pa.types.is_integer(schema.field(str(found)).type):
                found = None  # times, not step numbers
        if found is not None:
            chosen[role] = found
    for role in _REQUIRED:
        if role not in chosen:
            raise DatasetError(
                f"{file} has no column for {role} ({', '.join(NAMES[role])}); its columns are "
                f"{_shortened(schema.names)}: say which it is with columns={{'{role}': ...}}"
            )
    per_episode = pa.types.is_nested(schema.field(str(chosen["rewards"])).type)
    if not per_episode and not {"terminated", "truncated", "dones", "episode_id", "step"} & set(chosen):
        raise DatasetError(
            f"{file} has no column that says where episodes end ({', '.join(NAMES['terminated'][:3])}, truncated, "
            f"timeouts, dones, episode_id, step); its columns are {_shortened(schema.names)}: name one with "
            "columns={'episode_id': ...} or another of these"
        )
    return chosen


def _given(schema: pa.Schema, role: str, names: str | Sequence[str], file: object) -> str | tuple[str, ...]:
    if isinstance(names, str):
        found = _find(schema, role, names, file)
        if found is None:
            raise DatasetError(
                f"{file} has no column {names!r} (for {role}); its columns are {_shortened(schema.names)}"
            )
        return found
    if role not in VECTORS:
        raise DatasetError(f"{role} is one column, not {list(names)}")
    if missing := [name for name in names if name not in schema.names]:
        raise DatasetError(
            f"{file} has no column {missing[0]!r} (for {role}); its columns are {_shortened(schema.names)}"
        )
    if not names:
        raise DatasetError(f"columns for {role} are empty")
    return tuple(names)


def _find(schema: pa.Schema, role: str, name: str, file: object) -> str | tuple[str, ...] | None:
    """The column of this name, or for a vector the columns `name_0`, `name_1`, ... in natural order."""
    if (count := schema.names.count(name)) > 1:
        raise DatasetError(f"{file} has {count} columns called {name!r}")
    if count == 1:
        return name
    if role not in VECTORS:
        return None
    numbered = {}
    for column in schema.names:
        if match := re.fullmatch(re.escape(name) + r"[_.\[]?(\d+)\]?", column):
            numbered[int(match[1])] = column
    if not numbered:
        return None
    order = sorted(numbered)
    if order != list(range(order[0], order[0] + len(order))) or order[0] > 1:
        absent = next(number for number in range(order[-1]) if number not in numbered)
        raise DatasetError(
            f"{file} has columns {numbered[order[0]]} to {numbered[order[-1]]} without number {absent}"
        )
    return tuple(numbered[number] for number in order)


def _shortened(names: Sequence[str], limit: int = 30) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


@dataclass(frozen=True)
class TableBatch:
    """Some rows of a file, by role; what cannot be used is reported with file, column and row."""

    file: object
    first_row: int
    batch: pa.RecordBatch
    columns: Chosen
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def error(self, name: str, message: str, row: int | None = None) -> DatasetError:
        where = "" if row is None else f", row {self.first_row + row}"
        return DatasetError(f"{self.file}: column {name!r}{where} {message}")

    def _values(self, name: str, shape: Sequence[int] | None = None) -> Tree:
        try:
            return values(self.batch.column(name), self.batch.schema.field(name), shape)
        except ColumnError as error:
            raise self.error(name, str(error), error.row) from error

    def vectors(self, role: str) -> Tree:
        """(n, ...) leaves; a column of single integers as actions stays (n,)."""
        column = self.columns[role]
        if not isinstance(column, str):
            return np.stack([self._numbers(name) for name in column], axis=1)
        result = self._values(column, self.shapes.get(role))
        if isinstance(result, np.ndarray) and result.ndim == 1:
            discrete = role == "actions" and result.dtype.kind in "iu"
            return result if discrete else result[:, None]
        return result

    def numbers(self, role: str) -> np.ndarray:
        """(n,)"""
        return self._numbers(str(self.columns[role]))

    def _numbers(self, name: str) -> np.ndarray:
        result = self._values(name)
        if isinstance(result, np.ndarray) and result.ndim == 2 and result.shape[1] == 1:
            result = result[:, 0]
        if not isinstance(result, np.ndarray) or result.ndim != 1:
            raise self.error(name, f"must be one number per row, not {self.batch.schema.field(name).type}")
        return result

    def flags(self, role: str) -> np.ndarray:
        """(n,) bool"""
        result = self.numbers(role)
        bad = np.isnan(result) if result.dtype.kind == "f" else np.zeros(len(result), dtype=bool)
        if bad.any():
            raise self.error(str(self.columns[role]), "is NaN, neither true nor false", int(bad.argmax()))
        return result != 0

    def ids(self) -> np.ndarray:
        """(n,) of whatever type episode ids have."""
        name = str(self.columns["episode_id"])
        column = self.batch.column(name)
        if column.null_count:
            raise self.error(name, "is null", int(np.argmax(column.is_null().to_numpy(zero_copy_only=False))))
        try:
            column.validate(full=True)
            plain = column.dictionary_decode() if isinstance(column, pa.DictionaryArray) else column
            result = np.asarray(plain.to_numpy(zero_copy_only=False))
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise self.error(name, f"is damaged: {error}") from error
        if result.ndim != 1 or (len(result) and isinstance(result[0], (np.ndarray, list, dict))):
            raise self.error(name, f"must be one id per row, not {column.type}")
        return result
