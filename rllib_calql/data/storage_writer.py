"""Writes datasets as folders of Arrow files, see `storage`: as a stream, and whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tree

from rllib_calql.data.arrow_column import ColumnWriter
from rllib_calql.data.assemble import Block, clean_blocks
from rllib_calql.data.claim import FREE, REPLACE, claimed
from rllib_calql.data.columns import ObservationLayout, row_bytes
from rllib_calql.data.errors import DatasetError
from rllib_calql.data.rows import Source, Tree
from rllib_calql.data.spaces import metadata_to_json
from rllib_calql.data.storage import DESCRIPTION, FORMAT, open_columns, open_folder
from rllib_calql.data.transitions import Transitions
from rllib_calql.data.whole import CheckpointError, recover, whole_folder


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
            "metadata": metadata_to_json(source.metadata),
        }
        _write_description(folder, description)
        fingerprint = open_columns(folder)[0].fingerprint
        _write_description(folder, {**description, "fingerprint": fingerprint})
    return open_folder(path)


@contextmanager
def _target(path: str | Path, overwrite: bool) -> Iterator[Path]:
    """An empty folder that takes the place of `path` when the block ends; what goes wrong is a DatasetError."""
    with claimed(path) as place:
        _check_free(recover(place), overwrite)
        try:
            with whole_folder(place) as folder:
                yield folder
        except CheckpointError as error:
            raise DatasetError(
                f"{place} cannot be replaced ({error}): remove it, or choose another name"
            ) from error


def _check_free(path: Path, overwrite: bool) -> None:
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    is_dataset = (path / DESCRIPTION).is_file()
    if not (is_dataset and overwrite):
        if is_dataset:
            raise DatasetError(f"there is a dataset at {path} already: {REPLACE}")
        raise DatasetError(f"there is something else at {path} already: {FREE}")


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
            f"no room for the dataset: it needs {needed / 1e6:,.2f} MB, and the disk has {free / 1e6:,.2f} MB left"
        )


def _write_description(folder: Path, description: dict[str, Any]) -> None:
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n")
