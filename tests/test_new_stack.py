"""What is the new API stack's own: the learner's batches, vectorised runners, episodes by number."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_calql import CalQL, CalQLConfig
from rllib_calql.core import CalQLUpdate, UpdateConfig
from rllib_calql.data import DatasetError, Transitions
from rllib_calql.new_stack.learner import CalQLTorchLearner
from rllib_calql.replay_buffer import to_sample_batch
from tests.test_policy import rows
from tests.test_resume import SMALL, small_config

SPACES = (Box(-np.inf, np.inf, (3,)), Box(-2.0, 2.0, (2,)))


def make_learner(**settings: Any) -> CalQLTorchLearner:
    config = CalQLConfig().api_stack(True, True).debugging(seed=0)
    config.training(policy_model_config=SMALL, q_model_config=SMALL, num_actions=3, lagrangian=True, **settings)
    return config.build_learner(spaces={DEFAULT_MODULE_ID: SPACES})


# ---- the learner


def test_minibatches_are_updates_of_their_own() -> None:
    learner = make_learner(target_network_update_freq=2)
    alone = CalQLUpdate(3, 2, UpdateConfig.from_settings(vars(learner.config)), seed=0)
    batch = rows(12)
    results = learner.update(batch=to_sample_batch(batch).as_multi_agent(), minibatch_size=4)
    parts = iter([{name: column[i : i + 4] for name, column in batch.items()} for i in (0, 4, 8)])
    figures = alone.run(lambda: next(parts), 3)
    np.testing.assert_equal(learner.calql.get_state(), alone.get_state())  # targets included
    assert {name: stats.peek() for name, stats in results[DEFAULT_MODULE_ID].items()} == figures
    assert results["__all_modules__"]["num_env_steps_trained"].peek() == 12


def test_the_phase_is_told_with_the_batch() -> None:
    learner = make_learner(min_q_weight_online=0.5)
    batch = to_sample_batch(rows(4)).as_multi_agent()
    learner.update(batch=batch, online=True)
    assert isinstance(learner.calql, CalQLUpdate)
    assert learner.calql.min_q_weight == 0.5
    learner.update(batch=batch)
    assert learner.calql.min_q_weight == 5.0


def test_what_a_learner_cannot_train_on_is_refused() -> None:
    learner = make_learner()
    with pytest.raises(ValueError, match="a batch of 5 rows cannot be cut into minibatches of 2"):
        learner.update(batch=to_sample_batch(rows(5)).as_multi_agent(), minibatch_size=2)
    with pytest.raises(ValueError, match=r"CalQL's learner takes update\(batch=...\)"):
        learner.update(training_data=TrainingData(episodes=[SingleAgentEpisode()]))
    config = CalQLConfig().api_stack(True, True)
    with pytest.raises(DatasetError, match=r"action space must be a flat Box .*, not MultiDiscrete"):
        config.build_learner(spaces={DEFAULT_MODULE_ID: (SPACES[0], gym.spaces.MultiDiscrete([4]))})


def test_the_module_is_the_updates_actor() -> None:
    learner = make_learner()
    module = learner.module[DEFAULT_MODULE_ID]
    learner.update(batch=to_sample_batch(rows(4)).as_multi_agent())
    state = learner.get_state(components="rl_module")["rl_module"][DEFAULT_MODULE_ID]
    weights = learner.calql.weights()
    assert state.keys() == {name for name in weights if name.startswith(("actor.", "obs_"))}
    for name, array in state.items():
        np.testing.assert_array_equal(array, weights[name], err_msg=name)
    assert module.actor is learner.calql.actor
    assert "update" in learner.get_state()


# ---- the env runners


def fixed_config(data: Transitions, num_envs: int, mode: str = "sync") -> CalQLConfig:
    """Episodes of a policy that learns next to nothing in between."""
    config = small_config(data, 0, True, num_offline_updates=0, utd_ratio=1e-9, min_env_steps_per_iteration=200)
    config.env_runners(num_envs_per_env_runner=num_envs, gym_env_vectorize_mode=mode)
    return config.evaluation(evaluation_interval=None)


def online_episodes(algo: CalQL) -> list[Transitions]:
    online = algo.local_replay_buffer.replay.online.rows
    assert online is not None
    return list(online.episodes())


@pytest.mark.usefixtures("ray_session")
def test_vectorised_environments_play_the_same_episodes(pendulum_data: Transitions) -> None:
    """Episode k is a function of (seed, runner, k), whichever environment plays it."""
    found = {}
    for num_envs, mode in ((1, "sync"), (2, "sync"), (2, "async")):
        algo = fixed_config(pendulum_data, num_envs, mode).build_algo()
        block = algo.train()["calql"]
        found[num_envs, mode] = online_episodes(algo)
        assert block["num_online_episodes"] == len(found[num_envs, mode]) == 4
        assert block["num_online_env_steps"] == 200
        algo.stop()
    for key in ((2, "sync"), (2, "async")):
        for ours, theirs in zip(found[key], found[1, "sync"], strict=True):
            np.testing.assert_allclose(ours.observations, theirs.observations, atol=1e-3)
            np.testing.assert_allclose(ours.actions, theirs.actions, atol=1e-4)
            np.testing.assert_allclose(ours.final_observations, theirs.final_observations, atol=1e-3)
            assert ours.truncated[-1]


class Countdown(gym.Env):
    """Ends after a number of steps that grows with the number of resets; succeeds where the action says so."""

    observation_space = gym.spaces.Dict({"steps": Box(0.0, 100.0, (1,)), "length": Box(0.0, 100.0, (1,))})
    action_space = Box(-1.0, 1.0, (1,))

    def __init__(self, config: Any) -> None:
        self.length, self.growth, self.index = 3 + 9 * config.vector_index, 5, config.vector_index

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, np.ndarray], dict]:
        self.left, self.length = self.length, self.length + self.growth
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict]:
        self.left -= 1
        return self._observation(), 1.0, self.left == 0, False, {"success": self.left == 0 and self.index == 0}

    def _observation(self) -> dict[str, np.ndarray]:
        return {
            name: np.array([value], np.float32) for name, value in (("steps", self.left), ("length", self.length))
        }


@pytest.mark.usefixtures("ray_session")
def test_environments_of_unequal_episodes_lose_none_of_them() -> None:
    """Long episodes go on over several rounds; observations are flattened in gymnasium's order (by key)."""
    config = (
        CalQLConfig()
        .api_stack(True, True)
        .environment(Countdown)
        .training(num_offline_updates=0, utd_ratio=1e-9, policy_model_config=SMALL, q_model_config=SMALL)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=2)
    )
    algo = config.build_algo()
    for _ in range(6):
        block = algo.train()["calql"]
    episodes = online_episodes(algo)
    assert block["num_online_episodes"] == len(episodes) >= 12
    lengths = {0: [], 1: []}  # type: ignore[var-annotated]
    for episode in episodes:
        (length,) = set(episode.observations[:, 0])  # "length" comes before "steps"
        np.testing.assert_array_equal(episode.observations[:, 1], np.arange(len(episode), 0, -1))
        np.testing.assert_array_equal(episode.final_observations[0], [length, 0.0])
        assert length - 5 == len(episode)
        assert episode.terminated[-1]
        lengths[int((len(episode) - 3) % 5 != 0)].append(len(episode))
    assert lengths[0] == [3 + 5 * k for k in range(len(lengths[0]))]
    assert lengths[1] == [12 + 5 * k for k in range(len(lengths[1]))]
    assert len(lengths[1]) > 2
    assert 1.0 - block["cumulative_regret"] == pytest.approx(len(lengths[0]) / len(episodes))
    algo.stop()
