"""Env runners: overlapped sampling, runners killed with SIGKILL, seeds that never come twice."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rllib_calql import CalQL, CalQLConfig
from rllib_calql.data import Transitions
from tests.test_resume import BOTH_STACKS, deterministic, small_config

pytestmark = pytest.mark.usefixtures("ray_session")


def config_of(data: Transitions, num_runners: int = 1, new_stack: bool = False, **training: Any) -> CalQLConfig:
    config = small_config(data, num_runners, new_stack, **{"num_offline_updates": 5, **training})
    return config.evaluation(evaluation_interval=None)


def first_observations(algo: CalQL) -> np.ndarray:
    """(episodes, obs_dim): where the online episodes have begun."""
    rows = algo.local_replay_buffer.replay.online.rows
    assert rows is not None
    return rows.observations[np.append(0, rows.episode_ends[:-1] + 1)]


def kill(runners: Any, index: int) -> None:
    """SIGKILL to a runner's process; waits until it is gone."""
    (pid,) = runners.foreach_env_runner(
        lambda runner: os.getpid(), remote_worker_ids=[index], local_env_runner=False
    )
    os.kill(pid, signal.SIGKILL)
    while Path(f"/proc/{pid}").exists():
        time.sleep(0.05)


@pytest.mark.parametrize("new_stack", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_overlapped_sampling_keeps_every_count(
    pendulum_data: Transitions, tmp_path: Path, new_stack: bool
) -> None:
    config = config_of(
        pendulum_data,
        1,
        new_stack,
        overlap_sampling=True,
        num_online_env_steps=200,
        min_env_steps_per_iteration=100,
    )
    algo = config.build_algo()
    assert algo.train()["calql"]["num_updates"] == 5
    result = algo.train()
    block = result["calql"]
    assert (block["num_online_env_steps"], block["num_online_episodes"], block["num_updates"]) == (100, 2, 25)
    assert result["env_runners"]["num_episodes" if new_stack else "episodes_this_iter"] == 2
    assert algo.stack.requested
    # a checkpoint waits for the episodes in flight, holds them, and the updates they earn come first
    algo.save(str(tmp_path / "checkpoint"))
    assert not algo.stack.requested
    assert len(algo.local_replay_buffer) == 150
    block = algo.train()["calql"]
    assert (block["num_online_env_steps"], block["num_updates"]) == (200, 45)
    assert algo.complete
    assert not algo.stack.requested
    starts = first_observations(algo)
    assert len(np.unique(starts, axis=0)) == 4
    algo.stop()
    restored = CalQL.from_checkpoint(tmp_path / "checkpoint", input_=pendulum_data)
    assert deterministic(restored.train()["calql"]) == deterministic(block)
    np.testing.assert_array_equal(first_observations(restored), starts)
    restored.stop()


@pytest.mark.slow
def test_the_policy_of_overlapped_episodes_is_one_round_older(pendulum_data: Transitions) -> None:
    """With a single round, both ways collect under the same weights and learn the same."""
    blocks = []
    for overlap in (False, True):
        algo = config_of(pendulum_data, overlap_sampling=overlap, num_online_env_steps=50).build_algo()
        algo.train()
        blocks.append(deterministic(algo.train()["calql"]))
        assert algo.complete
        algo.stop()
    assert blocks[0] == blocks[1]


def test_overlap_needs_remote_runners(pendulum_data: Transitions) -> None:
    with pytest.raises(ValueError, match="overlap_sampling=True needs remote env runners: set num_env_runners"):
        config_of(pendulum_data, 0, overlap_sampling=True).validate()


@pytest.mark.parametrize("new_stack", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_killed_runner_comes_back_with_new_episodes(pendulum_data: Transitions, new_stack: bool) -> None:
    algo = config_of(pendulum_data, 2, new_stack).build_algo()
    algo.train()
    assert algo.train()["calql"]["num_online_env_steps"] == 100
    kill(algo.env_runner_group, 1)
    steps = [100, 100]
    while steps[-1] - steps[-2] != 100 or len(steps) < 4:  # until both are there again
        steps.append(algo.train()["calql"]["num_online_env_steps"])
        assert steps[-1] - steps[-2] in (50, 100)  # without the killed one's episode
        assert len(steps) < 100
        time.sleep(0.3)
    assert algo.env_runner_group.num_healthy_remote_workers() == 2
    algo.train()
    starts = first_observations(algo)
    assert len(np.unique(starts, axis=0)) == len(starts) == steps[-1] // 50 + 2
    algo.stop()


@pytest.mark.slow
@BOTH_STACKS
@pytest.mark.parametrize("overlap", [False, True])
def test_the_only_runner_killed_is_waited_for(pendulum_data: Transitions, overlap: bool, new_stack: bool) -> None:
    algo = config_of(pendulum_data, 1, new_stack, overlap_sampling=overlap).build_algo()
    algo.train()
    algo.train()
    kill(algo.env_runner_group, 1)
    for steps in (100, 150):
        block = algo.train()["calql"]
        assert block["num_online_env_steps"] == steps
        assert block["num_updates"] == 5 + steps // 5
    assert len(np.unique(first_observations(algo), axis=0)) == 3
    algo.stop()


@pytest.mark.slow
@BOTH_STACKS
def test_runners_that_are_not_to_be_restarted_end_the_run_with_their_error(
    pendulum_data: Transitions, new_stack: bool
) -> None:
    algo = config_of(pendulum_data, 1, new_stack).fault_tolerance(restart_failed_env_runners=False).build_algo()
    algo.train()
    kill(algo.env_runner_group, 1)
    with pytest.raises(Exception, match=r"ActorDied|died unexpectedly|all env runners have died"):
        algo.train()
    algo.stop()


class Broken(gym.Wrapper):
    """Pendulum that breaks in its third step."""

    def __init__(self, config: Any) -> None:
        super().__init__(gym.make("Pendulum-v1"))
        self._left = 3

    def step(self, action: Any) -> Any:
        self._left -= 1
        if self._left == 0:
            raise ZeroDivisionError("a broken environment")
        return super().step(action)


@pytest.mark.slow
@BOTH_STACKS
def test_a_broken_environment_ends_the_run(pendulum_data: Transitions, new_stack: bool) -> None:
    config = config_of(pendulum_data, 1, new_stack).environment(Broken, env_config={})
    algo = config.fault_tolerance(delay_between_env_runner_restarts_s=0.1).build_algo()
    algo.train()
    with pytest.raises(RuntimeError, match="no env runner has brought an episode in 3 attempts"):
        algo.train()
    algo.stop()


@pytest.mark.slow
@BOTH_STACKS
def test_a_killed_evaluation_runner_comes_back(pendulum_data: Transitions, new_stack: bool) -> None:
    config = config_of(pendulum_data, 0, new_stack, num_offline_updates=1000)
    algo = config.evaluation(
        evaluation_interval=1, evaluation_duration=2, evaluation_num_env_runners=1
    ).build_algo()

    def evaluated() -> float:
        return algo.train()["evaluation"]["env_runners"]["episode_return_mean"]

    assert np.isfinite(evaluated())
    kill(algo.eval_env_runner_group, 1)
    assert np.isfinite([evaluated() for _ in range(2)]).all()
    algo.stop()


@BOTH_STACKS
@pytest.mark.parametrize(("num_runners", "num_envs"), [(0, 1), (2, 1), (0, 2)])
def test_every_evaluation_plays_the_same_episodes(
    pendulum_data: Transitions, new_stack: bool, num_runners: int, num_envs: int
) -> None:
    """RLlib leaves requests and episodes under way when an evaluation ends: the next one begins anew."""
    config = config_of(pendulum_data, 0, new_stack).env_runners(num_envs_per_env_runner=num_envs)
    config.evaluation(evaluation_interval=1, evaluation_duration=3, evaluation_num_env_runners=num_runners)
    algo = config.build_algo()
    found = [algo.evaluate()["env_runners"] for _ in range(3)]
    number, mean = (
        ("num_episodes", "episode_return_mean") if new_stack else ("episodes_this_iter", "episode_reward_mean")
    )
    assert [one[number] for one in found] == [3] * 3  # whatever a training runner's number of environments
    assert [one[mean] for one in found] == pytest.approx([found[0][mean]] * 3)
    algo.stop()


class EndsAtOnce(gym.Wrapper):
    """Pendulum whose episodes end after one step in the first runner, and after 200 in the others."""

    def __init__(self, config: Any) -> None:
        limit = 1 if config.worker_index == 1 else 200
        super().__init__(gym.make("Pendulum-v1", max_episode_steps=limit))


@BOTH_STACKS
def test_short_episodes_count_no_more_often_than_long_ones(pendulum_data: Transitions, new_stack: bool) -> None:
    config = config_of(pendulum_data, 0, new_stack).environment(EndsAtOnce, env_config={})
    config.evaluation(evaluation_interval=1, evaluation_duration=4, evaluation_num_env_runners=2)
    algo = config.build_algo()
    assert algo.evaluate()["env_runners"]["episode_len_mean"] == pytest.approx((2 * 1 + 2 * 200) / 4)
    algo.stop()


def test_evaluations_by_steps_are_as_long_each_time(pendulum_data: Transitions) -> None:
    config = config_of(pendulum_data, 0)
    config.evaluation(evaluation_interval=1, evaluation_duration=150, evaluation_duration_unit="timesteps")
    algo = config.build_algo()
    found = [algo.evaluate() for _ in range(3)]
    assert [one["num_env_steps_sampled_this_iter"] for one in found] == [150] * 3
    algo.stop()


@BOTH_STACKS
def test_a_restored_run_is_evaluated_by_its_own_seed(
    pendulum_data: Transitions, tmp_path: Path, new_stack: bool
) -> None:
    def built(seed: int) -> CalQL:
        config = config_of(pendulum_data, 0, new_stack)
        return config.evaluation(evaluation_interval=1, evaluation_config={"seed": seed}).build_algo()

    first, second = built(1), built(2)
    first.save(str(tmp_path))
    expected = second.eval_env_runner.episode_state()
    second.restore(str(tmp_path))
    assert second.eval_env_runner.episode_state() == expected != first.eval_env_runner.episode_state()
    first.stop()
    second.stop()


def test_the_local_runner_knows_what_remote_ones_act_by(pendulum_data: Transitions) -> None:
    """On the new stack RLlib gives its weights to runners that it brings back."""
    algo = config_of(pendulum_data, 1, new_stack=True).build_algo()
    algo.train()
    algo.train()
    own = algo.env_runner.module.get_state()
    (theirs,) = algo.env_runner_group.foreach_env_runner(
        lambda runner: runner.module.get_state(), local_env_runner=False
    )
    for name, array in theirs.items():
        np.testing.assert_array_equal(own[name], array, err_msg=name)
    algo.stop()


class Unsorted(gym.Wrapper):
    """Pendulum, its observation as a Dict whose keys RLlib and gymnasium would flatten in different orders."""

    def __init__(self, config: Any) -> None:
        env = gym.make("Pendulum-v1", max_episode_steps=50)
        space = gym.spaces.Dict(speed=gym.spaces.Box(-8.0, 8.0, (1,)), place=gym.spaces.Box(-1.0, 1.0, (2,)))
        super().__init__(
            gym.wrappers.TransformObservation(env, lambda seen: {"speed": seen[2:], "place": seen[:2]}, space)
        )


@BOTH_STACKS
def test_dicts_that_are_flattened_in_two_ways_are_refused(pendulum_data: Transitions, new_stack: bool) -> None:
    config = config_of(pendulum_data, 0, new_stack).environment(Unsorted, env_config={})
    with pytest.raises(ValueError, match=r"a Dict with the keys \['speed', 'place'\], which are not sorted"):
        config.plan()
    with pytest.raises(ValueError, match=r"a Dict with the keys \['speed', 'place'\], which are not sorted"):
        config.build_algo()
