"""`pointmaze://NAME`: datasets walked in real MuJoCo."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rllib_calql.data import DatasetError, Transitions, check_fits, open_dataset
from rllib_calql.data.sources import pointmaze
from rllib_calql.data.sources.pointmaze import RECIPES, Recipe, Walker, generate

SMALL = Recipe("rllib_calql/PointMaze-UMaze-v3", (Walker(1.0, noise=0.1),), num_rows=600)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLLIB_CALQL_CACHE", str(tmp_path))
    monkeypatch.setitem(RECIPES, "small", SMALL)


def same(one: Transitions, other: Transitions) -> bool:
    names = [name for name in one.__dataclass_fields__ if name != "mc_returns"]
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


def test_a_walker_reaches_the_goal_and_the_episode_ends_there() -> None:
    data = generate(SMALL)
    assert len(data) >= 600
    assert (data.obs_dim, data.act_dim, data.mc_returns) == (4, 2, None)
    assert data.terminated[data.episode_ends].all()
    np.testing.assert_array_equal(data.rewards, data.terminated.astype(np.float32))
    goal = np.array([-1.0, 1.0])
    assert (np.linalg.norm(data.final_observations[:, :2] - goal, axis=1) <= 0.45).all()
    assert (np.linalg.norm(data.observations[:, :2] - goal, axis=1) > 0.45).all()
    assert np.abs(data.actions).max() <= 1.0


def test_replaying_the_actions_gives_the_rows_again() -> None:
    """Every row is what the registered environment does with the logged action."""
    data = next(generate(SMALL).episodes())
    env: Any = gym.make(SMALL.env_id)
    env.reset(seed=0)
    body = env.unwrapped._simulation.point_env
    body.set_state(data.observations[0, :2].astype(np.float64), data.observations[0, 2:].astype(np.float64))
    for action, expected in zip(data.actions, data.next_observations(), strict=True):
        observation, *_ = env.step(action)
        np.testing.assert_allclose(observation, expected, atol=1e-3)


def test_time_outs_are_truncated_with_their_final_observation() -> None:
    env = {"max_episode_steps": 20}
    data = generate(Recipe(SMALL.env_id, (Walker(1.0, noise=0.5, wanders=True),), num_rows=50, env=env))
    assert (len(data), data.num_episodes) == (60, 3)
    assert not data.terminated.any()
    assert np.flatnonzero(data.truncated).tolist() == [19, 39, 59]
    assert data.rewards.sum() == 0
    step = np.linalg.norm(data.final_observations[:, :2] - data.observations[[19, 39, 59], :2], axis=1)
    assert ((step > 0) & (step < 0.1)).all()


def test_walkers_starting_anywhere_cover_the_maze() -> None:
    walker = Walker(1.0, noise=0.5, wanders=True, starts_anywhere=True)
    data = generate(Recipe(SMALL.env_id, (walker,), num_rows=6000, env={"max_episode_steps": 30}))
    starts = data.observations[np.append(0, data.episode_ends[:-1] + 1), :2]
    layout = gym.make(SMALL.env_id).unwrapped.layout
    cells = {tuple(cell) for cell in layout.xy_to_cell(starts).tolist()}
    assert cells == {(3, 1), (3, 2), (3, 3), (2, 3), (1, 3), (1, 2)}
    assert not layout.is_wall(data.observations[:, :2]).any()


def test_the_seed_decides() -> None:
    assert same(generate(SMALL), generate(SMALL))
    assert not same(generate(SMALL), generate(Recipe(SMALL.env_id, SMALL.walkers, 600, seed=1)))


def test_cached_once_under_the_recipes_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_dataset("pointmaze://small")
    (file,) = tmp_path.iterdir()
    assert file.name.startswith("pointmaze-small-")
    umask = os.umask(0)
    os.umask(umask)
    assert file.stat().st_mode & 0o777 == 0o666 & ~umask  # others who share the folder may read it
    monkeypatch.setattr(pointmaze, "generate", lambda recipe: pytest.fail("generated again"))
    assert same(pointmaze.open("small"), first)
    with np.load(file, allow_pickle=False) as columns:
        assert len(columns) == 6
        assert same(Transitions(**columns), first)
    monkeypatch.undo()
    # Another recipe under the same name does not meet the old file.
    monkeypatch.setitem(RECIPES, "small", Recipe(SMALL.env_id, SMALL.walkers, 300))
    assert len(pointmaze.open("small", cache_dir=tmp_path)) < len(first)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="no space left"):
        pointmaze.open("small")
    assert list(tmp_path.iterdir()) == []


def test_unknown_names_are_refused() -> None:
    with pytest.raises(DatasetError, match=r"unknown dataset pointmaze://nowhere; there are .*small"):
        pointmaze.open("nowhere")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    pointmaze.open("small")
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(DatasetError, match=r"pointmaze-small-\w+.npz is damaged .*delete it"):
        pointmaze.open("small")
    file.write_bytes(b"")
    with pytest.raises(DatasetError, match="is damaged"):
        pointmaze.open("small")
    np.savez(file, observations=np.zeros((3, 4)))
    with pytest.raises(DatasetError, match=r"is damaged .*missing"):
        pointmaze.open("small")


@pytest.mark.parametrize(
    ("name", "share"),
    [("umaze-expert", 1.0), ("umaze-narrow", 0.6), ("medium-narrow", 0.6), ("medium-play", 0.2)],
)
def test_recipes_are_made_and_fit_their_environment(name: str, share: float, monkeypatch: Any) -> None:
    small = replace(RECIPES[name], num_rows=4000)
    monkeypatch.setitem(RECIPES, name, small)
    data = pointmaze.open(name)
    env: Any = gym.make(small.env_id, **small.env)
    check_fits(data, env.observation_space, env.action_space)
    assert data.terminated[data.episode_ends].mean() == pytest.approx(share, abs=0.25)
