"""AWAC and IQL: their losses by hand and by loops, whom they move, and what is optimistic about O3F."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rllib_calql.core import UpdateConfig, losses
from rllib_calql.core.acting import random_actions, sampled_actions
from rllib_calql.core.advantage_weighted import AWACUpdate, IQLUpdate
from rllib_calql.core.networks import TanhGaussian
from tests.updates import A_DIM, O_DIM, SMALL, arrays, moved

RULE: dict[str, Any] = SMALL | {"min_q_weight": 0.0, "max_target_backup": False, "learn_alpha": False, "beta": 0.7}


def make(rule: str, **settings: Any) -> AWACUpdate:
    kind = {"awac": AWACUpdate, "iql": IQLUpdate}[rule]
    return kind(O_DIM, A_DIM, UpdateConfig(**(RULE | {"update_rule": rule} | settings)), seed=0)


# ---- losses


def test_expectile_loss_by_hand_and_against_a_loop() -> None:
    differences = torch.tensor([2.0, -1.0, 0.0, -3.0])
    # (0.9 * 4 + 0.1 * 1 + 0.1 * 9) / 4
    assert losses.expectile_loss(differences, 0.9).item() == pytest.approx(1.15)
    assert losses.expectile_loss(differences, 0.5).item() == pytest.approx(14.0 / 4 / 2)
    rng = np.random.default_rng(0)
    for expectile in (0.7, 0.8, 0.9):
        values = rng.normal(size=50)
        total = 0.0
        for u in values:
            total += abs(expectile - (1.0 if u < 0 else 0.0)) * u * u
        found = losses.expectile_loss(torch.as_tensor(values), expectile)
        assert found.item() == pytest.approx(total / 50, rel=1e-12)


def test_the_expectile_of_a_sample_is_where_the_loss_is_least() -> None:
    sample = torch.tensor([0.0, 1.0, 2.0, 10.0], dtype=torch.float64)
    value = torch.tensor(9.3 / 1.2, dtype=torch.float64, requires_grad=True)  # 0.9 * (10 - v) = 0.1 * (3 v - 3)
    (gradient,) = torch.autograd.grad(losses.expectile_loss(sample - value, 0.9), value)
    assert gradient.item() == pytest.approx(0.0, abs=1e-12)


def test_weights_by_hand() -> None:
    advantages = torch.tensor([0.0, math.log(2.0), math.log(5.0)], dtype=torch.float64)
    torch.testing.assert_close(
        losses.batch_softmax_weights(advantages, 1.0), torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64) * 3 / 8
    )
    torch.testing.assert_close(
        losses.clipped_exponential_weights(advantages, 2.0),
        torch.tensor([1.0, 4.0, 25.0], dtype=torch.float64),
    )
    assert losses.clipped_exponential_weights(torch.tensor([-1e6, 50.0]), 10.0).tolist() == [0.0, 100.0]
    huge = losses.batch_softmax_weights(torch.tensor([-1e6, 1e6]), 10.0)
    assert huge.tolist() == [0.0, 2.0]
    log_probs, weights = torch.tensor([-1.0, 2.0]), torch.tensor([3.0, 0.5])
    assert losses.weighted_regression_loss(log_probs, weights).item() == pytest.approx((3.0 - 1.0) / 2)


def test_the_mean_or_the_minimum_for_the_actor() -> None:
    q = torch.tensor([[1.0, 4.0], [3.0, 2.0]])
    arguments = (torch.tensor(0.5), torch.tensor([2.0, -2.0]), q)
    assert losses.actor_loss(*arguments).item() == pytest.approx((1.0 - 1.0 - 1.0 - 2.0) / 2)
    assert losses.actor_loss(*arguments, average=True).item() == pytest.approx((1.0 - 2.0 - 1.0 - 3.0) / 2)


# ---- updates


@pytest.mark.parametrize("rule", ["awac", "iql"])
def test_gradients_are_those_of_the_losses_written_out(rule: str) -> None:
    """One row at a time, with autograd."""
    update = make(rule, num_critics=3, expectile=0.8)
    torch.manual_seed(1)
    with torch.no_grad():
        for name in update.NETWORKS:
            for parameter in getattr(update, name).parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    batch, noise = update.to_tensors(arrays()), update.draw_noise(5)
    update.gradients(batch, noise)
    found = {name: p.grad for name, p in update.actor.named_parameters()}

    states, after, taken = batch["observations"], batch["next_observations"], batch["actions"]
    log_probs = update.actor(states).log_prob(taken)
    terms, targets = [], []
    for b in range(5):
        one = slice(b, b + 1)
        q_data = update.critics(states[one], taken[one].unsqueeze(1)).min().detach()
        if rule == "awac":
            sampled = update.actor(states[one]).sample(noise.actor[one])[0].detach()
            advantage = q_data - update.critics(states[one], sampled.unsqueeze(1)).min().detach()
            next_action = update.actor(after[one]).sample(noise.target[one, 0])[0].detach()
            next_value = update.target_critics(after[one], next_action.unsqueeze(1)).min()
            terms.append(math.exp(0.7 * float(advantage)))
        else:
            assert isinstance(update, IQLUpdate)
            q_target = update.target_critics(states[one], taken[one].unsqueeze(1)).min().detach()
            advantage = q_target - update.value(states[one])[0].detach()
            next_value = update.value(after[one])[0].detach()
            terms.append(min(math.exp(0.7 * float(advantage)), 100.0))
        targets.append(batch["rewards"][b] + (1 - batch["dones"][b]) * 0.99 * next_value)
    weights = torch.tensor(terms, dtype=torch.float64)
    weights = weights / weights.mean() if rule == "awac" else weights
    loss = -(weights * log_probs).mean()
    for name, parameter in update.actor.named_parameters():
        (expected,) = torch.autograd.grad(loss, parameter, retain_graph=True)
        gradient = found[name]
        assert gradient is not None
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)
    # the critics' gradient by their output bias: 2 * mean(Q - y)
    q = update.critics(states, taken.unsqueeze(1)).squeeze(-1).detach()
    bias = update.critics.biases[-1].grad
    assert bias is not None
    torch.testing.assert_close(bias.ravel(), 2 * (q - torch.stack(targets)).mean(1), rtol=1e-9, atol=1e-12)
    assert update.log_alpha.grad is None
    if isinstance(update, IQLUpdate):
        q_target = update.target_critics(states, taken.unsqueeze(1)).squeeze(-1).amin(0).detach()
        u = q_target - update.value(states)
        value_loss = torch.stack([(0.2 if row < 0 else 0.8) * row**2 for row in u]).mean()
        for parameter in update.value.parameters():
            (expected,) = torch.autograd.grad(value_loss, parameter, retain_graph=True)
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", ["awac", "iql"])
def test_the_online_phase_may_have_a_temperature_of_its_own(rule: str) -> None:
    settings: list[dict[str, Any]] = [{}, {"beta_online": 3.0}, {"beta": 3.0}]
    plain, other, expected = (make(rule, **changes) for changes in settings)
    batch = plain.to_tensors(arrays())

    def gradient(update: AWACUpdate) -> Tensor:
        update.gradients(batch, noise)
        return torch.cat([p.grad.ravel() for p in update.actor.parameters() if p.grad is not None])

    noise = plain.draw_noise(5)
    torch.testing.assert_close(gradient(other), gradient(plain), rtol=0, atol=0)
    for update in (plain, other, expected):
        update.online = True
    torch.testing.assert_close(gradient(other), gradient(expected), rtol=0, atol=0)
    assert not torch.equal(gradient(other), gradient(plain))


@pytest.mark.parametrize("rule", ["awac", "iql"])
def test_figures_state_and_what_moves(rule: str) -> None:
    first, second = make(rule), make(rule)
    start = first.weights()
    figures = first.run(lambda: arrays(), 2)
    common = {"actor_loss", "critic_loss", "bellman_loss", "q_data_mean", "mc_return_mean", "entropy"}
    assert figures.keys() == common | ({"value_loss", "value_mean"} if rule == "iql" else set())
    networks = {"actor", "critics", "target_critics"} | ({"value"} if rule == "iql" else set())
    assert moved(start, first.weights()) == networks
    second.run(lambda: arrays(seed=7), 1)  # a past of its own, which must not show
    second.set_state(first.get_state())
    figures_of_both = [update.run(lambda: arrays(seed=3), 3) for update in (first, second)]
    assert figures_of_both[0] == figures_of_both[1]
    np.testing.assert_equal(first.get_state(), second.get_state())


def test_awac_clones_the_better_action() -> None:
    """Two actions at every state, one paid: the actor ends at the paid one."""
    update = make("awac", beta=5.0, actor_lr=1e-2, critic_lr=1e-2, gamma=0.0, tau=0.1)
    iql = make("iql", beta=5.0, actor_lr=1e-2, critic_lr=1e-2, gamma=0.0, tau=0.1)
    rng = np.random.default_rng(0)

    def batch() -> dict[str, np.ndarray]:
        good = rng.random(64) < 0.3
        actions = np.where(good[:, None], [0.5, -0.5], [-0.5, 0.5])
        return arrays(64, int(rng.integers(1000))) | {"actions": actions, "rewards": good.astype(float)}

    for one in (update, iql):
        one.run(batch, 250)
        actions, _ = one.act(torch.randn(20, O_DIM, dtype=torch.float64))
        assert actions[:, 0].min() > 0.2
        assert actions[:, 1].max() < -0.2


# ---- exploring


def test_the_best_of_several_actions() -> None:
    policy = TanhGaussian(torch.zeros(2, 1), torch.zeros(2, 1))
    noise = torch.tensor([[[0.1], [-2.0], [1.0]], [[3.0], [0.0], [-1.0]]])

    def q_values(actions: Tensor) -> Tensor:  # the second critic spoils the largest action
        return torch.stack([actions[..., 0], torch.where(actions[..., 0] > 0.9, -1.0, actions[..., 0])])

    actions, log_probs = sampled_actions(policy, noise, q_values)
    torch.testing.assert_close(actions.ravel(), torch.tanh(torch.tensor([1.0, 0.0])))
    expected = policy.log_prob(actions)
    torch.testing.assert_close(log_probs, expected, rtol=1e-4, atol=1e-5)
    single, _ = sampled_actions(policy, noise[:, 0], None)
    torch.testing.assert_close(single.ravel(), torch.tanh(torch.tensor([0.1, 3.0])))


def test_random_actions_are_uniform() -> None:
    noise = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    actions, log_probs = random_actions(noise)
    counts = torch.histc(actions, 10, -1.0, 1.0)
    assert (counts - 800).abs().max() < 120
    torch.testing.assert_close(log_probs, torch.full((4000,), math.log(0.25)))
    torch.testing.assert_close(random_actions(noise.unsqueeze(1).repeat(1, 3, 1))[0], actions)
