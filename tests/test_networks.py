"""The actor's density and the ensemble of critics against torch's own, one member at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from rllib_calql.core import CriticEnsemble, TanhGaussianActor
from rllib_calql.core.networks import ACTIVATIONS, LOG_STD_MAX, LOG_STD_MIN, MAX_ACTION, TanhGaussian

MODULES: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}


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


def member_networks(critics: CriticEnsemble, activation: str) -> list[nn.Sequential]:
    """A plain `nn.Sequential` for every member, with its weights."""
    networks = []
    for member in range(critics.num_critics):
        layers: list[nn.Module] = []
        for index, (weight, bias) in enumerate(zip(critics.weights, critics.biases, strict=True)):
            linear = nn.Linear(weight.shape[1], weight.shape[2], dtype=weight.dtype)
            with torch.no_grad():
                linear.weight.copy_(weight[member].T)
                linear.bias.copy_(bias[member, 0])
            layers.append(linear)
            if index < len(critics.norm_scales):
                norm = nn.LayerNorm(weight.shape[2], dtype=weight.dtype)
                with torch.no_grad():
                    norm.weight.copy_(critics.norm_scales[index][member, 0])
                    norm.bias.copy_(critics.norm_offsets[index][member, 0])
                layers.append(norm)
            layers.append(MODULES[activation]())
        networks.append(nn.Sequential(*layers[:-1]))
    return networks


def random_ensemble(num_critics: int, activation: str = "relu", layer_norm: bool = False) -> CriticEnsemble:
    critics = CriticEnsemble(3, 2, (8, 7, 6), num_critics, activation, True, layer_norm).double()
    with torch.no_grad():
        for parameter in critics.parameters():  # also what starts at 0 or 1
            parameter.add_(0.3 * torch.randn_like(parameter))
    return critics


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("activation", MODULES)
@pytest.mark.parametrize("num_critics", [1, 2, 5])
def test_ensemble_equals_separate_networks(num_critics: int, activation: str, layer_norm: bool) -> None:
    torch.manual_seed(num_critics)
    critics = random_ensemble(num_critics, activation, layer_norm)
    networks = member_networks(critics, activation)
    observations, actions = torch.randn(4, 3).double(), torch.rand(4, 6, 2).double() * 2 - 1
    found = critics(observations, actions)
    assert found.shape == (num_critics, 4, 6)
    weighting = torch.randn(num_critics, 4, 6, dtype=torch.float64)
    gradients = torch.autograd.grad((found * weighting).sum(), list(critics.weights))
    for member, network in enumerate(networks):
        for b in range(4):
            for k in range(6):  # the state repeated beside every action
                expected = network(torch.cat([observations[b], actions[b, k]]))
                torch.testing.assert_close(found[member, b, k], expected[0], rtol=1e-12, atol=1e-12)
        rows = torch.cat([observations.repeat_interleave(6, dim=0), actions.reshape(24, 2)], dim=1)
        loss = (network(rows)[:, 0] * weighting[member].reshape(-1)).sum()
        linear_weights = [layer.weight for layer in network if isinstance(layer, nn.Linear)]
        for ours, theirs in zip(gradients, torch.autograd.grad(loss, linear_weights), strict=True):
            torch.testing.assert_close(ours[member], theirs.T, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_a_subset_of_members(layer_norm: bool) -> None:
    critics = random_ensemble(5, layer_norm=layer_norm)
    observations, actions = torch.randn(4, 3).double(), torch.randn(4, 2, 2).double()
    everyone = critics(observations, actions)
    for members in ([3], [4, 0], [1, 2, 3]):
        found = critics(observations, actions, torch.tensor(members))
        assert found.shape == (len(members), 4, 2)
        torch.testing.assert_close(found, everyone[members], rtol=1e-13, atol=1e-13)


def test_actions_carry_gradients() -> None:
    critics = random_ensemble(2)
    observations = torch.randn(3, 3, dtype=torch.float64)
    actions = torch.randn(3, 1, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: critics(observations, a), (actions,))


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


@pytest.mark.parametrize("layer_norm", [False, True])
def test_bfloat16_products_stay_close_and_leave_parameters_alone(layer_norm: bool) -> None:
    torch.manual_seed(0)
    critics = CriticEnsemble(6, 2, (64, 64), 2, layer_norm=layer_norm)
    with torch.no_grad():
        critics.weights[-1].mul_(50.0)
    observations, actions = torch.randn(32, 6), torch.rand(32, 4, 2) * 2 - 1
    expected = critics(observations, actions)
    critics.compute_dtype = torch.bfloat16
    found = critics(observations, actions)
    assert found.dtype == torch.float32
    assert not torch.equal(found, expected)
    error = (found - expected).abs().max() / expected.abs().max()
    assert error < 0.03  # 8 bits of mantissa
    gradients = torch.autograd.grad(found.sum(), list(critics.parameters()))
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    assert {parameter.dtype for parameter in critics.parameters()} == {torch.float32}


def test_activations_are_torchs() -> None:
    assert ACTIVATIONS.keys() == MODULES.keys()
    values = torch.tensor(np.linspace(-3, 3, 7))
    for name, module in MODULES.items():
        torch.testing.assert_close(ACTIVATIONS[name](values), module()(values), rtol=0, atol=0)
