"""Minari's datasets: recorded with Minari itself, read back from all of its storages."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rllib_calql.data import DatasetError, DatasetWarning, open_dataset, open_source
from tests.minari_sets import FORMATS, Played, assert_same, minari, point_maze, read, record, towards_goal

# One cell to the right of the start: reached, and left, within the 60 steps.
NEAR_GOAL = {"reset_cell": np.array([1, 1]), "goal_cell": np.array([1, 2])}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Minari's folder for this module."""
    folder = tmp_path_factory.mktemp("minari")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder))
        yield folder


@pytest.fixture(scope="module")
def maze(datasets: Path) -> dict[str, Played]:
    """PointMaze sets `maze/FORMAT-v0`: the walker reaches the goal and goes on."""
    return {
        data_format: record(
            f"maze/{data_format}-v0",
            point_maze(),
            data_format,
            towards_goal,
            options=NEAR_GOAL,
            ref_min_score=0.5,
            ref_max_score=20.0,
            num_episodes_average_score=1,
        )
        for data_format in FORMATS
    }


class Odd(gym.Env[Any, Any]):
    """Observations and actions of a given space; ends after 4 steps."""

    def __init__(self, observation_space: gym.Space, action_space: gym.Space | None = None) -> None:
        self.observation_space = observation_space
        self.action_space = action_space or gym.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self.observation_space.sample(), float(self.steps), self.steps == 4, False, {}


# --- what was recorded is what is read ---


@pytest.mark.parametrize("data_format", FORMATS)
def test_goal_observations(maze: dict[str, Played], data_format: str) -> None:
    source = open_source(f"minari://maze/{data_format}-v0", end_at_success=False)
    assert_same(read(source), maze[data_format])
    assert_same(read(source), maze[data_format])  # from the start again
    assert source.metadata.num_rows == 180
    assert source.metadata.score_range == (0.5, 20.0)
    assert isinstance(source.metadata.observation_space, gym.spaces.Dict)
    assert isinstance(source.metadata.action_space, gym.spaces.Box)
    assert '"id": "PointMaze_UMaze-v3"' in str(source.metadata.environment)


@pytest.mark.parametrize("data_format", FORMATS)
def test_terminations_truncations_and_discrete_actions(datasets: Path, data_format: str) -> None:
    played = record(f"cartpole/{data_format}-v1", gym.make("CartPole-v1", max_episode_steps=15), data_format)
    rows = read(open_source(f"minari://cartpole/{data_format}-v1"))
    assert_same(rows, played)
    assert rows.terminated.any()
    assert rows.truncated.any()
    assert np.asarray(rows.actions).dtype.kind == "i"


@pytest.mark.parametrize("data_format", FORMATS)
def test_an_episode_that_was_left_off_is_truncated(datasets: Path, data_format: str) -> None:
    played = record(f"pendulum/{data_format}-v0", gym.make("Pendulum-v1"), data_format, max_steps=7)
    rows = read(open_source(f"minari://pendulum/{data_format}-v0"))
    assert_same(rows, played)
    np.testing.assert_array_equal(np.flatnonzero(rows.truncated), [6, 13, 20])


@pytest.mark.parametrize("data_format", FORMATS)
def test_tuples_and_images(datasets: Path, data_format: str) -> None:
    image = gym.spaces.Box(0, 255, (32, 36, 3), np.uint8)
    space = gym.spaces.Tuple((gym.spaces.Box(-1, 1, (2,)), gym.spaces.Dict({"camera": image})))
    raw, encoded = (
        record(f"odd/{name}-{data_format}-v0", Odd(space), data_format, jpeg_encoding=name == "jpeg")
        for name in ("raw", "jpeg")
    )
    rows = read(open_source(f"minari://odd/raw-{data_format}-v0"))
    assert_same(rows, raw)
    assert isinstance(rows.observations, tuple)
    rows = read(open_source(f"minari://odd/jpeg-{data_format}-v0"))
    np.testing.assert_array_equal(rows.rewards, encoded.column("rewards"))
    observations: Any = rows.observations
    assert observations[1]["camera"].shape == (12, 32, 36, 3)
    assert observations[1]["camera"].dtype == np.uint8
    assert (
        np.corrcoef(observations[1]["camera"].ravel(), encoded.column("observations")[1]["camera"].ravel())[0, 1]
        > 0.5
    )


def test_episodes_are_joined_and_cut_to_chunks(
    maze: dict[str, Played], datasets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(list(open_source(datasets / "maze/hdf5-v0", end_at_success=False).chunks())) == 1
    monkeypatch.setattr("rllib_calql.data.rows.CHUNK_BYTES", 1000)
    source = open_source(datasets / "maze/hdf5-v0", end_at_success=False)
    assert max(len(rows) for rows in source.chunks()) < 8
    assert_same(read(source), maze["hdf5"])


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_folders(maze: dict[str, Played], datasets: Path, data_format: str) -> None:
    folder = datasets / f"maze/{data_format}-v0"
    for path in (folder, f"{folder}/", folder / "data"):
        assert_same(read(open_source(path, end_at_success=False)), maze[data_format])
    if data_format == "hdf5":
        with pytest.raises(DatasetError, match="this is a file of Minari: give the folder of the dataset"):
            open_source(folder / "data" / "main_data.hdf5")


@pytest.mark.parametrize("data_format", FORMATS)
def test_as_transitions(maze: dict[str, Played], data_format: str) -> None:
    """Goal observations become vectors in gymnasium's order, or stay as they are."""
    played = maze[data_format]
    data = open_dataset(f"minari://maze/{data_format}-v0", end_at_success=False)
    columns, space = played.column("observations"), data.metadata.observation_space
    flat = np.stack([gym.spaces.flatten(space, row["observations"]) for row in played.rows])
    np.testing.assert_array_equal(data.observations, flat.astype(np.float32))
    assert (data.obs_dim, data.act_dim, data.num_episodes) == (8, 2, 3)
    kept: Any = open_dataset(
        f"minari://maze/{data_format}-v0", end_at_success=False, observations="keep"
    ).observations
    np.testing.assert_array_equal(kept["desired_goal"], columns["desired_goal"].astype(np.float32))
    assert data.metadata.score_range == (0.5, 20.0)


# --- tasks that go on after the goal ---


@pytest.mark.parametrize("data_format", FORMATS)
def test_end_at_success(maze: dict[str, Played], data_format: str) -> None:
    played = maze[data_format]
    success = played.column("success")
    kept = ~(success & np.append(False, success[:-1]))  # (episodes begin far from the goal)
    assert 3 <= success[kept].sum() < success.sum()
    source = open_source(f"minari://maze/{data_format}-v0", end_at_success=True)
    assert_same(read(source), played, kept, terminated=success)
    assert '"continuing_task": false' in str(source.metadata.environment)


def test_success_by_reward_where_no_infos_were_recorded(datasets: Path) -> None:
    for reward_type in ("sparse", "dense"):
        env = point_maze(reward_type=reward_type)
        record(f"bare/{reward_type}-v0", env, "hdf5", towards_goal, options=NEAR_GOAL, record_infos=False)
    rows = read(open_source("minari://bare/sparse-v0", end_at_success=True))
    np.testing.assert_array_equal(rows.terminated, rows.rewards == 1)
    assert rows.terminated.sum() == 3
    with pytest.raises(
        DatasetError, match=r"dense-v0.*episode 0 cannot tell where it succeeds.*end_at_success=False"
    ):
        read(open_source("minari://bare/dense-v0", end_at_success=True))


def test_a_continuing_task_asks_what_to_do(maze: dict[str, Played], datasets: Path) -> None:
    with pytest.warns(DatasetWarning, match=r"hdf5-v0.* continuing_task=True.*end_at_success=True ends them"):
        open_source("minari://maze/hdf5-v0")
    record("ending/maze-v0", point_maze(continuing_task=False), "hdf5", towards_goal, options=NEAR_GOAL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_source("minari://maze/hdf5-v0", end_at_success=False)
        rows = read(open_source("minari://ending/maze-v0"))
    assert rows.terminated.sum() == 3


# --- names ---


@pytest.mark.parametrize("name", ["../maze/hdf5-v0", "/etc-v0", "maze/hdf5", "hf://farama/x-v0", "a/../b-v0", ""])
def test_names_stay_in_minaris_folder(name: str) -> None:
    with pytest.raises(DatasetError, match="a name is like D4RL/pointmaze/umaze-v2, with the version at the end"):
        open_source(f"minari://{name}")


def test_a_name_that_is_not_there(datasets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        DatasetError, match=r"minari://no/such-v0 is not at .*no/such-v0 and downloading is switched"
    ):
        open_source("minari://no/such-v0", download=False)

    def refuse(name: str) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(minari, "download_dataset", refuse)
    with pytest.raises(DatasetError, match=r"could not be downloaded \(no route\).*`minari download no/such-v0`"):
        open_source("minari://no/such-v0")


def test_without_minari(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(DatasetError, match=r"need the minari package .*pip install 'rllib_calql\[minari\]'"):
        open_source("minari://maze/hdf5-v0")
