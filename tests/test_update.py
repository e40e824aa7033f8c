"""One step after another: who moves whom, and when."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rllib_calql.core import CalQLUpdate, Noise, UpdateConfig
from tests.updates import arrays, gradients, make_update, moved, step

# What the `calql` block has from the update (the algorithm adds phase, counters and speeds).
ALWAYS = {
    "actor_loss",
    "critic_loss",
    "bellman_loss",
    "q_data_mean",
    "mc_return_mean",
    "alpha",
    "entropy",
}
CONSERVATIVE = {"bound_rate", "q_policy_mean", "conservative_gap"}


# ---- the start


def test_targets_start_as_copies_and_are_not_trained() -> None:
    update = make_update(num_critics=3)
    weights = update.weights()
    names = [name for name in weights if name.startswith("critics.")]
    assert names
    for name in names:
        np.testing.assert_array_equal(weights[name], weights[f"target_{name}"])
    assert not any(parameter.requires_grad for parameter in update.target_critics.parameters())
    trained = {id(parameter) for group in update.optimizer.param_groups for parameter in group["params"]}
    assert not trained & {id(parameter) for parameter in update.target_critics.parameters()}


def test_start_values_of_the_temperatures() -> None:
    update = make_update()
    assert update.alpha().item() == 1.0
    assert update.alpha_prime().item() == pytest.approx(math.e)
    assert update.target_entropy == -2.0
    update = make_update(initial_alpha=0.2, alpha_multiplier=3.0, initial_alpha_prime=0.5, target_entropy=1.5)
    assert update.alpha().item() == pytest.approx(0.6)
    assert update.alpha_prime().item() == pytest.approx(0.5)
    assert update.target_entropy == 1.5


def test_learning_rates_reach_their_groups() -> None:
    update = make_update(actor_lr=0.1, critic_lr=0.2, alpha_lr=0.3, lagrangian_lr=0.4)
    assert [group["lr"] for group in update.optimizer.param_groups] == [0.1, 0.2, 0.3, 0.4]
    assert {group["eps"] for group in update.optimizer.param_groups} == {1e-8}
    assert {group["betas"] for group in update.optimizer.param_groups} == {(0.9, 0.999)}
    assert {group["weight_decay"] for group in update.optimizer.param_groups} == {0}


# ---- every loss moves its own parameters


@pytest.mark.parametrize(
    ("learning_rate", "owner"),
    [
        ("actor_lr", {"actor"}),
        ("critic_lr", {"critics", "target_critics"}),
        ("alpha_lr", {"log_alpha"}),
        ("lagrangian_lr", {"log_alpha_prime"}),
    ],
)
def test_a_learning_rate_moves_its_own_parameters_only(learning_rate: str, owner: set[str]) -> None:
    settings: dict[str, Any] = {"actor_lr": 0.0, "critic_lr": 0.0, "alpha_lr": 0.0, "lagrangian_lr": 0.0}
    update = make_update(**settings | {learning_rate: 1e-2, "lagrangian": True})
    before = update.weights()
    step(update)
    assert moved(before, update.weights()) == owner


def test_everything_moves_and_every_tensor_of_it() -> None:
    update = make_update(lagrangian=True, critic_layer_norm=True)
    before = update.weights()
    step(update)
    step(update, seed=1)
    after = update.weights()
    still = {name for name in before if np.array_equal(before[name], after[name])}
    assert still == {"obs_mean", "obs_std"}


def test_gradients_are_those_of_the_old_parameters_and_of_each_loss_alone() -> None:
    """Gradients of the joint loss's terms, taken one by one with autograd, equal `.grad`."""
    update = make_update(lagrangian=True)
    with torch.no_grad():
        update.log_alpha.fill_(0.3)
    batch = update.to_tensors(arrays())
    noise = update.draw_noise(5)
    before = update.weights()
    update.gradients(batch, noise)
    assert moved(before, update.weights()) == set()
    found = {name: p.grad for name, p in update.actor.named_parameters()}

    policy = update.actor(batch["observations"])
    actions, log_probs = policy.sample(noise.actor)
    q = update.critics(batch["observations"], actions.unsqueeze(1)).squeeze(-1)
    loss = (math.exp(0.3) * log_probs - torch.minimum(q[0], q[1])).mean()
    for name, parameter in update.actor.named_parameters():
        (expected,) = torch.autograd.grad(loss, parameter, retain_graph=True)
        ours = found[name]
        assert ours is not None
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-14)
    assert update.log_alpha.grad is not None
    # of -log_alpha * mean(log pi + target entropy)
    torch.testing.assert_close(update.log_alpha.grad, -(log_probs.detach() + update.target_entropy).mean())


def test_fixed_temperature_stays_and_its_multiplier_holds() -> None:
    update = make_update(learn_alpha=False, initial_alpha=0.2, alpha_multiplier=2.0)
    before = update.weights()
    metrics = step(update)
    assert metrics["alpha"] == pytest.approx(0.4)
    assert moved(before, update.weights()) == {"actor", "critics", "target_critics"}


# ---- targets


def test_targets_follow_the_new_critics() -> None:
    update = make_update(tau=0.25, critic_lr=1e-2)
    old = update.weights()
    step(update)
    new = update.weights()
    for name in [name for name in new if name.startswith("critics.")]:
        expected = 0.25 * new[name] + 0.75 * old[f"target_{name}"]
        np.testing.assert_allclose(new[f"target_{name}"], expected, rtol=1e-12, atol=1e-15)
        if "weights" in name:  # with the old critics there would be nothing to follow
            assert not np.allclose(new[f"target_{name}"], old[f"target_{name}"], rtol=0, atol=1e-9)


def test_target_network_update_freq() -> None:
    update = make_update(target_network_update_freq=3)
    changes = []
    for _ in range(7):
        before = update.weights()
        step(update)
        changes.append("target_critics" in moved(before, update.weights()))
    assert changes == [False, False, True, False, False, True, False]


def test_tau_one_copies() -> None:
    update = make_update(tau=1.0)
    step(update)
    weights = update.weights()
    for name in [name for name in weights if name.startswith("critics.")]:
        np.testing.assert_array_equal(weights[name], weights[f"target_{name}"])


def test_td_target_uses_the_targets_and_their_subset() -> None:
    update = make_update(num_critics=5, num_target_critics=2)
    with torch.no_grad():
        for parameter in update.target_critics.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    batch = update.to_tensors(arrays())
    noise = update.draw_noise(5)
    assert noise.target_critics is not None
    assert len(set(noise.target_critics.tolist())) == 2
    _, critic = update.gradients(batch, noise)
    with torch.no_grad():
        actions, _ = update.actor(batch["next_observations"]).sample(noise.target)
        everyone = update.target_critics(batch["next_observations"], actions)
    for b in range(5):
        best = max(min(float(everyone[i, b, n]) for i in noise.target_critics.tolist()) for n in range(4))
        assert float(critic.next_value[b]) == pytest.approx(best, rel=1e-12)
        reward, done = float(batch["rewards"][b]), float(batch["dones"][b])
        assert float(critic.target[b]) == pytest.approx(reward + (1 - done) * 0.99 * best, rel=1e-12)
    assert critic.critic_losses.shape == (5,)
    draws = [update.draw_noise(1).target_critics for _ in range(200)]
    chosen = {tuple(sorted(subset.tolist())) for subset in draws if subset is not None}
    assert len(chosen) == 10  # every pair of 5


@pytest.mark.parametrize("num_target_critics", [None, 2])
def test_all_target_critics_need_no_subset(num_target_critics: int | None) -> None:
    assert make_update(num_target_critics=num_target_critics).draw_noise(2).target_critics is None


# ---- phases


def losses_of(update: CalQLUpdate, noise: Noise) -> tuple[float, Tensor]:
    _, critic = update.gradients(update.to_tensors(arrays()), noise)
    return critic.critic_losses.sum().item(), critic.bellman_losses


def test_min_q_weight_of_the_online_phase() -> None:
    noise = make_update().draw_noise(5)
    weights = {}
    for online_weight in (None, 0.0, 2.0):
        update = make_update(min_q_weight=5.0, min_q_weight_online=online_weight)
        offline, bellman = losses_of(update, noise)
        update.online = True
        online, _ = losses_of(update, noise)
        gap = (offline - float(bellman.sum())) / 5.0
        weights[online_weight] = (online - float(bellman.sum())) / gap
    assert weights == {None: pytest.approx(5.0), 0.0: pytest.approx(0.0), 2.0: pytest.approx(2.0)}


def test_online_sac_goes_on_with_the_same_parameters() -> None:
    update = make_update(min_q_weight_online=0.0, lagrangian=True)
    assert step(update).keys() >= CONSERVATIVE
    before = update.weights()
    update.online = True
    metrics = step(update)
    assert not metrics.keys() & CONSERVATIVE
    assert metrics["critic_loss"] == pytest.approx(metrics["bellman_loss"])
    # the multiplier has nothing to weigh: Adam's momentum must not carry it on
    assert moved(before, update.weights()) == {"actor", "critics", "target_critics", "log_alpha"}


@pytest.mark.parametrize(
    ("calibrate", "calibrate_online", "online", "expected"),
    [
        (True, True, False, True),
        (True, True, True, True),
        (True, False, False, True),
        (True, False, True, False),
        (False, True, False, False),
        (False, True, True, False),
    ],
)
def test_calibration_by_phase(calibrate: bool, calibrate_online: bool, online: bool, expected: bool) -> None:
    noise = make_update().draw_noise(5)
    update = make_update(calibrate=calibrate, calibrate_online=calibrate_online)
    update.online = online
    assert update.calibrated is expected
    batch = arrays() | {"mc_returns": np.full(5, 10.0)}  # above every Q: calibration would raise the gap by 10
    _, critic = update.gradients(update.to_tensors(batch), noise)
    assert critic.gaps is not None
    assert bool((critic.gaps > 8.0).all()) is expected


# ---- behaviour cloning


def behaviour(observations: np.ndarray) -> np.ndarray:
    """A function of two numbers whose second entry is saturated everywhere."""
    return np.stack([0.8 * np.sin(2.0 * observations[:, 0]), 0.99999 * np.sign(observations[:, 1])], axis=1)


def test_behaviour_cloning_clones_saturated_actions_too() -> None:
    config = UpdateConfig(
        actor_hiddens=(32, 32),
        critic_hiddens=(8,),
        bc_iters=400,
        actor_lr=5e-3,
        num_actions=1,
        min_q_weight=0.0,
    )
    update = CalQLUpdate(2, 2, config, seed=0)
    rng = np.random.default_rng(0)

    def batch(size: int) -> dict[str, np.ndarray]:
        observations = rng.uniform(-1, 1, (size, 2)).astype(np.float32)
        zeros = np.zeros(size, np.float32)
        columns = dict.fromkeys(("rewards", "dones", "mc_returns"), zeros)
        actions = behaviour(observations).astype(np.float32)
        return {
            "observations": observations,
            "next_observations": observations,
            "actions": actions,
            **columns,
        }

    def error() -> float:
        test = batch(500)
        actions, _ = update.act(torch.as_tensor(test["observations"]))
        return float(np.square(actions.numpy() - test["actions"]).mean())

    start = error()
    update.run(lambda: batch(64), 300)
    assert start > 0.5
    assert error() < 0.03


def test_cloning_ends_after_bc_iters_updates() -> None:
    update = make_update(bc_iters=2)
    kinds = []
    for seed in range(4):
        batch, noise = update.to_tensors(arrays(seed=seed)), update.draw_noise(5)
        with torch.no_grad():
            policy, alpha = update.actor(batch["observations"]), update.alpha()
            actions, log_probs = policy.sample(noise.actor)
            q = update.critics(batch["observations"], actions.unsqueeze(1)).squeeze(-1)
            cloning = (torch.tanh(policy.mean) - batch["actions"]).square().sum(
                1
            ).mean() + alpha * log_probs.mean()
            improving = (alpha * log_probs - q.amin(0)).mean()
        found = update.step(batch, noise)["actor_loss"]
        close = [math.isclose(found, loss, rel_tol=1e-9) for loss in (cloning, improving)]
        assert sum(close) == 1
        kinds.append(["cloning", "improving"][close.index(True)])
    assert kinds == ["cloning", "cloning", "improving", "improving"]


def test_online_the_actor_may_move_once_per_environment_step() -> None:
    """Its losses are then not even computed in the other updates, and its figures are means over those with it."""
    update, often = make_update(online_actor_interval=3, num_critics=3), make_update(num_critics=3)
    update.run(lambda: arrays(), 2)  # offline: always
    often.run(lambda: arrays(), 2)
    assert moved(often.weights(), update.weights()) == set()
    update.online = True
    batch, steps = update.to_tensors(arrays()), []
    for number in range(2, 7):
        before = update.weights()
        figures = update.step(batch)
        networks = moved(before, update.weights())
        assert {"critics", "target_critics"} <= networks
        assert (
            ("actor" in networks) == ("log_alpha" in networks) == ("actor_loss" in figures) == (number in (2, 5))
        )
        assert ("alpha" in figures) == ("entropy" in figures) == (number in (2, 5))
        steps.append(figures)
    again = make_update(online_actor_interval=3, num_critics=3)
    again.run(lambda: arrays(), 2)
    again.online = True
    found = again.run(lambda: arrays(), 5)
    np.testing.assert_equal(again.get_state(), update.get_state())
    for name, number in (("actor_loss", 2), ("entropy", 2), ("critic_loss", 5)):
        assert found[name] == pytest.approx(sum(float(one[name]) for one in steps if name in one) / number)
    # From a state of its middle, and from one in which Adam does not know the actor yet.
    fresh = make_update(online_actor_interval=3, num_critics=3)
    fresh.online = True
    fresh.run(lambda: arrays(), 1)
    for update in (fresh, again):
        restored = make_update(seed=1, online_actor_interval=3, num_critics=3)
        restored.set_state(update.get_state())
        both = [one.run(lambda: arrays(seed=3), 4) for one in (update, restored)]
        assert both[0] == both[1]
        np.testing.assert_equal(restored.get_state(), update.get_state())


def test_the_cloned_mean_feels_the_squared_error_alone() -> None:
    update = make_update(bc_iters=10)
    batch, noise = update.to_tensors(arrays()), update.draw_noise(5)
    policy = update.actor(batch["observations"])
    loss = update.actor_losses(batch, batch["observations"], policy, noise).actor_loss
    (found,) = torch.autograd.grad(loss, policy.mean, retain_graph=True)
    (expected,) = torch.autograd.grad((policy.mode - batch["actions"]).square().sum(1).mean(), policy.mean)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


# ---- figures


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ALWAYS | CONSERVATIVE),
        ({"lagrangian": True}, ALWAYS | CONSERVATIVE | {"alpha_prime"}),
        ({"min_q_weight": 0.0}, ALWAYS),
        ({"calibrate": False}, ALWAYS | CONSERVATIVE),
        ({"bc_iters": 5, "learn_alpha": False}, ALWAYS | CONSERVATIVE),
    ],
)
def test_figures_that_exist_and_no_others(settings: dict[str, Any], expected: set[str]) -> None:
    update = make_update(**settings)
    metrics = update.step(update.to_tensors(arrays()))
    assert metrics.keys() == expected
    assert all(value.dim() == 0 and not value.requires_grad for value in metrics.values())


def test_figures_are_what_they_say_at_the_parameters_before_the_step() -> None:
    update = make_update(lagrangian=True, num_critics=3)
    batch, noise = update.to_tensors(arrays()), update.draw_noise(5)
    before = copy.deepcopy(update)
    metrics = update.step(batch, noise)
    actor, critic = gradients(before, batch, noise)
    observations = batch["observations"]
    with torch.no_grad():
        policy, after = before.actor(observations), before.actor(batch["next_observations"])
        q = before.critics(
            observations, torch.cat([policy.sample(noise.current)[0], after.sample(noise.next)[0]], 1)
        )
        q_data = before.critics(observations, batch["actions"].unsqueeze(1))
    below = q < batch["mc_returns"][:, None]
    assert 0.0 < float(metrics["bound_rate"]) < 1.0
    expected = {
        "actor_loss": actor.actor_loss,
        "critic_loss": critic.critic_losses.mean(),
        "bellman_loss": (q_data.squeeze(-1) - critic.target).square().mean(),
        "q_data_mean": q_data.mean(),
        "mc_return_mean": batch["mc_returns"].mean(),
        "alpha": before.log_alpha.exp(),
        "entropy": -policy.sample(noise.actor)[1].mean(),
        "bound_rate": below.double().mean(),
        "q_policy_mean": q.mean(),
        "conservative_gap": torch.zeros(()) if critic.gaps is None else critic.gaps.mean(),
        "alpha_prime": before.log_alpha_prime.exp(),
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert float(metrics[name]) == pytest.approx(float(value.detach()), rel=1e-10), name


def test_rows_without_a_return_are_left_out_of_its_mean() -> None:
    update = make_update()
    batch = arrays() | {"mc_returns": np.array([1.0, -np.inf, 4.0, -np.inf, 1.0], np.float32)}
    metrics = update.step(update.to_tensors(batch))
    assert float(metrics["mc_return_mean"]) == pytest.approx(2.0)
    assert all(math.isfinite(float(value)) for value in metrics.values())
    assert all(np.isfinite(array).all() for array in update.weights().values())


def test_run_averages_its_steps() -> None:
    one, many = make_update(lagrangian=True), make_update(lagrangian=True)
    single = [step(one, seed) for seed in range(4)]
    batches = iter([arrays(seed=seed) for seed in range(4)])
    found = many.run(lambda: next(batches), 4)
    assert found.keys() == single[0].keys()
    for name, value in found.items():
        assert value == pytest.approx(np.mean([metrics[name] for metrics in single]), rel=1e-12)
    assert many.num_updates == 4
    assert moved(one.weights(), many.weights()) == set()
    assert many.run(arrays, 0) == {}
    assert many.num_updates == 4
