"""D4RL's datasets: flat HDF5 files, by path or by task name."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from rllib_calql.data.errors import DatasetError
from rllib_calql.data.transitions import Transitions


def read_hdf5(path: str | Path, *, max_episode_steps: int | None = None, rewards: str = "rewards") -> Transitions:
    """Reads a file in D4RL's flat layout: `observations`, `actions`, `rewards`, `terminals`, optionally `timeouts`
    and `next_observations`, one row per step; anything else in the file is not read.

    Args:
        path: the file.
        max_episode_steps: the task's step limit. Needed to find time-outs in a file without `timeouts`: there an
            episode without terminal ends after that many rows.
        rewards: the column that holds the rewards, e.g. `infos/rewards_binary`.

    Raises:
        DatasetError: no file, not HDF5, a column is missing, no episode end can be found, or the rows are not usable.

    Warns:
        DatasetWarning: counts rows that were dropped.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise DatasetError(f"no dataset at {path}: check the path")
    if max_episode_steps is not None and max_episode_steps < 1:
        raise DatasetError(f"max_episode_steps must be at least 1, not {max_episode_steps}")
    try:
        with h5py.File(path, "r") as file:
            observations, actions, reward_rows, terminals = (
                _column(file, name, path) for name in ("observations", "actions", rewards, "terminals")
            )
            timeouts = _column(file, "timeouts", path) if "timeouts" in file else None
            following = _column(file, "next_observations", path) if "next_observations" in file else None
    except OSError as error:
        raise DatasetError(f"{path} cannot be read as an HDF5 file (incomplete download?): {error}") from error
    if timeouts is None:
        timeouts = _step_limits(terminals, max_episode_steps, path)
    try:
        return Transitions.from_arrays(observations, actions, reward_rows, terminals, timeouts, following)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error


def _column(file: h5py.File, name: str, path: Path) -> np.ndarray:
    column = file.get(name)
    if not isinstance(column, h5py.Dataset):
        names: list[str] = []
        file.visititems(lambda key, item: names.append(key) if isinstance(item, h5py.Dataset) else None)
        raise DatasetError(f"{path} has no column {name!r}; it has {', '.join(sorted(names)) or 'none'}")
    return np.asarray(column[()])


def _step_limits(terminals: np.ndarray, max_episode_steps: int | None, path: Path) -> np.ndarray:
    """(N,) bool: rows at which a within-episode step counter, reset by terminals, reaches the limit."""
    terminals = terminals.reshape(-1) != 0
    if max_episode_steps is None:
        if not terminals.any():
            raise DatasetError(
                f"{path} has no `timeouts` and no terminal row, so no episode end can be found: give the task's step "
                "limit as max_episode_steps"
            )
        return np.zeros(len(terminals), dtype=bool)
    starts = np.append(False, terminals[:-1])
    rows = np.arange(len(terminals))
    step = rows - np.maximum.accumulate(np.where(starts, rows, 0))
    return (step + 1) % max_episode_steps == 0
