"""The same episodes in every format: a writer for each, and what has to come back."""

from __future__ import annotations

import base64
import json
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import lz4.frame
import msgpack
import msgpack_numpy
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from rllib_calql.data import Transitions
from rllib_calql.data.sources import open_source
from rllib_calql.data.storage_writer import write_dataset


@dataclass
class Episode:
    """T steps; `observations` has one more row."""

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: bool

    @classmethod
    def random(cls, rng: np.random.Generator, steps: int, terminated: bool, dims: tuple[int, int]) -> Episode:
        return cls(
            rng.normal(size=(steps + 1, dims[0])).astype(np.float32),
            rng.uniform(-1, 1, (steps, dims[1])).astype(np.float32),
            rng.normal(size=steps).astype(np.float32),
            terminated,
        )

    def __len__(self) -> int:
        return len(self.rewards)


def expected(episodes: list[Episode], with_next: bool) -> Transitions:
    """What every reader has to give: without next observations a cut-off episode loses its last row."""
    rows: dict[str, list[Any]] = {
        name: [] for name in ("observations", "actions", "rewards", "terminated", "truncated")
    }
    final = []
    for episode in episodes:
        steps = len(episode) - (not with_next and not episode.terminated)
        for step in range(steps):
            rows["observations"].append(episode.observations[step])
            rows["actions"].append(episode.actions[step])
            rows["rewards"].append(episode.rewards[step])
            rows["terminated"].append(step == steps - 1 and episode.terminated)
            rows["truncated"].append(step == steps - 1 and not episode.terminated)
        if steps:
            own = not with_next and episode.terminated  # the final observation is not known, nor needed
            final.append(episode.observations[steps - own])
    columns: dict[str, Any] = {name: np.array(values) for name, values in rows.items()}
    return Transitions(**columns, final_observations=np.array(final))


def columns(episodes: list[Episode], with_next: bool) -> dict[str, np.ndarray]:
    """Flat columns, one row per step."""
    flat = {
        "observations": np.concatenate([episode.observations[:-1] for episode in episodes]),
        "actions": np.concatenate([episode.actions for episode in episodes]),
        "rewards": np.concatenate([episode.rewards for episode in episodes]),
        "terminated": _last(episodes, [episode.terminated for episode in episodes]),
        "truncated": _last(episodes, [not episode.terminated for episode in episodes]),
    }
    if with_next:
        flat["next_observations"] = np.concatenate([episode.observations[1:] for episode in episodes])
    return flat


def _last(episodes: list[Episode], flags: list[bool]) -> np.ndarray:
    return np.concatenate(
        [
            np.arange(1, len(episode) + 1) == len(episode) * flag
            for episode, flag in zip(episodes, flags, strict=True)
        ]
    )


def lists(column: np.ndarray) -> Any:
    return pa.array(column.tolist(), pa.list_(pa.float32())) if column.ndim > 1 else column


def ids(episodes: list[Episode]) -> np.ndarray:
    return np.repeat(np.arange(len(episodes)), [len(episode) for episode in episodes])


def steps(episodes: list[Episode]) -> np.ndarray:
    return np.concatenate([np.arange(len(episode)) for episode in episodes])


def cut(num_rows: int, rng: np.random.Generator) -> Iterator[slice]:
    """Random borders of files or batches; some are empty."""
    borders = [0, *sorted(rng.integers(0, num_rows + 1, 3)), num_rows]
    return (slice(*pair) for pair in pairwise(borders))


# ---- writers: they put the episodes somewhere below a folder and give what is to be opened, with options

Opened = tuple[Path, dict[str, Any]]
Writer = Callable[[Path, list[Episode], bool, np.random.Generator], Opened]


def d4rl(folder: Path, episodes: list[Episode], with_next: bool, rng: np.random.Generator) -> Opened:
    names = {"terminated": "terminals", "truncated": "timeouts"}
    with h5py.File(folder / "a.hdf5", "w") as file:
        for name, column in columns(episodes, with_next).items():
            file[names.get(name, name)] = column
    return folder / "a.hdf5", {}


def npz(folder: Path, episodes: list[Episode], with_next: bool, rng: np.random.Generator) -> Opened:
    np.savez_compressed(folder / "a.npz", **columns(episodes, with_next))  # type: ignore[arg-type]
    return folder / "a.npz", {}


def pickled(folder: Path, episodes: list[Episode], with_next: bool, rng: np.random.Generator) -> Opened:
    """Trajectories, as in the official Adroit sets."""
    trajectories = [
        {
            "observations": episode.observations[: len(episode) + with_next],
            "actions": episode.actions,
            "rewards": episode.rewards,
            "terminals": np.arange(1, len(episode) + 1) == len(episode) * episode.terminated,
        }
        for episode in episodes
    ]
    np.save(folder / "a.npy", np.array(trajectories, dtype=object), allow_pickle=True)
    return folder / "a.npy", {"allow_pickle": True}


def parquet_lists(folder: Path, episodes: list[Episode], with_next: bool, rng: np.random.Generator) -> Opened:
    table = pa.table({name: lists(column) for name, column in columns(episodes, with_next).items()})
    pq.write_table(table, folder / "a.parquet", row_group_size=int(rng.integers(1, 5)))
    return folder / "a.parquet", {}


def parquet_episodes(folder: Path, episodes: list[Episode], with_next: bool, rng: np.random.Generator) -> Opened:
    """An episode per row, with its final observation."""
    table = {
        "obs": [episode.observations[: len(episode) + with_next].tolist() for episode in episodes],
        "action": [episode.actions.tolist() for episode in episodes],
        "reward": [episode.rewards.tolist() for episode in episodes],
        "terminal": [episode.terminated for episode in episodes],
    }
    pq.write_table(pa.table(table), folder / "a.parquet", row_group_size=2)
    return folder, {}


def parquet_parts(folder: Path, episodes: list[Episode], with_next: bool, rng: np.random.Generator) -> Opened:
    """A number per column, ends by ids where they are not terminations, in several files."""
    flat = columns(episodes, with_next)
    del flat["truncated"]
    table = {"episode": ids(episodes), "step": steps(episodes)}
    for name, column in flat.items():
        if column.ndim == 1:
            table[name] = column
        else:
            table.update({f"{name}_{index}": column[:, index] for index in range(column.shape[1])})
    for number, rows in enumerate(cut(len(ids(episodes)), rng)):
        part = {name: column[rows] for name, column in table.items()}
        pq.write_table(pa.table(part), folder / f"part-{8 + number}.parquet")
    return folder, {}


def arrow_stream(folder: Path, episodes: list[Episode], with_next: bool, rng: np.random.Generator) -> Opened:
    """Own names, structs, and `dones` beside terminations."""
    flat = columns(episodes, with_next)
    names = {"observations": "s", "actions": "a", "rewards": "r", "terminated": "over", "next_observations": "s2"}
    table = {names[name]: lists(column) for name, column in flat.items() if name != "truncated"}
    table["done"] = flat["terminated"] | flat["truncated"]
    data = pa.table(table)
    with pa.OSFile(str(folder / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, data.schema) as writer:
        for rows in cut(data.num_rows, rng):
            writer.write_table(data.slice(rows.start, rows.stop - rows.start))
    return folder, {"columns": {role: name for role, name in names.items() if with_next or name != "s2"}}


def feather(folder: Path, episodes: list[Episode], with_next: bool, rng: np.random.Generator) -> Opened:
    flat = columns(episodes, with_next)
    for name in ("observations", "actions", "next_observations"):
        if name in flat:
            flat[name] = pa.FixedShapeTensorArray.from_numpy_ndarray(flat[name])
    pa.feather.write_feather(pa.table(flat), folder / "a.feather", chunksize=int(rng.integers(1, 5)))
    return folder, {}


def rllib_json(folder: Path, episodes: list[Episode], with_next: bool, rng: np.random.Generator) -> Opened:
    """Batches of random sizes; one column packed."""
    flat = columns(episodes, with_next)
    names = {"observations": "obs", "terminated": "terminateds", "truncated": "truncateds"}
    table = {names.get(name, name): column for name, column in flat.items() if name != "next_observations"}
    table.update(eps_id=ids(episodes) + 7, t=steps(episodes), agent_index=np.zeros(len(ids(episodes)), int))
    if with_next:
        table["new_obs"] = flat["next_observations"]
    with (folder / "output-worker-0_0.json").open("w") as file:
        for rows in cut(len(table["t"]), rng):
            batch = {name: column[rows].tolist() for name, column in table.items()}
            packed = lz4.frame.compress(pickle.dumps(table["obs"][rows]))
            batch["obs"] = base64.b64encode(packed).decode()
            policies = {"type": "MultiAgentBatch", "policy_batches": {"default_policy": batch}}
            line = policies if rng.random() < 0.5 else {"type": "SampleBatch", **batch}
            file.write(json.dumps(line) + "\n")
    return folder, {"allow_pickle": True}


def rllib_steps(folder: Path, episodes: list[Episode], with_next: bool, rng: np.random.Generator) -> Opened:
    """All steps written twice, the first time not to the end, as Ray does it."""
    flat = columns(episodes, True)
    names = {"terminated": "terminateds", "truncated": "truncateds", "observations": "obs"}
    table = {names.get(name, name): lists(column) for name, column in flat.items() if name != "next_observations"}
    table["new_obs"] = lists(flat["next_observations"])
    table["eps_id"] = [f"episode {number}" for number in ids(episodes)]
    table["agent_id"] = table["module_id"] = pa.nulls(len(ids(episodes)))
    data = pa.table(table)
    for run, rows in enumerate([int(rng.integers(1, data.num_rows + 1)), data.num_rows]):
        below = folder / "env" / f"run-000001-{run + 9:05d}"
        below.mkdir(parents=True)
        for number, part in enumerate(cut(rows, rng)):
            if part.start < part.stop:
                name = f"0abc{run}_{number:06d}-0.parquet"
                pq.write_table(data.slice(part.start, part.stop - part.start), below / name)
    return folder, {}


def rllib_episodes(folder: Path, episodes: list[Episode], with_next: bool, rng: np.random.Generator) -> Opened:
    items = []
    for number, episode in enumerate(episodes):
        middle = int(rng.integers(0, len(episode)))
        for piece in (slice(0, middle), slice(middle, len(episode))):  # the second looks back
            back = int(rng.integers(0, piece.start + 1))
            items.append(_state(f"episode {number}", episode, piece, back, finalized=bool(rng.random() < 0.5)))
    pq.write_table(pa.table({"item": items}), folder / "0abc_000000-0.parquet")
    return folder, {}


def _state(name: str, episode: Episode, piece: slice, back: int, finalized: bool) -> bytes:
    first = piece.start - back

    def buffer(values: np.ndarray, extra: int = 0) -> dict[str, Any]:
        part = values[first : piece.stop + extra]
        return {"data": part if finalized else list(part), "lookback": back, "finalized": finalized}

    ends = piece.stop == len(episode)
    state = {
        "id_": name,
        "observations": buffer(episode.observations, extra=1),
        "actions": buffer(episode.actions),
        "rewards": buffer(episode.rewards),
        "is_terminated": np.bool_(ends and episode.terminated),
        "is_truncated": np.bool_(ends and not episode.terminated),
        "t_started": piece.start,
    }
    return msgpack.packb(state, default=msgpack_numpy.encode)


def minari_hdf5(folder: Path, episodes: list[Episode], with_next: bool, rng: np.random.Generator) -> Opened:
    return _minari(folder, episodes, "hdf5")


def minari_arrow(folder: Path, episodes: list[Episode], with_next: bool, rng: np.random.Generator) -> Opened:
    return _minari(folder, episodes, "arrow")


def _minari(folder: Path, episodes: list[Episode], data_format: str) -> Opened:
    minari = pytest.importorskip("minari")
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    storage = MinariStorage.new(
        folder,
        data_format=data_format,
        observation_space=gym.spaces.Box(-np.inf, np.inf, episodes[0].observations.shape[1:]),
        action_space=gym.spaces.Box(-1, 1, episodes[0].actions.shape[1:]),
    )
    buffers = []
    for number, episode in enumerate(episodes):
        last = np.arange(1, len(episode) + 1) == len(episode)
        buffers.append(
            EpisodeBuffer(
                id=number,
                observations=episode.observations,
                actions=episode.actions,
                rewards=episode.rewards.astype(np.float64),
                terminations=last & episode.terminated,
                truncations=last & (not episode.terminated),
            )
        )
    storage.update_episodes(buffers)
    storage.update_metadata({"dataset_id": "test/same-v0", "minari_version": minari.__version__})
    return folder, {}


def own(folder: Path, episodes: list[Episode], with_next: bool, rng: np.random.Generator) -> Opened:
    """Our own folder of Arrow files, converted from a table in pieces."""
    path, _ = parquet_parts(folder, episodes, with_next, rng)
    write_dataset(open_source(path), folder / "own")
    return folder / "own", {}


# Formats that can leave next observations out, and those that always have them.
FORMATS: dict[str, Writer] = {
    "D4RL": d4rl,
    "npz": npz,
    "pickled trajectories": pickled,
    "Parquet, lists": parquet_lists,
    "Parquet, an episode per row": parquet_episodes,
    "Parquet, numbers in parts": parquet_parts,
    "Arrow stream": arrow_stream,
    "Feather": feather,
    "RLlib JSON": rllib_json,
}
WITH_NEXT: dict[str, Writer] = {
    "RLlib steps": rllib_steps,
    "RLlib episodes": rllib_episodes,
}
# Those that take a while to write.
SLOW: dict[str, Writer] = {
    "own": own,
    "Minari HDF5": minari_hdf5,
    "Minari Arrow": minari_arrow,
}
