"""Critic ensembles as plain torch modules, one `nn.Sequential` per member."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from rllib_calql.core import CriticEnsemble

MODULES: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}


def random_ensemble(num_critics: int, activation: str = "relu", layer_norm: bool = False) -> CriticEnsemble:
    """3 observation and 2 action numbers; every parameter random, also what starts at 0 or 1."""
    critics = CriticEnsemble(3, 2, (8, 7, 8), num_critics, activation, True, layer_norm).double()
    with torch.no_grad():
        for parameter in critics.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return critics


def member_networks(critics: CriticEnsemble, activation: str) -> list[nn.Sequential]:
    """A module for every member, with its weights."""
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


def member_gradients(critics: CriticEnsemble, member: int) -> list[torch.Tensor]:
    """One member's gradients in the order and layout of its module's parameters."""
    found = []
    for index, (weight, bias) in enumerate(zip(critics.weights, critics.biases, strict=True)):
        pairs = [(weight, True), (bias, False)]
        if index < len(critics.norm_scales):
            pairs += [(critics.norm_scales[index], False), (critics.norm_offsets[index], False)]
        for parameter, transposed in pairs:
            assert parameter.grad is not None
            gradient = parameter.grad[member]
            found.append(gradient.T if transposed else gradient[0])
    return found
