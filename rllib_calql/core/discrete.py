"""Cal-QL with discrete actions: a categorical actor, critics Q(s) -> (n,), and sums over actions without sampling.

With n actions the integrals of Cal-QL are finite sums, so nothing is sampled inside an update and no importance
weights are needed; `docs/fidelity.md` derives the losses. Sources: Nakamoto et al. 2023, "Cal-QL"; Kumar et al.
2020, "CQL"; Christodoulou 2019, "Soft Actor-Critic for Discrete Action Settings" (arXiv 1910.07207).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rllib_calql.core import losses
from rllib_calql.core.calql import ActorValues, CalQLUpdate, CriticValues
from rllib_calql.core.hyperparameters import UpdateConfig
from rllib_calql.core.networks import MLP, CriticEnsemble
from rllib_calql.core.update import Batch

# "auto" target entropy, as a share of the greatest there is, log n.
TARGET_ENTROPY = 0.3


class Categorical(NamedTuple):
    """A distribution over n actions; `log_probs` is (B, n), normalised."""

    log_probs: Tensor

    def sample(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions (B,) int64 and their log-probabilities (B,), by the Gumbel-max trick.

        Args:
            noise: (B, n) standard normal; a finite number for every action.
        """
        uniform = torch.special.ndtr(noise).clamp(
            torch.finfo(noise.dtype).tiny, 1.0 - torch.finfo(noise.dtype).eps
        )
        return self._with_log_probs((self.log_probs - (-uniform.log()).log()).argmax(-1))

    def best(self) -> tuple[Tensor, Tensor]:
        """The likeliest actions and their log-probabilities; shapes as of `sample`."""
        return self._with_log_probs(self.log_probs.argmax(-1))

    def log_prob(self, actions: Tensor) -> Tensor:
        """log pi of given actions (B,); (B,)."""
        return self._with_log_probs(actions.long())[1]

    @property
    def inputs(self) -> Tensor:
        """All parameters: the log-probabilities, (B, n)."""
        return self.log_probs

    def _with_log_probs(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        return actions, self.log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)


class CategoricalActor(MLP):
    """MLP(s) -> log-probabilities of n actions."""

    def __init__(
        self,
        obs_dim: int,
        num_actions: int,
        hiddens: Sequence[int] = (256, 256),
        activation: str = "relu",
        orthogonal_init: bool = True,
    ) -> None:
        super().__init__([obs_dim, *hiddens, num_actions], activation, orthogonal_init)

    def forward(self, observations: Tensor) -> Categorical:
        """Observations (B, obs_dim) -> the policy's distribution over n actions."""
        return Categorical(torch.log_softmax(self.outputs(observations), dim=-1))


class DiscreteCriticEnsemble(CriticEnsemble):
    """E independent networks Q_i(s), each with an output for every action."""

    def forward(self, observations: Tensor, members: Tensor | None = None) -> Tensor:
        """Observations (B, obs_dim) -> Q-values (E, B, n); of the networks `members` (M,) alone where given."""
        weights, biases, scales, offsets = (
            [parameter if members is None else parameter[members] for parameter in group]
            for group in (self.weights, self.biases, self.norm_scales, self.norm_offsets)
        )
        hidden = observations.expand(len(weights[0]), -1, -1)
        for layer in range(len(weights) - 1):
            hidden = torch.baddbmm(biases[layer], hidden, weights[layer])
            if scales:
                hidden = torch.layer_norm(hidden, hidden.shape[-1:]) * scales[layer] + offsets[layer]
            hidden = self.activation(hidden)
        return torch.baddbmm(biases[-1], hidden, weights[-1])


class DiscreteNoise(NamedTuple):
    """All randomness of one step: which target critics make the target."""

    target_critics: Tensor | None = None  # (M,) indices; all where None

    def rows(self, rows: slice) -> DiscreteNoise:
        """The noise of some rows of the batch."""
        return self


class DiscreteCalQLUpdate(CalQLUpdate):
    """Cal-QL for n actions; `act_dim` is n, and `actions` of a batch are their numbers 0 to n - 1, (B, 1).

    `act` gives numbers (B,), and takes noise (B, n).

    Raises:
        ValueError: settings that speak of sampled or continuous actions.
    """

    def build(self) -> list[dict[str, Any]]:
        """Actor, critics with their targets, entropy temperature and Lagrange multiplier."""
        config = self.config
        check_settings(config, self.act_dim)
        groups = super().build()
        share = TARGET_ENTROPY * math.log(self.act_dim)
        self.target_entropy = share if config.target_entropy is None else config.target_entropy
        return groups

    def build_networks(self) -> None:
        """See `CalQLUpdate.build_networks`."""
        config, sizes = self.config, (self.obs_dim, self.act_dim)
        self.actor = CategoricalActor(
            *sizes, config.actor_hiddens, config.actor_activation, config.orthogonal_init
        ).to(self.device, self.dtype)
        self.critics = DiscreteCriticEnsemble(
            self.obs_dim,
            0,
            config.critic_hiddens,
            config.num_critics,
            config.critic_activation,
            config.orthogonal_init,
            config.critic_layer_norm,
            num_outputs=self.act_dim,
        ).to(self.device, self.dtype)
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)

    def draw_noise(self, batch_size: int) -> DiscreteNoise:  # type: ignore[override]
        """Fresh noise for one step from the update's own generator."""
        return DiscreteNoise(self.draw_target_critics())

    def gradients(self, batch: Batch, noise: DiscreteNoise) -> tuple[ActorValues | None, CriticValues]:  # type: ignore[override]
        """Fills every parameter's `.grad` at the present parameters; returns what the losses were made of."""
        observations = self.features(batch["observations"])
        actions = batch["actions"].long()
        policy = self.actor(observations.detach())
        q = self.critics(observations)
        actor = self.actor_gradients(lambda: self.discrete_actor_losses(policy, q.detach(), actions))
        critic = self.critic_losses(batch, q, actions, policy, noise)
        learned = [*self.critics.parameters(), *([] if self.encoder is None else self.encoder.parameters())]
        self.backward(critic.critic_losses.sum(), learned)
        self.multiplier_gradient(critic)
        return actor, critic

    def discrete_actor_losses(self, policy: Categorical, q: Tensor, actions: Tensor) -> ActorValues:
        """The actor's and the temperature's loss, expectations over all actions; `q` is (E, B, n)."""
        alpha, log_probs = self.alpha(), policy.log_probs
        probs = log_probs.exp()
        mean_log_prob = (probs * log_probs).sum(-1)
        if self.num_updates < self.config.bc_iters:
            loss = (alpha * mean_log_prob - policy.log_prob(actions.squeeze(-1))).mean()
        else:
            value = q.mean(0) if self.config.actor_q == "mean" else q.amin(0)
            loss = (alpha * mean_log_prob - (probs * value).sum(-1)).mean()
        temperature_loss = None
        if self.config.learn_alpha:
            temperature_loss = losses.temperature_loss(self.log_alpha, mean_log_prob, self.target_entropy)
        return ActorValues(loss, temperature_loss, mean_log_prob.detach())

    @torch.no_grad()
    def discrete_next_value(self, next_observations: Tensor, noise: DiscreteNoise) -> Tensor:
        """V(s') of the TD target, (B,): the best action's value, or the policy's mean; less alpha log pi."""
        features = self.features(next_observations)
        q = self.target_critics(self.target_features(next_observations, features), noise.target_critics).amin(0)
        log_probs = self.actor(features).log_probs
        if self.config.max_target_backup:
            value, chosen = q.max(-1)
            log_prob = log_probs.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
        else:
            value, log_prob = ((log_probs.exp() * of_actions).sum(-1) for of_actions in (q, log_probs))
        return value if self.config.deterministic_backup else value - self.alpha() * log_prob

    def critic_losses(
        self, batch: Batch, q: Tensor, actions: Tensor, policy: Categorical, noise: DiscreteNoise
    ) -> CriticValues:
        """The critics' Bellman errors and, with a weight, the conservative term; `q` is (E, B, n).

        The values' columns are the data's action, then all n.
        """
        config, returns = self.config, batch["mc_returns"]
        next_value = self.discrete_next_value(batch["next_observations"], noise)
        target = losses.td_target(batch["rewards"], batch["dones"], next_value, config.gamma)
        q = torch.cat([q.gather(-1, actions.expand(len(q), -1, -1)), q], dim=-1)
        bellman = losses.bellman_loss(q[..., 0], target)
        if self.min_q_weight == 0.0:
            return CriticValues(bellman, bellman.detach(), target, next_value, q.detach())
        offsets = q.new_zeros(q.shape[1:])
        offsets[:, 0] = -math.inf
        bounds = q.new_full(q.shape[1:], -math.inf)
        if self.calibrated:
            bounds[:, 1:] = returns.unsqueeze(-1)
        gaps = losses.conservative_gap(
            q, offsets, bounds, config.temperature, config.clip_diff_min, config.clip_diff_max
        )
        return CriticValues(
            bellman + self.penalty(gaps),
            bellman.detach(),
            target,
            next_value,
            q.detach(),
            gaps.detach(),
            policy=policy.log_probs.detach().exp(),
        )

    def of_policy(self, critic: CriticValues, returns: Tensor) -> tuple[Tensor, Tensor]:
        """See `CalQLUpdate.of_policy`; expectations over the policy's actions."""
        assert critic.policy is not None
        q = critic.q[..., 1:]
        below = (q < returns.unsqueeze(-1)).to(self.dtype)
        return (critic.policy * below).sum(-1), (critic.policy * q).sum(-1)


def check_settings(config: UpdateConfig, num_actions: int) -> None:
    """Refuses (ValueError) settings that have no meaning where the actions are discrete."""
    default = UpdateConfig()
    if num_actions < 2:
        raise ValueError("there is nothing to learn where the environment has a single action")
    why = "is for continuous actions, of which some are sampled, and the environment's are discrete"
    for name in ("num_actions", "num_target_actions", "importance_sampling"):
        if getattr(config, name) != getattr(default, name):
            raise ValueError(f"{name}={getattr(config, name)} {why}: all of them are summed over; leave it out")
    if config.precision == "bfloat16":
        raise ValueError('precision="bfloat16" is for continuous actions: use "float32"')
    entropy = config.target_entropy
    if entropy is not None and not 0.0 <= entropy < math.log(num_actions):
        raise ValueError(
            f"target_entropy={entropy:g}: that of {num_actions} discrete actions lies from 0 to below "
            f"log({num_actions}) = {math.log(num_actions):.3g}; 'auto' is {TARGET_ENTROPY} of it"
        )
