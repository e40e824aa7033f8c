"""The offline dataset of a run: opened as the config says, checked against the spaces, prepared."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from rllib_calql.config import CalQLConfig
from rllib_calql.data import DatasetError, DatasetWarning, Preparation, Transitions, check_fits, open_dataset
from rllib_calql.data.prepare import episode_returns, return_factor
from rllib_calql.data.summary import Moments
from rllib_calql.envs.creation import FROM_DATASET
from rllib_calql.envs.recorded import differences
from rllib_calql.metrics import score_range

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


class OfflineData(NamedTuple):
    """The offline dataset of a run, and what the run takes from it."""

    rows: Transitions | None  # prepared; None where there is no dataset
    reward_factor: float  # of `normalize_reward`: what online rewards are multiplied by, too
    score_range: tuple[float, float] | None  # episode returns that score 0 and 1, where config or data know them


def open_offline_data(config: CalQLConfig, observation_space: Any, action_space: Any) -> OfflineData:
    """The config's dataset, checked against the spaces and prepared.

    Raises:
        DatasetError: missing, unreadable, invalid, or of other dimensions than the environment.
    """
    if config.input_ == "sampler":
        return OfflineData(None, 1.0, score_range(config.score_range))
    options = dict(config.input_config)
    normalized = options.pop("actions_normalized", None)
    if options and not isinstance(config.input_, str):
        raise ValueError(f"input_config {options} is for datasets opened by name or path, not for given ones")
    if isinstance(config.input_, Transitions):
        raw = config.input_
    elif callable(config.input_):
        raw = config.input_()
    elif config.input_ == IN_MEMORY:
        raise DatasetError(
            "this run's data were given in memory, and checkpoints do not hold them: give them again"
        )
    else:
        raw = open_dataset(config.input_, **options)
    check_fits(raw, observation_space, action_space)
    if normalized is None:
        normalized = raw.metadata.actions_normalized
    bounds = {} if normalized else {"action_low": action_space.low, "action_high": action_space.high}
    factor = return_factor(episode_returns(raw)) if config.normalize_reward else 1.0
    prepared: Preparation = config.preparation(factor, **bounds)
    return OfflineData(prepared(raw), factor, score_range(config.score_range) or raw.metadata.score_range)


def reference(config: CalQLConfig, data: Transitions | None) -> dict[str, str] | None:
    """What a checkpoint keeps of the dataset: its name and its fingerprint."""
    return None if data is None else {"input": str(config.input_), "fingerprint": data.fingerprint}


def check_same_data(saved: dict[str, str] | None, here: dict[str, str] | None, other_data: bool) -> None:
    """Compares the dataset of a checkpoint with the one that is here (`reference`s).

    Raises:
        DatasetError: they differ, and `other_data` is not expected.

    Warns:
        DatasetWarning: they differ, as expected.
    """

    def name(data: dict[str, str] | None) -> str:
        return "no dataset" if data is None else f"{data['input']} (fingerprint {data['fingerprint']})"

    if (saved and saved["fingerprint"]) == (here and here["fingerprint"]):
        return
    difference = f"the checkpoint is of a run on {name(saved)}, and here is {name(here)}"
    if not other_data:
        raise DatasetError(
            f"{difference}: use the same data, or CalQL.from_checkpoint(path, input_=...) to go on with others"
        )
    warnings.warn(f"{difference}: going on with these", DatasetWarning, stacklevel=4)


def check_environment(data: Transitions, env: Any) -> None:
    """Warns (DatasetWarning) where the configured environment is another than the data were recorded in."""
    found = differences(data.metadata, env) if isinstance(env, gym.Env) else []
    if found:
        warnings.warn(
            f"the dataset was recorded in another environment than the configured one: {'; '.join(found)}. "
            f"environment({FROM_DATASET!r}) takes the recorded one",
            DatasetWarning,
            stacklevel=2,
        )


def observation_statistics(data: Transitions) -> dict[str, np.ndarray]:
    """The normaliser's weights: `obs_mean` and `obs_std`, (obs_dim,); a constant entry keeps its scale."""
    moments = Moments(data.observations)
    moments.add(data.observations)
    return {"obs_mean": moments.mean, "obs_std": np.where(moments.std > 1e-6, moments.std, 1.0)}


def check_capacity(config: CalQLConfig, env: Any) -> None:
    """Refuses (ValueError) a replay that an episode of the environment's time limit would not fit."""
    limit = getattr(getattr(env, "spec", None), "max_episode_steps", None)
    if limit is not None and limit > config.online_capacity and config.num_online_env_steps > 0:
        raise ValueError(
            f"online_capacity={config.online_capacity} cannot hold an episode of up to {limit} steps: enlarge it"
        )
