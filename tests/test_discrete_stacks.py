"""Discrete actions on both API stacks: training, restoring, acting, exporting; actions from 5 on; pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from ray.tune import register_env

from rllib_calql import CalQL, CalQLConfig
from rllib_calql.cli import export
from rllib_calql.core.export import read_policy
from rllib_calql.data import Transitions
from rllib_calql.data.sources import scripted
from tests.test_resume import BOTH_STACKS, SMALL, deterministic

pytestmark = pytest.mark.usefixtures("ray_session")
START = 5


class FromFive(gym.ActionWrapper):
    """CartPole, its actions called 5 and 6."""

    def __init__(self, env_config: Any = None) -> None:
        super().__init__(gym.make("CartPole-v1", max_episode_steps=60))
        self.action_space = gym.spaces.Discrete(2, start=START)

    def action(self, action: int) -> int:
        assert action in self.action_space
        return int(action) - START


@pytest.fixture(scope="module")
def cartpole_data() -> Transitions:
    """Episodes of a noisy controller."""
    data = scripted.generate(
        scripted.Recipe("CartPole-v1", "data.sources.scripted:balance", noise=(0.5,), num_rows=600)
    )
    return data.changed(actions=data.actions + START)


def config_of(data: Transitions, new_stack: bool, **settings: Any) -> CalQLConfig:
    register_env("from-five", FromFive)
    training: dict[str, Any] = {
        "num_offline_updates": 10,
        "num_online_env_steps": 10_000,
        "min_train_updates_per_iteration": 10,
        "train_batch_size": 32,
        "utd_ratio": 0.5,
        "policy_model_config": SMALL,
        "q_model_config": SMALL,
        "warmup_env_steps": 1,
        "warmup_actions": "random",
        **settings,
    }
    return (
        CalQLConfig()
        .api_stack(enable_rl_module_and_learner=new_stack, enable_env_runner_and_connector_v2=new_stack)
        .environment("from-five")
        .offline_data(input_=data)
        .training(**training)
        .evaluation(evaluation_interval=1, evaluation_duration=1)
        .debugging(seed=5)
    )


@BOTH_STACKS
def test_both_phases_restoring_acting_and_exporting(
    cartpole_data: Transitions, tmp_path: Path, new_stack: bool
) -> None:
    whole = config_of(cartpole_data, new_stack).build_algo()
    blocks = [whole.train()["calql"] for _ in range(3)]
    assert [block["phase"] for block in blocks] == ["offline", "online", "online"]
    assert 0.0 <= blocks[-1]["bound_rate"] <= 1.0
    assert 0.0 < blocks[-1]["entropy"] <= np.log(2) + 1e-6
    rows = whole.local_replay_buffer.replay.online.rows
    assert rows is not None
    assert set(rows.actions.reshape(-1)) <= {0.0, 1.0}
    whole.save(str(tmp_path / "saved"))
    observations = np.array([[0.0, 0.0, 0.1, 0.5], [0.0, 0.0, -0.1, -0.5], [1.0, 1.0, 0.0, -1.0]], np.float32)
    actions = [whole.compute_single_action(observation, explore=False) for observation in observations]
    assert all(action in FromFive().action_space for action in actions)
    explored = {int(whole.compute_single_action(observations[0], explore=True)) for _ in range(30)}
    assert explored == {START, START + 1}
    expected = whole.train()["calql"]
    weights = whole.stack.weights()
    whole.stop()

    restored = CalQL.from_checkpoint(str(tmp_path / "saved"), input_=cartpole_data)
    assert [restored.compute_single_action(one, explore=False) for one in observations] == actions
    found = restored.train()["calql"]
    assert deterministic(found) == deterministic(expected)
    for name, array in restored.stack.weights().items():
        np.testing.assert_array_equal(weights[name], array, err_msg=name)
    restored.stop()

    file = tmp_path / "policy.pt"
    export.run(str(tmp_path / "saved"), "torchscript", str(file))
    act, metadata = read_policy(file, "torchscript")
    assert act(observations).tolist() == [[action] for action in actions]
    assert metadata["actions"] == {"shape": ["batch", 1], "dtype": "int64", "low": [5.0], "high": [6.0]}


def test_both_stacks_do_the_same_updates(cartpole_data: Transitions) -> None:
    blocks = []
    for new_stack in (False, True):
        algo = config_of(cartpole_data, new_stack).build_algo()
        blocks.append(algo.train()["calql"])
        algo.stop()
    for name in ("critic_loss", "actor_loss", "entropy", "bound_rate"):
        assert blocks[0][name] == pytest.approx(blocks[1][name], rel=1e-6), name


def test_settings_of_continuous_actions_are_refused(cartpole_data: Transitions) -> None:
    with pytest.raises(ValueError, match="num_actions=4 is for continuous actions"):
        config_of(cartpole_data, False, num_actions=4).plan()
    for name, value in {"clip_action": 0.9, "num_exploration_actions": 4}.items():
        with pytest.raises(ValueError, match=f"{name}.* is for continuous actions"):
            config_of(cartpole_data, False, **{name: value}).plan()
    sections = config_of(cartpole_data, False).plan()
    assert sections["data"]["transitions"] == len(cartpole_data)


class Corridor(gym.Env):
    """Eight places in a row, seen in a picture; left, stay or right; 1 is paid at the end."""

    observation_space = gym.spaces.Box(0, 255, (16, 16, 1), np.uint8)
    action_space = gym.spaces.Discrete(3, start=START)

    def __init__(self, env_config: Any = None) -> None:
        self.place, self.steps = 3, 0

    def picture(self) -> np.ndarray:
        image = np.zeros((16, 16, 1), np.uint8)
        image[4:12, 2 * self.place : 2 * self.place + 2] = 255
        return image

    def reset(self, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(**options)
        self.place, self.steps = 3, 0
        return self.picture(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.place = min(max(self.place + int(action) - START - 1, 0), 7)
        self.steps += 1
        return self.picture(), float(self.place == 7), self.place == 7, self.steps == 10, {}


def walks(number: int) -> Transitions:
    """Random walks in the corridor."""
    env, rng, episodes = Corridor(), np.random.default_rng(0), []
    for _ in range(number):
        pictures, actions, rewards, terminated, truncated = [env.reset()[0]], [], [], False, False
        while not (terminated or truncated):
            actions.append(START + int(rng.integers(3)))
            picture, reward, terminated, truncated, _ = env.step(actions[-1])
            pictures.append(picture)
            rewards.append(reward)
        episodes.append(
            Transitions.from_episode(np.stack(pictures), np.array(actions), np.array(rewards), terminated)
        )
    return Transitions.concatenate(episodes)


def test_both_stacks_do_the_same_updates_on_pictures() -> None:
    register_env("corridor", Corridor)
    encoder = {"conv_filters": [[4, 3, 2]], "feature_dim": 6}
    blocks = []
    for new_stack in (False, True):
        config = config_of(walks(6), new_stack, encoder_config=encoder, frame_stack=2, num_offline_updates=2)
        algo = config.environment("corridor").build_algo()
        before = algo.update.weights()
        blocks.append([algo.train()["calql"] for _ in range(2)])
        after = algo.update.weights()
        assert all(not np.array_equal(before[name], after[name]) for name in before if name.startswith("encoder."))
        algo.stop()
    for old, new in zip(*blocks, strict=True):
        assert old["phase"] == new["phase"]
        for name in ("critic_loss", "actor_loss", "entropy", "bound_rate"):
            assert old[name] == pytest.approx(new[name], rel=1e-6), name
