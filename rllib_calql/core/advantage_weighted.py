"""Actors that clone logged actions, the better ones more: AWAC, and IQL, which looks at no other actions."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from rllib_calql.core import losses
from rllib_calql.core.calql import ActorValues, CalQLUpdate, CriticValues, Noise
from rllib_calql.core.networks import TanhGaussian, ValueNetwork
from rllib_calql.core.update import Batch


class AWACUpdate(CalQLUpdate):
    """Advantage-weighted actor-critic (Nair et al. 2020, arXiv 2006.09359): SAC's critics, another actor.

    There is no entropy term anywhere, so there is no temperature. The actor moves in every update.
    """

    def moves_actor(self, number: int) -> bool:
        """See `CalQLUpdate.moves_actor`."""
        return True

    @property
    def beta(self) -> float:
        """Inverse temperature of the advantages in the current phase."""
        online = self.config.beta_online
        return online if self.online and online is not None else self.config.beta

    def actor_losses(self, batch: Batch, observations: Tensor, policy: TanhGaussian, noise: Noise) -> ActorValues:
        """The weighted log-likelihood of logged actions: by Q(s, a) - Q(s, a') of one policy action a'."""
        data_actions = batch["actions"]
        with torch.no_grad():
            policy_actions, log_probs = policy.sample(noise.actor)
            actions = torch.stack([data_actions, policy_actions], dim=1)
            q_data, q_policy = self.critic_passes.values(observations, actions).amin(0).unbind(-1)
            weights = losses.batch_softmax_weights(q_data - q_policy, self.beta)
        loss = losses.weighted_regression_loss(policy.log_prob(data_actions), weights)
        return ActorValues(loss, None, log_probs)

    def figures(self, batch: Batch, actor: ActorValues | None, critic: CriticValues) -> dict[str, Tensor]:
        """See `Update.figures`."""
        figures = super().figures(batch, actor, critic)
        del figures["alpha"]
        return figures


class IQLUpdate(AWACUpdate):
    """Implicit Q-learning (Kostrikov et al. 2021, arXiv 2110.06169).

    V is an expectile of the target critics' values of logged actions, the TD target is r + gamma V(s'), and the
    weights of the actor's likelihood are exp(beta (Q - V)). Of images V sees what the target critics see, features
    of the target encoder, and its loss does not move them.
    """

    NETWORKS: ClassVar[tuple[str, ...]] = (*AWACUpdate.NETWORKS, "value")

    def build(self) -> list[dict[str, Any]]:
        """The value network beside the others."""
        groups, config = super().build(), self.config
        self.value = ValueNetwork(
            self.obs_dim, config.critic_hiddens, config.critic_activation, config.orthogonal_init
        ).to(self.device, self.dtype)
        return [*groups, {"params": list(self.value.parameters()), "lr": config.critic_lr}]

    def actor_losses(self, batch: Batch, observations: Tensor, policy: TanhGaussian, noise: Noise) -> ActorValues:
        """The weighted log-likelihood of logged actions, by Q(s, a) - V(s), which makes V's `.grad` too."""
        data_actions = batch["actions"]
        with torch.no_grad():
            states = self.target_features(batch["observations"], observations)
        q = self.target_passes.values(states, data_actions.unsqueeze(1)).amin(0).squeeze(-1)
        values = self.value(states)
        value_loss = losses.expectile_loss(q - values, self.config.expectile)
        self.backward(value_loss, list(self.value.parameters()))
        weights = losses.clipped_exponential_weights((q - values).detach(), self.beta)
        loss = losses.weighted_regression_loss(policy.log_prob(data_actions), weights)
        figures = {"value_loss": value_loss.detach(), "value_mean": values.detach().mean()}
        return ActorValues(loss, None, policy.sample(noise.actor)[1].detach(), figures)

    def next_state_value(self, next_observations: Tensor, next_policy: TanhGaussian, noise: Noise) -> Tensor:
        """V(s'), (B,): no action is sampled."""
        return self.value(next_observations)

    def figures(self, batch: Batch, actor: ActorValues | None, critic: CriticValues) -> dict[str, Tensor]:
        """See `Update.figures`."""
        assert actor is not None
        return {**super().figures(batch, actor, critic), **actor.further}
