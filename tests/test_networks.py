"""The actor's density and the ensemble of critics against torch's own, one member at a time."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from rllib_calql.core import CriticEnsemble, TanhGaussianActor
from rllib_calql.core.networks import ACTIVATIONS, LOG_STD_MAX, LOG_STD_MIN, MAX_ACTION, TanhGaussian
from tests.ensembles import MODULES


def double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random_policy(batch: int, act_dim: int, seed: int = 0) -> TanhGaussian:
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(batch, act_dim, generator=generator, dtype=torch.float64)
    log_std = torch.randn(batch, act_dim, generator=generator, dtype=torch.float64) * 0.5 - 1.0
    return TanhGaussian(mean, log_std)


def as_distribution(policy: TanhGaussian) -> Independent:
    normal = Normal(policy.mean, policy.log_std.exp())
    return Independent(TransformedDistribution(normal, [TanhTransform()]), 1)


# ---- the tanh-Gaussian


def test_density_of_literal_actions() -> None:
    # standard normal before the tanh: log pi(0) = -log(2 pi)/2; at 1/2, u = atanh(1/2) and 1 - a^2 = 3/4
    policy = TanhGaussian(double([[0.0], [0.0]]), double([[0.0], [0.0]]))
    expected = [-0.9189385332, -0.9189385332 - 0.5493061443**2 / 2 + 0.2876820724]
    torch.testing.assert_close(policy.log_prob(double([[0.0], [0.5]])), double(expected), atol=1e-9, rtol=0)
    actions, log_probs = policy.sample(double([[0.0], [0.5493061443]]))
    torch.testing.assert_close(actions, double([[0.0], [0.5]]), atol=1e-9, rtol=0)
    torch.testing.assert_close(log_probs, double(expected), atol=1e-9, rtol=0)


@pytest.mark.parametrize("act_dim", [1, 3, 8])
def test_density_equals_torch_distributions(act_dim: int) -> None:
    policy = random_policy(20, act_dim)
    noise = torch.randn(20, act_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    actions, log_probs = policy.sample(noise)
    assert actions.shape == (20, act_dim)
    assert log_probs.shape == (20,)
    torch.testing.assert_close(actions, torch.tanh(policy.mean + policy.log_std.exp() * noise))
    expected = as_distribution(policy).log_prob(actions)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(log_probs, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(policy.log_prob(actions), expected, rtol=1e-9, atol=1e-9)


def test_several_actions_are_several_single_actions() -> None:
    policy = random_policy(4, 2)
    noise = torch.randn(4, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    actions, log_probs = policy.sample(noise)
    assert actions.shape == (4, 5, 2)
    assert log_probs.shape == (4, 5)
    for n in range(5):
        action, log_prob = policy.sample(noise[:, n])
        torch.testing.assert_close(actions[:, n], action, rtol=0, atol=0)
        torch.testing.assert_close(log_probs[:, n], log_prob, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, -1.0), (1.0, 0.0), (-0.4, -2.0)])
def test_density_integrates_to_one(mean: float, log_std: float) -> None:
    actions = torch.linspace(-MAX_ACTION, MAX_ACTION, 200_001, dtype=torch.float64)
    policy = TanhGaussian(double([[mean]]), double([[log_std]]))
    density = policy.log_prob(actions.unsqueeze(1)).exp()
    assert torch.trapezoid(density, actions).item() == pytest.approx(1.0, abs=2e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saturated_actions_are_finite(dtype: torch.dtype) -> None:
    mean = torch.tensor([[30.0, -30.0], [0.0, 0.0], [6.0, -6.0]], dtype=dtype, requires_grad=True)
    log_std = torch.tensor([[2.0, -20.0], [2.0, -5.0], [-20.0, 0.0]], dtype=dtype, requires_grad=True)
    policy = TanhGaussian(mean, log_std)
    actions, log_probs = policy.sample(torch.full((3, 2), 3.0, dtype=dtype))
    assert actions.abs().max() <= 1.0
    extremes = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [0.99999, -1.0]], dtype=dtype)
    assert log_probs.isfinite().all()
    assert policy.log_prob(extremes).isfinite().all()
    for gradient in torch.autograd.grad(log_probs.sum() + actions.sum(), [mean, log_std]):
        assert gradient.isfinite().all()
    # the bounds are pulled inside, to the same value that data actions are clipped to
    clipped = extremes.clamp(-0.99999, 0.99999)
    torch.testing.assert_close(policy.log_prob(extremes), policy.log_prob(clipped), rtol=0, atol=0)


def test_mode_is_the_squashed_mean() -> None:
    policy = TanhGaussian(double([[0.0, 0.5493061443]]), double([[1.0, -3.0]]))
    torch.testing.assert_close(policy.mode, double([[0.0, 0.5]]), atol=1e-9, rtol=0)


# ---- the actor


@pytest.mark.parametrize("activation", MODULES)
def test_actor_is_an_mlp_with_a_scaled_log_std(activation: str) -> None:
    actor = TanhGaussianActor(3, 2, (7, 5), activation).double()
    layers: list[nn.Module] = []
    for linear in actor.layers:
        layers += [linear, MODULES[activation]()]
    with torch.no_grad():
        for parameter in actor.layers.parameters():
            parameter.normal_(std=0.3)
        actor.log_std_multiplier.fill_(0.5)
        actor.log_std_offset.fill_(-2.0)
    observations = torch.randn(6, 3, dtype=torch.float64)
    output = nn.Sequential(*layers[:-1])(observations)
    policy = actor(observations)
    torch.testing.assert_close(policy.mean, output[:, :2], rtol=0, atol=0)
    torch.testing.assert_close(policy.log_std, 0.5 * output[:, 2:] - 2.0)


def test_actor_starts_with_the_reference_scalars_and_clips_log_std() -> None:
    actor = TanhGaussianActor(3, 2, (8,))
    assert actor.log_std_multiplier.item() == 1.0
    assert actor.log_std_offset.item() == -1.0
    assert {"log_std_multiplier", "log_std_offset"} <= {name for name, _ in actor.named_parameters()}
    with torch.no_grad():
        list(actor.layers.parameters())[-1].copy_(torch.tensor([0.0, 0.0, 500.0, -500.0]))
    log_std = actor(torch.zeros(1, 3)).log_std
    assert log_std.tolist() == [[LOG_STD_MAX, LOG_STD_MIN]] == [[2.0, -20.0]]
    # a clipped entry has no gradient, also not for the multiplier
    (gradient,) = torch.autograd.grad(log_std.sum(), actor.log_std_multiplier)
    assert gradient.item() == 0.0


# ---- the ensemble


@pytest.mark.parametrize(("hiddens", "obs_dim", "act_dim"), [((16, 16), 5, 3), ((4, 32), 11, 1), ((64,), 2, 2)])
def test_orthogonal_start(hiddens: tuple[int, ...], obs_dim: int, act_dim: int) -> None:
    torch.manual_seed(0)
    critics = CriticEnsemble(obs_dim, act_dim, hiddens, 3)
    actor = TanhGaussianActor(obs_dim, act_dim, hiddens)

    def check(matrix: Tensor, gain: float) -> None:
        small = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
        torch.testing.assert_close(small, gain**2 * torch.eye(len(small)), rtol=0, atol=1e-5)

    for sizes, weights in (
        ([obs_dim + act_dim, *hiddens, 1], [[w[i] for w in critics.weights] for i in range(3)]),
        ([obs_dim, *hiddens, 2 * act_dim], [[p.T for p in actor.layers.parameters() if p.dim() == 2]]),
    ):
        for member in weights:
            assert [tuple(w.shape) for w in member] == list(pairwise(sizes))
            for index, weight in enumerate(member):
                check(weight.detach(), 0.01 if index == len(hiddens) else math.sqrt(2.0))
    for bias in [p for p in actor.layers.parameters() if p.dim() == 1] + list(critics.biases):
        assert bias.abs().max() == 0.0
    for weight in critics.weights:
        assert not torch.equal(weight[0], weight[1])
        assert not torch.equal(weight[1], weight[2])


def test_default_start_is_torchs_linear() -> None:
    torch.manual_seed(0)
    critics = CriticEnsemble(50, 14, (64, 64), 2, orthogonal_init=False)
    for weight, bias in zip(critics.weights, critics.biases, strict=True):
        limit = 1.0 / math.sqrt(64)  # U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for weights and biases
        for tensor in (weight, bias):
            assert 0.0 < tensor.abs().max() <= limit
            assert not torch.equal(tensor[0], tensor[1])
        assert weight.std().item() == pytest.approx(limit / math.sqrt(3.0), rel=0.2)


def test_activations_are_torchs() -> None:
    assert ACTIVATIONS.keys() == MODULES.keys()
    values = torch.tensor(np.linspace(-3, 3, 7))
    for name, module in MODULES.items():
        torch.testing.assert_close(ACTIVATIONS[name](values), module()(values), rtol=0, atol=0)
