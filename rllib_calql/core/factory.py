"""The one place that chooses the update: by the settings and the spaces."""

from __future__ import annotations

import torch
from gymnasium.spaces import Box

from rllib_calql.core.advantage_weighted import AWACUpdate, IQLUpdate
from rllib_calql.core.calql import CalQLUpdate
from rllib_calql.core.hyperparameters import UpdateConfig
from rllib_calql.core.update import Update

UPDATES: dict[str, type[CalQLUpdate]] = {"sac": CalQLUpdate, "awac": AWACUpdate, "iql": IQLUpdate}


def make_update(
    observation_space: Box,
    action_space: Box,
    config: UpdateConfig,
    device: torch.device | str = "cpu",
    seed: int | None = None,
) -> Update:
    """The update that these settings ask for in these (flat) spaces; arguments as `Update`'s."""
    return UPDATES[config.update_rule](observation_space.shape[0], action_space.shape[0], config, device, seed)
