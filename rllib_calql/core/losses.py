"""The losses of Cal-QL as free functions. Shapes: B rows, N sampled actions, E critics, A action dimensions.

Sources: Nakamoto et al. 2023, "Cal-QL" (equation 5.1 is `reference_bounds`), Kumar et al. 2020, "CQL"
(`conservative_gap` is its CQL(H) regulariser), Haarnoja et al. 2018, "SAC". Where the paper's text and its code
differ, the code is followed; docs/fidelity.md lists every such place.
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


def actor_loss(alpha: Tensor, log_probs: Tensor, q_policy: Tensor, average: bool = False) -> Tensor:
    """SAC's E[alpha * log pi(a|s) - min_i Q_i(s, a)]; a scalar.

    Args:
        alpha: entropy temperature, a scalar without gradient.
        log_probs: (B,) of one reparameterised action per state.
        q_policy: (E, B), the critics' values of those actions.
        average: the mean over critics in the place of the minimum (REDQ, Chen et al. 2021, for large ensembles).
    """
    q = q_policy.mean(0) if average else q_policy.amin(0)
    return (alpha * log_probs - q).mean()


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


def reference_bounds(reference_values: Tensor, num_actions: int) -> Tensor:
    """Cal-QL's one change to CQL: the policy's actions count as max(Q(s, a), V^mu(s)).

    Returns the lower bounds (B, 1 + 3N) of the data's, the random, the current and the next policy's actions: the
    reference (B,) for the last two, -inf for the others. A reference of -inf leaves its row as plain CQL.
    """
    bounds = reference_values.unsqueeze(1).repeat(1, 1 + 3 * num_actions)
    bounds[:, : 1 + num_actions] = -math.inf
    return bounds


def sampling_offsets(
    log_probs_current: Tensor, log_probs_next: Tensor, act_dim: int, importance_sampling: bool = True
) -> Tensor:
    """What each action's Q-value gets on top in the soft maximum; (B, 1 + 3N) in the order of `reference_bounds`.

    Less the log-density, which is -A log 2 for a uniform action in [-1, 1]^A; the data's own action stays outside
    (-inf). Without importance sampling it takes part, and nothing is added. The log-probabilities are (B, N).
    """
    batch, num_actions = log_probs_current.shape
    offsets = log_probs_current.new_zeros(batch, 1 + 3 * num_actions)
    if importance_sampling:
        data, random, current, after = torch.split(offsets, [1, num_actions, num_actions, num_actions], dim=1)
        data.fill_(-math.inf)
        random.fill_(act_dim * math.log(2.0))
        torch.neg(log_probs_current, out=current)
        torch.neg(log_probs_next, out=after)
    return offsets


def conservative_difference(q: Tensor, offsets: Tensor, bounds: Tensor, temperature: float = 1.0) -> Tensor:
    """How far the soft maximum of Q over actions lies above Q of the data, per critic and row; (..., B).

    Args:
        q: (..., B, 1 + 3N), all at the current state; column 0 is the data's action.
        offsets: (B, 1 + 3N), see `sampling_offsets`.
        bounds: (B, 1 + 3N), see `reference_bounds`. The bound comes before the offset.
    """
    values = torch.maximum(q, bounds) + offsets
    return temperature * torch.logsumexp(values / temperature, dim=-1) - q[..., 0]


def conservative_gap(
    q: Tensor,
    offsets: Tensor,
    bounds: Tensor,
    temperature: float = 1.0,
    clip_min: float = -math.inf,
    clip_max: float = math.inf,
) -> Tensor:
    """The conservative term: `conservative_difference`, clipped row by row, then averaged over rows; (...)."""
    difference = conservative_difference(q, offsets, bounds, temperature)
    return difference.clamp(clip_min, clip_max).mean(-1)


def critic_gradient(
    q: Tensor,
    target: Tensor,
    offsets: Tensor,
    bounds: Tensor,
    bellman_weight: float,
    weight: Tensor | float,
    temperature: float = 1.0,
    clip_min: float = -math.inf,
    clip_max: float = math.inf,
) -> Tensor:
    """d/dq of bellman_weight * (Q_data - target)^2 + weight * clip(conservative_difference), row by row.

    The soft maximum's derivative is the softmax; a bounded action has none, nor has a clipped row. Shapes as in
    `conservative_difference`; `target` is (B,). Returns (..., B, 1 + 3N).
    """
    values = torch.maximum(q, bounds).add_(offsets)
    gradient = torch.softmax(values if temperature == 1.0 else values.div_(temperature), dim=-1)
    gradient.mul_(q >= bounds)
    gradient[..., 0] -= 1.0
    if math.isfinite(clip_min) or math.isfinite(clip_max):
        difference = conservative_difference(q, offsets, bounds, temperature)
        gradient.mul_(((difference >= clip_min) & (difference <= clip_max)).unsqueeze(-1))
    gradient.mul_(weight)
    gradient[..., 0].add_(q[..., 0] - target, alpha=2.0 * bellman_weight)
    return gradient


def batch_softmax_weights(advantages: Tensor, beta: float) -> Tensor:
    """AWAC's weights of the logged actions, exp(beta * A) over their mean in the batch; (B,) -> (B,).

    (Nair et al. 2020, equation 13, whose lambda is 1 / beta. The mean stands for the partition function: biased,
    with less variance than exp(beta * A) alone.)
    """
    return torch.softmax(beta * advantages, dim=0) * len(advantages)


def clipped_exponential_weights(advantages: Tensor, beta: float, maximum: float = 100.0) -> Tensor:
    """IQL's weights of the logged actions, min(exp(beta * A), 100); (B,) -> (B,). Kostrikov et al. 2021, eq. 7."""
    return torch.exp(beta * advantages).clamp(max=maximum)


def weighted_regression_loss(log_probs: Tensor, weights: Tensor) -> Tensor:
    """-E[w log pi(a|s)] of logged actions; both (B,), the weights without gradient. A scalar."""
    return -(weights.detach() * log_probs).mean()


def expectile_loss(differences: Tensor, expectile: float) -> Tensor:
    """Asymmetric squared error E[|tau - 1(u < 0)| u^2] of u = Q(s, a) - V(s), (B,); a scalar.

    Kostrikov et al. 2021, equation 5: tau = 1/2 is the mean squared error over 2, tau towards 1 makes V the best.
    """
    weights = (expectile - (differences < 0.0).to(differences.dtype)).abs()
    return (weights * differences.square()).mean()


def lagrange_loss(alpha_prime: Tensor, gaps: Tensor, weight: float, threshold: float) -> Tensor:
    """Dual loss of CQL's Lagrange multiplier, -1/2 * sum_i alpha' * w * (gap_i - threshold); a scalar.

    The half is for two critics: in general the mean over critics, so that the step size of the multiplier does
    not depend on the ensemble's size. `gaps` is (E,), without gradient here.
    """
    return -(alpha_prime * weight * (gaps.detach() - threshold)).mean()
