"""Pickled trajectories, such as the official Adroit sets; only arrays and builtins come out of a pickle."""

from __future__ import annotations

import os
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rllib_calql.data import DatasetError, DatasetWarning, open_dataset, open_source
from tests.shared import shared_path

OBS_DIM, ACT_DIM = 4, 2


def trajectory(length: int, successes: tuple[int, ...], seed: int, surplus: int = 0) -> dict[str, Any]:
    """In the layout of the official Adroit sets: observations are lists of dicts."""
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(length + 1, OBS_DIM))
    rewards = -np.ones(length + surplus)
    rewards[list(successes)] = 0
    return {
        "observations": [{"state_observation": state, "state_desired_goal": np.zeros(2)} for state in states[:-1]],
        "next_observations": [
            {"state_observation": state, "state_desired_goal": np.zeros(2)} for state in states[1:]
        ],
        "actions": rng.uniform(-1, 1, size=(length, ACT_DIM)),
        "rewards": rewards[:, None],
        "terminals": np.zeros((length, 1), dtype=bool),
        "agent_infos": [{} for _ in range(length)],
        "env_infos": [{"goal_achieved": True}] * length,
    }


def states(trajectory: dict[str, Any], name: str = "observations") -> np.ndarray:
    return np.array([step["state_observation"] for step in trajectory[name]], dtype=np.float32)


ADROIT = [trajectory(9, (4, 6), 0), trajectory(7, (), 1), trajectory(6, (5,), 2, surplus=2)]


def as_npy(path: Path, content: Any) -> Path:
    array = np.empty(len(content), dtype=object)
    array[:] = content
    np.save(path, array, allow_pickle=True)
    return path


def as_pickle(path: Path, content: Any) -> Path:
    path.write_bytes(pickle.dumps(content))
    return path


@pytest.mark.parametrize(("name", "write"), [("a.npy", as_npy), ("a.pkl", as_pickle), ("a.pickle", as_pickle)])
def test_trajectories(tmp_path: Path, name: str, write: Callable[[Path, Any], Path]) -> None:
    path = write(tmp_path / name, ADROIT)
    source = open_source(path, allow_pickle=True)
    assert "3 trajectories (numpy arrays and builtin types only)" in str(source.metadata.source)
    with pytest.warns(DatasetWarning, match="1 of 3 trajectories have more rewards than observations"):
        data = open_dataset(path, allow_pickle=True)
    np.testing.assert_array_equal(data.episode_ends, [8, 15, 21])
    np.testing.assert_array_equal(data.observations, np.concatenate([states(t) for t in ADROIT]))
    np.testing.assert_array_equal(data.final_observations, [states(t, "next_observations")[-1] for t in ADROIT])
    np.testing.assert_array_equal(
        data.rewards, np.concatenate([t["rewards"][: len(t["actions"]), 0] for t in ADROIT])
    )
    assert data.truncated.sum() == 3
    assert not data.terminated.any()


@pytest.mark.filterwarnings("ignore:1 of 3 trajectories", "ignore:.*1 of 3 trajectories")
def test_the_rule_of_the_reference_code(tmp_path: Path) -> None:
    """Of a trajectory remain the rows up to its last success; each success is an end."""
    with pytest.warns(DatasetWarning, match="9 of 22 rows do not lead to a success"):
        data = open_dataset(as_npy(tmp_path / "pen.npy", ADROIT), allow_pickle=True, success_reward=0)
    expected = np.concatenate([states(ADROIT[0])[:7], states(ADROIT[2])])
    np.testing.assert_array_equal(data.observations, expected)
    np.testing.assert_array_equal(np.flatnonzero(data.terminated), [4, 6, 12])
    np.testing.assert_array_equal(data.rewards == 0, data.terminated)


@pytest.mark.filterwarnings("ignore::rllib_calql.data.DatasetWarning")
def test_a_real_set_in_either_form(tmp_path: Path) -> None:
    """The HDF5 file of human door demonstrations, and the same rows as trajectories."""
    import h5py

    path = shared_path("data/adroit-door-human.hdf5")
    options: dict[str, Any] = {"rewards": "infos/rewards_binary", "success_reward": 0.0}
    with h5py.File(path) as file:
        ends = np.flatnonzero(file["terminals"][()].astype(bool) | file["timeouts"][()])
        names = {"observations": "observations", "actions": "actions", "rewards": "infos/rewards_binary"}
        columns = {name: np.split(file[column][()], ends[:-1] + 1) for name, column in names.items()}
    trajectories = [dict(zip(columns, parts, strict=True)) for parts in zip(*columns.values(), strict=True)]
    pickled = open_dataset(as_npy(tmp_path / "door.npy", trajectories), allow_pickle=True, success_reward=0.0)
    original = open_dataset(path, **options)
    assert len(pickled) > 100
    for name in ("observations", "actions", "rewards", "terminated"):
        np.testing.assert_array_equal(getattr(pickled, name), getattr(original, name))


def test_other_layouts(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    plain: dict[str, Any] = {
        "obs": rng.normal(size=(5, 3)),
        "action": rng.normal(size=(5, 1)),
        "reward": list(range(5)),
        "done": [0] * 4 + [1],
    }
    for name, content in {"dict": plain, "list": [plain], "tuple": (plain,)}.items():
        data = open_dataset(as_pickle(tmp_path / f"{name}.pkl", content), allow_pickle=True)
        np.testing.assert_array_equal(data.terminated, [0, 0, 0, 0, 1])
        np.testing.assert_array_equal(data.observations, plain["obs"].astype(np.float32))
    np.save(tmp_path / "dict.npy", plain, allow_pickle=True)  # type: ignore[arg-type]
    assert len(open_dataset(tmp_path / "dict.npy", allow_pickle=True)) == 5
    one_more = {**plain, "obs": rng.normal(size=(6, 3)), "done": [0] * 5}
    data = open_dataset(as_pickle(tmp_path / "more.pkl", [one_more]), allow_pickle=True)
    np.testing.assert_array_equal(data.final_observations[0], one_more["obs"][-1].astype(np.float32))
    nested = {**plain, "obs": {"b": rng.normal(size=(5, 1)), "a": [[1, 2]] * 5}}
    data = open_dataset(
        as_pickle(tmp_path / "nested.pkl", [nested]), allow_pickle=True, columns={"rewards": "action"}
    )
    np.testing.assert_array_equal(data.observations[:, :2], [[1, 2]] * 5)
    np.testing.assert_array_equal(data.rewards, plain["action"][:, 0].astype(np.float32))


# --- refused ---


class Evil:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self.reduced = call, arguments

    def __reduce__(self) -> Any:
        return self.reduced


@pytest.mark.parametrize("call", [os.system, eval, subprocess.check_output, open])
@pytest.mark.parametrize("write", [as_npy, as_pickle])
def test_hostile_pickles_run_nothing(tmp_path: Path, write: Any, call: Any) -> None:
    path = tmp_path / ("data.npy" if write is as_npy else "data.pkl")
    argument = f"touch {tmp_path}/touched" if call is not open else str(tmp_path / "touched")
    write(path, [{**ADROIT[0], "actions": Evil(call, argument)}])
    with pytest.raises(
        DatasetError, match=rf"data\..*the pickle asks for \w+\.{call.__name__}; only numpy arrays"
    ):
        open_dataset(path, allow_pickle=True)
    for allowed in ({}, {"allow_pickle": False}):
        options: dict[str, Any] = {**allowed}
        with pytest.raises(
            DatasetError, match=r"data\..*: is a pickle, which is not opened unasked.*allow_pickle=True"
        ):
            open_dataset(path, **options)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions": None}, r"trajectory 1: it has no actions \(actions, action\); it has observations,"),
        ({"rewards": np.zeros(3)}, "trajectory 1: there are 9 observations and 3 rewards"),
        ({"rewards": np.zeros((9, 2))}, "trajectory 1: rewards must be one number per row"),
        ({"actions": np.zeros((8, 2))}, r"trajectory 1: there are 8 actions and \[9\] observations or next"),
        ({"actions": ["left"] * 9}, "trajectory 1: actions are not numbers of one shape per row"),
        ({"observations": [[1], [1, 2]] * 4 + [[1]]}, "trajectory 1: observations are not numbers of one shape"),
        ({"observations": [{"a": 1}, {"b": 1}]}, "trajectory 1: observations are dicts with different keys"),
        ({"observations": []}, "trajectory 1: observations are empty"),
        ({"observations": 3}, "trajectory 1: observations are empty, or int instead of an array or a list"),
        ({"terminals": [0, 1]}, "trajectory 1: there are 9 observations and fewer flags"),
        ({"terminals": [np.nan] * 9}, "trajectory 1: terminated has NaN"),
    ],
)
def test_broken_trajectories(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    broken = {name: values for name, values in {**ADROIT[0], **changes}.items() if values is not None}
    with pytest.raises(DatasetError, match=rf"data\.npy: {message}"):
        open_dataset(as_npy(tmp_path / "data.npy", [ADROIT[0], broken]), allow_pickle=True)


@pytest.mark.parametrize("content", [[1, 2], "text", {1, 2}, [], None, [{"observations": [1]}, 3]])
def test_what_are_no_trajectories(tmp_path: Path, content: Any) -> None:
    with pytest.raises(DatasetError, match=r"data.pkl holds neither a dict of arrays nor a list of such dicts"):
        open_dataset(as_pickle(tmp_path / "data.pkl", content), allow_pickle=True)


def test_damaged_files(tmp_path: Path) -> None:
    path = as_npy(tmp_path / "data.npy", ADROIT)
    content = path.read_bytes()
    for kept in (3, 40, 200, len(content) // 2):
        path.write_bytes(content[:kept])
        with pytest.raises(DatasetError, match=r"data\.npy(: the pickle is damaged| cannot be read as a \.npy)"):
            open_dataset(path, allow_pickle=True)
    with pytest.raises(DatasetError, match=r"there is no dataset file .*nothing\.pkl"):
        open_dataset(tmp_path / "nothing.pkl", allow_pickle=True)
    with pytest.raises(
        DatasetError, match="columns has 'step': 'a'; trajectories take one name each of observations"
    ):
        open_dataset(as_npy(tmp_path / "data.npy", ADROIT), allow_pickle=True, columns={"step": "a"})


def test_next_observations_of_some_trajectories_only(tmp_path: Path) -> None:
    """They are not lost, whichever comes first."""
    without = {"observations": np.zeros((4, 3)), "actions": np.zeros((4, 2)), "rewards": np.zeros(4)}
    with_them = {**without, "next_observations": np.zeros((4, 3))}
    for trajectories in ([without, with_them], [with_them, without]):
        with pytest.raises(DatasetError, match="steps have different columns or shapes"):
            open_dataset(as_npy(tmp_path / "data.npy", trajectories), allow_pickle=True)
