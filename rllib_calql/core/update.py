"""One Cal-QL update: parameters, optimiser, target networks and the step that moves them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rllib_calql.core import losses
from rllib_calql.core.hyperparameters import UpdateConfig
from rllib_calql.core.networks import CriticEnsemble, TanhGaussian, TanhGaussianActor
from rllib_calql.core.passes import CriticPasses

Batch = Mapping[str, Tensor]


class Noise(NamedTuple):
    """All randomness of one step, so that a step can be repeated exactly. N, N_t: num_(target_)actions."""

    actor: Tensor  # (B, A) normal: the action of the actor and temperature losses
    target: Tensor  # (B, N_t, A) normal: actions at s' of the TD target
    current: Tensor  # (B, N, A) normal: pi(.|s) of the conservative term
    next: Tensor  # (B, N, A) normal: pi(.|s') of the conservative term
    random: Tensor  # (B, N, A) uniform in [-1, 1]
    target_critics: Tensor | None = None  # (M,) indices of the target critics; all where None


class CriticValues(NamedTuple):
    """What the critic loss was made of. K is 1, or 1 + 3N with the conservative term."""

    critic_losses: Tensor  # (E,)
    bellman_losses: Tensor  # (E,)
    target: Tensor  # (B,)
    next_value: Tensor  # (B,)
    q: Tensor  # (E, B, K) before bounding: of the data's, random, current and next policy's actions
    gaps: Tensor | None = None  # (E,) clipped, averaged differences of the conservative term
    offsets: Tensor | None = None  # (B, K), see `losses.sampling_offsets`


class ActorValues(NamedTuple):
    actor_loss: Tensor  # scalar
    temperature_loss: Tensor | None  # scalar
    log_probs: Tensor  # (B,)


def means(sums: Mapping[str, Tensor], number: int) -> dict[str, float]:
    """Sums of steps' figures as means, none for no steps; waits for the device."""
    if not sums:
        return {}
    values = (torch.stack(list(sums.values())) / number).tolist()
    found = dict(zip(sums, values, strict=True))
    if math.isnan(found["mc_return_mean"]):  # no row of some batch had a return
        del found["mc_return_mean"]
    return found


class CalQLUpdate:
    """The one update step of Cal-QL, used by both API stacks, both phases and the benchmarks.

    Every loss moves only its own parameters; all gradients are taken at the old parameters, then one Adam
    step moves everything, then the target critics follow. `online` says which phase's weights hold.
    `reduce_gradients`, where set, changes the list of all gradients in place before the Adam step (to average
    them over several learners).

    Args:
        obs_dim, act_dim: sizes of the flat observation and action; actions live in [-1, 1].
        config: hyperparameters.
        device: where everything lives.
        seed: of the initial parameters and of the sampling noise; None draws one.
    """

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        config: UpdateConfig,
        device: torch.device | str = "cpu",
        seed: int | None = None,
    ) -> None:
        self.config, self.obs_dim, self.act_dim = config, obs_dim, act_dim
        self.device = torch.device(device)
        seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.dtype = torch.float64 if config.precision == "float64" else torch.float32
        self.online = False
        self.num_updates = 0
        self.reduce_gradients: Callable[[list[Tensor]], None] | None = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.actor = TanhGaussianActor(
                obs_dim, act_dim, config.actor_hiddens, config.actor_activation, config.orthogonal_init
            ).to(self.device, self.dtype)
            self.critics = CriticEnsemble(
                obs_dim,
                act_dim,
                config.critic_hiddens,
                config.num_critics,
                config.critic_activation,
                config.orthogonal_init,
                config.critic_layer_norm,
            ).to(self.device, self.dtype)
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        products = torch.bfloat16 if config.precision == "bfloat16" else None
        self.critic_passes = CriticPasses(self.critics, products)
        self.target_passes = CriticPasses(self.target_critics, products)
        self.log_alpha = self._scalar(math.log(config.initial_alpha)).requires_grad_(config.learn_alpha)
        self.log_alpha_prime = self._scalar(math.log(config.initial_alpha_prime))
        self.log_alpha_prime.requires_grad_(config.lagrangian)
        target_entropy = config.target_entropy
        self.target_entropy = -float(act_dim) if target_entropy is None else target_entropy
        self.obs_mean = torch.zeros(obs_dim, device=self.device, dtype=self.dtype)
        self.obs_std = torch.ones(obs_dim, device=self.device, dtype=self.dtype)
        groups = [
            {"params": list(self.actor.parameters()), "lr": config.actor_lr},
            {"params": list(self.critics.parameters()), "lr": config.critic_lr},
            {"params": [self.log_alpha], "lr": config.alpha_lr},
            {"params": [self.log_alpha_prime], "lr": config.lagrangian_lr},
        ]
        self.optimizer = torch.optim.Adam(groups, fused=True, capturable=self.device.type == "cuda")

    def _scalar(self, value: float) -> Tensor:
        return torch.tensor(value, device=self.device, dtype=self.dtype)

    # ---- what holds in the current phase

    @property
    def min_q_weight(self) -> float:
        """Weight of the conservative term in the current phase; 0 leaves plain SAC."""
        online = self.config.min_q_weight_online
        return online if self.online and online is not None else self.config.min_q_weight

    @property
    def calibrated(self) -> bool:
        """Whether the policy's actions are bounded by the reference value in the current phase."""
        return self.config.calibrate and (self.config.calibrate_online or not self.online)

    def alpha(self) -> Tensor:
        """Entropy temperature, a scalar without gradient."""
        return self.log_alpha.detach().exp() * self.config.alpha_multiplier

    def alpha_prime(self) -> Tensor:
        """Lagrange multiplier, a scalar."""
        return self.log_alpha_prime.exp().clamp(0.0, 1e6)

    # ---- acting

    @torch.no_grad()
    def act(self, observations: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Actions (B, A) in [-1, 1] and their log-probabilities (B,): deterministic, or sampled with `noise`."""
        policy = self.actor(self.normalize(observations))
        return policy.sample(torch.zeros_like(policy.mean) if noise is None else noise)

    def normalize(self, observations: Tensor) -> Tensor:
        """Observations (B, obs_dim) less the mean, over the standard deviation (identity by default)."""
        return (observations - self.obs_mean) / self.obs_std

    # ---- learning

    def draw_noise(self, batch_size: int) -> Noise:
        """Fresh noise for one step from the update's own generator."""
        config, act_dim = self.config, self.act_dim
        num_target = config.num_target_actions if config.max_target_backup else 1
        counts = [1, num_target, config.num_actions, config.num_actions]
        options: dict[str, Any] = {"device": self.device, "dtype": self.dtype, "generator": self.generator}
        normal = torch.randn(batch_size, sum(counts), act_dim, **options)
        actor, target, current, after = torch.split(normal, counts, dim=1)
        random = torch.rand(batch_size, config.num_actions, act_dim, **options).mul_(2.0).sub_(1.0)
        subset = None
        if config.num_target_critics not in (None, config.num_critics):
            order = torch.randperm(config.num_critics, device=self.device, generator=self.generator)
            subset = order[: config.num_target_critics]
        return Noise(actor.squeeze(1), target, current, after, random, subset)

    def step(self, batch: Batch, noise: Noise | None = None) -> dict[str, Tensor]:
        """One update from a batch.

        Args:
            batch: float tensors `observations`, `next_observations` (B, obs_dim), `actions` (B, A) in [-1, 1],
                `rewards`, `dones`, `mc_returns` (B,).
            noise: the step's randomness; drawn where None.

        Returns:
            The step's figures as 0-dim tensors on the device (nothing here waits for it), all measured at the
            parameters before the update.
        """
        noise = self.draw_noise(len(batch["rewards"])) if noise is None else noise
        actor, critic = self.gradients(batch, noise)
        metrics = self._metrics(batch, actor, critic)
        if self.reduce_gradients is not None:
            groups = self.optimizer.param_groups
            self.reduce_gradients([p.grad for g in groups for p in g["params"] if p.grad is not None])
        self.optimizer.step()
        self.num_updates += 1
        if self.num_updates % self.config.target_network_update_freq == 0:
            self.update_targets(self.config.tau)
        return metrics

    def run(self, sample: Callable[[], Mapping[str, Any]], num_updates: int) -> dict[str, float]:
        """`num_updates` steps from batches of numpy arrays; the means of their figures.

        The figures stay on the device until the end: no step waits for another's result.
        """
        total: Tensor | None = None
        names: list[str] = []
        for _ in range(num_updates):
            metrics = self.step(self.to_tensors(sample()))
            names = list(metrics)
            figures = torch.stack(list(metrics.values()))
            total = figures if total is None else total.add_(figures)
        return means({} if total is None else dict(zip(names, total, strict=True)), num_updates)

    def to_tensors(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """A batch of numpy arrays on the update's device and in its precision."""
        return {
            name: torch.as_tensor(array, dtype=self.dtype, device=self.device) for name, array in batch.items()
        }

    def gradients(self, batch: Batch, noise: Noise) -> tuple[ActorValues, CriticValues]:
        """Fills every parameter's `.grad` at the present parameters; returns what the losses were made of."""
        observations = self.normalize(batch["observations"])
        policy = self.actor(observations)
        with torch.no_grad():
            next_observations = self.normalize(batch["next_observations"])
            next_policy = self.actor(next_observations)
            current_policy = TanhGaussian(policy.mean.detach(), policy.log_std.detach())
        self.critic_passes.refresh()
        self.target_passes.refresh()
        actor = self.actor_losses(observations, policy, batch["actions"], noise)
        self._backward(actor.actor_loss, list(self.actor.parameters()))
        if actor.temperature_loss is not None:
            self._backward(actor.temperature_loss, [self.log_alpha])
        critic = self._critic_gradients(batch, observations, next_observations, current_policy, next_policy, noise)
        self.log_alpha_prime.grad = None
        if self.config.lagrangian and critic.gaps is not None:
            dual_loss = self.lagrange_loss(critic.gaps)
            self._backward(dual_loss, [self.log_alpha_prime])
        return actor, critic

    def lagrange_loss(self, gaps: Tensor) -> Tensor:
        """The multiplier's loss at the present multiplier; a scalar."""
        return losses.lagrange_loss(self.alpha_prime(), gaps, self.min_q_weight, self.config.lagrangian_thresh)

    def actor_losses(
        self, observations: Tensor, policy: TanhGaussian, data_actions: Tensor, noise: Noise
    ) -> ActorValues:
        """The actor's and the temperature's loss, from one shared action per state."""
        alpha = self.alpha()
        if self.num_updates < self.config.bc_iters:
            _, log_probs = TanhGaussian(policy.mean.detach(), policy.log_std).sample(noise.actor)
            loss = losses.behavior_cloning_loss(alpha, log_probs, policy.mode, data_actions)
        else:
            actions, log_probs = policy.sample(noise.actor)
            q_policy = self.critic_passes.values_of_actions(observations, actions.unsqueeze(1)).squeeze(-1)
            loss = losses.actor_loss(alpha, log_probs, q_policy)
        temperature_loss = None
        if self.config.learn_alpha:
            temperature_loss = losses.temperature_loss(self.log_alpha, log_probs, self.target_entropy)
        return ActorValues(loss, temperature_loss, log_probs.detach())

    @torch.no_grad()
    def _critic_gradients(
        self,
        batch: Batch,
        observations: Tensor,
        next_observations: Tensor,
        policy: TanhGaussian,
        next_policy: TanhGaussian,
        noise: Noise,
    ) -> CriticValues:
        """Fills the critics' `.grad` (golden README: `L_Q = Bellman + conservative`)."""
        config, rows = self.config, len(batch["rewards"])
        target_actions, target_log_probs = next_policy.sample(noise.target)
        next_q = self.target_passes.values(next_observations, target_actions, noise.target_critics)
        entropy_alpha = None if config.deterministic_backup else self.alpha()
        next_value = losses.next_state_value(next_q, target_log_probs, entropy_alpha)
        target = losses.td_target(batch["rewards"], batch["dones"], next_value, config.gamma)
        data_actions = batch["actions"].unsqueeze(1)
        if self.min_q_weight == 0.0:
            q = self.critic_passes.differentiate(
                observations, data_actions, lambda q, states: (2.0 / rows) * (q - target[states].unsqueeze(1))
            )
            bellman = losses.bellman_loss(q[..., 0], target)
            return CriticValues(bellman, bellman, target, next_value, q)

        current_actions, log_probs_current = policy.sample(noise.current)
        next_actions, log_probs_next = next_policy.sample(noise.next)
        actions = torch.cat([data_actions, noise.random, current_actions, next_actions], dim=1)
        offsets = losses.sampling_offsets(
            log_probs_current, log_probs_next, self.act_dim, config.importance_sampling
        )
        unbounded = torch.full_like(batch["mc_returns"], -math.inf)
        bounds = losses.reference_bounds(batch["mc_returns"] if self.calibrated else unbounded, config.num_actions)
        weight = self.min_q_weight * self.alpha_prime().detach() if config.lagrangian else self.min_q_weight
        form = (config.temperature, config.clip_diff_min, config.clip_diff_max)

        def q_gradient(q: Tensor, states: slice) -> Tensor:
            some = (target[states], offsets[states], bounds[states])
            return losses.critic_gradient(q, *some, 1.0 / rows, weight / rows, *form)

        q = self.critic_passes.differentiate(observations, actions, q_gradient)
        bellman = losses.bellman_loss(q[..., 0], target)
        gaps = losses.conservative_gap(q, offsets, bounds, *form)
        penalty = weight * (gaps - config.lagrangian_thresh if config.lagrangian else gaps)
        return CriticValues(bellman + penalty, bellman, target, next_value, q, gaps, offsets)

    @staticmethod
    def _backward(loss: Tensor, parameters: list[Tensor]) -> None:
        # Asking for these gradients alone keeps autograd from building any other.
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient

    @torch.no_grad()
    def update_targets(self, tau: float) -> None:
        """target <- tau * critic + (1 - tau) * target; `tau=1` copies."""
        targets: list[Tensor] = list(self.target_critics.parameters())
        critics: list[Tensor] = list(self.critics.parameters())
        torch._foreach_lerp_(targets, critics, tau)

    @torch.no_grad()
    def _metrics(self, batch: Batch, actor: ActorValues, critic: CriticValues) -> dict[str, Tensor]:
        returns = batch["mc_returns"]
        known = returns.isfinite()
        metrics = {
            "actor_loss": actor.actor_loss.detach(),
            "critic_loss": critic.critic_losses.mean(),
            "bellman_loss": critic.bellman_losses.mean(),
            "q_data_mean": critic.q[..., 0].mean(),
            "mc_return_mean": returns.where(known, 0.0).sum() / known.sum(),
            "alpha": self.alpha(),
            "entropy": -actor.log_probs.mean(),
        }
        if critic.gaps is not None:
            q_policy = critic.q[..., 1 + self.config.num_actions :]
            metrics["bound_rate"] = (q_policy < returns.unsqueeze(-1)).to(self.dtype).mean()
            metrics["q_policy_mean"] = q_policy.mean()
            metrics["conservative_gap"] = critic.gaps.mean()
        if self.config.lagrangian:
            metrics["alpha_prime"] = self.alpha_prime().detach()
        return metrics

    # ---- state

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name in ("actor", "critics", "target_critics"):
            for key, tensor in getattr(self, name).state_dict().items():
                yield f"{name}.{key}", tensor
        for name in ("log_alpha", "log_alpha_prime", "obs_mean", "obs_std"):
            yield name, getattr(self, name).detach()

    def weights(self, prefixes: tuple[str, ...] = ("",)) -> dict[str, np.ndarray]:
        """Every network, temperature and the normaliser as numpy copies, by name; or those that begin so."""
        tensors = self._tensors()
        return {name: tensor.cpu().numpy().copy() for name, tensor in tensors if name.startswith(prefixes)}

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Takes over `weights`; names that are absent keep their values.

        Raises:
            KeyError: a name this update does not have. ValueError: a shape that differs.
        """
        own = dict(self._tensors())
        for name, array in weights.items():
            if name not in own:
                raise KeyError(f"no parameter named {name!r}; this update has {sorted(own)}")
            if own[name].shape != array.shape:
                raise ValueError(f"{name} is {tuple(own[name].shape)} here but {array.shape} in the weights")
        for name, array in weights.items():
            own[name].copy_(torch.tensor(array))

    def get_state(self) -> dict[str, Any]:
        """Everything needed to go on bit-equal: weights, optimiser, counters and the noise generator."""
        optimizer = self.optimizer.state_dict()["state"]
        return {
            "weights": self.weights(),
            "optimizer": {i: {k: v.cpu().numpy().copy() for k, v in s.items()} for i, s in optimizer.items()},
            "num_updates": self.num_updates,
            "online": self.online,
            "generator": self.generator.get_state().numpy().copy(),
            "device": self.device.type,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Takes over a state made by `get_state`; bit-equal on the same kind of device."""
        self.load_weights(state["weights"])
        layout = self.optimizer.state_dict()
        layout["state"] = {
            i: {k: torch.from_numpy(np.array(v)) for k, v in s.items()} for i, s in state["optimizer"].items()
        }
        self.optimizer.load_state_dict(layout)
        self.num_updates, self.online = int(state["num_updates"]), bool(state["online"])
        if state["device"] == self.device.type:
            self.generator.set_state(torch.from_numpy(np.array(state["generator"])))
        else:  # generators of different devices have nothing in common: a new, reproducible sequence
            self.generator.manual_seed(self.num_updates)
