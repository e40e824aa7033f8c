"""The Parquet files of RLlib's new API stack: episodes packed with msgpack, or one step per row."""

from __future__ import annotations

import itertools
import re
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pyarrow as pa
import tree

from rllib_calql.data.errors import DatasetError
from rllib_calql.data.rows import Rows, Tree
from rllib_calql.data.sources.arrow_files import batches, read_schema
from rllib_calql.data.sources.files import natural
from rllib_calql.data.sources.rllib_json import unpack
from rllib_calql.data.sources.rllib_logs import Fragment
from rllib_calql.data.sources.table_columns import Chosen, TableBatch
from rllib_calql.data.unpickle import check_numbers

_STEP_COLUMNS: Chosen = {
    "observations": "obs",
    "actions": "actions",
    "rewards": "rewards",
    "next_observations": "new_obs",
    "terminated": "terminateds",
    "truncated": "truncateds",
    "episode_id": "eps_id",
}


@dataclass(frozen=True)
class StepReader:
    """One step per row; steps have no numbers, they follow each other."""

    files: tuple[Path, ...]
    allow_pickle: bool

    def fragments(self) -> Iterator[Fragment]:
        """The fragments of episodes in all files, without those that a later writing repeats."""
        columns = [str(name) for name in _STEP_COLUMNS.values()]
        agents: set[Hashable] = set()
        for path in unrepeated(self.files, columns):
            schema, _ = read_schema(path)
            if missing := [name for name in columns if name not in schema.names]:
                raise DatasetError(f"{path} has no column {missing[0]!r}, which RLlib's logs of steps have")
            first_row = 0
            for batch in batches(path, [*columns, "agent_id"]):
                if batch.num_rows:
                    agents.update(batch.column("agent_id").unique().to_pylist())
                    if len(agents) > 1:
                        names = ", ".join(map(str, agents))
                        raise DatasetError(
                            f"{path} has steps of several agents ({names}): CalQL trains one policy, so write "
                            "a log of each agent by itself"
                        )
                    yield from self._fragments(TableBatch(path, first_row, batch, _STEP_COLUMNS))
                first_row += batch.num_rows

    def _fragments(self, batch: TableBatch) -> Iterator[Fragment]:
        rows = Rows(
            observations=self._vectors(batch, "observations"),
            actions=self._vectors(batch, "actions"),
            rewards=batch.numbers("rewards"),
            terminated=batch.flags("terminated"),
            truncated=batch.flags("truncated"),
            next_observations=self._vectors(batch, "next_observations"),
        )
        ids = batch.ids()
        borders = [0, *(np.flatnonzero(ids[1:] != ids[:-1]) + 1), len(ids)]
        for start, end in itertools.pairwise(borders):
            yield Fragment(ids[start], None, rows.take(slice(start, end)))

    def _vectors(self, batch: TableBatch, role: str) -> Tree:
        name = str(_STEP_COLUMNS[role])
        column = batch.batch.column(name)
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)) or column.null_count:
            return batch.vectors(role)
        try:
            return _stacked([unpack(text, name, self.allow_pickle) for text in column.to_pylist()])
        except DatasetError as error:
            raise DatasetError(f"{batch.file}, rows from {batch.first_row}: {error}") from error


@dataclass(frozen=True)
class EpisodeReader:
    """One episode, or a piece of one, per row."""

    files: tuple[Path, ...]

    def fragments(self) -> Iterator[Fragment]:
        """The pieces of episodes in all files, without those that a later writing repeats."""
        for path in unrepeated(self.files, ["item"]):
            row = 0
            for batch in batches(path, ["item"]):
                for item in batch.column("item").to_pylist():
                    try:
                        fragment = _episode(item)
                    except DatasetError as error:
                        raise DatasetError(f"{path}, row {row}: {error}") from error
                    if fragment is not None:
                        yield fragment
                    row += 1


def _episode(item: bytes | None) -> Fragment | None:
    """The steps in a `SingleAgentEpisode`'s state; None where it has only begun."""
    try:
        state = msgpack.unpackb(item, object_hook=_array, strict_map_key=False)
        if len(state["rewards"]["data"]) == state["rewards"]["lookback"]:
            return None
        rewards = check_numbers(_data(state["rewards"]))
        observations, actions = _data(state["observations"]), _data(state["actions"])
        terminated, truncated = bool(state["is_terminated"]), bool(state["is_truncated"])
        start = int(state["t_started"])
        last = np.arange(1, len(rewards) + 1) == len(rewards)
        rows = Rows(  # there is one observation more than steps
            observations=tree.map_structure(lambda leaf: check_numbers(leaf)[:-1], observations),
            actions=tree.map_structure(check_numbers, actions),
            rewards=rewards,
            terminated=last & terminated,
            truncated=last & truncated,
            next_observations=tree.map_structure(lambda leaf: leaf[1:], observations),
        )
        lengths = {len(leaf) for leaf in tree.flatten(vars(rows))}
        episode = state["id_"]
        if not isinstance(episode, str):
            raise DatasetError(f"the episode's id is {episode!r}, not text")
    except DatasetError:
        raise
    except Exception as error:  # a damaged item can be anything
        raise DatasetError(f"not an episode of RLlib: {type(error).__name__}: {error}") from error
    if len(lengths) > 1:
        raise DatasetError(f"the episode has columns of different lengths: {sorted(lengths)}")
    return Fragment(episode, start, rows)


def _data(buffer: Mapping[str, Any]) -> Tree:
    """What an episode's buffer holds after its look-back: (n, ...) arrays."""
    data, lookback = buffer["data"], int(buffer["lookback"])
    stacked = data if buffer["finalized"] else _stacked(data)
    return tree.map_structure(lambda leaf: leaf[lookback:], _tuples(stacked))


def _tuples(value: Any) -> Tree:
    """msgpack gives back tuples as lists."""
    if isinstance(value, dict):
        return {key: _tuples(entry) for key, entry in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def _stacked(steps: list[Any]) -> Tree:
    """The arrays of single steps as (n, ...) arrays."""
    try:
        return tree.map_structure(lambda *leaves: np.stack(leaves), *steps)
    except (TypeError, ValueError) as error:
        raise DatasetError(f"steps have different shapes: {error}") from error


def _array(value: dict[Any, Any]) -> Any:
    """Arrays as `msgpack_numpy` encodes them, except for pickled ones (which only infos have): these are None."""
    if b"nd" not in value:
        return value
    if value.get(b"kind") not in (None, b""):
        return None
    array = np.frombuffer(value[b"data"], dtype=np.dtype(value[b"type"]))
    return array.reshape(value[b"shape"]) if value[b"nd"] else array[0]


# ---- which files hold what others hold too


def unrepeated(files: tuple[Path, ...], columns: list[str]) -> list[Path]:
    """The files without those of earlier writings that a later one repeats.

    Ray appends to what it has written by writing everything again, in another folder and in many files. So of the
    writings that begin with the same row, the longest has everything.
    """
    writings: dict[tuple[Path, str], list[Path]] = {}
    for path in files:
        match = re.fullmatch(r"(.*)_\d{6}[_-]\d+", path.stem)
        writings.setdefault((path.parent, match[1] if match else path.stem), []).append(path)
    alike: dict[str, list[list[Path]]] = {}
    for paths in writings.values():
        paths.sort(key=natural)
        alike.setdefault(_row(paths[0], 0, columns), []).append(paths)
    kept = []
    for group in alike.values():
        lengths = [_lengths(paths) for paths in group] if len(group) > 1 else [[]]
        longest = max(range(len(group)), key=lambda index: sum(lengths[index]))
        kept.append(group[longest])
        for index, paths in enumerate(group):
            if index != longest and not _begins(group[longest], lengths[longest], paths, lengths[index], columns):
                kept.append(paths)
    return [path for paths in sorted(kept, key=lambda paths: natural(paths[0])) for path in paths]


def _lengths(paths: list[Path]) -> list[int]:
    return [read_schema(path)[1] or 0 for path in paths]


def _begins(
    whole: list[Path], lengths: list[int], part: list[Path], part_lengths: list[int], columns: list[str]
) -> bool:
    """Whether the last row of a part is where it should be in the whole."""
    row = sum(part_lengths) - 1
    ends = np.cumsum(lengths)
    number = int(np.searchsorted(ends, row, side="right"))
    expected = _row(part[-1], part_lengths[-1] - 1, columns)
    return _row(whole[number], row - int(ends[number]) + lengths[number], columns) == expected


def _row(path: Path, row: int, columns: list[str]) -> str:
    """One row of a file, as text."""
    for batch in batches(path, columns):
        if row < batch.num_rows:
            return repr(batch.slice(row, 1).to_pylist())
        row -= batch.num_rows
    return f"{path} has no row {row}"
