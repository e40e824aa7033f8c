"""Exploration, the same on both API stacks."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def random_actions(noise: Tensor) -> tuple[Tensor, Tensor]:
    """Uniform actions and their log-probabilities, whatever the policy: (B, A) in [-1, 1] and (B,).

    Args:
        noise: (B, A) standard normal, as for sampling from a policy: an episode stays a function of its seed.
    """
    actions = torch.special.ndtr(noise).mul(2.0).sub(1.0)
    return actions, torch.full_like(actions[:, 0], -noise.shape[1] * math.log(2.0))
