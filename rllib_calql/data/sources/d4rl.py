"""D4RL's datasets: flat HDF5 files, by path or by task name. The d4rl package is not needed."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np

from rllib_calql.data.columns import as_flags
from rllib_calql.data.errors import DatasetError
from rllib_calql.data.reference_scores import reference_scores
from rllib_calql.data.rows import Metadata, Rows, Source, rows_per_chunk
from rllib_calql.data.sources.d4rl_tasks import BASE_URL, TASKS
from rllib_calql.data.sources.download import by_hand, download_hdf5
from rllib_calql.data.sources.hdf5 import check_numbers, find, names, open_hdf5
from rllib_calql.data.sources.successes import up_to_successes
from rllib_calql.data.spaces import DAMAGED, METADATA, metadata_from_json


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

    `max_episode_steps` and the reference scores are the task's own where D4RL has them. Scores belong to the
    rewards of the task's environment, which are not always the file's: a kitchen's file has the number of solved
    sub-tasks in each row, its environment that of newly solved ones.
    """
    path = locate(name, download=download, base_url=base_url)
    if max_episode_steps is None and name in TASKS:
        max_episode_steps = TASKS[name].max_episode_steps
    source = open(path, max_episode_steps=max_episode_steps, rewards=rewards, success_reward=success_reward)
    if name not in TASKS:  # a file of one's own
        return source
    own_rewards = rewards == "rewards" and success_reward is None and not name.startswith("kitchen-")
    scores = reference_scores(name) if own_rewards else None
    return replace(source, metadata=replace(source.metadata, score_range=scores))


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


@dataclass(frozen=True, kw_only=True)
class D4RLFile:
    """A file in D4RL's flat layout, see `open`."""

    path: Path
    max_episode_steps: int | None
    rewards: str
    success_reward: float | None
    metadata: Metadata

    def chunks(self) -> Iterator[Rows]:
        """All rows; see `Source`."""
        rows = self._rows()
        return rows if self.success_reward is None else up_to_successes(rows, self.success_reward)

    def joints(self, rows: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]] | None:
        """MuJoCo's positions and velocities at these rows, where the file logs `infos/qpos` and `infos/qvel`."""
        if self.success_reward is not None:  # these rows have other numbers than the file's
            return None
        with open_hdf5(self.path) as file:
            positions, velocities = find(file, "infos/qpos"), find(file, "infos/qvel")
            if not (isinstance(positions, h5py.Dataset) and isinstance(velocities, h5py.Dataset)):
                return None
            return [(positions[row], velocities[row]) for row in rows]

    def _rows(self) -> Iterator[Rows]:
        with open_hdf5(self.path) as file:
            columns = _columns(file, self.rewards)
            size = _rows_per_read(columns)
            num_rows = len(columns["rewards"])
            since_end, any_end = 0, False
            for start in range(0, num_rows, size):
                read = {name: column[start : start + size] for name, column in columns.items()}
                terminated = as_flags("terminals", read["terminated"], start)
                if "truncated" in read:
                    truncated = as_flags("timeouts", read["truncated"], start)
                else:
                    truncated, since_end = _step_limits(terminated, self.max_episode_steps, since_end)
                    any_end = any_end or bool((terminated | truncated).any())
                yield Rows(
                    **{
                        **read,
                        "rewards": read["rewards"].reshape(-1),
                        "terminated": terminated,
                        "truncated": truncated,
                    }
                )
            if "truncated" not in columns and not any_end:
                raise DatasetError(
                    "no column `timeouts` and no terminal row, so no episode end can be found: give the "
                    "task's step limit as max_episode_steps"
                )


def open(
    path: str | Path,
    *,
    max_episode_steps: int | None = None,
    rewards: str = "rewards",
    success_reward: float | None = None,
) -> D4RLFile:
    """Reads a file in D4RL's flat layout.

    Columns `observations`, `actions`, `rewards`, `terminals` and, where the file has them, `timeouts` and
    `next_observations`, one row per step; nothing else is read, and nothing in other files. `assemble` says
    what becomes of time-outs and of an unfinished tail.

    Args:
        path: the file.
        max_episode_steps: the task's step limit, for a file without `timeouts`: there an episode without
            terminal ends after so many rows. (Where the file has `timeouts`, these count.)
        rewards: the column that holds the rewards, e.g. `infos/rewards_binary`.
        success_reward: reward of a successful step. Where given, every successful row ends its episode as
            terminated, and what does not lead to a success is dropped, counted: the rule of Cal-QL's
            reference code for the binary Adroit tasks (`success_reward=0`).

    Raises:
        DatasetError: no file, not HDF5, a column is missing, of the wrong type or larger than the file, or
            columns have different lengths; on reading, no episode end or no success can be found.

    Warns:
        DatasetWarning: on reading, counts rows that were dropped.
    """
    path = Path(path).expanduser()
    if max_episode_steps is not None and max_episode_steps < 1:
        raise DatasetError(f"max_episode_steps must be at least 1, not {max_episode_steps}")
    with open_hdf5(path) as file:
        num_rows = len(_columns(file, rewards)["rewards"])
        metadata = _metadata(file)
    return D4RLFile(
        path=path,
        max_episode_steps=max_episode_steps,
        rewards=rewards,
        success_reward=success_reward,
        metadata=replace(metadata, num_rows=num_rows, source=str(path)),
    )


def _metadata(file: h5py.File) -> Metadata:
    """What a file that was written here says of itself."""
    written = file.attrs.get(METADATA)
    if not isinstance(written, str):
        return Metadata()
    try:
        return metadata_from_json(json.loads(written))
    except DAMAGED as error:
        raise DatasetError(f"the attribute {METADATA} is damaged: {error!r}") from error


def _columns(file: h5py.File, rewards: str) -> dict[str, h5py.Dataset]:
    """The checked columns by their names in `Rows`."""
    columns = {
        "observations": _column(file, "observations"),
        "actions": _column(file, "actions"),
        "rewards": _column(file, rewards, one_number=True),
        "terminated": _column(file, "terminals", one_number=True),
    }
    if find(file, "timeouts") is not None:
        columns["truncated"] = _column(file, "timeouts", one_number=True)
    if find(file, "next_observations") is not None:
        columns["next_observations"] = _column(file, "next_observations")
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DatasetError(f"columns have different numbers of rows: {lengths}")
    return columns


def _column(file: h5py.File, name: str, one_number: bool = False) -> h5py.Dataset:
    column = find(file, name)
    if not isinstance(column, h5py.Dataset):
        if "episode_0" in file:
            raise DatasetError("this is a file of Minari: give the folder of the dataset")
        raise DatasetError(f"there is no column {name!r}; the file has: {', '.join(names(file)) or 'none'}")
    check_numbers(column, name)
    shape = column.shape
    if len(shape) == 0 or (one_number and shape not in (shape[:1], (*shape[:1], 1))):
        raise DatasetError(
            f"{name} must have the shape (rows{'' if one_number else ', ...'}), not {shape}: one row per step"
        )
    return column


def _rows_per_read(columns: dict[str, h5py.Dataset]) -> int:
    """A chunk's rows; at least as many as HDF5 stores together, since these are decompressed together."""
    bytes_per_row = sum(column.dtype.itemsize * int(np.prod(column.shape[1:])) for column in columns.values())
    stored_together = (column.chunks[0] for column in columns.values() if column.chunks)
    return max(rows_per_chunk(bytes_per_row), *stored_together, 1)


def _step_limits(terminated: np.ndarray, max_episode_steps: int | None, since_end: int) -> tuple[np.ndarray, int]:
    """(n,) bool: rows at which a step counter, reset by terminals, reaches (a multiple of) the limit.

    `since_end` counts the rows since the last terminal before these; the second result, after them.
    """
    rows = np.arange(len(terminated))
    after_terminal = np.append(False, terminated[:-1])
    counts = rows + 1 - np.maximum.accumulate(np.where(after_terminal, rows, -since_end))
    reached = np.zeros(len(rows), dtype=bool) if max_episode_steps is None else counts % max_episode_steps == 0
    return reached, 0 if terminated[-1] else int(counts[-1])
