"""The offline dataset of a run: opened as the config says, checked against the spaces, prepared."""

from __future__ import annotations

import inspect
import warnings
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Discrete
from ray.data import Dataset

from rllib_calql import ray_data
from rllib_calql.config import CalQLConfig
from rllib_calql.core.reference import ReferenceConfig, ReferenceValue, fit_reference
from rllib_calql.data import DatasetError, DatasetWarning, Mixture, Transitions, check_fits, open_dataset
from rllib_calql.data.frames import FrameLayout, frame_layout
from rllib_calql.data.mixture import entries_of
from rllib_calql.data.prepare import bounds_of, episode_returns, return_factor
from rllib_calql.data.summary import Moments
from rllib_calql.envs.creation import FROM_DATASET
from rllib_calql.envs.recorded import differences
from rllib_calql.metrics import score_range

# Stands in a config for rows that were given in memory: neither env runners nor checkpoints shall carry them.
IN_MEMORY = "memory://"


def without_rows(config: CalQLConfig) -> CalQLConfig:
    """The config with `IN_MEMORY` in the place of rows given in memory."""
    if not _has_rows(config.input_):
        return config
    light = config.copy(copy_frozen=False)
    light.input_ = IN_MEMORY
    light.freeze()
    return light


def _has_rows(input_: Any) -> bool:
    if isinstance(input_, (list, tuple)):
        return any(_has_rows(entry.input) for entry in entries_of(input_))
    return isinstance(input_, (Transitions, Dataset))


def on_this_node(config: CalQLConfig) -> CalQLConfig:
    """The config with rows on this node's disk in the place of a Ray Dataset, or of a function that gives one.

    Raises:
        DatasetError: see `ray_data.stream`; or an option that it does not take.
    """
    given: Any = config.input_
    if callable(given) and not isinstance(given, Transitions):
        given = given()
    if given is config.input_ and not isinstance(given, Dataset):
        return config
    local = config.copy(copy_frozen=False)
    if isinstance(given, Dataset):
        options = {name: value for name, value in config.input_config.items() if name != "actions_normalized"}
        known = list(inspect.signature(ray_data.stream).parameters)[1:]
        if unknown := sorted(set(options) - set(known)):
            raise DatasetError(f"unknown option {unknown[0]} for a Ray Dataset: it takes {', '.join(known)}")
        given = ray_data.stream(given, **options)
        for name in options:
            del local.input_config[name]
    local.input_ = given
    local.freeze()
    return local


class OfflineData(NamedTuple):
    """The offline dataset of a run, and what the run takes from it."""

    rows: Transitions | Mixture | None  # prepared; None where there is no dataset
    reward_factor: float  # of `normalize_reward`: what online rewards are multiplied by, too
    score_range: tuple[float, float] | None  # episode returns that score 0 and 1, where config or data know them


def open_offline_data(config: CalQLConfig, observation_space: Any, action_space: Any) -> OfflineData:
    """The config's dataset, checked against the spaces and prepared.

    Raises:
        DatasetError: missing, unreadable, invalid, or of other dimensions than the environment.
    """
    frames = frame_layout(observation_space)
    check_image_settings(config, frames)
    discrete = isinstance(action_space, Discrete)
    if discrete:
        _refuse_continuous(config)
    if config.input_ == "sampler":
        return OfflineData(None, 1.0, score_range(config.score_range))
    options = dict(config.input_config)
    normalized = options.pop("actions_normalized", None)
    if options and not isinstance(config.input_, (str, list, tuple)):
        raise ValueError(f"input_config {options} is for datasets opened by name or path, not for given ones")
    if config.input_ == IN_MEMORY:
        raise DatasetError(
            "this run's data were given in memory, and checkpoints do not hold them: give them again"
        )
    given: Any = config.input_() if callable(config.input_) else config.input_
    if frames is not None:
        options.setdefault("observations", "keep")
    raw: Transitions | Mixture = open_dataset(given, **options)
    check_fits(raw, observation_space, action_space)
    factor = 1.0
    if config.normalize_reward:
        factor = return_factor(np.concatenate([episode_returns(part) for part in raw.parts]))

    def prepared(part: Transitions) -> Transitions:
        in_bounds = part.metadata.actions_normalized if normalized is None else normalized
        bounds = {} if in_bounds and not discrete else bounds_of(action_space)
        return config.preparation(factor, **bounds)(part.changed(frame_stack=frames and frames.frame_stack))

    return OfflineData(raw.each(prepared), factor, score_range(config.score_range) or raw.metadata.score_range)


def _refuse_continuous(config: CalQLConfig) -> None:
    """Refuses (ValueError) settings beside the update's that have no meaning where actions are discrete."""
    default = type(config)()
    for name in ("clip_action", "num_exploration_actions"):
        if getattr(config, name) != getattr(default, name):
            raise ValueError(f"{name} is for continuous actions, and the environment's are discrete: leave it out")
    if "actions_normalized" in config.input_config:
        raise ValueError("input_config: actions_normalized is for continuous actions: leave it out")


def fitted_reference_value(
    config: CalQLConfig, data: Transitions | Mixture | None, failure_reward: float | None
) -> ReferenceValue:
    """The config's learned reference value, fitted to prepared rows (`open_offline_data`'s).

    `failure_reward` is `sparse_failure_reward` as it trains.

    Raises:
        DatasetError: see `fit_reference`.
    """
    assert data is not None, "the config is validated"
    return fit_reference(
        data,
        ReferenceConfig(**config.reference_config),
        gamma=config.gamma,
        bootstrap=config.truncation_mode == "bootstrap",
        failure_reward=failure_reward,
        seed=config.seed,
    )


def check_image_settings(config: CalQLConfig, frames: FrameLayout | None) -> None:
    """Refuses (ValueError) settings for images where there are none, and those that images do not go with."""
    if frames is None:
        defaults = type(config)()
        for name in ("encoder_config", "image_augmentation", "frame_stack"):
            if getattr(config, name) != getattr(defaults, name):
                raise ValueError(f"{name} is for images, and the environment observes none (uint8): leave it out")
        return
    if config.normalize_observations:
        raise ValueError("normalize_observations=True is for vectors: the encoder scales images by itself")
    if config.learns_reference:
        raise ValueError(
            f"reference_value={config.reference_value!r} with truncation_mode={config.truncation_mode!r} is for "
            "vectors: images go with 'return_to_go' and any other mode than 'bootstrap'"
        )
    if config.replay_device == "update":
        raise ValueError("replay_device='update' is for vectors: use 'host' or 'auto' with images")


def reference(config: CalQLConfig, data: Transitions | Mixture | None) -> dict[str, str] | None:
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


def check_environment(data: Transitions | Mixture, env: Any) -> None:
    """Warns (DatasetWarning) where the configured environment is another than the data were recorded in."""
    if not isinstance(env, gym.Env):
        return
    found = list(dict.fromkeys(text for part in data.parts for text in differences(part.metadata, env)))
    if found:
        warnings.warn(
            f"the dataset was recorded in another environment than the configured one: {'; '.join(found)}. "
            f"environment({FROM_DATASET!r}) takes the recorded one",
            DatasetWarning,
            stacklevel=2,
        )


def observation_statistics(data: Transitions | Mixture) -> dict[str, np.ndarray]:
    """The normaliser's weights: `obs_mean` and `obs_std`, (obs_dim,); a constant entry keeps its scale.

    Of a mixture, each dataset counts with the share of the rows that are drawn from it.
    """
    means, variances = [], []
    for part in data.parts:
        moments = Moments(part.observations)
        with part.reading_through():
            moments.add(part.observations)
        means.append(moments.mean)
        variances.append(moments.std**2)
    shares = data.shares if isinstance(data, Mixture) else np.ones(1)
    mean = shares @ np.stack(means)
    std = np.sqrt(shares @ (np.stack(variances) + (np.stack(means) - mean) ** 2))
    return {"obs_mean": mean, "obs_std": np.where(std > 1e-6, std, 1.0)}


def check_capacity(config: CalQLConfig, env: Any) -> None:
    """Refuses (ValueError) a replay that an episode of the environment's time limit would not fit."""
    limit = getattr(getattr(env, "spec", None), "max_episode_steps", None)
    if limit is not None and limit > config.online_capacity and config.num_online_env_steps > 0:
        raise ValueError(
            f"online_capacity={config.online_capacity} cannot hold an episode of up to {limit} steps: enlarge it"
        )
