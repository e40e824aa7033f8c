"""The one place that chooses the update: by the settings and the spaces."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from gymnasium.spaces import Box, Discrete

from rllib_calql.core.advantage_weighted import AWACUpdate, IQLUpdate
from rllib_calql.core.calql import CalQLUpdate
from rllib_calql.core.discrete import CategoricalActor, DiscreteCalQLUpdate
from rllib_calql.core.hyperparameters import UpdateConfig
from rllib_calql.core.networks import TanhGaussianActor
from rllib_calql.core.update import Update
from rllib_calql.data.frames import frame_layout

UPDATES: dict[str, type[CalQLUpdate]] = {"sac": CalQLUpdate, "awac": AWACUpdate, "iql": IQLUpdate}


def make_actor(
    obs_dim: int,
    action_space: Box | Discrete,
    hiddens: Sequence[int],
    activation: str,
    orthogonal_init: bool,
) -> TanhGaussianActor | CategoricalActor:
    """The actor that such an update has, for those who only act."""
    rest = (hiddens, activation, orthogonal_init)
    if isinstance(action_space, Discrete):
        return CategoricalActor(obs_dim, int(action_space.n), *rest)
    return TanhGaussianActor(obs_dim, action_space.shape[0], *rest)


def make_update(
    observation_space: Box,
    action_space: Box | Discrete,
    config: UpdateConfig,
    device: torch.device | str = "cpu",
    seed: int | None = None,
) -> Update:
    """The update that these settings ask for in these spaces, flat or frames; arguments as `Update`'s."""
    observations = frame_layout(observation_space) or observation_space.shape[0]
    if not isinstance(action_space, Discrete):
        return UPDATES[config.update_rule](observations, action_space.shape[0], config, device, seed)
    if config.update_rule != "sac":
        raise ValueError(f'update_rule="{config.update_rule}" is for continuous actions: use "sac"')
    return DiscreteCalQLUpdate(observations, int(action_space.n), config, device, seed)
