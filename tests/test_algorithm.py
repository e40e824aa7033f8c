"""The algorithm on both API stacks: phases, counters, evaluation, data, registration."""

from __future__ import annotations

import math
import shutil
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.cql import CQL, CQLConfig, CQLTorchPolicy
from ray.tune.registry import get_trainable_cls

from rllib_calql import CalQL, CalQLConfig, CalQLTorchPolicy
from rllib_calql.checkpoint import saved_update
from rllib_calql.data import DatasetError, DatasetWarning, Transitions
from tests.conftest import collect_pendulum
from tests.shared import shared_path
from tests.test_resume import BOTH_STACKS, small_config

pytestmark = pytest.mark.usefixtures("ray_session")


def episode_returns(algo: CalQL) -> list[float]:
    """Of every online episode, in the environment's rewards (with reward_scale=1 and reward_bias=0)."""
    rows = algo.local_replay_buffer.replay.online.rows
    assert rows is not None
    return [float(episode.rewards.sum()) for episode in rows.episodes()]


def evaluation_return(results: dict[str, Any]) -> float:
    return float(results["env_runners"]["episode_return_mean"])


def train_to_the_end(algo: CalQL, limit: int = 30) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    while not results or not results[-1]["done"]:
        results.append(algo.train())
        assert len(results) < limit
    return results


@BOTH_STACKS
def test_two_phases_counters_and_evaluation_at_the_switch(pendulum_data: Transitions, new_stack: bool) -> None:
    config = small_config(
        pendulum_data,
        0,
        new_stack,
        num_offline_updates=25,
        num_online_env_steps=120,
        utd_ratio=0.5,
        score_range=(-500.0, 0.0),
    ).evaluation(evaluation_interval=2, evaluation_duration=2)
    algo = config.build_algo()
    results = train_to_the_end(algo)
    blocks = [result["calql"] for result in results]
    assert [block["phase"] for block in blocks] == ["offline"] * 3 + ["online"] * 3
    assert [block["num_updates"] for block in blocks] == [10, 20, 25, 50, 75, 100]
    assert [block["num_online_env_steps"] for block in blocks] == [0, 0, 0, 50, 100, 150]
    assert [block["num_online_episodes"] for block in blocks] == [0, 0, 0, 1, 2, 3]
    # every second iteration, and iteration 3 because it ends at the switch
    assert ["evaluation" in result for result in results] == [False, True, True, True, False, True]
    assert ["normalized_score" in block for block in blocks] == [False, True, True, True, False, True]
    assert ["switch_drop" in block for block in blocks] == [False] * 3 + [True] * 3
    assert ["cumulative_regret" in block for block in blocks] == [False] * 3 + [True] * 3

    scores = [block.get("normalized_score") for block in blocks]
    for result, score in zip(results, scores, strict=True):
        if score is not None:
            assert score == pytest.approx(1 + evaluation_return(result["evaluation"]) / 500)
            count = "num_episodes" if new_stack else "episodes_this_iter"
            assert result["evaluation"]["env_runners"][count] == 2
    assert blocks[-1]["switch_drop"] == pytest.approx(max(0.0, scores[2] - min(scores[3], scores[5])))
    returns = episode_returns(algo)
    assert len(returns) == 3
    assert blocks[-1]["cumulative_regret"] == pytest.approx(1 - np.mean([1 + r / 500 for r in returns]))
    if new_stack:
        assert results[-1]["env_runners"]["num_env_steps_sampled_lifetime"] == 150
        assert results[-1]["learners"]["__all_modules__"]["num_env_steps_trained_lifetime"] == 100 * 32
        assert results[-1]["learners"]["default_policy"]["critic_loss"] == pytest.approx(blocks[-1]["critic_loss"])
    else:
        assert results[-1]["num_env_steps_sampled"] == 150
        assert results[-1]["num_env_steps_trained"] == 100 * 32
    for name in ("critic_loss", "bellman_loss", "conservative_gap", "actor_loss", "alpha", "alpha_prime"):
        assert all(math.isfinite(block[name]) for block in blocks)
    for name in ("entropy", "bound_rate", "q_data_mean", "q_policy_mean", "mc_return_mean"):
        assert all(math.isfinite(block[name]) for block in blocks)
    # complete: a further iteration trains nothing and says so
    further = algo.train()
    assert further["done"]
    assert further["calql"]["num_updates"] == 100
    algo.stop()


@BOTH_STACKS
def test_online_rows_are_what_the_environment_gave(pendulum_data: Transitions, new_stack: bool) -> None:
    config = small_config(pendulum_data, 0, new_stack, num_offline_updates=0, reward_scale=0.1, reward_bias=1.0)
    algo = config.build_algo()
    result = algo.train()
    rows = algo.local_replay_buffer.replay.online.rows
    episode_return = evaluation_return(result)
    assert rows is not None
    assert len(rows) == 50
    assert rows.truncated[-1]
    assert not rows.terminated.any()
    assert (rows.rewards - 1.0).sum() / 0.1 == pytest.approx(episode_return, rel=1e-5)
    expected = 0.0
    for reward, found in zip(rows.rewards[::-1], rows.mc_returns[::-1], strict=True):
        expected = reward + 0.99 * expected
        assert found == pytest.approx(expected, rel=1e-5)
    # The physics agree with the stored actions: normalised inside, in the environment's units outside.
    env = gym.make("Pendulum-v1").unwrapped
    env.reset()
    cos, sin, speed = rows.observations[10].astype(float)
    env.state = np.array([np.arctan2(sin, cos), speed])
    observation, *_ = env.step(rows.actions[10] * 2.0)
    np.testing.assert_allclose(observation, rows.observations[11], atol=1e-4)
    algo.stop()


def test_no_online_phase_ends_after_pretraining(pendulum_data: Transitions) -> None:
    algo = small_config(pendulum_data, 0, num_online_env_steps=0).build_algo()
    results = train_to_the_end(algo)
    assert [result["calql"]["num_updates"] for result in results] == [10, 20]
    assert results[-1]["calql"]["phase"] == "offline"
    algo.stop()


@BOTH_STACKS
def test_environment_may_be_absent_without_an_online_phase(pendulum_data: Transitions, new_stack: bool) -> None:
    spaces = {
        "observation_space": gym.spaces.Box(-np.inf, np.inf, (3,)),
        "action_space": gym.spaces.Box(-2.0, 2.0, (1,)),
    }
    config = (
        CalQLConfig()
        .api_stack(enable_rl_module_and_learner=new_stack, enable_env_runner_and_connector_v2=new_stack)
        .environment(env=None, **spaces)
        .offline_data(input_=pendulum_data)
        .training(num_offline_updates=2, min_train_updates_per_iteration=2, num_online_env_steps=0)
    )
    algo = config.build_algo()
    assert algo.train()["done"]
    algo.stop()


@BOTH_STACKS
def test_switch_changes_only_what_it_should(pendulum_data: Transitions, new_stack: bool) -> None:
    algo = small_config(
        pendulum_data, 0, new_stack, lagrangian=False, min_q_weight_online=0.0, calibrate_online=False
    ).build_algo()
    offline = [algo.train()["calql"] for _ in range(2)]
    optimizer, targets = algo.update.optimizer, algo.update.target_critics
    online = algo.train()["calql"]
    assert all("conservative_gap" in block for block in offline)
    assert "conservative_gap" not in online  # went on as SAC
    assert algo.update.optimizer is optimizer
    assert algo.update.target_critics is targets
    algo.stop()


@BOTH_STACKS
def test_evaluation_is_deterministic_also_with_other_evaluation_settings(
    pendulum_data: Transitions, new_stack: bool
) -> None:
    config = small_config(pendulum_data, 0, new_stack).evaluation(
        evaluation_interval=1, evaluation_config={"env_config": {"max_episode_steps": 20}, "seed": 3}
    )
    algo = config.build_algo()
    assert algo.evaluation_config.explore is False
    assert algo.evaluation_config.seed == 3
    assert algo.train()["evaluation"]["env_runners"]["episode_len_mean"] == 20
    algo.stop()


@BOTH_STACKS
def test_every_evaluation_runs_the_same_episodes(pendulum_data: Transitions, new_stack: bool) -> None:
    returns = []
    for seed in (3, 4):
        config = small_config(pendulum_data, 0, new_stack)
        algo = config.evaluation(evaluation_duration=3, evaluation_config={"seed": seed}).build_algo()
        returns += [evaluation_return(algo.evaluate()) for _ in range(3)]
        algo.stop()
    assert returns[0] == returns[1] == returns[2]
    assert returns[3] == returns[4] == returns[5] != returns[0]


@BOTH_STACKS
def test_capacity_below_an_episode_is_refused_at_once(pendulum_data: Transitions, new_stack: bool) -> None:
    config = small_config(pendulum_data, 0, new_stack, online_capacity=49)
    if new_stack:  # also where the environment is in other processes only
        config.env_runners(gym_env_vectorize_mode="async")
    with pytest.raises(ValueError, match="online_capacity=49 cannot hold an episode of up to 50 steps"):
        config.build_algo()


@BOTH_STACKS
def test_normalised_observations_are_used_everywhere(pendulum_data: Transitions, new_stack: bool) -> None:
    algo = small_config(pendulum_data, 0, new_stack, normalize_observations=True).build_algo()
    mean, std = pendulum_data.observations.mean(0), pendulum_data.observations.std(0)
    np.testing.assert_allclose(algo.update.obs_mean, mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(algo.update.obs_std, std, rtol=1e-4)
    observation = np.array([0.5, -0.5, 2.0], np.float32)
    expected = torch.tanh(algo.update.actor(torch.as_tensor((observation - mean) / std)[None]).mean)
    if new_stack:
        algo.stack.collect()
        batch = {"obs": torch.as_tensor(observation)[None]}
        action = 2.0 * algo.get_module().forward_inference(batch)["actions"][0]
    else:
        action = algo.compute_single_action(observation, explore=False)
    np.testing.assert_allclose(action, 2.0 * expected.detach()[0], rtol=1e-3, atol=1e-5)
    algo.train()
    algo.evaluate()
    runner = algo.eval_env_runner
    acting = runner.module if new_stack else runner.get_policy().update
    np.testing.assert_allclose(acting.obs_mean, mean, rtol=1e-4, atol=1e-5)
    algo.stop()


@BOTH_STACKS
def test_weights_only_start(pendulum_data: Transitions, tmp_path: Path, new_stack: bool) -> None:
    first = small_config(pendulum_data, 0, new_stack).build_algo()
    first.train()
    first.save(str(tmp_path / "first"))
    expected = first.stack.weights()
    first.stop()
    settings: dict[str, Any] = dict.fromkeys(("actor_lr", "critic_lr", "alpha_lr", "lagrangian_lr"), 0.0)
    second = small_config(
        pendulum_data, 0, new_stack, load_weights_from=str(tmp_path / "first"), tau=1e-9, **settings
    ).build_algo()
    # Whatever needs them first: a checkpoint, an evaluation, an action, or an update.
    second.save(str(tmp_path / "untrained"))
    np.testing.assert_array_equal(
        saved_update(tmp_path / "untrained")["weights"]["log_alpha"], expected["log_alpha"]
    )
    assert second.train()["calql"]["num_updates"] == 10
    found = second.stack.weights()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6, err_msg=name)
    second.save(str(tmp_path / "second"))
    second.stop()
    # A restored run needs the first checkpoint no more.
    shutil.rmtree(tmp_path / "first")
    restored = CalQL.from_checkpoint(str(tmp_path / "second"), input_=pendulum_data)
    assert restored.train()["calql"]["num_updates"] == 20
    restored.stop()


def test_weights_of_another_update_rule_are_refused(pendulum_data: Transitions, tmp_path: Path) -> None:
    first = small_config(pendulum_data, 0).build_algo()
    first.save(str(tmp_path / "first"))
    first.stop()
    settings = {"preset": "iql", "load_weights_from": str(tmp_path / "first"), "lagrangian": False}
    config = small_config(pendulum_data, 0).update_from_dict(settings)
    with pytest.raises(ValueError, match=r"that run has other networks than this one \(.*value\."):
        config.plan()
    second = config.build_algo()
    with pytest.raises(ValueError, match=r"that run has other networks than this one \(.*value\."):
        second.compute_single_action(np.zeros(3, np.float32))
    second.stop()


@BOTH_STACKS
def test_restored_under_a_config_that_earns_fewer_updates(
    pendulum_data: Transitions, tmp_path: Path, new_stack: bool
) -> None:
    settings: dict[str, Any] = {"num_offline_updates": 10, "num_online_env_steps": 50}
    settings |= {"actor_updates": "every_step"}
    first = small_config(pendulum_data, 0, new_stack, **settings, utd_ratio=1.0).build_algo()
    while not first.complete:
        first.train()
    first.save(str(tmp_path / "first"))
    first.stop()
    second = small_config(pendulum_data, 0, new_stack, **settings, utd_ratio=0.2).build_algo()
    second.restore(str(tmp_path / "first"))
    assert second.complete
    assert second.train()["calql"]["num_updates"] == 60
    second.stop()
    # What was earned stays; further steps earn by the new settings.
    settings |= {"num_offline_updates": 5, "num_online_env_steps": 100}
    third = small_config(pendulum_data, 0, new_stack, **settings, utd_ratio=2.0).build_algo()
    third.restore(str(tmp_path / "first"))
    assert third.train()["calql"]["num_updates"] == 160
    assert third.update.config.online_actor_interval == 2
    third.stop()


def test_a_checkpoint_to_start_from_must_exist(pendulum_data: Transitions) -> None:
    config = small_config(pendulum_data, 0, load_weights_from="nowhere")
    with pytest.raises(ValueError, match=r"load_weights_from='nowhere': .*nowhere is not the folder of a"):
        config.plan()
    algo = config.build_algo()
    with pytest.raises(ValueError, match=r"load_weights_from='nowhere': .*nowhere is not the folder of a"):
        algo.train()
    algo.stop()


def test_input_may_be_a_function(pendulum_data: Transitions) -> None:
    algo = small_config(pendulum_data, 0).offline_data(input_=lambda: collect_pendulum(2)).build_algo()
    assert len(algo.local_replay_buffer.replay.offline) == 100
    algo.stop()


# ---- registration


def test_the_class_is_known_by_name_and_is_a_cql() -> None:
    assert get_trainable_cls("CalQL") is CalQL
    assert issubclass(CalQL, CQL)
    assert issubclass(CalQLTorchPolicy, CQLTorchPolicy)
    assert isinstance(CalQL.get_default_config(), CQLConfig)


def test_input_reader_feeds_plain_rllib() -> None:
    path = shared_path("data/antmaze-umaze.hdf5")
    config = (
        CQLConfig()
        .api_stack(enable_rl_module_and_learner=False, enable_env_runner_and_connector_v2=False)
        .environment(
            observation_space=gym.spaces.Box(-np.inf, np.inf, (29,)),
            action_space=gym.spaces.Box(-1.0, 1.0, (8,)),
        )
        .framework("torch")
        .env_runners(num_env_runners=0)
        .offline_data(
            input_="calql",
            input_config={
                "dataset": [str(path), {"input": str(path)}],
                "reward_scale": 10.0,
                "reward_bias": -5.0,
                "sparse_failure_reward": 0.0,
                "seed": 0,
            },
        )
        .training(train_batch_size=16, bc_iters=0)
        .reporting(min_time_s_per_iteration=0, min_train_timesteps_per_iteration=1)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DatasetWarning)
        algo = config.build_algo()
    batch = algo.env_runner.sample()
    assert batch["mc_returns"].shape == (16,)
    assert batch["mc_returns"].min() >= -500.0
    assert set(np.unique(batch["rewards"])) <= {-5.0, 5.0}
    algo.train()
    algo.stop()


# ---- wrong input


@pytest.mark.parametrize(
    ("input_", "message"),
    [
        ("nowhere.hdf5", "nowhere.hdf5"),
        ("data.xyz", "there is nothing at data.xyz: check the path"),
    ],
)
def test_data_that_cannot_be_opened(input_: str, message: str, pendulum_data: Transitions) -> None:
    with pytest.raises(DatasetError, match=message):
        small_config(pendulum_data, 0).offline_data(input_=input_).build_algo()


def test_data_of_another_environment(pendulum_data: Transitions) -> None:
    config = small_config(pendulum_data, 0).environment("MountainCarContinuous-v0", env_config={})
    config.env_config = {}
    with pytest.raises(DatasetError, match="observations have 3 numbers, the environment's 2"):
        config.build_algo()


def test_data_of_other_actions_are_refused(pendulum_data: Transitions) -> None:
    config = small_config(pendulum_data, 0).environment("CartPole-v1", env_config={})
    config.env_config = {}
    with pytest.raises(DatasetError, match="continuous actions, and the environment's are Discrete"):
        config.build_algo()


def test_actions_outside_the_bounds_are_counted() -> None:
    data = collect_pendulum(2)
    data.actions[:3] = 5.0
    with pytest.warns(DatasetWarning, match="3 of 100 rows have actions outside the bounds"):
        algo = small_config(data, 0).build_algo()
    assert algo.local_replay_buffer.replay.offline.scaled_actions().max() == np.float32(0.99999)
    algo.stop()
