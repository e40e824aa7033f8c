"""Datasets written as D4RL files, Minari sets and Arrow folders: the same rows when read again, or nothing."""

from __future__ import annotations

import pickle
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from typer.testing import CliRunner

from rllib_calql.cli.calql import app
from rllib_calql.data import DatasetError, DatasetWarning, Transitions, open_dataset, open_source
from rllib_calql.data.rows import Metadata, Rows
from rllib_calql.data.writers import write_to
from tests.chunks import Chunks, flags

N = 12
COLUMNS: dict[str, Any] = {
    "observations": np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32),
    "actions": np.random.default_rng(1).normal(size=(N, 2)).astype(np.float32),
    "rewards": np.arange(N, dtype=np.float32),
    "terminated": flags(N, 3),
    "truncated": flags(N, 4, 9),
}
FOLLOWING = np.append(COLUMNS["observations"][1:], np.ones((1, 3), np.float32), axis=0)
ROWS = Rows(**COLUMNS, next_observations=FOLLOWING)
METADATA = Metadata(
    observation_space=Box(-9.0, 9.0, (3,)),
    action_space=Box(-2.0, 2.0, (2,)),
    environment=gym.spec("Pendulum-v1").to_json(),
    score_range=(-3.0, 7.0),
    actions_normalized=True,
)
KINDS = ("arrow", "data.hdf5", "minari://some/where-v0")


@pytest.fixture(autouse=True)
def minari_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def place(kind: str, tmp_path: Path) -> str:
    return kind if "://" in kind else str(tmp_path / kind)


def same(one: Transitions, other: Transitions) -> None:
    for name in ("observations", "actions", "rewards", "terminated", "truncated", "final_observations"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


@pytest.mark.filterwarnings("ignore::rllib_calql.data.DatasetWarning")
@pytest.mark.parametrize("following", [True, False], ids=["next observations", "none"])
@pytest.mark.parametrize("cuts", [[], [1, 4, 5, 9, 10]], ids=["one chunk", "many"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_again(kind: str, cuts: list[int], following: bool, tmp_path: Path) -> None:
    rows = ROWS if following else replace(ROWS, next_observations=None)
    expected = open_dataset(Chunks(rows, []))
    done: list[int] = []
    write_to(place(kind, tmp_path), Chunks(rows, cuts, METADATA), progress=done.append)
    found = open_dataset(place(kind, tmp_path))
    same(found, expected)
    assert done == sorted(done)
    assert done[-1] >= len(expected) == len(found)
    for name in ("observation_space", "action_space", "environment", "score_range", "actions_normalized"):
        assert getattr(found.metadata, name) == getattr(METADATA, name), name
    again = place(f"minari://{kind[9:]}1" if "://" in kind else f"other-{kind}", tmp_path)
    write_to(again, Chunks(rows, cuts))
    unknown = open_source(again).metadata
    assert (unknown.action_space, unknown.actions_normalized) == (None, False)


def test_d4rl_files_are_flat_columns(tmp_path: Path) -> None:
    path = tmp_path / "data.hdf5"
    with pytest.warns(DatasetWarning, match="2 of 12 rows at the end"):
        write_to(path, Chunks(ROWS, [7]))
    with h5py.File(path) as file:
        assert {name: (column.shape, column.dtype.name) for name, column in file.items()} == {
            "observations": ((10, 3), "float32"),
            "actions": ((10, 2), "float32"),
            "rewards": ((10,), "float32"),
            "terminals": ((10,), "bool"),
            "timeouts": ((10,), "bool"),
            "next_observations": ((10, 3), "float32"),
        }
        np.testing.assert_array_equal(file["next_observations"][:], ROWS.observations[1:11])  # type: ignore[index]
    with h5py.File(path, "r+") as file:
        file.attrs["calql_metadata"] = '{"observation_space": 3}'
    with pytest.raises(DatasetError, match="attribute calql_metadata is damaged"):
        open_source(path)


def test_minari_reads_what_is_written(tmp_path: Path) -> None:
    minari = pytest.importorskip("minari")
    space = Dict({"achieved_goal": Box(-9, 9, (2,)), "observation": Box(-9, 9, (3,))})
    nested = {"achieved_goal": COLUMNS["observations"][:, :2], "observation": COLUMNS["observations"]}
    following = {key: np.append(leaf[1:], leaf[:1], axis=0) for key, leaf in nested.items()}
    rows = Rows(**{**COLUMNS, "observations": nested, "truncated": flags(N, 4, 11)}, next_observations=following)
    metadata = replace(METADATA, observation_space=space, environment=None)
    write_to("minari://some/goals-v3", Chunks(rows, [6], metadata))
    dataset = minari.load_dataset("some/goals-v3")
    assert "some/goals-v3" in minari.list_local_datasets()
    assert (dataset.total_episodes, dataset.total_steps) == (3, 12)
    assert dataset.observation_space == space
    first, short, last = dataset.iterate_episodes()
    np.testing.assert_array_equal(first.observations["observation"], COLUMNS["observations"][:5])
    np.testing.assert_array_equal(first.rewards, [0, 1, 2, 3])
    assert (first.terminations.tolist(), short.truncations.tolist()) == ([False] * 3 + [True], [True])
    np.testing.assert_array_equal(last.observations["achieved_goal"][-1], nested["achieved_goal"][0])

    write_to("minari://some/flat-v0", Chunks(rows, [6], metadata), observations="flatten")
    assert minari.load_dataset("some/flat-v0").observation_space.shape == (5,)


def test_images_and_discrete_actions(tmp_path: Path) -> None:
    images = np.random.default_rng(2).integers(0, 256, (N, 4, 4, 3), dtype=np.uint8)
    rows = Rows(**{**COLUMNS, "observations": images, "actions": np.arange(N) % 3, "truncated": flags(N, 11)})
    metadata = Metadata(action_space=Discrete(3))
    for kind in KINDS:
        with pytest.warns(DatasetWarning, match="1 of 12 rows are truncated ends"):
            write_to(place(kind, tmp_path), Chunks(rows, [5], metadata))
        found = open_dataset(place(kind, tmp_path))
        np.testing.assert_array_equal(found.observations, images[:11])
        np.testing.assert_array_equal(found.actions, np.arange(11) % 3)
    with pytest.raises(DatasetError, match="do not say of how many"):
        write_to("minari://some/other-v0", Chunks(rows, []))


def test_what_is_there_already_stays(tmp_path: Path, minari_folder: Path) -> None:
    whole = Chunks(ROWS.take(slice(10)), [])
    for kind in KINDS:
        destination = place(kind, tmp_path)
        write_to(destination, whole)
        with pytest.raises(DatasetError, match=r"already: (overwrite|remove) it.*, or choose another name"):
            write_to(destination, whole)
    other = Chunks(replace(ROWS.take(slice(10)), rewards=-ROWS.rewards[:10]), [])
    for kind in KINDS[:2]:
        write_to(place(kind, tmp_path), other, overwrite=True)
        assert open_dataset(place(kind, tmp_path)).rewards.max() == 0
    with pytest.raises(DatasetError, match="minari delete some/where-v0"):
        write_to(KINDS[2], other, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["arrow", "data.hdf5", "minari"]


def test_other_destinations_are_refused(tmp_path: Path) -> None:
    source = Chunks(ROWS, [])
    for destination in ("data.csv", "s3://bucket/data", "data.parquet"):
        with pytest.raises(DatasetError, match=r"do not know how to write .* understood are a folder"):
            write_to(destination, source)
    with pytest.raises(DatasetError, match="one vector per row"):
        write_to(tmp_path / "data.hdf5", source, observations="keep")
    with pytest.raises(DatasetError, match="a name is like D4RL/pointmaze/umaze-v2"):
        write_to("minari://../../somewhere", source)


class Endless(Chunks):
    """Rows that go on; or, with a bad chunk, that break off."""

    def __init__(self, num_chunks: int, num_rows: int = 5000, breaks: bool = False) -> None:
        self.metadata, self._num_chunks, self._num_rows, self._breaks = Metadata(), num_chunks, num_rows, breaks

    def chunks(self) -> Iterator[Rows]:
        n = self._num_rows
        for _ in range(self._num_chunks):
            zeros = np.zeros((n, 10), np.float32)
            yield Rows(
                observations=zeros,
                actions=zeros,
                rewards=zeros[:, 0],
                terminated=flags(n, n - 1),
                truncated=flags(n),
            )
        if self._breaks:
            raise DatasetError("the source broke off")


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_that_breaks_off_leaves_nothing(kind: str, tmp_path: Path, minari_folder: Path) -> None:
    with pytest.raises(DatasetError, match="broke off"):
        write_to(place(kind, tmp_path), Endless(3, breaks=True))
    assert left(tmp_path) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_is_refused_and_leaves_nothing(kind: str, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk's end."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, limits[1]))
    try:
        with pytest.raises(DatasetError, match=r"could not be written: the disk is full\. Nothing was left there"):
            write_to(place(kind, tmp_path), Endless(50))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert left(tmp_path) == []


def left(folder: Path) -> list[str]:
    """Files below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


COMMAND = """
import sys
sys.argv = ["calql", "data", "convert", "endless", sys.argv[1]]
from rllib_calql.cli import calql, data_convert
from tests.test_writers import Endless
data_convert.open_source = lambda uri: Endless(1_000_000)
write = data_convert.write_to
def said(*args, progress, **kwargs):
    write(*args, progress=lambda rows: (progress(rows), print(rows, flush=True)), **kwargs)
data_convert.write_to = said
calql.main()
"""


@pytest.mark.parametrize(
    ("kind", "how", "code"),
    [
        ("data.hdf5", signal.SIGINT, 130),
        ("data.hdf5", signal.SIGKILL, -9),
        ("minari://some/where-v0", signal.SIGTERM, 143),
    ],
)
def test_a_conversion_that_is_stopped_leaves_no_dataset(
    kind: str, how: signal.Signals, code: int, tmp_path: Path, minari_folder: Path
) -> None:
    destination = place(kind, tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, destination], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(how)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr
    if how != signal.SIGKILL:
        assert left(tmp_path) == []
    with pytest.raises(DatasetError):
        open_source(destination, **({"download": False} if "://" in kind else {}))
    write_to(destination, Endless(2, num_rows=10))  # what a killed process left is no hindrance
    assert len(open_dataset(destination)) == 20
    assert not [name for name in left(tmp_path) if ".partial" in name or ".lock" in name]


def test_pickles_are_converted_only_when_asked_for(tmp_path: Path) -> None:
    trajectory = {**COLUMNS, "terminals": flags(N, N - 1)}
    path = tmp_path / "demonstrations.pkl"
    path.write_bytes(
        pickle.dumps({name: trajectory[name] for name in ("observations", "actions", "rewards", "terminals")})
    )
    refused = CliRunner().invoke(app, ["data", "convert", str(path), str(tmp_path / "data")])
    assert refused.exit_code == 1
    assert "allow_pickle" in refused.stderr
    done = CliRunner().invoke(app, ["data", "convert", str(path), str(tmp_path / "data"), "--allow-pickle"])
    assert done.exit_code == 0, done.stderr
    assert "an unpickler that makes numpy arrays" in done.stderr
    np.testing.assert_array_equal(open_dataset(tmp_path / "data").rewards, COLUMNS["rewards"])
