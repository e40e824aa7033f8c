"""Training straight from tables and from RLlib's own logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rllib_calql import CalQLConfig
from rllib_calql.data import Transitions, open_dataset
from rllib_calql.dataset import open_offline_data
from tests.test_resume import small_config
from tests.test_rllib_logs import logged

pytestmark = [
    pytest.mark.usefixtures("ray_session"),
    pytest.mark.filterwarnings("ignore:.*actions outside the bounds"),  # RLlib logs them before it clips them
]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory, pendulum_data: Transitions) -> Path:
    """A folder of one Parquet file per five episodes."""
    folder = tmp_path_factory.mktemp("table")
    for part, rows in enumerate(np.split(np.arange(len(pendulum_data)), 4)):
        columns = {
            "obs": pendulum_data.observations[rows].tolist(),
            "action_0": pendulum_data.actions[rows, 0],
            "reward": pendulum_data.rewards[rows],
            "next_obs": pendulum_data.next_observations(rows).tolist(),
            "episode_id": np.searchsorted(pendulum_data.episode_ends, rows),
        }
        pq.write_table(pa.table(columns), folder / f"part-{part}.parquet")
    return folder


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    folder = tmp_path_factory.mktemp("log")
    logged(1, stack="old", output=str(folder))
    return folder


def train(path: Path, **input_config: Any) -> dict[str, Any]:
    config = small_config(path, 0, num_offline_updates=6, num_online_env_steps=50)
    config.offline_data(input_config=input_config)
    config.evaluation(evaluation_interval=None)
    algo = config.build_algo()
    before = algo.get_policy().get_weights()
    while not (result := algo.train())["done"]:
        pass
    after = algo.get_policy().get_weights()
    assert any(not np.array_equal(before[name], after[name]) for name in before)
    algo.stop()
    return result["calql"]


def test_table(table: Path) -> None:
    block = train(table)
    assert block["num_updates"] == 16  # 6, and 10 for an episode of 50 steps
    assert np.isfinite(block["critic_loss"])


def test_log(log: Path) -> None:
    assert train(log, allow_pickle=True)["num_updates"] == 16


def test_actions_of_a_log_are_taken_as_they_are(log: Path, table: Path, pendulum_data: Transitions) -> None:
    """RLlib logs them in [-1, 1], tables have them in the environment's bounds of -2 and 2."""

    def actions(path: Path, **input_config: Any) -> np.ndarray:
        env = gym.make("Pendulum-v1")
        config = CalQLConfig().offline_data(input_=path, input_config=input_config)
        data = open_offline_data(config, env.observation_space, env.action_space).rows
        assert isinstance(data, Transitions)
        return data.take(np.arange(len(data)))["actions"]

    raw = open_dataset(log, allow_pickle=True).actions
    assert np.abs(raw).max() > 1
    np.testing.assert_allclose(actions(log, allow_pickle=True), np.clip(raw, -0.99999, 0.99999))
    halved = np.clip(raw / 2, -0.99999, 0.99999)
    np.testing.assert_allclose(actions(log, allow_pickle=True, actions_normalized=False), halved, rtol=1e-6)
    np.testing.assert_allclose(actions(table), pendulum_data.actions / 2, rtol=1e-6)
