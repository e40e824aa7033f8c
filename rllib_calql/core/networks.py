"""The tanh-Gaussian actor and the ensemble of critics."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rllib_calql.core.passes import CriticPasses

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "elu": F.elu,
    "silu": F.silu,
    "gelu": F.gelu,
}

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0
HIDDEN_GAIN, OUTPUT_GAIN = math.sqrt(2.0), 0.01
# atanh(+-1) is infinite; data actions are kept this far inside the bounds.
MAX_ACTION = 0.99999


class TanhGaussian(NamedTuple):
    """Diagonal Gaussian squashed by tanh; `mean` and `log_std` are (B, A), before the squashing."""

    mean: Tensor
    log_std: Tensor

    def sample(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Reparameterised actions and their log-probabilities.

        Args:
            noise: standard normal, (B, A) for one action per state or (B, N, A) for N.

        Returns:
            Actions in [-1, 1] of `noise`'s shape, and log pi of that shape without its last axis.
        """
        mean, log_std = self.mean, self.log_std
        if noise.dim() == 3:
            mean, log_std = mean.unsqueeze(1), log_std.unsqueeze(1)
        pre_tanh = torch.addcmul(mean, log_std.exp(), noise)
        return torch.tanh(pre_tanh), _log_prob(noise, log_std, pre_tanh)

    def log_prob(self, actions: Tensor) -> Tensor:
        """log pi of given actions (B, A), pulled inside the open interval first. Returns (B,)."""
        pre_tanh = torch.atanh(actions.clamp(-MAX_ACTION, MAX_ACTION))
        noise = (pre_tanh - self.mean) * torch.exp(-self.log_std)
        return _log_prob(noise, self.log_std, pre_tanh)

    @property
    def mode(self) -> Tensor:
        """The deterministic action tanh(mean), (B, A)."""
        return torch.tanh(self.mean)

    def best(self) -> tuple[Tensor, Tensor]:
        """The deterministic actions and their log-probabilities; shapes as of `sample`."""
        return self.sample(torch.zeros_like(self.mean))

    @property
    def inputs(self) -> Tensor:
        """All parameters side by side: mean and log-std, (B, 2A)."""
        return torch.cat([self.mean, self.log_std], dim=-1)


def _log_prob(noise: Tensor, log_std: Tensor, pre_tanh: Tensor) -> Tensor:
    """Gaussian log-density less the exact log-determinant of tanh (no epsilon inside a logarithm)."""
    # log-density + 2 * (u + softplus(-2u)) - 2 log 2, its constant parts added to the sums alone
    terms = torch.add(pre_tanh, F.softplus(-2.0 * pre_tanh)).mul(2.0).sub(noise.square(), alpha=0.5)
    constant = noise.shape[-1] * (0.5 * math.log(2.0 * math.pi) + 2.0 * math.log(2.0))
    return terms.sum(-1) - log_std.sum(-1) - constant


class MLP(nn.Module):
    """Linear layers with an activation between them: what actors and value networks are made of.

    Args:
        sizes: of input, hidden layers and output.
        activation: a name in `ACTIVATIONS`.
        orthogonal_init: orthogonal weights and zero biases, the last layer near zero; else torch's default.
    """

    def __init__(self, sizes: Sequence[int], activation: str, orthogonal_init: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in itertools.pairwise(sizes))
        self.activation = ACTIVATIONS[activation]
        if orthogonal_init:
            for index, layer in enumerate(self.layers):
                assert isinstance(layer, nn.Linear)
                nn.init.orthogonal_(layer.weight, OUTPUT_GAIN if index == len(self.layers) - 1 else HIDDEN_GAIN)
                nn.init.zeros_(layer.bias)

    def outputs(self, inputs: Tensor) -> Tensor:
        """Inputs (B, in) -> outputs (B, out), nothing after the last layer."""
        hidden = inputs
        for layer in self.layers[:-1]:
            hidden = self.activation(layer(hidden))
        return self.layers[-1](hidden)


class TanhGaussianActor(MLP):
    """MLP(s) -> mean and raw log-std; log_std = clip(multiplier * raw + offset, -20, 2).

    The multiplier and the offset are two trained scalars, as in the reference implementation.
    """

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        hiddens: Sequence[int] = (256, 256),
        activation: str = "relu",
        orthogonal_init: bool = True,
    ) -> None:
        super().__init__([obs_dim, *hiddens, 2 * act_dim], activation, orthogonal_init)
        self.log_std_multiplier = nn.Parameter(torch.tensor(1.0))
        self.log_std_offset = nn.Parameter(torch.tensor(-1.0))

    def forward(self, observations: Tensor) -> TanhGaussian:
        """Observations (B, obs_dim) -> the policy's distribution over (B, act_dim)."""
        mean, raw = self.outputs(observations).chunk(2, dim=-1)
        log_std = (self.log_std_multiplier * raw + self.log_std_offset).clamp(LOG_STD_MIN, LOG_STD_MAX)
        return TanhGaussian(mean, log_std)


class ValueNetwork(MLP):
    """MLP(s) -> V(s), built as a critic is."""

    def __init__(
        self,
        obs_dim: int,
        hiddens: Sequence[int] = (256, 256),
        activation: str = "relu",
        orthogonal_init: bool = True,
    ) -> None:
        super().__init__([obs_dim, *hiddens, 1], activation, orthogonal_init)

    def forward(self, observations: Tensor) -> Tensor:
        """Observations (B, obs_dim) -> values (B,)."""
        return self.outputs(observations).squeeze(-1)


class CriticEnsemble(nn.Module):
    """E independent networks Q_i(s, a), their tensors stacked on axis 0; `CriticPasses` computes with them.

    `weights[l]` is (E, in, out) and `biases[l]` (E, 1, out). With `layer_norm`, each hidden layer is
    normalised before its activation.
    """

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        hiddens: Sequence[int] = (256, 256),
        num_critics: int = 2,
        activation: str = "relu",
        orthogonal_init: bool = True,
        layer_norm: bool = False,
        num_outputs: int = 1,
    ) -> None:
        super().__init__()
        self.obs_dim, self.num_critics, self.hiddens = obs_dim, num_critics, tuple(hiddens)
        sizes = [obs_dim + act_dim, *hiddens, num_outputs]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            weight = torch.empty(num_critics, fan_in, fan_out)
            bias = torch.zeros(num_critics, 1, fan_out)
            for member in range(num_critics):
                if orthogonal_init:
                    gain = OUTPUT_GAIN if layer == len(hiddens) else HIDDEN_GAIN
                    nn.init.orthogonal_(weight[member].T, gain)
                else:  # torch's own default for a linear layer
                    linear = nn.Linear(fan_in, fan_out)
                    weight[member] = linear.weight.detach().T
                    bias[member, 0] = linear.bias.detach()
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(bias))
        self.norm_scales, self.norm_offsets = nn.ParameterList(), nn.ParameterList()
        if layer_norm:
            for width in hiddens:
                self.norm_scales.append(nn.Parameter(torch.ones(num_critics, 1, width)))
                self.norm_offsets.append(nn.Parameter(torch.zeros(num_critics, 1, width)))
        self.activation = ACTIVATIONS[activation]

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Q-values of K actions per state; autograd can differentiate them by the actions only.

        Args:
            observations: (B, obs_dim).
            actions: (B, K, act_dim), in [-1, 1].

        Returns:
            (E, B, K).
        """
        return CriticPasses(self).values_of_actions(observations, actions)
