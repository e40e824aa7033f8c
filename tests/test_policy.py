"""The policy alone, without a running Ray: RLlib's face of the update."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import ray
import torch
from gymnasium.spaces import Box
from ray.rllib.algorithms.cql import CQLTorchPolicy
from ray.rllib.policy.sample_batch import SampleBatch

from rllib_calql import CalQLConfig, CalQLTorchPolicy
from rllib_calql.core import CalQLUpdate
from rllib_calql.data import DatasetError
from rllib_calql.replay_buffer import from_sample_batch, to_sample_batch

OBSERVATIONS = Box(-np.inf, np.inf, (3,), np.float32)
ACTIONS = Box(-2.0, 2.0, (2,), np.float32)
OBS = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)


def make_policy(seed: int | None = 0, action_space: gym.Space = ACTIONS, **settings: Any) -> CalQLTorchPolicy:
    config = CalQLConfig().training(
        policy_model_config={"fcnet_hiddens": [16, 16]},
        q_model_config={"fcnet_hiddens": [16, 16]},
        num_actions=3,
        lagrangian=True,
        **settings,
    )
    return CalQLTorchPolicy(OBSERVATIONS, action_space, config.debugging(seed=seed).to_dict())


def rows(size: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    columns = {
        "observations": rng.normal(size=(size, 3)),
        "actions": rng.uniform(-1, 1, (size, 2)),
        "rewards": rng.normal(size=size),
        "next_observations": rng.normal(size=(size, 3)),
        "dones": (rng.random(size) < 0.3).astype(float),
        "mc_returns": rng.normal(size=size),
    }
    return {name: array.astype(np.float32) for name, array in columns.items()}


def float32(values: object) -> np.ndarray:
    return np.array(values, np.float32)


def actions_of(policy: CalQLTorchPolicy, explore: bool, observations: np.ndarray = OBS) -> np.ndarray:
    actions, state, extra = policy.compute_actions(observations, explore=explore)
    assert state == []
    assert extra["action_logp"].shape == (len(observations),)
    return np.asarray(actions)


def moved(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> set[str]:
    return {name.split(".")[0] for name in before if not np.array_equal(before[name], after[name])}


def test_no_ray_is_needed() -> None:
    policy = make_policy()
    if not ray.is_initialized():  # other tests of the same process may have started one
        actions_of(policy, explore=True)
        assert not ray.is_initialized()


def test_it_is_a_cql_policy_with_nothing_of_cqls_own() -> None:
    policy = make_policy()
    assert issubclass(CalQLTorchPolicy, CQLTorchPolicy)
    assert isinstance(policy, CQLTorchPolicy)
    assert isinstance(policy.update, CalQLUpdate)
    assert policy.model.actor is policy.update.actor
    for of_cql in ("target_model", "actor_optim", "critic_optims", "log_alpha_prime"):
        assert not hasattr(policy, of_cql)


# ---- acting


def test_deterministic_actions_are_the_squashed_means() -> None:
    policy = make_policy()
    actions = actions_of(policy, explore=False)
    expected = policy.update.actor(torch.as_tensor(OBS)).mode.detach().numpy()
    np.testing.assert_allclose(actions, expected, rtol=1e-6)
    np.testing.assert_array_equal(actions, actions_of(policy, explore=False))
    assert actions.dtype == np.float32
    # a row of a batch is what the row gives alone
    np.testing.assert_allclose(actions_of(policy, False, OBS[2:3])[0], actions[2], rtol=1e-5, atol=1e-8)


def test_exploring_actions_are_samples_with_their_likelihood() -> None:
    policy = make_policy()
    actions, _, extra = policy.compute_actions(OBS, explore=True)
    assert actions.shape == (6, 2)
    assert np.abs(actions).max() <= 1.0
    assert not np.allclose(actions, actions_of(policy, explore=False))
    likelihoods = policy.compute_log_likelihoods(actions, OBS)
    np.testing.assert_allclose(extra["action_logp"], likelihoods.numpy(), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(extra["action_prob"], np.exp(extra["action_logp"]), rtol=1e-5)
    many = actions_of(policy, True, np.repeat(OBS[:1], 4000, axis=0))
    pre_tanh = np.arctanh(many.astype(np.float64).clip(-0.999999, 0.999999))
    distribution = policy.update.actor(torch.as_tensor(OBS[:1]))
    np.testing.assert_allclose(pre_tanh.mean(0), distribution.mean[0].detach(), atol=0.05)
    np.testing.assert_allclose(pre_tanh.std(0), distribution.log_std[0].exp().detach(), rtol=0.05)


def test_exploration_follows_the_config_unless_told() -> None:
    exploring = make_policy()
    assert not np.array_equal(exploring.compute_actions(OBS)[0], exploring.compute_actions(OBS)[0])
    config = CalQLConfig().env_runners(explore=False).to_dict()
    silent = CalQLTorchPolicy(OBSERVATIONS, ACTIONS, config)
    np.testing.assert_array_equal(silent.compute_actions(OBS)[0], silent.compute_actions(OBS)[0])


def test_single_actions() -> None:
    policy = make_policy()
    action, state, _ = policy.compute_single_action(OBS[0], explore=False)
    assert state == []
    np.testing.assert_allclose(action, actions_of(policy, explore=False)[0], rtol=1e-5, atol=1e-8)


def test_log_likelihoods_in_both_units() -> None:
    policy = make_policy()
    actions = np.array([[0.5, -0.25]] * 6, np.float32)
    found = policy.compute_log_likelihoods(actions, OBS)
    expected = policy.update.actor(torch.as_tensor(OBS)).log_prob(torch.as_tensor(actions))
    assert found.shape == (6,)
    torch.testing.assert_close(found, expected.detach())
    in_bounds = policy.compute_log_likelihoods(2.0 * actions, OBS, actions_normalized=False)
    torch.testing.assert_close(in_bounds, found)
    torch.testing.assert_close(
        policy.compute_log_likelihoods(torch.as_tensor(actions), torch.as_tensor(OBS)), found
    )
    # of bounds that are not symmetric: [0, 4] x [-3, -1], whose centre is (2, -2)
    shifted = make_policy(action_space=Box(float32([0.0, -3.0]), float32([4.0, -1.0])))
    at_centre = shifted.compute_log_likelihoods(float32([[2.0, -2.0]]), OBS[:1], actions_normalized=False)
    torch.testing.assert_close(at_centre, shifted.compute_log_likelihoods(np.zeros((1, 2)), OBS[:1]))
    assert policy.compute_log_likelihoods(np.ones((6, 2)), OBS).isfinite().all()


def test_episode_noise_is_a_function_of_the_seed() -> None:
    first, second = make_policy(seed=1), make_policy(seed=2)
    second.set_weights(first.get_weights())
    actions_of(second, explore=True)  # a past of its own
    runs = []
    for policy in (first, second):
        policy.begin_episode(7)
        runs.append([actions_of(policy, True, OBS[i : i + 1]) for i in range(4)])
    np.testing.assert_array_equal(runs[0], runs[1])
    first.begin_episode(8)
    assert not np.array_equal(actions_of(first, True, OBS[:1]), runs[0][0])
    # neither torch's generator nor learning has a part in it
    first.begin_episode(7)
    torch.manual_seed(123)
    first.update.draw_noise(5)
    np.testing.assert_array_equal(actions_of(first, True, OBS[:1]), runs[0][0])


def test_the_same_seed_is_the_same_policy() -> None:
    assert moved(make_policy(3).get_weights(), make_policy(3).get_weights()) == set()
    assert moved(make_policy(3).get_weights(), make_policy(4).get_weights()) == {
        "actor",
        "critics",
        "target_critics",
    }
    np.testing.assert_array_equal(actions_of(make_policy(3), True), actions_of(make_policy(3), True))
    unseeded = make_policy(None)
    assert moved(unseeded.get_weights(), make_policy(None).get_weights()) >= {"actor", "critics"}


# ---- learning


@pytest.mark.parametrize("size", [1, 33])
def test_any_batch_trains(size: int) -> None:
    """RLlib's own CQL steps only where a batch has `train_batch_size` rows, 256 here."""
    policy = make_policy()
    before = policy.get_weights()
    results = policy.learn_on_batch(to_sample_batch(rows(size)))
    after = policy.get_weights()
    groups = {"actor", "critics", "target_critics", "log_alpha", "log_alpha_prime"}
    assert moved(before, after) == groups
    assert policy.update.num_updates == 1
    stats = results["learner_stats"]
    assert {"actor_loss", "critic_loss", "bellman_loss", "conservative_gap", "bound_rate", "alpha_prime"} <= set(
        stats
    )
    assert all(type(value) is float and np.isfinite(value) for value in stats.values())
    # one update, and the very one of the core
    alone = make_policy()
    alone.update.step(alone.update.to_tensors(rows(size)))
    assert moved(after, alone.get_weights()) == set()


def test_constructing_does_not_train() -> None:
    policy = make_policy(train_batch_size=8)
    assert policy.update.num_updates == 0
    weights = policy.get_weights()
    for name in [name for name in weights if name.startswith("critics.")]:
        np.testing.assert_array_equal(weights[name], weights[f"target_{name}"])


def test_update_target() -> None:
    policy = make_policy(tau=0.5)
    policy.learn_on_batch(to_sample_batch(rows(4)))
    before = policy.get_weights()
    policy.update_target()
    halfway = policy.get_weights()
    name = "critics.weights.0"
    expected = (before[name] + before[f"target_{name}"]) / 2
    np.testing.assert_allclose(halfway[f"target_{name}"], expected, rtol=1e-6, atol=1e-7)
    policy.update_target(tau=1.0)
    after = policy.get_weights()
    np.testing.assert_array_equal(after[f"target_{name}"], after[name])


def test_columns_translate_both_ways() -> None:
    batch = rows(5)
    there = to_sample_batch(batch)
    assert isinstance(there, SampleBatch)
    assert there.count == 5
    assert there["terminateds"].dtype == bool
    assert not there["truncateds"].any()
    back = from_sample_batch(there)
    assert back.keys() == batch.keys()
    for name, array in batch.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)


# ---- state


def test_weights_round_trip() -> None:
    source, target = make_policy(seed=1), make_policy(seed=2)
    source.learn_on_batch(to_sample_batch(rows(8)))
    target.set_weights(source.get_weights())
    assert moved(source.get_weights(), target.get_weights()) == set()
    np.testing.assert_array_equal(actions_of(source, False), actions_of(target, False))
    assert all(isinstance(array, np.ndarray) for array in source.get_weights().values())
    with pytest.raises(KeyError, match="no parameter named 'critic'"):
        target.set_weights({"critic": np.zeros(1)})


def test_inference_weights_are_enough_to_act() -> None:
    source, target = make_policy(seed=1), make_policy(seed=2)
    source.update.load_weights({"obs_mean": float32([1, 2, 3]), "obs_std": float32([2, 2, 2])})
    weights = source.inference_weights()
    assert {name.split(".")[0] for name in weights} == {"actor", "obs_mean", "obs_std"}
    critics = target.get_weights()
    target.set_weights(weights)
    np.testing.assert_array_equal(actions_of(source, False), actions_of(target, False))
    assert moved(critics, target.get_weights()) == {"actor", "obs_mean", "obs_std"}


def test_a_restored_policy_goes_on_bit_equal() -> None:
    source, target = make_policy(seed=1), make_policy(seed=2)
    for i in range(2):
        source.learn_on_batch(to_sample_batch(rows(8, i)))
    source.update.online = True
    state = pickle.loads(pickle.dumps(source.get_state()))
    target.learn_on_batch(to_sample_batch(rows(8, 9)))
    target.set_state(state)
    assert target.update.online
    assert target.update.num_updates == 2
    for i in range(2, 5):
        results = [
            policy.learn_on_batch(to_sample_batch(rows(8, i)))["learner_stats"] for policy in (source, target)
        ]
        assert results[0] == results[1]
    assert moved(source.get_weights(), target.get_weights()) == set()


def test_a_state_does_not_bring_its_config() -> None:
    """Evaluation's policy stays deterministic when it takes over the training policy's state."""
    config = CalQLConfig().env_runners(explore=False).to_dict()
    evaluating = CalQLTorchPolicy(OBSERVATIONS, ACTIONS, copy.deepcopy(config))
    training = CalQLTorchPolicy(OBSERVATIONS, ACTIONS, CalQLConfig().to_dict())
    evaluating.set_state(training.get_state())
    np.testing.assert_array_equal(evaluating.compute_actions(OBS)[0], evaluating.compute_actions(OBS)[0])


def test_rllibs_model_is_the_actor_normaliser_included() -> None:
    policy = make_policy()
    policy.update.load_weights({"obs_mean": float32([1, 2, 3]), "obs_std": float32([2, 2, 2])})
    output, state = policy.model(SampleBatch({"obs": torch.as_tensor(OBS)}))
    assert state == []
    assert output.shape == (6, 4)
    actions = torch.tanh(output[:, :2]).detach().numpy()
    np.testing.assert_allclose(actions, actions_of(policy, explore=False), rtol=1e-5, atol=1e-8)


# ---- spaces


@pytest.mark.parametrize(
    ("observations", "actions", "message"),
    [
        (gym.spaces.Dict({"a": OBSERVATIONS}), ACTIONS, "observation space must be a flat Box .*, not Dict"),
        (Box(0, 1, (8, 8), np.float32), ACTIONS, "observation space must be a flat Box"),
        (gym.spaces.Discrete(4), ACTIONS, r"observation space must be a flat Box .*, not Discrete\(4\)"),
        (OBSERVATIONS, gym.spaces.MultiDiscrete([4]), "action space must be a flat Box .* or Discrete, not Multi"),
        (OBSERVATIONS, gym.spaces.Tuple([ACTIONS]), "action space must be a flat Box"),
        (OBSERVATIONS, Box(-np.inf, np.inf, (2,)), "action space must have finite bounds"),
        (OBSERVATIONS, Box(-1.0, np.inf, (2,)), "action space must have finite bounds"),
        (OBSERVATIONS, Box(0, 255, (2,), np.uint8), "actions must be float32 or float64, not uint8"),
        (OBSERVATIONS, Box(-2.0, 2.0, (2,), np.float16), "actions must be float32 or float64, not float16"),
    ],
)
def test_other_spaces_are_refused(observations: gym.Space, actions: gym.Space, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        CalQLTorchPolicy(observations, actions, CalQLConfig().to_dict())


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 5.0), (-0.001, 0.002)])
def test_any_finite_bounds(low: float, high: float) -> None:
    policy = make_policy(action_space=Box(low, high, (2,), np.float32))
    actions = actions_of(policy, explore=True)
    assert np.abs(actions).max() <= 1.0
    noise = policy.update.draw_noise(200).random  # the random actions of the conservative term, in [-1, 1]
    assert -1.0 <= noise.min() < -0.9
    assert 0.9 < noise.max() <= 1.0
