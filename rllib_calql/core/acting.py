"""Exploration, the same on both API stacks."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rllib_calql.core.networks import TanhGaussian


def random_actions(noise: Tensor, discrete: bool = False) -> tuple[Tensor, Tensor]:
    """Uniform actions, (B, A) in [-1, 1] or numbers (B,), and their log-probabilities (B,), whatever the policy.

    Args:
        noise: standard normal, as for sampling from a policy: an episode stays a function of its seed. (B, A), or
            (B, N, A) of which the first counts.
        discrete: whether there are A actions, instead of actions of A numbers.
    """
    noise = noise[:, 0] if noise.dim() == 3 else noise
    count = noise.shape[1]
    if discrete:
        return noise.argmax(-1), torch.full_like(noise[:, 0], -math.log(count))
    actions = torch.special.ndtr(noise).mul(2.0).sub(1.0)
    return actions, torch.full_like(actions[:, 0], -count * math.log(2.0))


def sampled_actions(
    policy: TanhGaussian, noise: Tensor, q_values: Callable[[Tensor], Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Actions of the policy and their log-probabilities under it, (B, A) and (B,).

    Args:
        policy: of B states.
        noise: standard normal, (B, A); or (B, N, A) for the best of N actions by `q_values` (O3F, Mark et al.
            2022, "Fine-tuning offline policies with optimistic action selection").
        q_values: from actions (B, N, A) to the critics' values (E, B, N), whose minimum counts.
    """
    actions, log_probs = policy.sample(noise)
    if noise.dim() == 2:
        return actions, log_probs
    assert q_values is not None
    best = q_values(actions).amin(0).argmax(dim=1)
    rows = torch.arange(len(best), device=best.device)
    return actions[rows, best], log_probs[rows, best]
