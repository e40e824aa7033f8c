"""The offline dataset of a run: opened as the config says, checked against the spaces, prepared."""

from __future__ import annotations

from typing import Any

import numpy as np

from rllib_calql.config import CalQLConfig
from rllib_calql.data import DatasetError, Preparation, Transitions, check_fits, open_dataset

# Stands in a config for rows that were given in memory: neither env runners nor checkpoints shall carry them.
IN_MEMORY = "memory://"


def without_rows(config: CalQLConfig) -> CalQLConfig:
    """The config with `IN_MEMORY` in the place of rows given in memory."""
    if not isinstance(config.input_, Transitions):
        return config
    light = config.copy(copy_frozen=False)
    light.input_ = IN_MEMORY
    light.freeze()
    return light


def open_offline_data(config: CalQLConfig, observation_space: Any, action_space: Any) -> Transitions | None:
    """The config's dataset, checked against the spaces and prepared; None where there is none.

    Raises:
        DatasetError: missing, unreadable, invalid, or of other dimensions than the environment.
    """
    if config.input_ == "sampler":
        return None
    options = dict(config.input_config)
    normalized = options.pop("actions_normalized", False)
    if options and not isinstance(config.input_, str):
        raise ValueError(f"input_config {options} is for datasets opened by name or path, not for given ones")
    if isinstance(config.input_, Transitions):
        raw = config.input_
    elif callable(config.input_):
        raw = config.input_()
    elif config.input_ == IN_MEMORY:
        raise DatasetError(
            "this run's data were given in memory, and checkpoints do not hold them: go on with "
            "CalQL.from_checkpoint(path, input_=data)"
        )
    else:
        raw = open_dataset(config.input_, **options)
    check_fits(raw, observation_space, action_space)
    bounds = {} if normalized else {"action_low": action_space.low, "action_high": action_space.high}
    prepared: Preparation = config.preparation(**bounds)
    return prepared(raw)


def observation_statistics(data: Transitions) -> dict[str, np.ndarray]:
    """The normaliser's weights: `obs_mean` and `obs_std`, (obs_dim,); a constant entry keeps its scale."""
    std = data.observations.std(axis=0, dtype=np.float64)
    mean = data.observations.mean(axis=0, dtype=np.float64)
    return {"obs_mean": mean, "obs_std": np.where(std > 1e-6, std, 1.0)}


def check_capacity(config: CalQLConfig, env: Any) -> None:
    """Refuses (ValueError) a replay that an episode of the environment's time limit would not fit."""
    limit = getattr(getattr(env, "spec", None), "max_episode_steps", None)
    if limit is not None and limit > config.online_capacity and config.num_online_env_steps > 0:
        raise ValueError(
            f"online_capacity={config.online_capacity} cannot hold an episode of up to {limit} steps: enlarge it"
        )
