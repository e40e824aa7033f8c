"""D4RL's datasets: flat HDF5 files, by path or by task name. The d4rl package is not needed."""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from rllib_calql.data.errors import DatasetError, DatasetWarning
from rllib_calql.data.rows import Metadata, Rows, Source
from rllib_calql.data.sources.d4rl_tasks import BASE_URL, TASKS
from rllib_calql.data.sources.download import by_hand, download_hdf5


@dataclass(frozen=True, eq=False)
class _File:
    """The columns of a file, as one chunk."""

    columns: dict[str, np.ndarray]
    metadata: Metadata

    def chunks(self) -> Iterator[Rows]:
        yield Rows(**self.columns)


def open_task(
    name: str,
    *,
    download: bool = True,
    base_url: str = BASE_URL,
    max_episode_steps: int | None = None,
    rewards: str = "rewards",
    success_reward: float | None = None,
) -> Source:
    """The dataset of a D4RL task, e.g. `antmaze-medium-diverse-v2`; see `locate` and `open` for the options.

    `max_episode_steps` is the task's own where D4RL registers one.
    """
    path = locate(name, download=download, base_url=base_url)
    if max_episode_steps is None and name in TASKS:
        max_episode_steps = TASKS[name].max_episode_steps
    return open(path, max_episode_steps=max_episode_steps, rewards=rewards, success_reward=success_reward)


def locate(name: str, *, download: bool = True, base_url: str = BASE_URL) -> Path:
    """The file of a D4RL task in D4RL's cache folder; downloaded on first use.

    The folder is `$D4RL_DATASET_DIR`, else `~/.d4rl/datasets`. There the file has the last part of its URL as
    name (as the d4rl package stores it), or `NAME.hdf5`.

    Args:
        name: D4RL's name of the task.
        download: whether a missing file may be downloaded.
        base_url: where D4RL's folders lie, for a mirror.

    Raises:
        DatasetError: unknown task, or the file is missing and could not (or must not) be downloaded.
    """
    folder = Path(os.environ.get("D4RL_DATASET_DIR") or "~/.d4rl/datasets").expanduser()
    by_name = folder / f"{name}.hdf5"
    if name not in TASKS:
        if by_name.is_file():
            return by_name
        close = difflib.get_close_matches(name, TASKS, n=3)
        raise DatasetError(
            f"unknown D4RL task {name!r}"
            + (f" (did you mean {' or '.join(close)}?)" if close else "")
            + f", and there is no file {by_name}"
        )
    url = f"{base_url.rstrip('/')}/{TASKS[name].file}"
    target = folder / url.rpartition("/")[2]
    for path in (target, by_name):
        if path.is_file():
            return path
    if not download:
        raise DatasetError(
            f"the dataset of {name} is missing and downloading is switched off. {by_hand(url, target)}"
        )
    download_hdf5(url, target)
    return target


def open(
    path: str | Path,
    *,
    max_episode_steps: int | None = None,
    rewards: str = "rewards",
    success_reward: float | None = None,
) -> Source:
    """Reads a file in D4RL's flat layout.

    Columns `observations`, `actions`, `rewards`, `terminals` and, where the file has them, `timeouts` and
    `next_observations`, one row per step; nothing else is read. `Transitions.from_arrays` says what becomes
    of time-outs and of an unfinished tail.

    Args:
        path: the file.
        max_episode_steps: the task's step limit, for a file without `timeouts`: there an episode without
            terminal ends after so many rows. (Where the file has `timeouts`, these count.)
        rewards: the column that holds the rewards, e.g. `infos/rewards_binary`.
        success_reward: reward of a successful step. Where given, every successful row ends its episode as
            terminated, and what does not lead to a success is dropped, counted: the rule of Cal-QL's
            reference code for the binary Adroit tasks (`success_reward=0`).

    Raises:
        DatasetError: no file, not HDF5, a column is missing, no episode end can be found, or the rows are not
            usable.

    Warns:
        DatasetWarning: counts rows that were dropped.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise DatasetError(f"there is no dataset file {path}: check the path")
    if max_episode_steps is not None and max_episode_steps < 1:
        raise DatasetError(f"max_episode_steps must be at least 1, not {max_episode_steps}")
    try:
        with h5py.File(path, "r") as file:
            columns = {
                name: _column(file, column)
                for name, column in {
                    "observations": "observations",
                    "actions": "actions",
                    "rewards": rewards,
                    "terminated": "terminals",
                }.items()
            }
            for name, column in {"truncated": "timeouts", "next_observations": "next_observations"}.items():
                if column in file:
                    columns[name] = _column(file, column)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read as an HDF5 file (is it complete?): {error}") from error
    except DatasetError as error:
        raise DatasetError(f"{path} {error}") from None
    try:
        if "truncated" not in columns:
            columns["truncated"] = _step_limits(columns["terminated"], max_episode_steps)
        if success_reward is not None:
            columns = _successes(columns, success_reward)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error
    return _File(columns, Metadata(num_rows=len(columns["rewards"]), source=str(path)))


def _column(file: h5py.File, name: str) -> np.ndarray:
    column = file.get(name)
    if not isinstance(column, h5py.Dataset):
        names: list[str] = []
        file.visititems(lambda key, item: names.append(key) if isinstance(item, h5py.Dataset) else None)
        raise DatasetError(f"has no column {name!r}; it has: {', '.join(sorted(names)) or 'none'}")
    return np.asarray(column[()])


def _step_limits(terminals: np.ndarray, max_episode_steps: int | None) -> np.ndarray:
    """(N,) bool: rows at which a within-episode step counter, reset by terminals, reaches the limit."""
    terminals = terminals.reshape(-1) != 0
    if max_episode_steps is None:
        if not terminals.any():
            raise DatasetError(
                "no column `timeouts` and no terminal row, so no episode end can be found: give the task's "
                "step limit as max_episode_steps"
            )
        return np.zeros(len(terminals), dtype=bool)
    rows = np.arange(len(terminals))
    starts = np.maximum.accumulate(np.where(np.append(True, terminals[:-1]), rows, 0)[: len(rows)])
    return (rows - starts + 1) % max_episode_steps == 0


def _successes(columns: dict[str, np.ndarray], success_reward: float) -> dict[str, np.ndarray]:
    """Ends episodes at each successful row and keeps the rows that lead to one."""
    success = np.isclose(columns["rewards"].reshape(-1), success_reward)
    if not success.any():
        raise DatasetError(f"no row has the success_reward {success_reward:g}, so no episode is successful")
    columns = {**columns, "terminated": success | (columns["terminated"].reshape(-1) != 0)}
    ends = np.flatnonzero(columns["terminated"] | (columns["truncated"].reshape(-1) != 0))
    rows = np.zeros(len(success), dtype=bool)
    rows[: ends[-1] + 1] = np.repeat(success[ends], np.diff(ends, prepend=-1))
    if not rows.all():
        warnings.warn(
            f"{int((~rows).sum())} of {len(rows)} rows do not lead to a success (reward {success_reward:g}) "
            "and were dropped",
            DatasetWarning,
            stacklevel=2,
        )
    return {name: column[rows] for name, column in columns.items()}
