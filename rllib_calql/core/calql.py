"""One Cal-QL update: its networks, the randomness of a step, and the gradients of its losses."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from rllib_calql.core import losses
from rllib_calql.core.acting import sampled_actions
from rllib_calql.core.networks import CriticEnsemble, TanhGaussian, TanhGaussianActor
from rllib_calql.core.passes import CriticPasses, QGradient
from rllib_calql.core.update import Batch, Update


class Noise(NamedTuple):
    """All randomness of one step, so that a step can be repeated exactly. N, N_t: num_(target_)actions."""

    actor: Tensor  # (B, A) normal: the action of the actor and temperature losses
    target: Tensor  # (B, N_t, A) normal: actions at s' of the TD target
    current: Tensor  # (B, N, A) normal: pi(.|s) of the conservative term
    next: Tensor  # (B, N, A) normal: pi(.|s') of the conservative term
    random: Tensor  # (B, N, A) uniform in [-1, 1]
    target_critics: Tensor | None = None  # (M,) indices of the target critics; all where None

    def rows(self, rows: slice) -> Noise:
        """The noise of some rows of the batch."""
        return self._replace(**{name: getattr(self, name)[rows] for name in self._fields[:5]})


class CriticValues(NamedTuple):
    """What the critic loss was made of. K is 1, or 1 + 3N with the conservative term."""

    critic_losses: Tensor  # (E,)
    bellman_losses: Tensor  # (E,)
    target: Tensor  # (B,)
    next_value: Tensor  # (B,)
    q: Tensor  # (E, B, K) before bounding: of the data's, random, current and next policy's actions
    gaps: Tensor | None = None  # (E,) clipped, averaged differences of the conservative term
    offsets: Tensor | None = None  # (B, K), see `losses.sampling_offsets`
    policy: Tensor | None = None  # (B, n) the policy's probabilities, where actions are discrete


class ActorValues(NamedTuple):
    actor_loss: Tensor  # scalar
    temperature_loss: Tensor | None  # scalar
    log_probs: Tensor  # (B,)
    further: Mapping[str, Tensor] = {}  # figures of a variant's own


class CalQLUpdate(Update):
    """The one update step of Cal-QL, used by both API stacks, both phases and the benchmarks.

    Every loss moves only its own parameters. (`Update` has the arguments and the order of a step.)
    """

    NETWORKS: ClassVar[tuple[str, ...]] = ("actor", "critics", "target_critics")
    SCALARS: ClassVar[tuple[str, ...]] = ("log_alpha", "log_alpha_prime")
    TARGETS: ClassVar[Mapping[str, str]] = {"target_critics": "critics"}

    def build(self) -> list[dict[str, Any]]:
        """Actor, critics with their targets, entropy temperature and Lagrange multiplier."""
        config = self.config
        self.build_networks()
        self.log_alpha = self.scalar(math.log(config.initial_alpha)).requires_grad_(config.learn_alpha)
        self.log_alpha_prime = self.scalar(math.log(config.initial_alpha_prime))
        self.log_alpha_prime.requires_grad_(config.lagrangian)
        target_entropy = config.target_entropy
        self.target_entropy = -float(self.act_dim) if target_entropy is None else target_entropy
        return [
            {"params": list(self.actor.parameters()), "lr": config.actor_lr},
            {"params": list(self.critics.parameters()), "lr": config.critic_lr},
            {"params": [self.log_alpha], "lr": config.alpha_lr},
            {"params": [self.log_alpha_prime], "lr": config.lagrangian_lr},
        ]

    def build_networks(self) -> None:
        """Makes `actor`, `critics` and `target_critics`."""
        config = self.config
        self.actor = TanhGaussianActor(
            self.obs_dim, self.act_dim, config.actor_hiddens, config.actor_activation, config.orthogonal_init
        ).to(self.device, self.dtype)
        self.critics = CriticEnsemble(
            self.obs_dim,
            self.act_dim,
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

    def rules(self, number: int) -> Hashable:
        """See `Update.rules`; whether the actor is cloning, and whether it moves."""
        return super().rules(number), number < self.config.bc_iters, self.moves_actor(number)

    def moves_actor(self, number: int) -> bool:
        """Whether update `number` has a step of the actor and the temperature."""
        return not self.online or (number + 1) % self.config.online_actor_interval == 0

    # ---- acting

    @torch.no_grad()
    def act(self, observations: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See `Update.act`; noise of (B, N, A) takes the best of N samples by the critics."""
        features = self.features(observations)
        policy = self.actor(features)
        if noise is None:
            return policy.best()
        if noise.dim() == 2:
            return policy.sample(noise)
        self.critic_passes.refresh()
        return sampled_actions(policy, noise, lambda actions: self.critic_passes.values(features, actions))

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
        return Noise(actor.squeeze(1), target, current, after, random, self.draw_target_critics())

    def draw_target_critics(self) -> Tensor | None:
        """Indices (M,) of the target critics that make a step's target; None for all."""
        config = self.config
        if config.num_target_critics in (None, config.num_critics):
            return None
        order = torch.randperm(config.num_critics, device=self.device, generator=self.generator)
        return order[: config.num_target_critics]

    def gradients(self, batch: Batch, noise: Noise) -> tuple[ActorValues | None, CriticValues]:
        """Fills every parameter's `.grad` at the present parameters; returns what the losses were made of."""
        observations = self.features(batch["observations"])
        with torch.set_grad_enabled(self.moves_actor(self.num_updates)):
            policy = self.actor(observations.detach())
        with torch.no_grad():
            next_observations = self.features(batch["next_observations"])
            next_policy = self.actor(next_observations)
            next_observations = self.target_features(batch["next_observations"], next_observations)
            current_policy = TanhGaussian(policy.mean.detach(), policy.log_std.detach())
        self.critic_passes.refresh()
        self.target_passes.refresh()
        actor = self.actor_gradients(lambda: self.actor_losses(batch, observations.detach(), policy, noise))
        critic = self.critic_gradients(batch, observations, next_observations, current_policy, next_policy, noise)
        self.multiplier_gradient(critic)
        return actor, critic

    def actor_gradients(self, actor_losses: Callable[[], ActorValues]) -> ActorValues | None:
        """Fills the actor's and the temperature's `.grad`; none, from no losses, where neither is to move."""
        parameters = list(self.actor.parameters())
        if not self.moves_actor(self.num_updates):
            for parameter in (*parameters, self.log_alpha):
                parameter.grad = None
            return None
        actor = actor_losses()
        self.backward(actor.actor_loss, parameters)
        if actor.temperature_loss is not None:
            self.backward(actor.temperature_loss, [self.log_alpha])
        return actor

    def multiplier_gradient(self, critic: CriticValues) -> None:
        """Fills the Lagrange multiplier's `.grad`; none where it is not learned."""
        self.log_alpha_prime.grad = None
        if self.config.lagrangian and critic.gaps is not None:
            self.backward(self.lagrange_loss(critic.gaps), [self.log_alpha_prime])

    def conservative_weight(self) -> Tensor | float:
        """Weight of the conservative term, the Lagrange multiplier in it; without gradient."""
        return self.min_q_weight * self.alpha_prime().detach() if self.config.lagrangian else self.min_q_weight

    def penalty(self, gaps: Tensor) -> Tensor:
        """The conservative term of the critics' losses, (E,), from its gaps (E,)."""
        excess = gaps - self.config.lagrangian_thresh if self.config.lagrangian else gaps
        return self.conservative_weight() * excess

    def lagrange_loss(self, gaps: Tensor) -> Tensor:
        """The multiplier's loss at the present multiplier; a scalar."""
        return losses.lagrange_loss(self.alpha_prime(), gaps, self.min_q_weight, self.config.lagrangian_thresh)

    def actor_losses(self, batch: Batch, observations: Tensor, policy: TanhGaussian, noise: Noise) -> ActorValues:
        """The actor's and the temperature's loss, from one shared action per state, given their features."""
        alpha = self.alpha()
        if self.num_updates < self.config.bc_iters:
            _, log_probs = TanhGaussian(policy.mean.detach(), policy.log_std).sample(noise.actor)
            loss = losses.behavior_cloning_loss(alpha, log_probs, policy.mode, batch["actions"])
        else:
            actions, log_probs = policy.sample(noise.actor)
            q_policy = self.critic_passes.values_of_actions(observations, actions.unsqueeze(1)).squeeze(-1)
            loss = losses.actor_loss(alpha, log_probs, q_policy, self.config.actor_q == "mean")
        temperature_loss = None
        if self.config.learn_alpha:
            temperature_loss = losses.temperature_loss(self.log_alpha, log_probs, self.target_entropy)
        return ActorValues(loss, temperature_loss, log_probs.detach())

    def next_state_value(self, next_observations: Tensor, next_policy: TanhGaussian, noise: Noise) -> Tensor:
        """V(s') of the TD target, (B,), without gradient."""
        actions, log_probs = next_policy.sample(noise.target)
        next_q = self.target_passes.values(next_observations, actions, noise.target_critics)
        entropy_alpha = None if self.config.deterministic_backup else self.alpha()
        return losses.next_state_value(next_q, log_probs, entropy_alpha)

    def differentiate(self, observations: Tensor, actions: Tensor, q_gradient: QGradient) -> Tensor:
        """Fills the critics' and the encoder's `.grad`; see `CriticPasses.differentiate`.

        `observations` are `features`, with the graph that leads to the encoder.
        """
        if self.encoder is None:
            return self.critic_passes.differentiate(observations, actions, q_gradient)
        gradient = torch.empty_like(observations)
        q = self.critic_passes.differentiate(observations.detach(), actions, q_gradient, gradient)
        self.differentiate_features(observations, gradient)
        return q

    @torch.no_grad()
    def critic_gradients(
        self,
        batch: Batch,
        observations: Tensor,
        next_observations: Tensor,
        policy: TanhGaussian,
        next_policy: TanhGaussian,
        noise: Noise,
    ) -> CriticValues:
        """Fills the critics' `.grad`: of their Bellman errors and, with a weight, of the conservative term."""
        config, rows = self.config, len(batch["rewards"])
        next_value = self.next_state_value(next_observations, next_policy, noise)
        target = losses.td_target(batch["rewards"], batch["dones"], next_value, config.gamma)
        data_actions = batch["actions"].unsqueeze(1)
        if self.min_q_weight == 0.0:
            q = self.differentiate(
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
        weight = self.conservative_weight()
        form = (config.temperature, config.clip_diff_min, config.clip_diff_max)

        def q_gradient(q: Tensor, states: slice) -> Tensor:
            some = (target[states], offsets[states], bounds[states])
            return losses.critic_gradient(q, *some, 1.0 / rows, weight / rows, *form)

        q = self.differentiate(observations, actions, q_gradient)
        bellman = losses.bellman_loss(q[..., 0], target)
        gaps = losses.conservative_gap(q, offsets, bounds, *form)
        return CriticValues(bellman + self.penalty(gaps), bellman, target, next_value, q, gaps, offsets)

    @torch.no_grad()
    def figures(self, batch: Batch, actor: ActorValues | None, critic: CriticValues) -> dict[str, Tensor]:
        """See `Update.figures`; the conservative term's where it has a weight, the actor's where it moves."""
        returns = batch["mc_returns"]
        known = returns.isfinite()
        metrics = {
            "critic_loss": critic.critic_losses.mean(),
            "bellman_loss": critic.bellman_losses.mean(),
            "q_data_mean": critic.q[..., 0].mean(),
            "mc_return_mean": returns.where(known, 0.0).sum() / known.sum(),
        }
        if actor is not None:
            metrics["actor_loss"] = actor.actor_loss.detach()
            metrics["alpha"], metrics["entropy"] = self.alpha(), -actor.log_probs.mean()
        if critic.gaps is not None:
            bounded, q_policy = self.of_policy(critic, returns)
            metrics["bound_rate"], metrics["q_policy_mean"] = bounded.mean(), q_policy.mean()
            metrics["conservative_gap"] = critic.gaps.mean()
        if self.config.lagrangian:
            metrics["alpha_prime"] = self.alpha_prime().detach()
        return metrics

    def of_policy(self, critic: CriticValues, returns: Tensor) -> tuple[Tensor, Tensor]:
        """Of the policy's actions: whether Q is below the returns (B,), as 0 or 1, and Q."""
        q = critic.q[..., 1 + self.config.num_actions :]
        return (q < returns.unsqueeze(-1)).to(self.dtype), q
