"""Checkpoints of the algorithm: what they hold, what is refused, where they can lie."""

from __future__ import annotations

import json
import pickle
import resource
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem
from ray.tune import Checkpoint

from rllib_calql import CalQL
from rllib_calql.data import DatasetError, DatasetWarning, Transitions, open_dataset, write_dataset
from rllib_calql.data.whole import CheckpointError
from tests.conftest import collect_pendulum
from tests.test_resume import deterministic, small_config

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def big_data() -> Transitions:
    """20,000 rows, 440 kB."""
    return collect_pendulum(400)


@pytest.fixture(scope="module", params=[False, True], ids=["policy_stack", "new_stack"])
def new_stack(request: pytest.FixtureRequest) -> bool:
    """Which of RLlib's API stacks."""
    return bool(request.param)


@pytest.fixture(scope="module")
def saved(big_data: Transitions, new_stack: bool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run at its first online iteration."""
    algo = small_config(big_data, 0, new_stack, num_offline_updates=10).build_algo()
    algo.train()
    algo.train()
    path = tmp_path_factory.mktemp("saved") / "checkpoint"
    algo.save(str(path))
    algo.stop()
    return path


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_the_dataset_is_referenced_not_copied(saved: Path, big_data: Transitions) -> None:
    assert size(saved) < 0.5 * len(pickle.dumps(big_data))
    run = json.loads((saved / "calql/run.json").read_text())
    assert run["dataset"] == {"input": "memory://", "fingerprint": big_data.fingerprint}


def test_data_in_memory_are_given_again(saved: Path, big_data: Transitions) -> None:
    with pytest.raises(DatasetError, match=r"given in memory.*: from_checkpoint\(path, input_=...\)"):
        CalQL.from_checkpoint(saved)
    algo = CalQL.from_checkpoint(saved, input_=big_data)
    assert algo.train()["calql"]["num_online_env_steps"] == 100
    algo.stop()


def test_other_data_are_refused_unless_they_are_given_on_purpose(
    saved: Path, pendulum_data: Transitions, new_stack: bool
) -> None:
    algo = small_config(pendulum_data, 0, new_stack).build_algo()
    with pytest.raises(DatasetError, match=r"run on memory:// \(fingerprint \w+\), and here is .*: use the same"):
        algo.restore(str(saved))
    algo.stop()
    with pytest.warns(DatasetWarning, match="the checkpoint is of a run on .*: going on with these"):
        algo = CalQL.from_checkpoint(saved, input_=pendulum_data)
    algo.stop()


def test_a_dataset_that_has_moved_or_changed(tmp_path: Path) -> None:
    def write(path: Path, data: Transitions) -> None:
        with h5py.File(path, "w") as file:
            for name in ("observations", "actions", "rewards"):
                file[name] = getattr(data, name)
            file["terminals"], file["timeouts"] = data.terminated, data.truncated
            file["next_observations"] = data.next_observations()

    old, new = tmp_path / "old.hdf5", tmp_path / "new.hdf5"
    write(old, collect_pendulum(3))
    config = small_config(str(old), 0, num_offline_updates=10).offline_data(input_config={"rewards": "rewards"})
    algo = config.build_algo()
    algo.train()
    algo.save(str(tmp_path / "checkpoint"))
    expected = deterministic(algo.train()["calql"])
    algo.stop()
    old.rename(new)
    with pytest.raises(DatasetError, match=r"old.hdf5.*from_checkpoint\(path, input_=...\)"):
        CalQL.from_checkpoint(tmp_path / "checkpoint")
    algo = CalQL.from_checkpoint(tmp_path / "checkpoint", input_=new)
    assert deterministic(algo.train()["calql"]) == expected
    algo.stop()
    with pytest.raises(ValueError, match="input_config goes with input_"):
        CalQL.from_checkpoint(tmp_path / "checkpoint", input_config={})
    # The run's options of the reader stay for a path, do not count for rows, and others can be given.
    for input_, input_config in (
        (open_dataset(new), None),
        (write_dataset(open_dataset(new), tmp_path / "data"), {}),
    ):
        algo = CalQL.from_checkpoint(tmp_path / "checkpoint", input_=input_, input_config=input_config)
        assert deterministic(algo.train()["calql"]) == expected
        algo.stop()
    write(old, collect_pendulum(3, seed=9))
    with pytest.raises(DatasetError, match=r"run on .*old.hdf5 .*, and here is .*old.hdf5"):
        CalQL.from_checkpoint(tmp_path / "checkpoint")


@pytest.mark.parametrize("victim", ["calql_manifest.json", "calql/run.json", "calql/replay/index.json"])
def test_half_checkpoints_are_never_loaded(
    saved: Path, tmp_path: Path, big_data: Transitions, victim: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(saved, copy)
    content = (copy / victim).read_bytes()
    (copy / victim).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=f"{victim} of the checkpoint .*copy"):
        CalQL.from_checkpoint(copy, input_=big_data)
    (copy / victim).unlink()
    with pytest.raises(CheckpointError, match=victim):
        CalQL.from_checkpoint(copy, input_=big_data)
    with pytest.raises(CheckpointError, match=f"load_weights_from=.*{victim}"):
        small_config(big_data, 0, load_weights_from=str(copy)).plan()


def test_every_file_is_watched(saved: Path, tmp_path: Path, big_data: Transitions, new_stack: bool) -> None:
    """One flipped bit in any file, RLlib's own among them."""
    algo = small_config(big_data, 0, new_stack).build_algo()
    for file in [file.relative_to(saved) for file in saved.rglob("*") if file.is_file()]:
        copy = tmp_path / "copy"
        shutil.copytree(saved, copy)
        content = bytearray((copy / file).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / file).write_bytes(content)
        with pytest.raises(CheckpointError):
            algo.restore(str(copy))
        shutil.rmtree(copy)
    algo.stop()


def test_a_full_disk_leaves_the_earlier_checkpoint_and_the_run(
    tmp_path: Path, pendulum_data: Transitions, new_stack: bool
) -> None:
    algo = small_config(pendulum_data, 0, new_stack, num_offline_updates=10).build_algo()
    algo.train()
    algo.save(str(tmp_path / "checkpoint"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    block = algo.train()["calql"]
    for limit in (100, 10_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(OSError, match="File too large"):
                algo.save(str(tmp_path / "checkpoint"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    algo.train()  # the run itself goes on
    algo.save(str(tmp_path / "later"))
    algo.restore(str(tmp_path / "checkpoint"))
    assert deterministic(algo.train()["calql"]) == deterministic(block)
    algo.restore(str(tmp_path / "later"))
    assert algo.train()["calql"]["num_online_env_steps"] == 150
    algo.stop()


def test_checkpoints_share_online_rows_wherever_they_lie(
    tmp_path: Path, big_data: Transitions, monkeypatch: pytest.MonkeyPatch, new_stack: bool
) -> None:
    monkeypatch.setattr("rllib_calql.data.replay_files.FULL", 1000)  # an episode fills a file
    algo = small_config(big_data, 0, new_stack, num_offline_updates=10, utd_ratio=0.02).build_algo()
    for _ in range(4):
        algo.train()
    first, second = tmp_path / "first", tmp_path / "second"
    assert algo.save_to_path(first) == str(first)
    algo.train()
    algo.save(str(second))
    rows = [{file.name: file.stat().st_ino for file in path.rglob("rows-*")} for path in (first, second)]
    assert len(rows[0]) == 3
    assert len(rows[1].items() - rows[0].items()) == 1
    expected = deterministic(algo.train()["calql"])

    elsewhere = SubTreeFileSystem(str(tmp_path), LocalFileSystem())
    algo.restore_from_path(second)
    algo.save_to_path("away", filesystem=elsewhere)
    for again in (
        Checkpoint(str(second)),
        Checkpoint("away", elsewhere),
        (tmp_path / "away").as_uri(),
    ):
        restored = CalQL.from_checkpoint(again, input_=big_data)
        assert deterministic(restored.train()["calql"]) == expected
        restored.stop()
    algo.stop()


@pytest.mark.parametrize("stop_after", [1, 3], ids=["offline", "online"])
def test_a_checkpoint_goes_on_on_the_other_api_stack(
    tmp_path: Path, pendulum_data: Transitions, new_stack: bool, stop_after: int
) -> None:
    """All of it: the run goes on as it would have on its own stack."""
    algo = small_config(pendulum_data, 0, new_stack).build_algo()
    for _ in range(stop_after):
        algo.train()
    algo.save(str(tmp_path / "checkpoint"))
    expected = [deterministic(algo.train()["calql"]) for _ in range(2)]
    weights = algo.stack.weights()
    algo.stop()
    other = small_config(pendulum_data, 0, not new_stack).build_algo()
    other.restore(str(tmp_path / "checkpoint"))
    assert other.training_iteration == stop_after
    found = [deterministic(other.train()["calql"]) for _ in range(2)]
    assert [set(block) for block in found] == [set(block) for block in expected]
    for block, like in zip(found, expected, strict=True):
        assert block.pop("phase") == like.pop("phase")
        assert block == pytest.approx(like, rel=1e-5)
    for name, array in other.stack.weights().items():
        np.testing.assert_array_equal(array, weights[name], err_msg=name)
    other.stop()


def test_what_a_checkpoint_is_not_for(saved: Path, big_data: Transitions, tmp_path: Path, new_stack: bool) -> None:
    with pytest.raises(ValueError, match=r"does not take \['policy_ids'\]: to go on under another config"):
        CalQL.from_checkpoint(saved, policy_ids=["default_policy"])
    algo = small_config(big_data, 0, new_stack).build_algo()
    with pytest.raises(ValueError, match="of the whole run: leave out `state`"):
        algo.save_to_path(tmp_path / "new", state={"learner_group": {}})
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="save to a folder of its own"):
        algo.save(str(tmp_path))
    algo.stop()


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 0), (0, 1)])
def test_restored_into_fewer_or_more_runners(
    tmp_path: Path, pendulum_data: Transitions, before: int, after: int, new_stack: bool
) -> None:
    def starts(algo: Any) -> np.ndarray:
        rows = algo.local_replay_buffer.replay.online.rows
        return rows.observations[np.append(0, rows.episode_ends[:-1] + 1)]

    algo = small_config(pendulum_data, before, new_stack, num_offline_updates=10).build_algo()
    for _ in range(3):
        algo.train()
    algo.save(str(tmp_path / "checkpoint"))
    kept = starts(algo)
    algo.stop()
    algo = small_config(pendulum_data, after, new_stack, num_offline_updates=10).build_algo()
    algo.restore(str(tmp_path / "checkpoint"))
    np.testing.assert_array_equal(starts(algo), kept)
    block = algo.train()["calql"]
    assert block["num_online_episodes"] == 2 * max(before, 1) + max(after, 1)
    assert len(np.unique(starts(algo), axis=0)) == block["num_online_episodes"]
    algo.stop()
