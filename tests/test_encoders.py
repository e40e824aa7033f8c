"""The encoder of images, its gradients, and random shifts of the images, against plain implementations."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from rllib_calql.core import CalQLUpdate, UpdateConfig, losses
from rllib_calql.core.advantage_weighted import IQLUpdate
from rllib_calql.core.encoders import MAX_SHIFT, random_shift
from rllib_calql.core.factory import UPDATES
from rllib_calql.data.frames import FrameLayout, frame_layout, frames_space

FRAMES, BATCH, ACT_DIM = 2, 5, 2
SPACE = gym.spaces.Dict(
    {
        "camera": gym.spaces.Box(0, 255, (9, 8, 3), np.uint8),
        "speed": gym.spaces.Box(-np.inf, np.inf, (3,), np.float32),
        "wrist": gym.spaces.Box(0, 255, (9, 8), np.uint8),
    }
)


def layout() -> FrameLayout:
    found = frame_layout(frames_space(SPACE, FRAMES))
    assert found is not None
    return found


def batch(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    speeds = rng.normal(size=(2, BATCH, FRAMES, 3)).astype(np.float32).view(np.uint8)
    pixels = rng.integers(0, 256, (2, BATCH, FRAMES, layout().frame_bytes), dtype=np.uint8)
    (part,) = layout().vectors
    pixels[..., part.first : part.first + part.size] = speeds
    return {
        "observations": pixels[0],
        "next_observations": pixels[1],
        "actions": rng.uniform(-0.9, 0.9, (BATCH, ACT_DIM)).astype(np.float32),
        "rewards": rng.normal(size=BATCH).astype(np.float32),
        "dones": np.array([0, 0, 1, 0, 0], np.float32),
        "mc_returns": rng.normal(size=BATCH).astype(np.float32),
    }


def make(**changes: Any) -> CalQLUpdate:
    settings: dict[str, Any] = {
        "conv_filters": ((4, 3, 2), (5, 2, 1)),
        "feature_dim": 6,
        "actor_hiddens": (7,),
        "critic_hiddens": (8, 7),
        "num_actions": 3,
        "num_target_actions": 2,
        "precision": "float64",
        **changes,
    }
    config = UpdateConfig(**settings)
    return UPDATES[config.update_rule](layout(), ACT_DIM, config, seed=0)


def plain_features(update: CalQLUpdate, name: str, frames: np.ndarray) -> Tensor:
    """The encoder's function, image by image: every byte is found by its place in the frame."""
    network = getattr(update, name)
    rows = []
    for stack in frames:
        channels, numbers = [], []
        for frame in stack:
            camera = frame[:216].reshape(9, 8, 3)
            numbers.append(np.frombuffer(frame[216:228].tobytes(), np.float32))
            wrist = frame[228:].reshape(9, 8)
            channels += [camera[..., 0], camera[..., 1], camera[..., 2], wrist]
        hidden = torch.tensor(np.stack(channels)).double()[None] / 255 - 0.5
        for convolution in network.convolutions:
            hidden = torch.relu(convolution(hidden))
        projected = network.projection(hidden.flatten(1))
        centred = projected - projected.mean()
        scaled = centred / torch.sqrt((centred**2).mean() + 1e-5) * network.norm.weight + network.norm.bias
        rows.append(torch.cat([torch.tanh(scaled[0]), torch.tensor(np.concatenate(numbers)).double()]))
    return torch.stack(rows)


def plain_q(update: CalQLUpdate, features: Tensor, actions: Tensor) -> Tensor:
    """(E, B, K), which autograd differentiates by everything."""
    critics = update.critics
    inputs = torch.cat([features.unsqueeze(1).expand(-1, actions.shape[1], -1), actions], -1)
    values = []
    for member in range(critics.num_critics):
        hidden = inputs
        for weight, bias in list(zip(critics.weights, critics.biases, strict=True))[:-1]:
            hidden = torch.relu(hidden @ weight[member] + bias[member])
        values.append((hidden @ critics.weights[-1][member] + critics.biases[-1][member]).squeeze(-1))
    return torch.stack(values)


@pytest.mark.parametrize("weight", [0.0, 5.0])
def test_the_encoders_gradient_is_autograds(weight: float, monkeypatch: pytest.MonkeyPatch) -> None:
    update, rows = make(min_q_weight=weight, calibrate=weight > 0), batch()
    with torch.no_grad():
        for parameter in update.target_encoder.parameters():  # targets lag behind
            parameter.mul_(0.9)
    tensors = update.to_tensors(rows)
    noise = update.draw_noise(BATCH)
    asked: list[Tensor] = []
    differentiate = update.critic_passes.differentiate

    def listening(observations: Tensor, actions: Tensor, *rest: Any) -> Tensor:
        asked.append(actions)
        return differentiate(observations, actions, *rest)

    monkeypatch.setattr(update.critic_passes, "differentiate", listening)
    _, critic = update.gradients(tensors, noise)
    features = plain_features(update, "encoder", rows["observations"])
    q = plain_q(update, features, asked[0])
    loss = losses.bellman_loss(q[..., 0], critic.target).sum()
    if weight:
        assert critic.offsets is not None
        bounds = losses.reference_bounds(tensors["mc_returns"], 3)
        gaps = losses.conservative_gap(q, critic.offsets, bounds, 1.0, -np.inf, np.inf)
        loss = loss + weight * gaps.sum()
    assert update.encoder is not None
    parameters = dict(update.encoder.named_parameters())
    for (name, parameter), expected in zip(
        parameters.items(), torch.autograd.grad(loss, list(parameters.values())), strict=True
    ):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-9, atol=1e-12, msg=name)
        assert expected.abs().max() > 0

    # The target: actions of the present actor on present features, values of the targets on the target's own.
    with torch.no_grad():
        policy = update.actor(plain_features(update, "encoder", rows["next_observations"]))
        actions, log_probs = policy.sample(noise.target)
        target_features = plain_features(update, "target_encoder", rows["next_observations"])
        next_value = losses.next_state_value(update.target_critics(target_features, actions), log_probs, None)
    torch.testing.assert_close(critic.next_value, next_value, rtol=1e-9, atol=1e-12)


def test_the_actors_loss_does_not_move_the_encoder() -> None:
    """Another loss of the actor, the same gradient of the encoder; and none for the target encoder."""
    updates = [make(bc_iters=bc_iters) for bc_iters in (0, 10)]
    for update in updates:
        update.gradients(update.to_tensors(batch()), update.draw_noise(BATCH))
    encoders = [[p.grad for p in update.encoder.parameters()] for update in updates if update.encoder]
    for one, other in zip(*encoders, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    actors = [torch.cat([p.grad.ravel() for p in update.actor.parameters()]) for update in updates]
    assert not torch.equal(*actors)
    assert all(p.grad is None for p in updates[0].target_encoder.parameters())


def test_iqls_value_sees_the_target_encoders_features_and_moves_no_encoder() -> None:
    rule = {"update_rule": "iql", "min_q_weight": 0.0, "calibrate": False, "learn_alpha": False}
    iql, rows = make(expectile=0.8, **rule), batch()
    assert isinstance(iql, IQLUpdate)
    with torch.no_grad():
        for parameter in (*iql.target_encoder.parameters(), *iql.target_critics.parameters()):
            parameter.mul_(0.9)
    _, critic = iql.gradients(iql.to_tensors(rows), iql.draw_noise(BATCH))
    names = ("observations", "next_observations")
    before, after = (plain_features(iql, "target_encoder", rows[name]) for name in names)
    torch.testing.assert_close(critic.next_value, iql.value(after), rtol=1e-9, atol=1e-12)
    actions = torch.tensor(rows["actions"]).double().unsqueeze(1)
    q = iql.target_critics(before, actions).squeeze(-1).amin(0)
    value_loss = losses.expectile_loss(q.detach() - iql.value(before.detach()), 0.8)
    for parameter, expected in zip(
        iql.value.parameters(), torch.autograd.grad(value_loss, list(iql.value.parameters())), strict=True
    ):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-9, atol=1e-12)
    features = plain_features(iql, "encoder", rows["observations"])
    bellman = losses.bellman_loss(plain_q(iql, features, actions)[..., 0], critic.target).sum()
    parameters = list(iql.encoder.parameters()) if iql.encoder else []
    for parameter, expected in zip(parameters, torch.autograd.grad(bellman, parameters), strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-9, atol=1e-12)
    assert all(p.grad is None for p in iql.target_encoder.parameters())


def test_a_step_moves_encoder_and_target_and_a_restored_update_goes_on_bit_equal() -> None:
    update, other = make(tau=0.25, precision="float32"), make(tau=0.25, precision="float32", actor_lr=1e-4)
    before = update.weights(("encoder.", "target_encoder."))
    update.run(lambda: batch(1), 1)
    after = update.weights(("encoder.", "target_encoder."))
    for name in (name for name in before if name.startswith("encoder.")):
        assert not np.array_equal(before[name], after[name])
        expected = 0.75 * before[name] + 0.25 * after[name]
        np.testing.assert_allclose(after[f"target_{name}"], expected, rtol=1e-5, atol=1e-7)
    other.set_state(update.get_state())
    for one in (update, other):
        one.run(lambda: batch(2), 2)  # shifts are drawn from the generator that the state holds
    np.testing.assert_equal(other.get_state(), update.get_state())


def test_a_shift_moves_and_repeats_the_border() -> None:
    image = torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.uint8)[None, None, :, :, None]
    shift = torch.tensor([[MAX_SHIFT + 1, MAX_SHIFT - 2]])  # one row further down, two columns back
    assert random_shift(image, shift).squeeze().tolist() == [[4, 4, 4], [4, 4, 4]]
    shift = torch.tensor([[MAX_SHIFT - 1, MAX_SHIFT + 1]])
    assert random_shift(image, shift).squeeze().tolist() == [[2, 3, 3], [2, 3, 3]]
    stay = torch.full((1, 2), MAX_SHIFT)
    assert torch.equal(random_shift(image, stay), image)


def test_shifts_are_pad_and_crop() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 2, 9, 7, 3), dtype=np.uint8)
    shifts = rng.integers(0, 2 * MAX_SHIFT + 1, (6, 2))
    found = random_shift(torch.tensor(images), torch.tensor(shifts)).numpy()
    for row, (down, right) in enumerate(shifts):
        for frame in range(2):
            padded = np.pad(images[row, frame], [(MAX_SHIFT,) * 2, (MAX_SHIFT,) * 2, (0, 0)], mode="edge")
            np.testing.assert_array_equal(found[row, frame], padded[down : down + 9, right : right + 7])


def test_augmented_batches_keep_vectors_and_are_drawn_anew() -> None:
    update, rows = make(), batch()
    tensors = update.to_tensors(rows)
    moved = update.augmented(tensors)
    (part,) = layout().vectors
    numbers = slice(part.first, part.first + part.size)
    for name in ("observations", "next_observations"):
        assert moved[name].dtype == torch.uint8
        assert torch.equal(moved[name][..., numbers], tensors[name][..., numbers])
        assert not torch.equal(moved[name], tensors[name])
        assert not torch.equal(moved[name], update.augmented(tensors)[name])
    assert moved["actions"] is tensors["actions"]
    assert make(image_augmentation=None).augmented(tensors) is tensors


def test_images_too_small_for_the_filters_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images of 9 x 8 pixels are too small .* layer 1 .* 5 and gets 4 x 3"):
        make(conv_filters=((4, 3, 2), (5, 5, 1)))
