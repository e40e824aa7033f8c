"""Every loss against numbers worked out by hand, and the conservative term against a slow loop."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rllib_calql.core import losses

LOG = math.log


def double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(found: Tensor, expected: object) -> None:
    torch.testing.assert_close(found, double(expected), rtol=1e-12, atol=1e-12)


def test_temperature_loss() -> None:
    log_alpha = double(0.5).requires_grad_()
    log_probs = double([1.0, -3.0]).requires_grad_()
    loss = losses.temperature_loss(log_alpha, log_probs, -2.0)  # mean(log pi - 2) = -3
    close(loss.detach(), 1.5)
    (gradient,) = torch.autograd.grad(loss, log_alpha, retain_graph=True)
    close(gradient, 3.0)  # of log_alpha itself, not of its exponential
    with pytest.raises(RuntimeError, match="appears to not have been used"):
        torch.autograd.grad(loss, log_probs)


def test_actor_loss() -> None:
    # rows: 0.5 * 1 - min(1, 3) and 0.5 * 2 - min(5, 4)
    loss = losses.actor_loss(double(0.5), double([1.0, 2.0]), double([[1.0, 5.0], [3.0, 4.0]]))
    close(loss, (-0.5 - 3.0) / 2)


def test_behavior_cloning_loss() -> None:
    # squared errors summed over the action's entries: 1 and 0.5; entropy part 0.5 * mean(2, 4)
    mode, actions = double([[0.0, 1.0], [0.5, 0.5]]), double([[1.0, 1.0], [0.0, 0.0]])
    loss = losses.behavior_cloning_loss(double(0.5), double([2.0, 4.0]), mode, actions)
    close(loss, 0.75 + 1.5)


def test_next_state_value_takes_the_minimum_over_critics_first() -> None:
    next_q = double([[[1.0, 5.0, 3.0], [0.0, -1.0, 2.0]], [[4.0, 2.0, 3.5], [1.0, -3.0, -2.0]]])
    log_probs = double([[9.0, 9.0, 2.0], [-1.0, 7.0, 7.0]])
    # minima [1, 2, 3] and [0, -3, -2]: maxima 3 (third action) and 0 (first); the other way round 4 and 1
    close(losses.next_state_value(next_q, log_probs), [3.0, 0.0])
    close(losses.next_state_value(next_q, log_probs, double(0.5)), [3.0 - 0.5 * 2.0, 0.0 + 0.5 * 1.0])


def test_next_state_value_of_one_action_is_the_plain_backup() -> None:
    next_q, log_probs = double([[[1.0], [5.0]], [[2.0], [3.0]]]), double([[10.0], [-10.0]])
    close(losses.next_state_value(next_q, log_probs), [1.0, 3.0])
    close(losses.next_state_value(next_q, log_probs, double(0.1)), [0.0, 4.0])


def test_td_target_bootstraps_unless_the_mdp_ended() -> None:
    rewards, dones, values = double([1.0, 2.0, 3.0]), double([0.0, 1.0, 0.0]), double([10.0, 10.0, -4.0])
    close(losses.td_target(rewards, dones, values, 0.9), [10.0, 2.0, -0.6])


def test_bellman_loss_has_no_factor_one_half() -> None:
    q_data, target = double([[1.0, 2.0], [0.0, 0.0]]), double([2.0, 4.0])
    close(losses.bellman_loss(q_data, target), [2.5, 10.0])


def test_references_bound_the_policys_actions_alone() -> None:
    bounds = losses.reference_bounds(double([1.5, -math.inf]), 2)
    free = [-math.inf] * 3  # the data's action and two random ones
    assert bounds.tolist() == [free + [1.5] * 4, free + [-math.inf] * 4]


def test_offsets_are_log_densities_with_the_sign_turned() -> None:
    current, after = double([[1.0, 2.0]]), double([[-3.0, 0.5]])
    offsets = losses.sampling_offsets(current, after, 3)
    close(offsets, [[-math.inf, 3 * LOG(2.0), 3 * LOG(2.0), -1.0, -2.0, 3.0, -0.5]])
    assert not losses.sampling_offsets(current, after, 3, importance_sampling=False).any()


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
    reference: Tensor | None = None,
) -> Tensor:
    """The gap from its parts: (E, B), (E, B, N) three times, (B, N) twice."""
    q = torch.cat([q_data.unsqueeze(-1), q_random, q_current, q_next], dim=-1)
    offsets = losses.sampling_offsets(log_probs_current, log_probs_next, act_dim, importance_sampling)
    reference = q_data.new_full(q_data.shape[1:], -math.inf) if reference is None else reference
    bounds = losses.reference_bounds(reference, q_random.shape[-1])
    return losses.conservative_gap(q, offsets, bounds, temperature, clip_min, clip_max)


def gap_of_literals(q_data: Tensor, **options: float | bool) -> Tensor:
    """One critic, one row, one action of each kind: densities 2, 3 and 5, so that the sum is 10."""
    return conservative_gap(
        q_data.reshape(1, 1),
        double([[[0.0]]]),  # random: 1 * 2, uniform in [-1, 1] has density 1/2
        double([[[LOG(5.0) - 2.0]]]),
        double([[[LOG(3.0) + 1.0]]]),
        double([[-2.0]]),
        double([[1.0]]),
        1,
        **options,  # type: ignore[arg-type]
    )


def test_conservative_gap_with_importance_sampling() -> None:
    close(gap_of_literals(double(0.0)), [LOG(10.0)])
    close(gap_of_literals(double(LOG(4.0))), [LOG(2.5)])


def test_conservative_gap_without_importance_sampling_adds_the_data_action() -> None:
    found = conservative_gap(
        double([[LOG(2.0)]]),
        double([[[LOG(1.0)]]]),
        double([[[LOG(3.0)]]]),
        double([[[LOG(4.0)]]]),
        double([[100.0]]),  # densities are not looked at
        double([[-100.0]]),
        7,
        importance_sampling=False,
    )
    close(found, [LOG(10.0) - LOG(2.0)])


def test_conservative_gap_temperature() -> None:
    # values / 2 = log 1, log 2, log 3, log 4
    found = conservative_gap(
        double([[2 * LOG(2.0)]]),
        double([[[2 * LOG(1.0)]]]),
        double([[[2 * LOG(3.0)]]]),
        double([[[2 * LOG(4.0)]]]),
        double([[0.0]]),
        double([[0.0]]),
        1,
        temperature=2.0,
        importance_sampling=False,
    )
    close(found, [2 * LOG(10.0) - 2 * LOG(2.0)])


@pytest.mark.parametrize("temperature", [0.01, 100.0])
def test_extreme_temperatures_do_not_overflow(temperature: float) -> None:
    values, zeros = double([[[400.0, -400.0]]]), double([[0.0, 0.0]])
    gap = conservative_gap(double([[0.0]]), values, values, values, zeros, zeros, 1, temperature)
    assert gap.isfinite().all()
    if temperature < 1:  # towards the maximum (random actions have the extra log 2)
        assert gap.item() == pytest.approx(400.0 + LOG(2.0), abs=0.01)


@pytest.mark.parametrize(
    ("low", "high", "expected", "slope"),
    [
        (-math.inf, math.inf, LOG(10.0), -1.0),
        (-math.inf, 1.0, 1.0, 0.0),
        (3.0, math.inf, 3.0, 0.0),
        (3.0, 4.0, 3.0, 0.0),
        (2.0, 2.5, LOG(10.0), -1.0),
    ],
)
def test_clipped_rows_have_no_gradient_not_even_for_the_data(
    low: float, high: float, expected: float, slope: float
) -> None:
    q_data = double(0.0).requires_grad_()
    gap = gap_of_literals(q_data, clip_min=low, clip_max=high)
    close(gap.detach(), [expected])
    (gradient,) = torch.autograd.grad(gap.sum(), q_data)
    assert gradient.item() == slope


def test_clipping_comes_before_the_mean() -> None:
    # differences log 3 = 1.10 and log 3 - 5: clipped to 1 and -2, mean -0.5 (clipping the mean: -1.4)
    zeros = torch.zeros(1, 2, 1, dtype=torch.float64)
    found = conservative_gap(
        double([[LOG(4 / 3), 5.0 + LOG(4 / 3)]]),
        zeros,
        zeros,
        zeros,
        double([[0.0], [0.0]]),
        double([[0.0], [0.0]]),
        1,
        1.0,
        True,
        -2.0,
        1.0,
    )
    close(found, [-0.5])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("importance_sampling", [True, False])
def test_conservative_gap_equals_a_slow_loop(seed: int, importance_sampling: bool) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    critics, rows, number, act_dim, temperature = 3, 4, 5, 6, 0.7
    q_data, q_random = draw(critics, rows), draw(critics, rows, number)
    q_current, q_next = draw(critics, rows, number), draw(critics, rows, number)
    log_current, log_next = draw(rows, number), draw(rows, number)
    found = conservative_gap(
        q_data,
        q_random,
        q_current,
        q_next,
        log_current,
        log_next,
        act_dim,
        temperature,
        importance_sampling,
        -1.0,
        3.0,
    )
    for i in range(critics):
        differences = []
        for b in range(rows):
            total = 0.0 if importance_sampling else math.exp(q_data[i, b] / temperature)
            for n in range(number):
                values = [float(q[i, b, n]) for q in (q_random, q_current, q_next)]
                if importance_sampling:
                    log_densities = [-act_dim * LOG(2.0), float(log_current[b, n]), float(log_next[b, n])]
                    values = [v - d for v, d in zip(values, log_densities, strict=True)]
                total += sum(math.exp(v / temperature) for v in values)
            differences.append(min(max(temperature * LOG(total) - float(q_data[i, b]), -1.0), 3.0))
        close(found[i], sum(differences) / rows)


def test_calibrated_rows_without_a_reference_are_plain_cql() -> None:
    torch.manual_seed(0)
    q = torch.randn(3, 2, 4, 5, dtype=torch.float64)
    log_probs = torch.randn(2, 4, 5, dtype=torch.float64)
    q_data = torch.randn(2, 4, dtype=torch.float64)
    unknown = torch.full((4,), -math.inf, dtype=torch.float64)

    def gap(reference: Tensor | None) -> Tensor:
        parts = (q_data, q[0], q[1], q[2], log_probs[0], log_probs[1])
        return conservative_gap(*parts, 2, reference=reference)

    close(gap(unknown), gap(None).tolist())
    assert (gap(torch.zeros(4, dtype=torch.float64)) > gap(None)).all()


@pytest.mark.parametrize("importance_sampling", [True, False])
@pytest.mark.parametrize(("temperature", "low", "high"), [(1.0, -math.inf, math.inf), (0.7, 0.0, 2.0)])
def test_critic_gradient_is_what_autograd_finds(
    importance_sampling: bool, temperature: float, low: float, high: float
) -> None:
    torch.manual_seed(0)
    rows, number, weight = 50, 4, 3.0
    q = torch.randn(2, rows, 1 + 3 * number, dtype=torch.float64).requires_grad_()
    target, reference, log_probs = (
        torch.randn(rows).double(),
        torch.randn(rows).double(),
        torch.randn(2, rows, number),
    )
    reference[:5] = -math.inf
    offsets = losses.sampling_offsets(log_probs[0], log_probs[1], 2, importance_sampling)
    bounds = losses.reference_bounds(reference, number)
    form = (temperature, low, high)
    gap = losses.conservative_gap(q, offsets, bounds, *form)
    loss = 0.5 * rows * (losses.bellman_loss(q[..., 0], target) + weight * gap).sum()
    (expected,) = torch.autograd.grad(loss, q)
    found = losses.critic_gradient(q.detach(), target, offsets, bounds, 0.5, 0.5 * weight, *form)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert (expected == 0.0).any()  # bounded actions, clipped rows


def test_lagrange_loss() -> None:
    alpha_prime = double(2.0).requires_grad_()
    gaps = double([1.5, 0.0]).requires_grad_()
    loss = losses.lagrange_loss(alpha_prime, gaps, 3.0, 0.5)  # -(2 * 3 * 1 + 2 * 3 * -0.5) / 2
    close(loss.detach(), -1.5)
    (gradient,) = torch.autograd.grad(loss, alpha_prime, retain_graph=True)
    close(gradient, -0.75)  # a gap above the threshold makes the multiplier grow
    with pytest.raises(RuntimeError, match="appears to not have been used"):
        torch.autograd.grad(loss, gaps)


def test_lagrange_step_does_not_depend_on_the_ensembles_size() -> None:
    two = losses.lagrange_loss(double(2.0), double([1.0, 2.0]), 5.0, 0.8)
    six = losses.lagrange_loss(double(2.0), double([1.0, 2.0] * 3), 5.0, 0.8)
    close(six, two.item())
