"""The one place that chooses the update: by the settings and the spaces."""

from __future__ import annotations

import torch
from gymnasium.spaces import Box

from rllib_calql.core.advantage_weighted import AWACUpdate, IQLUpdate
from rllib_calql.core.calql import CalQLUpdate
from rllib_calql.core.hyperparameters import UpdateConfig
from rllib_calql.core.update import Update
from rllib_calql.data.frames import frame_layout

UPDATES: dict[str, type[CalQLUpdate]] = {"sac": CalQLUpdate, "awac": AWACUpdate, "iql": IQLUpdate}


def make_update(
    observation_space: Box,
    action_space: Box,
    config: UpdateConfig,
    device: torch.device | str = "cpu",
    seed: int | None = None,
) -> Update:
    """The update that these settings ask for in these spaces, flat or frames; arguments as `Update`'s."""
    observations = frame_layout(observation_space) or observation_space.shape[0]
    return UPDATES[config.update_rule](observations, action_space.shape[0], config, device, seed)
