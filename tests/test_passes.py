"""The critics' passes against plain modules and autograd, one member at a time."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from rllib_calql.core import CriticEnsemble, passes
from rllib_calql.core.passes import CriticPasses
from tests.ensembles import MODULES, member_gradients, member_networks, random_ensemble

STATES, PER_STATE = 5, 6


def some_inputs(batch: int = STATES) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 3).double(), torch.rand(batch, PER_STATE, 2).double() * 2 - 1


@pytest.fixture(params=[1, 2, 100])
def states_per_slice(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """One state at a time; slices of 2, 2 and 1; the whole batch."""
    monkeypatch.setattr(passes, "SLICE_BYTES", request.param * PER_STATE * 8 * 8)
    return int(request.param)


@pytest.mark.usefixtures("states_per_slice")
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("activation", MODULES)
def test_values_and_gradients_of_separate_networks(activation: str, layer_norm: bool) -> None:
    torch.manual_seed(0)
    critics = random_ensemble(3, activation, layer_norm)
    observations, actions = some_inputs()
    weighting = torch.randn(STATES, PER_STATE).double()
    products = CriticPasses(critics)
    for _ in range(2):  # the second time over buffers and gradients that are in use
        by_observations = torch.full_like(observations, torch.nan)
        q = products.differentiate(
            observations, actions, lambda q, states: 2.0 * weighting[states] * q, by_observations
        )
    values = products.values(observations, actions)
    torch.testing.assert_close(critics(observations, actions), values, rtol=1e-13, atol=1e-15)
    observations.requires_grad_()
    rows = torch.cat([observations.repeat_interleave(PER_STATE, dim=0), actions.flatten(0, 1)], dim=1)
    for member, network in enumerate(member_networks(critics, activation)):
        expected = network(rows).view(STATES, PER_STATE)
        for found in (q, values):
            torch.testing.assert_close(found[member], expected, rtol=1e-12, atol=1e-12)
        inputs = [*network.parameters(), observations]
        *gradients, theirs = torch.autograd.grad((weighting * expected.square()).sum(), inputs, retain_graph=True)
        by_observations -= theirs
        for ours, theirs in zip(member_gradients(critics, member), gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert float(by_observations.abs().max()) < 1e-12  # summed over the networks


def test_a_single_hidden_layer_and_a_single_critic() -> None:
    critics = CriticEnsemble(3, 2, (8,), 1).double()
    observations, actions = some_inputs()
    CriticPasses(critics).differentiate(observations, actions, lambda q, states: torch.ones_like(q))
    (network,) = member_networks(critics, "relu")
    rows = torch.cat([observations.repeat_interleave(PER_STATE, dim=0), actions.flatten(0, 1)], dim=1)
    gradients = torch.autograd.grad(network(rows).sum(), list(network.parameters()))
    for ours, theirs in zip(member_gradients(critics, 0), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("states_per_slice")
def test_batches_of_any_size_one_after_another() -> None:
    critics = random_ensemble(2)
    products, fresh = CriticPasses(critics), CriticPasses(critics)
    for size in (STATES, 1, 7, STATES):
        observations, actions = some_inputs(size)
        found = products.values(observations, actions).clone()
        assert found.shape == (2, size, PER_STATE)
        rows = [fresh.values(observations[b : b + 1], actions[b : b + 1]).clone() for b in range(size)]
        torch.testing.assert_close(found, torch.cat(rows, dim=1), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_subset_of_members(layer_norm: bool, dtype: torch.dtype | None) -> None:
    critics = random_ensemble(5, layer_norm=layer_norm)
    observations, actions = some_inputs()
    products = CriticPasses(critics, dtype)
    everyone = products.values(observations, actions).clone()
    for members in ([3], [4, 0], [1, 2], [1, 2, 3]):
        found = products.values(observations, actions, torch.tensor(members))
        torch.testing.assert_close(found, everyone[members], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("activation", MODULES)
def test_actions_carry_gradients(activation: str, layer_norm: bool) -> None:
    critics = random_ensemble(2, activation, layer_norm)
    observations, actions = some_inputs()
    assert torch.autograd.gradcheck(lambda a: critics(observations, a), (actions.requires_grad_(),))
    assert all(parameter.grad is None for parameter in critics.parameters())


@pytest.mark.parametrize("layer_norm", [False, True])
def test_bfloat16_products_stay_close_and_leave_parameters_alone(layer_norm: bool) -> None:
    torch.manual_seed(0)
    critics = CriticEnsemble(6, 2, (64, 64), 2, layer_norm=layer_norm)
    with torch.no_grad():
        critics.weights[-1].mul_(50.0)
    before = copy.deepcopy(critics.state_dict())
    observations, actions = torch.randn(32, 6), torch.rand(32, 4, 2) * 2 - 1
    by_q = torch.randn(32, 4)
    gradients, values = {}, {}
    for dtype in (torch.float32, torch.bfloat16):
        products = CriticPasses(critics, dtype)
        values[dtype] = products.differentiate(
            observations, actions, lambda q, states: by_q[states].expand_as(q)
        ).clone()
        gradients[dtype] = [p.grad.clone() for p in critics.parameters() if p.grad is not None]

    def error(found: Tensor, expected: Tensor) -> float:
        assert found.dtype == torch.float32
        assert not torch.equal(found, expected) or found.numel() == 2  # the last bias: sums of by_q
        return float((found - expected).norm() / expected.norm())

    assert error(values[torch.bfloat16], values[torch.float32]) < 0.01  # 8 bits of mantissa
    for found, expected in zip(gradients[torch.bfloat16], gradients[torch.float32], strict=True):
        assert error(found, expected) < 0.1  # of sums that mostly cancel
    for name, tensor in critics.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_refresh_follows_the_parameters() -> None:
    critics = random_ensemble(2)
    observations, actions = some_inputs()
    products = CriticPasses(critics, torch.bfloat16)
    before = products.values(observations, actions).clone()
    with torch.no_grad():
        critics.weights[1].mul_(2.0)
    assert torch.equal(products.values(observations, actions), before)
    products.refresh()
    expected = CriticPasses(critics, torch.bfloat16).values(observations, actions)
    assert torch.equal(products.values(observations, actions), expected)
    assert not torch.equal(before, expected)
