"""What an update draws, how it acts, and that a state is all there is."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from rllib_calql.core import CalQLUpdate, Noise, UpdateConfig
from rllib_calql.core.networks import TanhGaussian
from tests.updates import A_DIM, O_DIM, SMALL, arrays, make_update, moved, step

# ---- noise


def test_shapes_and_ranges_of_the_noise() -> None:
    update = make_update()
    noise = update.draw_noise(400)
    assert [tuple(t.shape) for t in noise[:5]] == [
        (400, 2),
        (400, 4, 2),
        (400, 3, 2),
        (400, 3, 2),
        (400, 3, 2),
    ]
    assert noise.random.abs().max() <= 1.0
    assert noise.random.mean().item() == pytest.approx(0.0, abs=0.05)
    assert noise.random.square().mean().item() == pytest.approx(1 / 3, abs=0.03)
    for normal in noise[:4]:
        assert normal.square().mean().item() == pytest.approx(1.0, abs=0.15)
    assert not torch.equal(noise.current, noise.next)
    one = make_update(max_target_backup=False).draw_noise(400)
    assert tuple(one.target.shape) == (400, 1, 2)


def test_injected_noise_makes_a_step_repeatable() -> None:
    noise = make_update(seed=9).draw_noise(5)
    first, second = make_update(), make_update()
    second.draw_noise(3)  # its own generator stands elsewhere
    for update in (first, second):
        update.step(update.to_tensors(arrays()), noise)
    for name, array in first.weights().items():
        np.testing.assert_array_equal(array, second.weights()[name])


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float64"])
def test_same_seed_same_run_and_torchs_own_generator_is_left_alone(precision: str) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    runs = []
    for seed in (3, 3, 4):
        update = make_update(seed=seed, precision=precision)
        metrics = [step(update, i) for i in range(3)]
        runs.append((metrics, update.weights()))
    assert torch.equal(torch.get_rng_state(), state)
    assert runs[0][0] == runs[1][0]
    assert moved(runs[0][1], runs[1][1]) == set()
    assert moved(runs[0][1], runs[2][1]) >= {"actor", "critics"}
    assert moved(make_update(None).weights(), make_update(None).weights()) >= {"actor", "critics"}


@pytest.mark.parametrize("size", [1, 7])
def test_any_batch_size(size: int) -> None:
    update = make_update(lagrangian=True, precision="float32")
    before = update.weights()
    metrics = step(update, size=size)
    assert all(math.isfinite(value) for value in metrics.values())
    assert moved(before, update.weights()) >= {
        "actor",
        "critics",
        "target_critics",
        "log_alpha",
        "log_alpha_prime",
    }


# ---- acting


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_acting(precision: str) -> None:
    update = make_update(precision=precision)
    with torch.no_grad():
        for parameter in update.actor.layers.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    observations = torch.randn(50, O_DIM, dtype=update.dtype)
    policy = update.actor(observations)
    actions, log_probs = update.act(observations)
    torch.testing.assert_close(actions, torch.tanh(policy.mean))
    assert torch.equal(actions, update.act(observations)[0])
    noise = torch.randn(50, A_DIM, dtype=update.dtype)
    sampled, sampled_log_probs = update.act(observations, noise)
    torch.testing.assert_close(sampled, torch.tanh(policy.mean + policy.log_std.exp() * noise))
    torch.testing.assert_close(sampled_log_probs, policy.sample(noise)[1])
    for values, log_prob in ((actions, log_probs), (sampled, sampled_log_probs)):
        assert values.shape == (50, A_DIM)
        assert log_prob.shape == (50,)
        assert not values.requires_grad
        assert values.abs().max() < 1.0
    torch.testing.assert_close(log_probs, TanhGaussian(*policy).sample(torch.zeros_like(noise))[1])


def test_observations_are_normalised_everywhere() -> None:
    """Raw rows with a normaliser do what normalised rows do without one."""
    mean, std = np.array([1.0, -2.0, 0.5]), np.array([2.0, 0.1, 1.0])
    plain, normalising = make_update(lagrangian=True), make_update(lagrangian=True)
    normalising.load_weights({"obs_mean": mean, "obs_std": std})
    rows = arrays()
    raw = {k: v * std + mean if "observations" in k else v for k, v in rows.items()}
    noise = plain.draw_noise(5)
    first = plain.step(plain.to_tensors(rows), noise)
    second = normalising.step(normalising.to_tensors(raw), noise)
    for name in first:
        assert float(second[name]) == pytest.approx(float(first[name]), rel=1e-6)
    actions, _ = plain.act(plain.to_tensors(rows)["observations"])
    torch.testing.assert_close(
        normalising.act(plain.to_tensors(raw)["observations"])[0], actions, rtol=1e-6, atol=1e-8
    )


# ---- state


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("steps", [0, 3])
def test_a_restored_update_goes_on_bit_equal(precision: str, steps: int) -> None:
    settings = {"lagrangian": True, "precision": precision, "target_network_update_freq": 2, "bc_iters": 4}
    first = make_update(seed=1, **settings)
    for i in range(steps):
        step(first, i)
    first.online = True
    state = copy.deepcopy(first.get_state())
    expected = [step(first, 10 + i) for i in range(3)]

    second = make_update(seed=2, **settings)
    step(second)  # a past of its own, which must not show
    second.set_state(state)
    assert second.online
    assert second.num_updates == steps
    assert [step(second, 10 + i) for i in range(3)] == expected
    assert moved(first.weights(), second.weights()) == set()
    final = [update.get_state() for update in (first, second)]
    np.testing.assert_array_equal(final[0]["generator"], final[1]["generator"])
    for index, slot in final[0]["optimizer"].items():
        for name, array in slot.items():
            np.testing.assert_array_equal(array, final[1]["optimizer"][index][name])


def test_a_state_is_a_snapshot() -> None:
    update = make_update()
    step(update)
    state = update.get_state()
    kept = copy.deepcopy(state)
    step(update, 1)
    for name, array in kept["weights"].items():
        np.testing.assert_array_equal(state["weights"][name], array)
    for index, slot in kept["optimizer"].items():
        for name, array in slot.items():
            np.testing.assert_array_equal(state["optimizer"][index][name], array)
    np.testing.assert_array_equal(state["generator"], kept["generator"])


def test_weights_hold_everything_learned_and_load() -> None:
    source, target = make_update(seed=1, lagrangian=True), make_update(seed=2, lagrangian=True)
    step(source)
    target.load_weights(source.weights())
    assert moved(source.weights(), target.weights()) == set()
    groups = {name.split(".")[0] for name in source.weights()}
    assert groups == {
        "actor",
        "critics",
        "target_critics",
        "log_alpha",
        "log_alpha_prime",
        "obs_mean",
        "obs_std",
    }
    # some names alone leave the rest
    other = make_update(seed=3)
    before = other.weights()
    other.load_weights({k: v for k, v in source.weights().items() if k.startswith("actor.")})
    assert moved(before, other.weights()) == {"actor"}


def test_weights_that_do_not_fit_are_refused() -> None:
    update = make_update()
    with pytest.raises(KeyError, match=r"no parameter named 'actr\.x'.*this update has.*actor\.layers\.0\.weight"):
        update.load_weights({"actr.x": np.zeros(3)})
    wider = CalQLUpdate(O_DIM + 1, A_DIM, UpdateConfig(**SMALL), seed=0).weights()
    with pytest.raises(ValueError, match=r"actor\.layers\.0\.weight is \(8, 3\) here but \(8, 4\) in the weights"):
        update.load_weights(wider)
    with pytest.raises(TypeError, match="unexpected keyword argument 'min_q_wieght'"):
        UpdateConfig(min_q_wieght=1.0)  # type: ignore[call-arg]


def test_lagrange_multiplier_grows_with_the_gap() -> None:
    wide = make_update(lagrangian=True, lagrangian_thresh=-100.0)
    narrow = make_update(lagrangian=True, lagrangian_thresh=100.0)
    step(wide)
    step(narrow)
    assert wide.alpha_prime() > math.e > narrow.alpha_prime()
    with torch.no_grad():
        wide.log_alpha_prime.fill_(100.0)
    assert wide.alpha_prime().item() == 1e6


@pytest.mark.parametrize("lagrangian", [False, True])
def test_weight_of_the_conservative_term(lagrangian: bool) -> None:
    update = make_update(lagrangian=lagrangian, initial_alpha_prime=0.5, lagrangian_thresh=0.8, min_q_weight=3.0)
    _, critic = update.gradients(update.to_tensors(arrays()), update.draw_noise(5))
    assert critic.gaps is not None
    # the multiplier comes on top of the weight, and the threshold holds in its form alone
    penalty = 0.5 * 3.0 * (critic.gaps - 0.8) if lagrangian else 3.0 * critic.gaps
    torch.testing.assert_close(critic.critic_losses.detach(), critic.bellman_losses + penalty)


def test_a_state_from_another_kind_of_device_is_taken_but_for_its_generator() -> None:
    config = UpdateConfig(actor_hiddens=(8,), critic_hiddens=(8,))
    saved = CalQLUpdate(3, 2, config, seed=0).get_state()
    # What a CUDA generator saves: 16 bytes, which a CPU generator refuses.
    foreign = {**saved, "device": "cuda", "generator": np.zeros(16, np.uint8), "num_updates": 7}
    noises = []
    for seed in (1, 2):
        update = CalQLUpdate(3, 2, config, seed=seed)
        update.set_state(foreign)
        assert update.num_updates == 7
        np.testing.assert_array_equal(update.weights()["log_alpha"], saved["weights"]["log_alpha"])
        noises.append(update.draw_noise(4).actor)
    assert torch.equal(*noises)


def test_gradients_may_be_reduced_before_the_step() -> None:
    """Two updates that each see half the rows and average their gradients are one that sees all of them."""
    whole, half, other = (make_update(lagrangian=True) for _ in range(3))
    batch, noise = whole.to_tensors(arrays(6)), whole.draw_noise(6)

    def part(start: int) -> tuple[dict[str, Tensor], Noise]:
        rows = slice(start, None, 2)
        return {name: column[rows] for name, column in batch.items()}, Noise(*(n[rows] for n in noise[:5]))

    def average(gradients: list[Tensor]) -> None:
        other.gradients(*part(1))
        groups = other.optimizer.param_groups
        others = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        for mine, theirs in zip(gradients, others, strict=True):
            mine.add_(theirs).div_(2.0)

    half.reduce_gradients = average
    whole.step(batch, noise)
    half.step(*part(0))
    for name, array in whole.weights().items():
        np.testing.assert_allclose(half.weights()[name], array, rtol=1e-10, atol=1e-13, err_msg=name)
