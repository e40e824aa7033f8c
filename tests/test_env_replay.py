"""Logged transitions tried again in real environments."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rllib_calql.data import open_source
from rllib_calql.envs import register
from rllib_calql.envs.replay import Step, logged_steps, replay
from tests.shared import shared_path

register()


def walked(env: gym.Env, count: int, seed: int = 0) -> list[Step]:
    """Steps of random actions."""
    observation, _ = env.reset(seed=seed)
    env.action_space.seed(seed)
    steps: list[Step] = []
    while len(steps) < count:
        action = env.action_space.sample()
        following, reward, terminated, truncated, _ = env.step(action)
        steps.append(
            Step(observation=observation, action=action, reward=float(reward), next_observation=following)
        )
        observation = env.reset()[0] if terminated or truncated else following
    return steps


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("Pendulum-v1", {}),
        ("CartPole-v1", {}),
        ("Hopper-v5", {}),
        ("Ant-v5", {}),  # observes contact forces too
        ("gymnasium_robotics:PointMaze_UMaze-v3", {}),  # observes a dict with goals
        ("rllib_calql/PointMaze-UMaze-v3", {}),
        ("rllib_calql/PointMaze-UMaze-v3", {"frame": "d4rl", "frame_skip": 3}),
        ("rllib_calql/AntMaze-UMaze-v2", {}),
        ("rllib_calql/AntMaze-UMaze-v2", {"frame": "gymnasium"}),
    ],
)
def test_an_environments_own_steps_agree(name: str, arguments: dict[str, Any]) -> None:
    steps = walked(gym.make(name, **arguments), 30)
    found = replay(gym.make(name, **arguments), steps)
    assert (found.num_steps, found.num_set, found.num_agreeing) == (30, 30, 30)
    assert found.worst < 1e-5


def test_other_dynamics_do_not_agree() -> None:
    steps = walked(gym.make("Pendulum-v1", g=10.0), 30)
    found = replay(gym.make("Pendulum-v1", g=5.0), steps)
    assert (found.num_set, found.num_agreeing, found.number) == (30, 0, 2)
    doubled = [Step(**{**vars(step), "action": 2.0 * step.action}) for step in steps]
    assert replay(gym.make("Pendulum-v1", g=10.0), doubled).num_agreeing < 10


def test_other_rewards_are_seen() -> None:
    steps = walked(gym.make("Pendulum-v1"), 20)
    scaled = [Step(**{**vars(step), "reward": 0.1 * step.reward}) for step in steps]
    found = replay(gym.make("Pendulum-v1"), scaled)
    assert (found.num_agreeing, found.num_equal_rewards) == (20, 0)


def test_states_that_cannot_be_set_are_told_from_those_that_disagree() -> None:
    acrobot = gym.make("Acrobot-v1")
    assert replay(acrobot, walked(acrobot, 5)).num_set == 0
    # velocities beyond 10 are observed as 10: such states are not known
    walker = walked(gym.make("Walker2d-v5"), 40)
    found = replay(gym.make("Walker2d-v5"), walker)
    assert 0 < found.num_agreeing == found.num_set < 40
    wrapped = gym.wrappers.TransformObservation(gym.make("Pendulum-v1"), lambda x: x, gym.spaces.Box(-9, 9, (3,)))
    assert replay(wrapped, walked(gym.make("Pendulum-v1"), 5)).num_set == 0


def test_logged_joints_are_used_where_the_observation_does_not_tell() -> None:
    env: Any = gym.make("InvertedDoublePendulum-v5")  # observes sines and cosines
    env.reset(seed=0)
    steps = []
    for _ in range(10):
        joints = env.unwrapped.data.qpos.copy(), env.unwrapped.data.qvel.copy()
        observation = env.unwrapped._get_obs()
        action = env.action_space.sample()
        following, reward, *_ = env.step(action)
        steps.append(
            Step(observation=observation, action=action, reward=reward, next_observation=following, joints=joints)
        )
    assert replay(env, steps).num_agreeing == 10
    assert replay(env, [Step(**{**vars(step), "joints": None}) for step in steps]).num_set == 0


def test_shared_antmaze_belongs_to_its_own_frame_and_dynamics() -> None:
    source = open_source(shared_path("data/antmaze-umaze.hdf5"))
    assert source.metadata.num_rows is not None

    def agreement(**arguments: Any) -> float:
        env = gym.make("rllib_calql/AntMaze-UMaze-v2", **arguments)
        steps = logged_steps(source, source.metadata.num_rows or 0, 60, env)
        assert len(steps) >= 58
        found = replay(env, steps)
        assert found.num_set == len(steps)
        return found.num_agreeing / found.num_set

    assert agreement(frame="gymnasium") >= 0.97
    assert agreement() == 0.0
    assert agreement(frame="gymnasium", dynamics="d4rl") == 0.0


def test_logged_steps_know_what_follows() -> None:
    from rllib_calql.data.rows import Rows
    from tests.chunks import Chunks, flags

    number = np.arange(8, dtype=np.float32)
    columns: dict[str, Any] = {
        "observations": np.stack([number, number, number], axis=1),
        "actions": number[:, None],
        "rewards": number,
        "terminated": flags(8, 3),
        "truncated": flags(8, 7),
    }
    env = gym.make("Pendulum-v1")
    steps = logged_steps(Chunks(Rows(**columns), [6]), 8, 100, env)
    # 3 and 7 end episodes, 5 is its chunk's last row
    assert [step.reward for step in steps] == [0, 1, 2, 4, 6]
    assert [float(step.next_observation[0]) for step in steps] == [1, 2, 3, 5, 7]
    columns["next_observations"] = columns["observations"] + 1
    assert len(logged_steps(Chunks(Rows(**columns), [6]), 8, 100, env)) == 7
