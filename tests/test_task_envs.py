"""The registered Adroit and Kitchen tasks: conventions of D4RL and of Cal-QL's experiments, in real MuJoCo."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from rllib_calql.envs import register
from rllib_calql.envs.kitchen import GOALS, START
from rllib_calql.envs.success import EPISODE_SUCCESS, SuccessWrapper
from tests.shared import shared_path

register()

# Sizes of observation and action, and the step limit.
TASKS = {
    "Adroit-Pen-Binary-v0": (45, 24, 100),
    "Adroit-Door-Binary-v0": (39, 28, 200),
    "Adroit-Relocate-Binary-v0": (39, 30, 200),
    "Kitchen-Complete-v0": (60, 9, 280),
    "Kitchen-Mixed-v0": (60, 9, 280),
}


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.filterwarnings("ignore:.*Box observation space (minimum|maximum) value is:UserWarning")
@pytest.mark.filterwarnings("ignore:.*render_fps:UserWarning")
def test_gymnasiums_checker_and_sizes(name: str) -> None:
    env = gym.make(f"rllib_calql/{name}")
    spaces, limit = (env.observation_space, env.action_space), env.spec.max_episode_steps
    assert (spaces[0].shape[0], spaces[1].shape[0], limit) == TASKS[name]
    assert spaces[1].is_bounded()
    check_env(env.unwrapped, skip_render_check=True)


# ---- Adroit ------------------------------------------------------------------------------------------------


def rollout(env: Any, state: dict[str, np.ndarray], actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
    """Observations after each step, and rewards, up to the end; whether that was terminated."""
    env.reset(seed=0, options={"initial_state_dict": state})
    steps = []
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        assert not truncated
        assert info == {"success": terminated}
        steps.append((observation, reward))
        if terminated:
            break
    observations, rewards = zip(*steps, strict=True)
    return np.array(observations), np.array(rewards), terminated


def placed(env: Any, task: str, data: h5py.File, episode: int, first: np.ndarray) -> dict[str, np.ndarray]:
    """The state that a logged episode began in."""
    names = {"Pen": ["desired_orien"], "Door": [], "Relocate": ["obj_pos", "target_pos"]}[task]
    state = {name: data[f"infos/init_{name}"][episode].astype(np.float64) for name in ["qpos", "qvel", *names]}
    if task == "Door":  # not logged: the door stands where its handle was seen
        here = env.model.body_pos[env.door_body_id].copy()
        observed, _ = env.reset(seed=0, options={"initial_state_dict": state | {"door_body_pos": here}})
        state["door_body_pos"] = here + first[32:35] - observed[32:35]
    return state


@pytest.mark.parametrize("task", ["Pen", "Door", "Relocate"])
def test_logged_adroit_episodes_go_as_logged_and_end_at_success(task: str) -> None:
    """Made with MuJoCo 4.0: contact amplifies rounding, yet successes come at the same step."""
    env = gym.make(f"rllib_calql/Adroit-{task}-Binary-v0").unwrapped
    with h5py.File(shared_path(f"data/adroit-{task.lower()}-dapg.hdf5")) as data:
        columns = ("observations", "actions", "infos/rewards_binary")
        observations, actions, rewards = (data[name][:].reshape(50, 200, -1) for name in columns)
        lengths = []
        for episode in (5, 10, 15):
            state = placed(env, task, data, episode, observations[episode, 0])
            seen, earned, ended = rollout(env, state, actions[episode])
            success = int(np.flatnonzero(rewards[episode, :, 0] == 0)[0])
            assert ended
            np.testing.assert_array_equal(earned, rewards[episode, : success + 1, 0])
            # the observation before an action is logged with it
            np.testing.assert_allclose(seen[:5], observations[episode, 1:6], atol=1e-5)
            np.testing.assert_allclose(seen[:20], observations[episode, 1:21], atol=0.02)
            lengths.append(success + 1)
        assert len(set(lengths)) > 1


def test_an_adroit_episode_without_success_is_truncated() -> None:
    env = gym.make("rllib_calql/Adroit-Pen-Binary-v0")
    env.reset(seed=1)
    ends = [env.step(-np.ones(24, np.float32))[1:4] for _ in range(100)]
    assert ends == [(-1.0, False, False)] * 99 + [(-1.0, False, True)]


# ---- Kitchen -----------------------------------------------------------------------------------------------


def solve(env: Any, *names: str) -> None:
    """Puts the joints of sub-tasks where they should be."""
    positions = env.unwrapped.data.qpos.copy()
    for name in names:
        joints, goal = GOALS[name]
        positions[joints] = goal
    env.unwrapped.set_state(positions, 0 * env.unwrapped.data.qvel)


def test_kitchen_observes_joints_objects_and_goal_as_d4rl() -> None:
    env = gym.make("rllib_calql/Kitchen-Complete-v0")
    starts = np.array([env.reset(seed=seed)[0] for seed in range(40)])
    away = np.abs(starts[:, :30] - START)
    # D4RL's noise: a tenth of 0.1 for the robot and the microwave, of 0.0005 for the knobs, 0.005 for the kettle
    for joints, bound in ((slice(9), 0.01), (slice(11, 17), 5e-5), (22, 0.01), (slice(23, 26), 5e-4), (29, 5e-4)):
        assert 0.5 * bound < away[:, joints].max() <= bound * 1.001
    goal = np.zeros(30)
    goal[[17, 18, 19, 22]] = -0.69, -0.05, 0.37, -0.75
    goal[23:] = -0.23, 0.75, 1.62, 0.99, 0, 0, -0.06
    np.testing.assert_allclose(starts[:, 30:], np.tile(goal, (40, 1)), atol=1e-6)
    np.testing.assert_array_equal(starts[7], env.reset(seed=7)[0])

    goal[[11, 12, 19]] = -0.88, -0.01, 0  # the bottom burner instead of the slide cabinet
    mixed = gym.make("rllib_calql/Kitchen-Mixed-v0").reset(seed=0)[0]
    np.testing.assert_allclose(mixed[30:], goal, atol=1e-6)


def test_kitchen_actions_are_joint_speeds() -> None:
    env = gym.make("rllib_calql/Kitchen-Partial-v0")
    for joint in (0, 6):
        env.reset(seed=0)
        action = np.zeros(9, np.float32)
        action[joint] = 0.5
        before = env.unwrapped.data.qpos[:7].copy()
        for _ in range(5):
            env.step(action)
        moved = env.unwrapped.data.qpos[:7] - before
        assert moved.argmax() == joint
        assert 0.1 < moved[joint] < 5 * 0.08 * 0.5 * 2.0  # it lags behind its target


def test_kitchen_rewards_what_is_solved() -> None:
    env = gym.make("rllib_calql/Kitchen-Complete-v0", max_episode_steps=6)
    still = np.zeros(9, np.float32)
    env.reset(seed=0)
    told = [env.step(still)]
    for names in (["microwave"], ["kettle", "light switch"], ["slide cabinet"], []):
        solve(env, *names)
        told.append(env.step(still))
    shut = START.copy()
    env.unwrapped.set_state(shut, 0 * env.unwrapped.data.qvel)
    told.append(env.step(still))
    assert [step[1] for step in told] == [0, 1, 3, 4, 4, 0]
    assert [step[2:4] for step in told] == [(False, False)] * 5 + [(False, True)]
    # what was ever solved counts
    assert [step[4]["success"] for step in told] == [0, 0.25, 0.75, 1, 1, 1]
    assert env.reset()[1] == {"success": 0.0}


def test_kitchen_may_reward_and_end_as_d4rls_environment() -> None:
    env = gym.make("rllib_calql/Kitchen-Mixed-v0", reward="new")
    still = np.zeros(9, np.float32)
    env.reset(seed=0)
    solve(env, "microwave", "slide cabinet")  # the latter is not of this task
    told = [env.step(still), env.step(still)]
    solve(env, "bottom burner", "light switch", "kettle")
    told.append(env.step(still))
    assert [step[1:3] for step in told] == [(1, False), (0, False), (3, True)]
    # the return is the number of solved sub-tasks, the score a quarter of it
    assert sum(step[1] for step in told) / 4 == told[-1][4]["success"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"), [({"task": "all"}, "there are complete"), ({"reward": "sum"}, "'new'")]
)
def test_wrong_kitchens_are_refused(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gym.make("rllib_calql/Kitchen-Mixed-v0", **arguments)


# ---- how far an episode succeeded --------------------------------------------------------------------------


class Told(gym.Env[int, int]):
    """Says of each step what it is told."""

    action_space = observation_space = gym.spaces.Discrete(2)

    def __init__(self, steps: list[tuple[float, bool, dict[str, Any]]]) -> None:
        self.steps = steps

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict[str, Any]]:
        self.left = list(self.steps)
        return 0, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        reward, terminated, info = self.left.pop(0)
        return 0, reward, terminated, not (self.left or terminated), info


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([(0.0, False, {"success": 0.25}), (0.0, False, {"success": 0.75}), (0.0, False, {"success": 0.5})], 0.75),
        ([(0.0, False, {"success": np.True_}), (0.0, False, {"success": np.False_})], 1.0),
        ([(0.0, False, {"success": 0.5}), (-1.0, True, {})], 0.5),
        ([(1.0, False, {}), (1.0, True, {})], 1.0),
        ([(1.0, False, {}), (0.0, True, {})], 0.0),
        ([(1.0, False, {}), (1.0, False, {})], 0.0),
    ],
)
def test_an_episodes_success_is_its_highest(steps: list[tuple[float, bool, dict]], expected: float) -> None:
    env = SuccessWrapper(Told(steps))
    for _ in range(2):
        env.reset()
        infos = [env.step(0)[4] for _ in steps]
        assert infos[-1][EPISODE_SUCCESS] == expected
        assert EPISODE_SUCCESS not in infos[0]
