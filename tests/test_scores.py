"""Rewards normalised by the data's returns, and scores normalised by reference returns: all through a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from typer.testing import CliRunner

from rllib_calql import CalQL, CalQLConfig
from rllib_calql.cli.rllib import app
from rllib_calql.data import DatasetWarning, Transitions
from rllib_calql.data.prepare import episode_returns
from rllib_calql.metrics import score_range
from tests.test_resume import BOTH_STACKS, small_config

pytestmark = pytest.mark.usefixtures("ray_session")


def test_normalised_rewards_are_the_same_offline_online_and_in_a_checkpoint(
    pendulum_data: Transitions, tmp_path: Path
) -> None:
    settings = {"normalize_reward": True, "reward_scale": 2.0, "reward_bias": 1.0, "num_offline_updates": 10}
    config = small_config(pendulum_data, 0, **settings).evaluation(evaluation_interval=1, evaluation_duration=1)
    algo = config.build_algo()
    returns = episode_returns(pendulum_data)
    factor = 1000.0 / (returns.max() - returns.min())
    replay = algo.local_replay_buffer.replay
    np.testing.assert_allclose(
        replay.offline.rewards, 2.0 * factor * pendulum_data.rewards + 1.0, rtol=1e-5, atol=1e-4
    )
    algo.train()
    online = algo.train()
    episode_return = online["env_runners"]["episode_return_mean"]
    assert -500.0 < episode_return < 0.0  # raw, and 50 steps of at most 16.3
    rewards = replay.online.rows.rewards
    assert rewards.sum() == pytest.approx(2.0 * factor * episode_return + 50.0, rel=1e-4)
    assert -900.0 < online["evaluation"]["env_runners"]["episode_return_mean"] < 0.0
    algo.save(str(tmp_path / "checkpoint"))
    algo.stop()

    half = Transitions.concatenate(list(pendulum_data.episodes())[:5])
    with pytest.warns(DatasetWarning, match="going on with these"):
        other = CalQL.from_checkpoint(tmp_path / "checkpoint", input_=half)
    np.testing.assert_allclose(
        other.local_replay_buffer.replay.offline.rewards, 2.0 * factor * half.rewards + 1.0, rtol=1e-5, atol=1e-4
    )
    np.testing.assert_array_equal(other.local_replay_buffer.replay.online.rows.rewards, rewards)
    assert other.local_replay_buffer.preparation.reward_scale == pytest.approx(2.0 * factor)
    other.stop()


def test_scores_are_what_the_data_say_unless_the_config_does(pendulum_data: Transitions, tmp_path: Path) -> None:
    knowing = pendulum_data.changed(metadata=replace(pendulum_data.metadata, score_range=(-800.0, -100.0)))
    small = small_config(knowing, 0, num_offline_updates=5).evaluation(
        evaluation_interval=1, evaluation_duration=1
    )
    algo = small.build_algo()
    result = algo.train()
    expected = (result["evaluation"]["env_runners"]["episode_return_mean"] + 800.0) / 700.0
    assert result["calql"]["normalized_score"] == pytest.approx(expected)
    algo.save(str(tmp_path / "checkpoint"))
    algo.stop()

    # `rllib evaluate` knows them from the checkpoint
    out = tmp_path / "scores.json"
    command = ["evaluate", str(tmp_path / "checkpoint"), "--episodes", "1", "--out", str(out)]
    assert CliRunner().invoke(app, command).exit_code == 0
    summary = json.loads(out.read_text())
    assert summary["normalized_score"] == pytest.approx((summary["return_mean"] + 800.0) / 700.0)

    # ... and the run itself, where it goes on with data that do not
    algo = CalQL.from_checkpoint(tmp_path / "checkpoint", input_=pendulum_data)
    assert algo.score_range == (-800.0, -100.0)
    algo.stop()

    told = small.copy(copy_frozen=False).training(score_range="hopper-medium-v2").build_algo()
    assert told.score_range == (-20.272305, 3234.3)
    told.stop()


class Halfway(gym.Env[np.ndarray, np.ndarray]):
    """Four steps that fail, in the course of which half of the task is solved for a while."""

    observation_space = action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, config: Any = None) -> None:
        self.shares: list[float] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.shares = [0.25, 0.5, 0.25, 0.0]
        return np.zeros(1, np.float32), {"success": 0.0}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        share = self.shares.pop(0)
        return np.zeros(1, np.float32), -1.0, False, not self.shares, {"success": share}


@BOTH_STACKS
def test_the_share_that_is_solved_is_the_score(new_stack: bool) -> None:
    config = small_config("sampler", 0, new_stack, num_offline_updates=0, utd_ratio=0.5)
    algo = config.environment(Halfway, env_config={}).build_algo()
    block = algo.train()["calql"]
    algo.stop()
    assert block["success_rate"] == block["normalized_score"] == 0.5
    assert block["cumulative_regret"] == 0.5


def test_score_range_by_the_name_of_a_task() -> None:
    assert score_range("maze2d-umaze-v1") == (23.85, 161.86)
    assert score_range([-1.0, 2.0]) == (-1.0, 2.0)
    assert score_range(None) is None
    assert CalQLConfig().update_from_dict({"score_range": "antmaze-umaze-v2"}).score_range == "antmaze-umaze-v2"
    for name in ("antmaze-umaze-v9", "nope"):
        with pytest.raises(ValueError, match=f"or a D4RL task that has scores, not '{name}'"):
            CalQLConfig().training(score_range=name, num_offline_updates=0, num_online_env_steps=0).validate()
