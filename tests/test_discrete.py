"""Discrete actions: losses against literal numbers and a slow loop, acting, and the data that train."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from rllib_calql.core.acting import random_actions
from rllib_calql.core.discrete import Categorical, DiscreteCalQLUpdate, DiscreteNoise
from rllib_calql.core.factory import make_update
from rllib_calql.core.hyperparameters import UpdateConfig
from rllib_calql.data import DatasetError, Preparation, Transitions, check_fits, open_dataset
from rllib_calql.data.sources import scripted
from tests.updates import gradients, moved

OBSERVATIONS = Box(-1.0, 1.0, (3,))
SMALL = {"actor_hiddens": (8,), "critic_hiddens": (8, 8), "precision": "float64"}


def update_of(count: int = 4, **settings: Any) -> DiscreteCalQLUpdate:
    config = UpdateConfig(**{**SMALL, **settings})
    update = make_update(OBSERVATIONS, Discrete(count), config, seed=0)
    assert isinstance(update, DiscreteCalQLUpdate)
    return update


def random_batch(rows: int = 6, num_actions: int = 4, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "observations": normal(rows, 3),
        "next_observations": normal(rows, 3),
        "actions": torch.randint(num_actions, (rows, 1), generator=generator).double(),
        "rewards": normal(rows),
        "dones": (normal(rows) > 0.5).double(),
        "mc_returns": torch.cat([normal(rows - 1) * 0.05, torch.tensor([-math.inf], dtype=torch.float64)]),
    }


def with_outputs(update: DiscreteCalQLUpdate, q: list[list[float]], logits: list[float]) -> None:
    """Networks that give the same values in every state: their last biases alone, everything else 0."""
    with torch.no_grad():
        for network in (update.actor, update.critics, update.target_critics):
            for parameter in network.parameters():
                parameter.zero_()
        for critics in (update.critics, update.target_critics):
            critics.biases[-1].copy_(torch.tensor(q).unsqueeze(1))
        update.actor.layers[-1].bias.copy_(torch.tensor(logits))


def test_losses_of_literal_values() -> None:
    """Two critics, three actions; the return 2 lifts critic 0's first and third action in the soft maximum."""
    settings = {"gamma": 0.5, "min_q_weight": 3.0, "initial_alpha": 0.1, "target_entropy": 0.5}
    update = update_of(3, **settings)
    with_outputs(update, [[1.0, 4.0, 0.0], [3.0, 3.0, 3.0]], [math.log(0.5), math.log(0.25), math.log(0.25)])
    batch = random_batch(1, 3) | {
        "actions": torch.tensor([[0.0]]).double(),
        "rewards": torch.ones(1).double(),
        "dones": torch.zeros(1).double(),
        "mc_returns": torch.full((1,), 2.0).double(),
    }
    actor, critic = gradients(update, batch, DiscreteNoise())
    # target: the best action by the smaller critic is the second, 3; 1 + 0.5 * 3
    assert critic.target.tolist() == [2.5]
    assert critic.bellman_losses.tolist() == pytest.approx([1.5**2, 0.5**2])
    gaps = [math.log(2 * math.exp(2) + math.exp(4)) - 1, math.log(3 * math.exp(3)) - 3]
    assert critic.gaps is not None
    assert critic.gaps.tolist() == pytest.approx(gaps)
    assert critic.critic_losses.tolist() == pytest.approx([2.25 + 3 * gaps[0], 0.25 + 3 * gaps[1]])
    # d/dq of critic 0: softmax where unbounded, less 1 and plus the Bellman error at the data's action
    soft = math.exp(4) / (2 * math.exp(2) + math.exp(4))
    grad = update.critics.biases[-1].grad
    assert grad is not None
    assert grad[0, 0].tolist() == pytest.approx([-3 + 2 * (1 - 2.5), 3 * soft, 0.0])
    assert grad[1, 0].tolist() == pytest.approx([3 * (1 / 3 - 1) + 2 * (3 - 2.5), 1.0, 1.0])
    entropy = -(0.5 * math.log(0.5) + 0.5 * math.log(0.25))
    assert actor.actor_loss.item() == pytest.approx(-0.1 * entropy - (0.5 * 1 + 0.25 * 3 + 0.25 * 0))
    assert actor.temperature_loss is not None
    assert actor.temperature_loss.item() == pytest.approx(-math.log(0.1) * (0.5 - entropy))
    figures = update.figures(batch, actor, critic)
    assert figures["bound_rate"].item() == pytest.approx((0.75 + 0.0) / 2)
    assert figures["q_policy_mean"].item() == pytest.approx((1.5 + 3.0) / 2)
    assert figures["entropy"].item() == pytest.approx(entropy)


def slow_losses(
    update: DiscreteCalQLUpdate, batch: dict[str, Tensor], members: list[int]
) -> tuple[Tensor, Tensor]:
    """The critics' and the actor's loss, number by number."""
    config, rows = update.config, len(batch["rewards"])
    q, log_pi = update.critics(batch["observations"]), update.actor(batch["observations"]).log_probs
    next_q = update.target_critics(batch["next_observations"]).detach()
    next_log_pi = update.actor(batch["next_observations"]).log_probs.detach()
    critic_loss, actor_loss = torch.zeros(()).double(), torch.zeros(()).double()
    alpha = update.alpha()
    for row in range(rows):
        action, bound = int(batch["actions"][row, 0]), batch["mc_returns"][row]
        values = torch.stack([min(next_q[i, row, a] for i in members) for a in range(update.act_dim)])
        if config.max_target_backup:
            best = int(values.argmax())
            value, log_prob = values[best], next_log_pi[row, best]
        else:
            pi = next_log_pi[row].exp()
            value, log_prob = (pi * values).sum(), (pi * next_log_pi[row]).sum()
        if not config.deterministic_backup:
            value = value - alpha * log_prob
        target = batch["rewards"][row] + (1 - batch["dones"][row]) * config.gamma * value
        for i in range(config.num_critics):
            terms = []
            for a in range(update.act_dim):
                bounded = torch.maximum(q[i, row, a], bound) if config.calibrate else q[i, row, a]
                terms.append(torch.exp(bounded / config.temperature))
            gap = config.temperature * torch.log(torch.stack(terms).sum()) - q[i, row, action]
            gap = gap.clamp(config.clip_diff_min, config.clip_diff_max)
            critic_loss = critic_loss + ((q[i, row, action] - target) ** 2 + config.min_q_weight * gap) / rows
        for a in range(update.act_dim):
            of_critics = q[:, row, a].detach()
            of_action = of_critics.mean() if config.actor_q == "mean" else of_critics.min()
            actor_loss = actor_loss + log_pi[row, a].exp() * (alpha * log_pi[row, a] - of_action) / rows
    return critic_loss, actor_loss


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"calibrate": False, "temperature": 0.5, "critic_layer_norm": True},
        {"max_target_backup": False, "deterministic_backup": False, "actor_q": "mean"},
        {"num_critics": 3, "num_target_critics": 2, "clip_diff_max": 1.4},
    ],
)
def test_losses_and_gradients_are_those_of_a_slow_loop(settings: dict[str, Any]) -> None:
    update, batch = update_of(**settings), random_batch()
    with torch.no_grad():  # off the symmetry of initial outputs
        for parameter in [*update.critics.parameters(), *update.target_critics.parameters()]:
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    noise = update.draw_noise(6)
    members = (
        list(range(update.config.num_critics)) if noise.target_critics is None else noise.target_critics.tolist()
    )
    actor, critic = gradients(update, batch, noise)
    critic_loss, actor_loss = slow_losses(update, batch, members)
    torch.testing.assert_close(critic.critic_losses.sum(), critic_loss)
    torch.testing.assert_close(actor.actor_loss, actor_loss)
    for loss, network in ((critic_loss, update.critics), (actor_loss, update.actor)):
        parameters = list(network.parameters())
        for parameter, expected in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            torch.testing.assert_close(parameter.grad, expected)


def test_cloning_lagrange_and_weight_zero() -> None:
    batch = random_batch()
    update = update_of(bc_iters=1, learn_alpha=False, initial_alpha=1e-9)
    actor, _ = gradients(update, batch, DiscreteNoise())
    log_probs = update.actor(batch["observations"]).log_prob(batch["actions"].squeeze(-1))
    torch.testing.assert_close(actor.actor_loss, -log_probs.mean(), atol=1e-6, rtol=0.0)
    update = update_of(lagrangian=True)
    figures = update.step(batch)
    assert figures["alpha_prime"].item() == pytest.approx(math.e)
    assert update.log_alpha_prime.item() != 1.0
    update = update_of(min_q_weight=0.0, calibrate=False)
    assert "bound_rate" not in update.step(batch)


def test_online_the_actor_may_move_once_per_environment_step() -> None:
    update, batch = update_of(online_actor_interval=2), random_batch()
    update.online = True
    for moves in (False, True, False):
        before = update.weights()
        assert ("actor_loss" in update.step(batch)) == moves
        changed = moved(before, update.weights())
        assert ("actor" in changed) == ("log_alpha" in changed) == moves
        assert "critics" in changed


def test_actions_are_drawn_from_the_distribution() -> None:
    probs = torch.tensor([0.1, 0.2, 0.7])
    policy = Categorical(probs.log().expand(20_000, 3))
    actions, log_probs = policy.sample(torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0)))
    np.testing.assert_allclose(torch.bincount(actions).numpy() / 20_000, probs.numpy(), atol=0.015)
    torch.testing.assert_close(log_probs, probs.log()[actions])
    extreme, _ = policy.sample(torch.full((20_000, 3), -40.0))
    assert set(extreme.tolist()) == {2}
    assert set(policy.best()[0].tolist()) == {2}
    drawn, log_probs = random_actions(torch.randn(6000, 3), discrete=True)
    np.testing.assert_allclose(torch.bincount(drawn).numpy() / 6000, 1 / 3, atol=0.03)
    assert log_probs[0].item() == pytest.approx(-math.log(3))


def test_an_update_learns_the_best_of_three_arms() -> None:
    """States do not matter; action 2 pays 1, the data take it in a third of the rows."""
    update = update_of(3, actor_lr=1e-2, critic_lr=1e-2, min_q_weight=0.1, precision="float32")
    rng = np.random.default_rng(0)

    def sample() -> dict[str, np.ndarray]:
        actions = rng.integers(3, size=64)
        rewards = (actions == 2).astype(np.float32)
        states = rng.normal(size=(64, 3)).astype(np.float32)
        done, column = np.ones(64, np.float32), actions[:, None].astype(np.float32)
        names = ("observations", "next_observations", "actions", "rewards", "dones", "mc_returns")
        return dict(zip(names, (states, states, column, rewards, done, rewards), strict=True))

    update.run(sample, 150)
    actions, _ = update.act(torch.randn(50, 3))
    assert actions.tolist() == [2] * 50


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_actions": 4}, "num_actions=4 is for continuous actions.*leave it out"),
        ({"num_target_actions": 4}, "num_target_actions=4 is for continuous"),
        ({"importance_sampling": False}, "importance_sampling=False is for continuous"),
        ({"target_entropy": -1.0}, r"target_entropy=-1: that of 4 discrete actions lies from 0 to below log\(4\)"),
        ({"target_entropy": 1.5}, "target_entropy=1.5"),
        ({"precision": "bfloat16"}, "bfloat16.*continuous"),
        ({"update_rule": "awac"}, "awac.* is for continuous actions"),
    ],
)
def test_settings_of_continuous_actions_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        update_of(**settings)
    with pytest.raises(ValueError, match="a single action"):
        update_of(1)


def episode(actions: Any, **kwargs: Any) -> Transitions:
    actions = np.asarray(actions)
    return Transitions.from_episode(
        np.zeros((len(actions) + 1, 3)), actions, np.ones(len(actions)), True, **kwargs
    )


def test_data_of_discrete_actions_are_numbered_and_checked() -> None:
    space = Discrete(3, start=5)
    data = episode([5, 7, 6])
    check_fits(data, OBSERVATIONS, space)
    prepared = Preparation(action_start=5)(data)
    assert prepared.scaled_actions().tolist() == [[0.0], [2.0], [1.0]]
    assert prepared.take(np.array([1]))["actions"].dtype == np.float32
    with pytest.raises(DatasetError, match="actions from 4 to 7, the environment's are Discrete"):
        check_fits(episode([4, 7]), OBSERVATIONS, space)
    with pytest.raises(DatasetError, match="continuous actions, and the environment's are Discrete"):
        check_fits(episode(np.zeros((2, 1))), OBSERVATIONS, space)
    with pytest.raises(DatasetError, match="discrete actions, and the environment's are Box"):
        check_fits(data, OBSERVATIONS, Box(-1.0, 1.0, (1,)))


def test_scripted_datasets_are_made_once(tmp_path: Any) -> None:
    data = open_dataset("scripted://cartpole-noisy", cache_dir=str(tmp_path))
    assert len(data) >= 10_000
    assert data.terminated.sum() > 100
    check_fits(data, gym.make("CartPole-v1").observation_space, Discrete(2))
    before = list(tmp_path.iterdir())
    again = open_dataset("scripted://cartpole-noisy", cache_dir=str(tmp_path))
    np.testing.assert_array_equal(again.actions, data.actions)
    assert list(tmp_path.iterdir()) == before
    with pytest.raises(DatasetError, match="there are cartpole-noisy, doorkey-noisy"):
        open_dataset("scripted://pong")


def test_doorkey_is_solved_by_its_planner() -> None:
    pytest.importorskip("minigrid")
    recipe = scripted.Recipe(
        "rllib_calql/MiniGrid-DoorKey-5x5-v0", "envs.minigrid:planned_action", noise=(0.0,), num_rows=200
    )
    data = scripted.generate(recipe)
    assert data.terminated.sum() == data.num_episodes
    assert data.rewards.sum() == data.num_episodes
    assert len(data) / data.num_episodes < 30
    assert set(np.unique(data.observations)) == {0.0, 1.0}
    # cells hold one kind of object each; no two rows of an episode are the same state
    assert (data.observations[:, : 25 * 11].reshape(-1, 25, 11).sum(-1) == 1.0).all()
    first = next(data.episodes())
    assert len(np.unique(first.observations, axis=0)) == len(first)
