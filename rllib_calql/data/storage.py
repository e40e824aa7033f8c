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

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tree

from rllib_calql.data.arrow_column import map_column
from rllib_calql.data.errors import DatasetError
from rllib_calql.data.mapped import MappedColumn, MappedFolder
from rllib_calql.data.rows import Tree
from rllib_calql.data.spaces import DAMAGED, metadata_from_json
from rllib_calql.data.transitions import Transitions
from rllib_calql.data.whole import recover

DESCRIPTION = "dataset.json"
FORMAT = 1


def open_folder(path: str | Path) -> Transitions:
    """Opens a dataset folder without reading its rows: its columns are memory maps.

    Raises:
        DatasetError: no such folder, or its files are damaged, incomplete or do not fit each other.
    """
    folder = recover(path)
    data, fingerprint = open_columns(folder)
    if data.fingerprint != fingerprint:
        raise DatasetError(f"{folder} is damaged: its rows are not those that were written")
    return data


def open_columns(folder: Path) -> tuple[Transitions, str | None]:
    """The dataset, and the fingerprint that was written for it; they are not compared."""
    description = _description(folder)
    try:
        if description["format"] != FORMAT:
            raise DatasetError(
                f"{folder} was written in format {description['format']!r}, and this version reads {FORMAT}"
            )
        metadata = replace(metadata_from_json(description["metadata"]), num_rows=int(description["num_rows"]))
        structure = description["observations"]
        sizes = int(description["num_rows"]), int(description["num_episodes"])
        fingerprint = description.get("fingerprint")
    except DAMAGED as error:
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
    return Transitions.unchecked(
        observations=observations,
        actions=actions,
        rewards=rewards,
        terminated=terminated,
        truncated=truncated,
        final_observations=final_observations,
        metadata=metadata,
        mapped=MappedFolder(folder, maps.columns),
        as_written=True,
        episode_ends=ends,
    ), fingerprint


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
        self.columns: list[MappedColumn] = []

    def leaf(self, name: str) -> np.ndarray:
        path = self._folder / f"{name}.arrow"
        if path.resolve().parent != self._folder.resolve() or not path.is_file():
            raise DatasetError(f"{path} is missing, or no file of the dataset's folder")
        array, memory = map_column(path, name)
        per_row = name.partition("-")[0] in ("observations", "actions")
        self.columns.append(MappedColumn.of(array, memory, per_row))
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
            raise DatasetError(
                f"{folder} is damaged: {DESCRIPTION} tells of {size} rows, the files have {lengths}"
            )


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
        (dtype == np.float32 and len(shape) == 1) or (dtype == np.uint8 and len(shape) > 1)
        for shape, dtype in rows
    )
    action_type = actions.dtype, actions.ndim
    fine = fine and action_type in ((np.dtype(np.float32), 2), (np.dtype(np.int64), 1))
    kinds = [(column.dtype.name, column.ndim) for column in (rewards, ends, ended)]
    if not fine or kinds != [("float32", 1), ("int64", 1), ("uint8", 1)]:
        raise DatasetError(f"{folder} is damaged: its columns have types or shapes that no dataset has")
