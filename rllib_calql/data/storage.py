"""Datasets as a folder of Arrow files: written as a stream, opened by memory-mapping.

    DIR/dataset.json                 sizes, fingerprint, spaces, environment and the like
    DIR/observations.arrow           (N, obs_dim) float32, or (N, height, width, ...) uint8
    DIR/actions.arrow                (N, act_dim) float32, or (N,) int64 where Discrete
    DIR/rewards.arrow                (N,) float32
    DIR/ends.arrow                   (E,) int64: the last row of each episode
    DIR/terminated.arrow             (E,) uint8: 1 where the task ended there, 0 where the episode was cut off
    DIR/final_observations.arrow     (E, ...): what followed each episode's last row

Observations that were kept nested have a file for each entry, `observations-0.arrow` and so on, numbered in the
order of sorted keys. Next observations and flags follow from these files and are not stored.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tree
from filelock import FileLock, Timeout

from rllib_calql.data.arrow_column import ColumnWriter, map_column
from rllib_calql.data.assemble import Block, clean_blocks
from rllib_calql.data.columns import ObservationLayout, row_bytes
from rllib_calql.data.errors import DatasetError
from rllib_calql.data.rows import Metadata, Source, Tree
from rllib_calql.data.spaces import space_from_json, space_to_json
from rllib_calql.data.transitions import Transitions
from rllib_calql.data.whole import CheckpointError, recover, whole_folder

DESCRIPTION = "dataset.json"
FORMAT = 1
_DAMAGED = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)


# ---- writing


def write_dataset(
    source: Source,
    path: str | Path,
    *,
    observations: ObservationLayout = "flatten",
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Transitions:
    """Reads a source and writes it as a dataset folder, in bounded memory.

    The folder appears at `path` when it is complete. A process that is killed leaves nothing there, only a
    hidden folder beside it, which the next writer to `path` removes.

    Args:
        source: what is written; rows are cleaned as by `Transitions.from_source`.
        path: the folder to make.
        observations: whether Dict and Tuple observations become one vector, or are kept.
        overwrite: replace a dataset that is there already.
        progress: called with the number of rows written so far.

    Returns:
        The dataset, opened.

    Raises:
        DatasetError: the rows cannot be used, something else is at `path`, another process is writing there, or
            there is no room.

    Warns:
        DatasetWarning: counts rows that were dropped and episodes that were cut.
    """
    with _target(path, overwrite) as folder:
        blocks = clean_blocks(source, observations)
        columns = _Columns(folder, next(blocks), source.metadata.num_rows)
        try:
            if progress is not None:
                progress(columns.num_rows)
            for block in blocks:
                columns.append(block)
                if progress is not None:
                    progress(columns.num_rows)
            columns.close()
        finally:
            columns.abandon()
        description = {
            "format": FORMAT,
            "num_rows": columns.num_whole,
            "num_episodes": columns.num_episodes,
            "observations": columns.structure,
            "metadata": _metadata_to_json(source.metadata),
        }
        _write_description(folder, description)
        fingerprint = _open(folder, check_fingerprint=False).fingerprint
        _write_description(folder, {**description, "fingerprint": fingerprint})
    return open_folder(path)


@contextmanager
def _target(path: str | Path, overwrite: bool) -> Iterator[Path]:
    """An empty folder that takes the place of `path` when the block ends; what goes wrong is a DatasetError."""
    path = Path(path).expanduser().absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            _check_free(recover(path), overwrite)
            with whole_folder(path) as folder:
                yield folder
    except CheckpointError as error:
        raise DatasetError(f"{path} cannot be replaced ({error}): remove it, or choose another name") from error
    except Timeout as error:
        raise DatasetError(f"another process is writing {path}: wait for it, or choose another name") from error
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        reason = "the disk is full" if full else error.strerror or error
        raise DatasetError(f"{path} could not be written: {reason}. Nothing was left there") from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with FileLock(path.with_name(f".{path.name}.lock"), timeout=0) as lock:
        try:
            yield
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)


def _check_free(path: Path, overwrite: bool) -> None:
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    is_dataset = (path / DESCRIPTION).is_file()
    if not (is_dataset and overwrite):
        kind = "a dataset" if is_dataset else "something else"
        raise DatasetError(f"there is {kind} at {path} already: remove it, or choose another name")


class _Columns:
    """The files of a dataset while they grow."""

    def __init__(self, folder: Path, first: Block, expected_rows: int | None) -> None:
        _check_room(folder, first, expected_rows)
        self._files = {
            name: _column_writers(folder, name, getattr(first, name))
            for name in ("observations", "actions", "rewards", "final_observations")
        }
        self._files["ends"] = _column_writers(folder, "ends", np.zeros(1, np.int64))
        self._files["terminated"] = _column_writers(folder, "terminated", np.zeros(1, np.uint8))
        self.structure = None if isinstance(first.observations, np.ndarray) else _numbered(first.observations)
        self.num_rows = self.num_whole = self.num_episodes = 0
        self.append(first)

    def append(self, block: Block) -> None:
        ends = block.ends
        self._write("observations", block.observations)
        self._write("actions", block.actions)
        self._write("rewards", block.rewards)
        if len(ends):
            self._write("final_observations", block.final_observations)
            self._write("ends", ends + self.num_rows)
            self._write("terminated", block.terminated[ends].astype(np.uint8))
            self.num_whole = self.num_rows + int(ends[-1]) + 1
            self.num_episodes += len(ends)
        self.num_rows += len(block)

    def _write(self, name: str, column: Tree) -> None:
        for file, leaf in zip(self._files[name], tree.flatten(column), strict=True):
            file.append(leaf)

    def close(self) -> None:
        for name, files in self._files.items():
            for file in files:
                file.close(self.num_whole if name in _PER_ROW else self.num_episodes)

    def abandon(self) -> None:
        for file in tree.flatten(self._files):
            file.abandon()


_PER_ROW = ("observations", "actions", "rewards")


def _column_writers(folder: Path, name: str, column: Tree) -> list[ColumnWriter]:
    leaves = tree.flatten(column)
    names = [name] if isinstance(column, np.ndarray) else [f"{name}-{index}" for index in range(len(leaves))]
    return [
        ColumnWriter(folder / f"{file}.arrow", file, leaf.shape[1:], leaf.dtype)
        for file, leaf in zip(names, leaves, strict=True)
    ]


def _numbered(column: Tree) -> Any:
    """The structure of a nested column as JSON has it, with the numbers of the leaves."""
    numbers = iter(range(len(tree.flatten(column))))
    return tree.map_structure(lambda _: next(numbers), column)


def _check_room(folder: Path, first: Block, expected_rows: int | None) -> None:
    if expected_rows is None:
        return
    needed = expected_rows * row_bytes(first.observations, first.actions, first.rewards)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DatasetError(
            f"no room for the dataset: it needs {needed / 1e9:.2f} GB, and the disk has {free / 1e9:.2f} GB left"
        )


def _write_description(folder: Path, description: dict[str, Any]) -> None:
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n")


def _metadata_to_json(metadata: Metadata) -> dict[str, Any]:
    return {
        "observation_space": space_to_json(metadata.observation_space),
        "action_space": space_to_json(metadata.action_space),
        "environment": metadata.environment,
        "score_range": None if metadata.score_range is None else list(metadata.score_range),
        "actions_normalized": metadata.actions_normalized,
        "source": metadata.source,
    }


def _metadata_from_json(written: dict[str, Any]) -> Metadata:
    scores = written["score_range"]
    environment, source = written["environment"], written["source"]
    for text in (environment, source):
        if not isinstance(text, (str, type(None))):
            raise TypeError(f"{text!r} is no text")
    return Metadata(
        observation_space=space_from_json(written["observation_space"]),
        action_space=space_from_json(written["action_space"]),
        environment=environment,
        score_range=None if scores is None else (float(scores[0]), float(scores[1])),
        actions_normalized=bool(written["actions_normalized"]),
        source=source,
    )


# ---- reading


def open_folder(path: str | Path) -> Transitions:
    """Opens a dataset folder without reading its rows: its columns are memory maps.

    Raises:
        DatasetError: no such folder, or its files are damaged, incomplete or do not fit each other.
    """
    return _open(recover(path), check_fingerprint=True)


def _open(folder: Path, *, check_fingerprint: bool) -> Transitions:
    description = _description(folder)
    try:
        if description["format"] != FORMAT:
            raise DatasetError(
                f"{folder} was written in format {description['format']!r}, and this version reads {FORMAT}"
            )
        metadata = replace(_metadata_from_json(description["metadata"]), num_rows=int(description["num_rows"]))
        structure = description["observations"]
        sizes = int(description["num_rows"]), int(description["num_episodes"])
        fingerprint = description.get("fingerprint")
    except _DAMAGED as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{folder / DESCRIPTION} is damaged: {error!r}") from error
    maps = _Maps(folder)
    observations = maps.tree("observations", structure)
    actions, rewards = maps.leaf("actions"), maps.leaf("rewards")
    final_observations = maps.tree("final_observations", structure)
    ends, ended = maps.leaf("ends"), maps.leaf("terminated")
    _check_sizes(folder, sizes, (observations, actions, rewards), (final_observations, ends, ended))
    _check_types(folder, observations, actions, rewards, final_observations, ends, ended)
    num_rows = len(rewards)
    if not (ends[0] >= 0 and ends[-1] == num_rows - 1 and (np.diff(ends) > 0).all()):
        raise DatasetError(f"{folder / 'ends.arrow'} is damaged: it does not cut {num_rows} rows into episodes")
    terminated, truncated = np.zeros(num_rows, bool), np.zeros(num_rows, bool)
    terminated[ends] = ended != 0
    truncated[ends] = ended == 0
    data = Transitions.unchecked(
        observations=observations,
        actions=actions,
        rewards=rewards,
        terminated=terminated,
        truncated=truncated,
        final_observations=final_observations,
        metadata=metadata,
        folder=Folder(folder, tuple(maps.maps)),
        episode_ends=ends,
    )
    if check_fingerprint and data.fingerprint != fingerprint:
        raise DatasetError(f"{folder} is damaged: its rows are not those that were written")
    return data


def _description(folder: Path) -> dict[str, Any]:
    try:
        text = (folder / DESCRIPTION).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{folder} holds no complete dataset: {DESCRIPTION} cannot be read: {error}") from error
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{folder / DESCRIPTION} is damaged: {error}") from error


class _Maps:
    """The column files of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.maps: list[mmap.mmap] = []

    def leaf(self, name: str) -> np.ndarray:
        path = self._folder / f"{name}.arrow"
        if path.resolve().parent != self._folder.resolve() or not path.is_file():
            raise DatasetError(f"{path} is missing, or no file of the dataset's folder")
        array, mapped = map_column(path, name)
        self.maps.append(mapped)
        return array

    def tree(self, name: str, structure: Any) -> Any:
        if structure is None:
            return self.leaf(name)
        if isinstance(structure, dict):
            return {key: self.tree(name, inner) for key, inner in structure.items()}
        if isinstance(structure, list):
            return tuple(self.tree(name, inner) for inner in structure)
        if type(structure) is int and 0 <= structure < 10_000:
            return self.leaf(f"{name}-{structure}")
        raise DatasetError(f"{self._folder / DESCRIPTION} is damaged: observations {structure!r}")


def _check_sizes(folder: Path, sizes: tuple[int, int], per_row: Any, per_episode: Any) -> None:
    for size, columns in zip(sizes, (per_row, per_episode), strict=True):
        lengths = {len(leaf) for leaf in tree.flatten(columns)}
        if lengths != {size} or size < 1:
            raise DatasetError(f"{folder} is damaged: {DESCRIPTION} tells of {size} rows, the files have {lengths}")


def _check_types(
    folder: Path,
    observations: Tree,
    actions: np.ndarray,
    rewards: np.ndarray,
    final_observations: Tree,
    ends: np.ndarray,
    ended: np.ndarray,
) -> None:
    rows, finals = (
        [(leaf.shape[1:], leaf.dtype) for leaf in tree.flatten(column)]
        for column in (observations, final_observations)
    )
    fine = rows == finals and all(
        (dtype == np.float32 and len(shape) == 1) or (dtype == np.uint8 and len(shape) > 1) for shape, dtype in rows
    )
    action_type = actions.dtype, actions.ndim
    fine = fine and action_type in ((np.dtype(np.float32), 2), (np.dtype(np.int64), 1))
    kinds = [(column.dtype.name, column.ndim) for column in (rewards, ends, ended)]
    if not fine or kinds != [("float32", 1), ("int64", 1), ("uint8", 1)]:
        raise DatasetError(f"{folder} is damaged: its columns have types or shapes that no dataset has")


@dataclass(frozen=True, eq=False)
class Folder:
    """Where mapped columns lie."""

    path: Path
    maps: tuple[mmap.mmap, ...]

    def expect_random_reads(self) -> None:
        """Tells the system to read single pages, where the files do not fit into memory.

        Reading ahead around each of 256 scattered rows is what makes a batch slow that is not in memory.
        """
        if sum(map(len, self.maps)) > 0.5 * _memory():
            self._advise(mmap.MADV_RANDOM)

    def expect_reading_through(self) -> None:
        """Lets the system read ahead (again)."""
        self._advise(mmap.MADV_NORMAL)

    def _advise(self, how: int) -> None:
        for mapped in self.maps:
            mapped.madvise(how)


def _memory() -> int:
    """Bytes of memory that this process may use at most."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdecimal():
        sizes.append(int(text))
    return min(sizes)
