"""RLlib's own logs, written by Ray itself on both API stacks."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from gymnasium.envs.classic_control import PendulumEnv
from ray.rllib.algorithms.ppo import PPOConfig
from typer.testing import CliRunner

from rllib_calql.cli.calql import app
from rllib_calql.data import DatasetError, Transitions, open_dataset
from rllib_calql.data.sources import open_source

STEPS = 12


class Logged(gym.Wrapper):
    """A short Pendulum that notes what happens to it; odd episodes terminate, even ones are cut off."""

    episodes: list[dict[str, Any]] = []  # noqa: RUF012 one for all instances, in this process

    def __init__(self, config: Any = None) -> None:
        super().__init__(PendulumEnv())
        self.current: dict[str, Any] = {}

    def reset(self, **options: Any) -> Any:
        observation, info = self.env.reset(**options)
        self.current = {"observations": [observation], "actions": [], "rewards": [], "ended": ""}
        Logged.episodes.append(self.current)
        self.kind = len(Logged.episodes) % 2
        return observation, info

    def step(self, action: Any) -> Any:
        observation, reward, _, _, info = self.env.step(action)
        over = len(self.current["rewards"]) + 1 == STEPS - self.kind
        self.current["observations"].append(observation)
        self.current["actions"].append(np.array(action))
        self.current["rewards"].append(float(reward))
        if over:
            self.current["ended"] = "terminated" if self.kind else "truncated"
        return observation, reward, over and bool(self.kind), over and not self.kind, info


def logged(envs: int, **offline: Any) -> list[dict[str, Any]]:
    """Runs two rounds of the old (`stack="old"`) or new API stack with `offline_data(**offline)`."""
    new = offline.pop("stack") == "new"
    complete = offline.get("output_write_episodes", True)
    config = (
        PPOConfig()
        .api_stack(enable_rl_module_and_learner=new, enable_env_runner_and_connector_v2=new)
        .framework("torch")
        .environment(Logged)
        .env_runners(
            num_env_runners=0,
            num_envs_per_env_runner=envs,
            rollout_fragment_length=20,
            batch_mode="complete_episodes" if complete else "truncate_episodes",
        )
        .training(train_batch_size=20 * envs, minibatch_size=20, num_epochs=1)
        .offline_data(**offline)
    )
    if new:
        config.rl_module(model_config={"fcnet_hiddens": [8]})
    else:
        config.training(model={"fcnet_hiddens": [8]})
    Logged.episodes = []
    algo = config.build_algo()
    for _ in range(2):
        algo.train()
    algo.stop()
    return Logged.episodes


def assert_holds(data: Transitions, episodes: list[dict[str, Any]]) -> None:
    """The dataset has the episodes of the environment, each once; its actions are RLlib's, in [-1, 1]."""
    by_start = {tuple(episode["observations"][0].tolist()): episode for episode in episodes}
    assert data.num_episodes > 2
    assert data.num_episodes == len({tuple(episode.observations[0].tolist()) for episode in data.episodes()})
    for episode in data.episodes():
        expected = by_start[tuple(episode.observations[0].tolist())]
        steps = len(episode)
        np.testing.assert_array_equal(episode.observations, expected["observations"][:steps])
        np.testing.assert_array_equal(episode.final_observations[0], expected["observations"][steps])
        np.testing.assert_allclose(episode.rewards, expected["rewards"][:steps], rtol=1e-6)
        scaled = np.clip(episode.actions, -1, 1) * 2  # what RLlib gives an environment with bounds of 2
        np.testing.assert_allclose(scaled, expected["actions"][:steps], atol=1e-6)
        whole = steps == len(expected["rewards"])
        assert episode.terminated[-1] == (whole and expected["ended"] == "terminated")


LOGS: dict[str, Any] = {
    "json, packed": {"stack": "old", "envs": 1},
    "json": {"stack": "old", "envs": 2, "output_compress_columns": [], "output_write_episodes": False},
    "steps, packed": {"stack": "new", "envs": 1, "output_write_episodes": False},
    "steps": {"stack": "new", "envs": 2, "output_compress_columns": [], "output_write_episodes": False},
    "episodes": {"stack": "new", "envs": 2, "output_write_episodes": True},
}


@pytest.fixture(scope="module")
def written(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    """Writes a log of `LOGS` once; gives its folder and what happened."""
    done: dict[str, tuple[Path, Any]] = {}

    def write(name: str) -> tuple[Path, Any]:
        if name not in done:
            ray.data.DataContext.get_current().enable_progress_bars = False
            folder = tmp_path_factory.mktemp("log")
            done[name] = folder, logged(output=str(folder), **LOGS[name])
        return done[name]

    return write


@pytest.mark.parametrize("name", LOGS)
def test_logs_of_ray(written: Callable[[str], tuple[Path, Any]], name: str) -> None:
    folder, episodes = written(name)
    options: dict[str, Any] = {"allow_pickle": True} if "packed" in name else {}
    assert_holds(open_dataset(folder, **options), episodes)
    assert open_source(folder, **options).metadata.actions_normalized


@pytest.mark.parametrize("name", ["json, packed", "steps, packed"])
def test_pickles_are_not_read_unasked(written: Callable[[str], tuple[Path, Any]], name: str) -> None:
    with pytest.raises(DatasetError, match=r"'obs' is packed as a pickle.*allow_pickle=True.*output_compress_col"):
        open_dataset(written(name)[0])


@pytest.mark.parametrize("name", ["steps", "episodes"])
def test_repeated_steps_are_read_once(
    written: Callable[[str], tuple[Path, Any]], name: str, tmp_path: Path
) -> None:
    """Ray writes everything again each time: the last folder has all, and so has the log without it nearly all."""
    folder, episodes = written(name)
    whole = open_dataset(folder)
    runs = sorted(folder.glob("*/run-*"))
    assert len(runs) > 1
    assert len(open_dataset(runs[-1])) == len(whole)
    # A file of the last writing is missing, as after a kill: then two writings are read, each step once.
    shutil.copytree(folder, tmp_path / "log")
    last = sorted((tmp_path / "log").glob("*/run-*"))[-1]
    sorted(last.glob("*.parquet"))[-1].unlink()
    assert_holds(open_dataset(tmp_path / "log"), episodes)
    if name == "steps":  # have no numbers by which repeated ones could be told in one file
        return
    files = sorted(folder.glob("**/*.parquet"))
    pq.write_table(pq.ParquetDataset(files).read(), tmp_path / "all.parquet")
    assert_holds(open_dataset(tmp_path / "all.parquet"), episodes)


def test_a_log_fits_its_environment(written: Callable[[str], tuple[Path, Any]]) -> None:
    """Its actions are brought to the environment's bounds before they are replayed."""
    folder, _ = written("episodes")
    printed = CliRunner().invoke(app, ["data", "check", str(folder), "--env", "Pendulum-v1"]).stdout
    assert "(100.0%) go as logged" in printed
    assert "actions are taken as normalised to [-1, 1]" in printed
    assert "leave the environment's bounds" not in printed


def test_damaged_files(written: Callable[[str], tuple[Path, Any]], tmp_path: Path) -> None:
    folder, _ = written("episodes")
    shutil.copytree(folder, tmp_path / "log")
    for path in (tmp_path / "log").glob("**/*.parquet"):
        table = pq.read_table(path)
        cut = [item.as_py()[:200] for item in table["item"]]
        pq.write_table(table.set_column(0, "item", [cut]), path)
    with pytest.raises(DatasetError, match=r"parquet, row 0: not an episode of RLlib"):
        open_dataset(tmp_path / "log")
