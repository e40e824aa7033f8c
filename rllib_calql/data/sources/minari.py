"""Minari's datasets, by name or folder, read with the minari package (extra `minari`)."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import tree

from rllib_calql.data.errors import DatasetError, DatasetWarning
from rllib_calql.data.rows import Metadata, Rows, Tree, gather
from rllib_calql.data.sources.hdf5 import check_group, open_hdf5
from rllib_calql.data.sources.successes import at_successes
from rllib_calql.envs.recorded import goes_on_after_success, with_kwargs

_FORMATS = ("hdf5", "arrow", "parquet")
_HDF5_FILE = "main_data.hdf5"
# The installed names of a dataset: no step out of Minari's folder, and no remote address.
_NAME = re.compile(r"[-\w]+(/[-\w]+)*-v\d+")


@dataclass(frozen=True, kw_only=True)
class MinariFolder:
    """A Minari dataset on disk, see `open`."""

    path: Path  # the folder with metadata.json
    data_format: str
    num_episodes: int
    end_at_success: bool
    metadata: Metadata

    def chunks(self) -> Iterator[Rows]:
        """All rows, episode after episode; see `Source`."""
        return gather(self._episodes())

    def _episodes(self) -> Iterator[Rows]:
        dataset = _dataset(self.path)
        with open_hdf5(self.path / _HDF5_FILE) if self.data_format == "hdf5" else nullcontext() as file:
            for number in range(self.num_episodes):
                with _reading(self.path, f"episode {number} "):
                    steps = self._check_episode(file, number)
                    episode = next(iter(dataset.iterate_episodes([number])))
                    rows = _rows(episode, steps, self.end_at_success)
                if len(rows):
                    yield rows

    def _check_episode(self, file: h5py.File | None, number: int) -> int | None:
        """The recorded length of an episode; refuses what minari must not open."""
        if file is not None:
            check_group(file, f"episode_{number}")
            return _count(file[f"episode_{number}"].attrs.get("total_steps"))
        folder = self.path / str(number)
        for path in (folder, *folder.iterdir()):
            _check_inside(self.path, path)
        return _count(json.loads((folder / "metadata.json").read_text()).get("total_steps"))


def open_named(name: str, *, download: bool = True, end_at_success: bool | None = None) -> MinariFolder:
    """A dataset of Minari by its name, e.g. `D4RL/pointmaze/umaze-v2`.

    Args:
        name: as `minari list` shows it.
        download: whether a dataset that is not in Minari's folder (`$MINARI_DATASETS_PATH`, else
            `~/.minari/datasets`) may be downloaded.
        end_at_success: see `open`.

    Raises:
        DatasetError: minari is missing, there is no such dataset, or as `open`.
    """
    minari = import_minari()
    folder = folder_of(name)
    by_hand = f"`minari list remote` shows the names, `minari download {name}` fetches one by hand"
    if not (folder / "data").exists():
        if not download:
            raise DatasetError(f"minari://{name} is not at {folder} and downloading is switched off: {by_hand}")
        try:
            minari.download_dataset(name)
        except Exception as error:  # whatever the network, its client or the files make minari raise
            raise DatasetError(f"minari://{name} could not be downloaded ({error}): {by_hand}") from error
    return open(folder, end_at_success=end_at_success)


def folder_of(name: str) -> Path:
    """Where the dataset of this name lies, or would lie (DatasetError where no dataset can have the name)."""
    if not _NAME.fullmatch(name):
        raise DatasetError(f"minari://{name}: a name is like D4RL/pointmaze/umaze-v2, with the version at the end")
    return Path(os.environ.get("MINARI_DATASETS_PATH") or "~/.minari/datasets").expanduser() / name


def open(path: str | Path, *, end_at_success: bool | None = None) -> MinariFolder:
    """A Minari dataset in a folder, HDF5 or Arrow storage.

    Every recorded episode is an episode here; one that was just left off counts as truncated. Nothing outside
    the folder is read, and no code that the dataset names is run.

    Args:
        path: the folder of the dataset, or the `data` folder in it.
        end_at_success: end an episode, as terminated, at each successful row (`infos["success"]` where that was
            recorded, else a reward of 1 among zeros). The rows at the goal right after a success are dropped.
            For recordings with `continuing_task=True`, such as Minari's PointMaze and AntMaze, which go on after
            the goal; without a word about it these give a warning.

    Raises:
        DatasetError: minari is missing, the folder is no Minari dataset, is incomplete, or is made by a version
            that minari does not know; on reading, an episode is damaged.

    Warns:
        DatasetWarning: the recording goes on after the goal and `end_at_success` was not given.
    """
    import_minari()
    path = Path(path).expanduser()
    path = path / "data" if (path / "data" / "metadata.json").is_file() else path
    with _reading(path):
        recorded = _recorded(path)
        dataset = _dataset(path)
        recorded_in = recorded.get("env_spec")
        environment = recorded.get("eval_env_spec") or recorded_in
        if end_at_success is None and recorded_in and goes_on_after_success(recorded_in):
            warnings.warn(
                f"{path} was recorded with continuing_task=True: its episodes go on after the goal. "
                "end_at_success=True ends them there, as D4RL's tasks do; end_at_success=False keeps them",
                DatasetWarning,
                stacklevel=2,
            )
        if end_at_success and environment and goes_on_after_success(environment):
            environment = with_kwargs(environment, continuing_task=False)
        low, high = recorded.get("ref_min_score"), recorded.get("ref_max_score")
        scores = None
        if isinstance(low, (int, float)) and isinstance(high, (int, float)) and low < high:
            scores = float(low), float(high)
        return MinariFolder(
            path=path,
            data_format=recorded["data_format"],
            num_episodes=recorded["total_episodes"],
            end_at_success=bool(end_at_success),
            metadata=Metadata(
                observation_space=dataset.observation_space,
                action_space=None if _unbounded(dataset.action_space) else dataset.action_space,
                actions_normalized=bool(recorded.get("actions_normalized")),
                environment=environment,
                num_rows=_count(recorded.get("total_steps")),
                score_range=scores,
                source=str(path),
            ),
        )


def import_minari() -> Any:
    """The minari package.

    Raises:
        DatasetError: it is not installed.
    """
    try:
        import minari
    except ImportError as error:
        raise DatasetError(
            f"Minari's datasets need the minari package ({error}): pip install 'rllib_calql[minari]'"
        ) from error
    return minari


def _unbounded(space: gym.Space) -> bool:
    """Whether a space says nothing about the environment's, as those of writers that did not know it."""
    return isinstance(space, gym.spaces.Box) and not space.is_bounded()


def _dataset(path: Path) -> Any:
    return import_minari().MinariDataset(path)


@contextmanager
def _reading(path: Path, what: str = "") -> Iterator[None]:
    """Whatever minari and the libraries below it say about a broken dataset becomes a `DatasetError`."""
    try:
        yield
    except DatasetError as error:
        raise DatasetError(str(error) if str(path) in str(error) else f"{path}: {what}{error}") from error
    except Exception as error:
        raise DatasetError(
            f"{path} cannot be read as a Minari dataset (is it complete?): {what}{type(error).__name__}: {error}"
        ) from error


def _recorded(path: Path) -> dict[str, Any]:
    """The dataset's metadata, after checking what minari would believe."""
    file = path / "metadata.json"
    if not file.is_file():
        raise DatasetError("there is no metadata.json: give the folder of a Minari dataset")
    recorded = json.loads(file.read_text())
    if recorded.get("data_format") not in _FORMATS:
        raise DatasetError(f"data_format is {recorded.get('data_format')!r}, understood are {', '.join(_FORMATS)}")
    for name in ("observation_space", "action_space"):
        if not isinstance(recorded.get(name), str):  # minari would run the recorded environment to find out
            raise DatasetError(f"metadata.json has no {name}: record the dataset again with a newer Minari")
    promised = recorded.get("total_episodes")
    if recorded["data_format"] == "hdf5":
        _check_inside(path, path / _HDF5_FILE)
        with open_hdf5(path / _HDF5_FILE) as data:
            found = len(data)
    else:
        found = sum(folder.name.isdecimal() for folder in path.iterdir())
    if not isinstance(promised, int) or not 0 <= promised <= found:
        raise DatasetError(f"metadata.json speaks of {promised} episodes and there are {found}: fetch it again")
    return recorded


def _check_inside(folder: Path, path: Path) -> None:
    if folder.resolve() not in path.resolve().parents:
        raise DatasetError(f"{path} is a link out of the dataset's folder: copy the file there")


def _count(recorded: Any) -> int | None:
    return None if recorded is None else int(recorded)


def _rows(episode: Any, steps: int | None, end_at_success: bool) -> Rows:
    """One recorded episode."""
    n = len(episode.rewards)
    if steps is not None and n != steps:
        raise DatasetError(
            f"has {steps} steps, of which the installed minari reads {n} (Minari 0.5.4 stops at 32,767 rows in "
            "Arrow and Parquet storage): record it as HDF5, data_format='hdf5'"
        )
    observations, actions = _columns("observations", episode.observations, n + 1), episode.actions
    terminated, truncated = (
        np.array(flags, dtype=bool).reshape(n) for flags in (episode.terminations, episode.truncations)
    )
    if n:
        truncated[-1] |= not terminated[-1]
    rows = Rows(
        observations=tree.map_structure(lambda leaf: leaf[:-1], observations),
        actions=_columns("actions", actions, n),
        rewards=episode.rewards.reshape(n),
        terminated=terminated,
        truncated=truncated,
        next_observations=tree.map_structure(lambda leaf: leaf[1:], observations),
    )
    return at_successes(rows, _successes(episode, n)) if end_at_success and n else rows


def _columns(name: str, column: Any, length: int) -> Tree:
    """The leaves are arrays of this length."""

    def check(path: tuple[Any, ...], leaf: Any) -> np.ndarray:
        if not isinstance(leaf, np.ndarray) or leaf.dtype.kind not in "fiub":
            raise DatasetError(f"{'.'.join(map(str, (name, *path)))} are not numbers: Text cannot be used")
        if len(leaf) != length:
            raise DatasetError(f"has {len(leaf)} {name} where {length} belong to its rewards")
        return leaf

    # Lists are what minari makes of Text.
    texts = tree.traverse(lambda item: 0 if isinstance(item, list) else None, column)
    return tree.map_structure_with_path(check, texts if texts is not None else column)


def _successes(episode: Any, n: int) -> np.ndarray:
    """(n,) bool: the steps after which the goal was reached."""
    success = (episode.infos or {}).get("success")
    if success is not None:
        return np.asarray(success, dtype=bool).reshape(-1)[-n:]  # the first of n + 1 is reset's
    if not np.isin(episode.rewards, (0.0, 1.0)).all():
        raise DatasetError(
            "cannot tell where it succeeds: infos['success'] was not recorded and rewards are not 0 and 1; open "
            "it with end_at_success=False"
        )
    return episode.rewards.reshape(n) > 0
