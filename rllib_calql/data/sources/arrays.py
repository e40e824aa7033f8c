"""Numpy's data: `.npz` files, arrays in memory, and pickled trajectories such as the official Adroit sets."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import tree

from rllib_calql.data.columns import as_flags
from rllib_calql.data.errors import DatasetError, DatasetWarning
from rllib_calql.data.rows import Metadata, Rows, Source, Tree, cut_off, gather
from rllib_calql.data.sources.array_files import ArrayColumns, NpzFile
from rllib_calql.data.sources.files import data_files
from rllib_calql.data.sources.successes import UpToSuccesses
from rllib_calql.data.sources.table_columns import FLAGS, NAMES, VECTORS, ends
from rllib_calql.data.sources.tables import open_table
from rllib_calql.data.unpickle import check_numbers, unpickle

SUFFIXES = (".npz",)
PICKLED = (".npy", ".pkl", ".pickle")
_ROLES = (*VECTORS, "rewards", *FLAGS)
# The part of multiworld's dict observations that is the observation.
_STATE = "state_observation"


def open(
    path: str | Path | Mapping[str, Any],
    *,
    columns: Mapping[str, str | Sequence[str]] | None = None,
    success_reward: float | None = None,
    allow_pickle: bool = False,
) -> Source:
    """Arrays of one row per step, or pickled trajectories.

    A `.npz`, or a dict in memory, has an array per column; their names and what tells where episodes end are as in
    `tables.open`. Entries of nested observations are called `observations/KEY`, or lie in a dict.

    A pickle (`.pkl`, `.pickle`, or `.npy` of objects) holds such a dict, or a list of trajectories, each a dict
    of arrays or lists; a trajectory that does not end as terminated is truncated. Its observations may be dicts:
    of their entries `state_observation` is taken where it is there (the official Adroit sets), else all.

    Args:
        path: a file, a glob or a folder of `.npz` files, a pickle, or the arrays themselves.
        columns: what the columns are called, as in `tables.open`.
        success_reward: reward of a successful step; ends episodes there and drops what leads to none, see
            `d4rl.open`. For the official Adroit sets, 0.
        allow_pickle: pickles are read only with True, and then only numpy arrays and builtin types: what else a
            pickle asks for is refused by name and never called.

    Raises:
        DatasetError: nothing to read, damaged, pickled without `allow_pickle`, or columns that are missing or not
            usable.

    Warns:
        DatasetWarning: on reading, counts rewards beyond the last observation, which are cut off, and rows without
            success.
    """
    source = _open(path, columns or {}, allow_pickle)
    return source if success_reward is None else UpToSuccesses(source, success_reward)


def _open(path: str | Path | Mapping[str, Any], columns: Mapping[str, Any], allow_pickle: bool) -> Source:
    if isinstance(path, Mapping):
        if allow_pickle:
            raise DatasetError("a dict of arrays is not read as a pickle: leave out allow_pickle")
        return open_table([ArrayColumns("the given arrays", path)], columns)
    path = Path(path).expanduser()
    if path.suffix.lower() not in PICKLED:
        if allow_pickle:
            raise DatasetError(f"{path} is not read as a pickle: leave out allow_pickle")
        return open_table([NpzFile(file) for file in data_files(path, SUFFIXES)], columns)
    content = _unpickled(path, allow_pickle)
    if isinstance(content, Mapping):
        return open_table([ArrayColumns(str(path), content)], columns)
    trajectories = list(content) if isinstance(content, (list, tuple, np.ndarray)) else []
    if not trajectories or not all(isinstance(trajectory, Mapping) for trajectory in trajectories):
        raise DatasetError(f"{path} holds neither a dict of arrays nor a list of such dicts, one per trajectory")
    for role, name in columns.items():
        if role not in _ROLES or not isinstance(name, str):
            raise DatasetError(
                f"columns has {role!r}: {name!r}; trajectories take one name each of {', '.join(_ROLES)}"
            )
    source = f"pickle of {len(trajectories)} trajectories (numpy arrays and builtin types only)"
    return Trajectories(path, tuple(trajectories), columns, Metadata(source=source))


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Dicts of one trajectory each, see `open`."""

    path: Path
    trajectories: tuple[Mapping[str, Any], ...]
    columns: Mapping[str, str]
    metadata: Metadata

    def chunks(self) -> Iterator[Rows]:
        """All rows, trajectory after trajectory; see `Source`."""
        return gather(self._rows())

    def _rows(self) -> Iterator[Rows]:
        cut = 0
        for number, trajectory in enumerate(self.trajectories):
            try:
                rows, surplus = _trajectory(trajectory, self.columns)
            except DatasetError as error:
                raise DatasetError(f"{self.path}: trajectory {number}: {error}") from error
            cut += surplus > 0
            if len(rows):
                yield cut_off(rows)
        if cut:
            warnings.warn(
                f"{self.path}: {cut} of {len(self.trajectories)} trajectories have more rewards than "
                "observations; the surplus at the end was cut off",
                DatasetWarning,
                stacklevel=2,
            )


def _trajectory(trajectory: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[Rows, int]:
    """The rows of one trajectory, and how many rewards there are too many."""
    found = {role: _numbers(role, trajectory[name]) for role, name in _roles(trajectory, columns).items()}
    observations, actions = found["observations"], found["actions"]
    rewards = _single("rewards", found["rewards"])
    n = len(tree.flatten(actions)[0])
    lengths = {len(leaf) for leaf in tree.flatten(observations)}
    following = found.get("next_observations")
    if lengths == {n + 1} and following is None:  # the final one too
        following = tree.map_structure(lambda leaf: leaf[1:], observations)
        observations = tree.map_structure(lambda leaf: leaf[:-1], observations)
    elif lengths != {n} or (following is not None and {len(leaf) for leaf in tree.flatten(following)} != {n}):
        raise DatasetError(f"there are {n} actions and {sorted(lengths)} observations or next observations")
    if len(rewards) < n:
        raise DatasetError(f"there are {n} observations and {len(rewards)} rewards")
    flags = {role: as_flags(role, _single(role, found[role])[:n]) for role in FLAGS if role in found}
    if any(len(column) < n for column in flags.values()):
        raise DatasetError(f"there are {n} observations and fewer flags of where it ends")
    terminated, truncated = ends(flags, n)
    rows = Rows(
        observations=observations,
        actions=actions,
        rewards=rewards[:n],
        terminated=terminated,
        truncated=truncated,
        next_observations=following,
    )
    return rows, len(rewards) - n


def _roles(trajectory: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, str]:
    """The key of each role that a trajectory has."""
    roles = {}
    for role in _ROLES:
        names = NAMES[role]
        if role in columns and columns[role] not in trajectory:
            raise DatasetError(f"it has no {columns[role]!r}; it has {', '.join(map(str, trajectory))}")
        key = columns.get(role) or next((name for name in names if name in trajectory), None)
        if key is not None:
            roles[role] = key
    for role in ("observations", "actions", "rewards"):
        if role not in roles:
            raise DatasetError(
                f"it has no {role} ({', '.join(NAMES[role])}); it has {', '.join(map(str, trajectory))}: say "
                f"which it is with columns={{'{role}': ...}}"
            )
    return roles


def _numbers(role: str, column: Any) -> Tree:
    """Arrays of what is an array, a list of arrays or numbers, or a list of dicts of such."""
    if isinstance(column, Mapping):
        kept = {_STATE: column[_STATE]} if _STATE in column else column
        entries = {str(key): _numbers(f"{role}.{key}", entry) for key, entry in kept.items()}
        return entries[_STATE] if _STATE in column else entries
    if isinstance(column, np.ndarray) and column.dtype != object:
        return check_numbers(column)
    steps = list(column) if isinstance(column, (list, tuple, np.ndarray)) else []
    if not steps:
        raise DatasetError(f"{role} are empty, or {type(column).__name__} instead of an array or a list")
    if isinstance(steps[0], Mapping):
        if not all(isinstance(step, Mapping) and step.keys() == steps[0].keys() for step in steps):
            raise DatasetError(f"{role} are dicts with different keys")
        keys = [_STATE] if _STATE in steps[0] else list(steps[0])
        return _numbers(role, {key: [step[key] for step in steps] for key in keys})
    try:
        return check_numbers(np.stack([np.asarray(step) for step in steps]))
    except (ValueError, DatasetError) as error:
        raise DatasetError(f"{role} are not numbers of one shape per row: {error}") from error


def _single(role: str, column: Tree) -> np.ndarray:
    if not isinstance(column, np.ndarray) or column.shape not in (column.shape[:1], (*column.shape[:1], 1)):
        raise DatasetError(f"{role} must be one number per row")
    return column.reshape(-1)


def _unpickled(path: Path, allow_pickle: bool) -> Any:
    """What lies in a pickle, or in a `.npy` of objects, whose header comes before the pickle."""
    if not path.is_file():
        raise DatasetError(f"there is no dataset file {path}: check the path")
    try:
        with path.open("rb") as file:
            if file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
                file.seek(0)
                if (
                    np.lib.format.read_magic(file) != (1, 0)
                    or not np.lib.format.read_array_header_1_0(file)[2].hasobject
                ):
                    raise DatasetError("is a single array: write the columns of a dataset as .npz")
            else:
                file.seek(0)
            if not allow_pickle:
                raise DatasetError(
                    "is a pickle, which is not opened unasked: where you trust it, allow_pickle=True reads the "
                    "numpy arrays and builtin types in it, and nothing else"
                )
            content = unpickle(file)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error
    except (OSError, ValueError, TokenError) as error:
        raise DatasetError(f"{path} cannot be read as a .npy file (is it complete?): {error}") from error
    return content.item() if isinstance(content, np.ndarray) and content.shape == () else content
