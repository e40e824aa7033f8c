"""The losses of Cal-QL as free functions. Shapes: B rows, N sampled actions, E critics, A action dimensions.

Sources: Nakamoto et al. 2023, "Cal-QL" (equation 5.1 is `calibrate`), Kumar et al. 2020, "CQL" (`conservative_gap`
is its CQL(H) regulariser), Haarnoja et al. 2018, "SAC". Where the paper's text and its code differ, the code is
followed; docs/fidelity.md lists every such place.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def temperature_loss(log_alpha: Tensor, log_probs: Tensor, target_entropy: float) -> Tensor:
    """SAC's dual loss of the entropy temperature, -log_alpha * E[log pi + target_entropy]; a scalar.

    It uses log_alpha itself, not its exponential. `log_probs` is (B,).
    """
    return -log_alpha * (log_probs.detach() + target_entropy).mean()


def actor_loss(alpha: Tensor, log_probs: Tensor, q_policy: Tensor) -> Tensor:
    """SAC's E[alpha * log pi(a|s) - min_i Q_i(s, a)]; a scalar.

    Args:
        alpha: entropy temperature, a scalar without gradient.
        log_probs: (B,) of one reparameterised action per state.
        q_policy: (E, B), the critics' values of those actions.
    """
    return (alpha * log_probs - q_policy.amin(0)).mean()


def behavior_cloning_loss(alpha: Tensor, log_std_log_probs: Tensor, mode: Tensor, actions: Tensor) -> Tensor:
    """Squared error of the deterministic action, and the entropy bonus for the spread alone; a scalar.

    A likelihood would be ruled by saturated actions (atanh of +-0.99999 is +-6.1), and an entropy bonus on the
    mean would pull saturated actions inwards: hence the mean sees only the squared error.

    Args:
        alpha: entropy temperature, a scalar without gradient.
        log_std_log_probs: (B,) log pi of a sample whose mean carries no gradient.
        mode: (B, A) deterministic actions.
        actions: (B, A) logged actions.
    """
    return (mode - actions).square().sum(-1).mean() + (alpha * log_std_log_probs).mean()


def next_state_value(next_q: Tensor, next_log_probs: Tensor, entropy_alpha: Tensor | None = None) -> Tensor:
    """V(s') = max over actions of min over target critics; (B,).

    Args:
        next_q: (E, B, N) target critics at s'. N = 1 is the plain backup, N > 1 the max target backup:
            the minimum over critics comes first, then the maximum over actions.
        next_log_probs: (B, N).
        entropy_alpha: with it, V loses alpha * log pi of the chosen action.
    """
    value, chosen = next_q.amin(0).max(dim=1)
    if entropy_alpha is None:
        return value
    return value - entropy_alpha * next_log_probs.gather(1, chosen.unsqueeze(1)).squeeze(1)


def td_target(rewards: Tensor, dones: Tensor, next_value: Tensor, gamma: float) -> Tensor:
    """r + (1 - d) * gamma * V(s'); all (B,). `dones` is 1 where the MDP ended; a time-out is 0."""
    return rewards + (1.0 - dones) * gamma * next_value


def bellman_loss(q_data: Tensor, target: Tensor) -> Tensor:
    """Mean squared TD error of every critic, without the paper's factor 1/2; (E, B), (B,) -> (E,)."""
    return (q_data - target).square().mean(1)


def calibrate(q_policy: Tensor, reference_values: Tensor) -> Tensor:
    """Cal-QL's one change to CQL: max(Q(s, a), V^mu(s)) for the policy's actions.

    (E, B, N) bounded from below by (B,). A reference of -inf leaves its row as plain CQL.
    """
    return torch.maximum(q_policy, reference_values.unsqueeze(-1))


def conservative_gap(
    q_data: Tensor,
    q_random: Tensor,
    q_current: Tensor,
    q_next: Tensor,
    log_probs_current: Tensor,
    log_probs_next: Tensor,
    act_dim: int,
    temperature: float = 1.0,
    importance_sampling: bool = True,
    clip_min: float = -math.inf,
    clip_max: float = math.inf,
) -> Tensor:
    """How far the soft maximum of Q over actions lies above Q of the data, per critic; (E,).

    Args:
        q_data: (E, B). q_random, q_current, q_next: (E, B, N), all at the current state; the last two bounded
            by `calibrate` beforehand (the bound comes before the log-probability).
        log_probs_current, log_probs_next: (B, N).
        act_dim: A; a uniform action in [-1, 1]^A has log-density -A log 2.
        importance_sampling: weigh each action by its density; without it the data's own action joins the sum.
        clip_min, clip_max: limits of the difference, row by row, before the mean.
    """
    if importance_sampling:
        groups = [q_random + act_dim * math.log(2.0), q_next - log_probs_next, q_current - log_probs_current]
    else:
        groups = [q_random, q_data.unsqueeze(-1), q_next, q_current]
    values = torch.cat(groups, dim=-1)
    soft_maximum = temperature * torch.logsumexp(values / temperature, dim=-1)
    difference = soft_maximum - q_data
    if math.isfinite(clip_min) or math.isfinite(clip_max):
        difference = difference.clamp(clip_min, clip_max)
    return difference.mean(1)


def lagrange_loss(alpha_prime: Tensor, gaps: Tensor, weight: float, threshold: float) -> Tensor:
    """Dual loss of CQL's Lagrange multiplier, -1/2 * sum_i alpha' * w * (gap_i - threshold); a scalar.

    The half is for two critics: in general the mean over critics, so that the step size of the multiplier does
    not depend on the ensemble's size. `gaps` is (E,), without gradient here.
    """
    return -(alpha_prime * weight * (gaps.detach() - threshold)).mean()
