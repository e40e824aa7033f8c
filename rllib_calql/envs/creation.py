"""Environments as RLlib's configs name them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from ray.rllib.env.env_context import EnvContext
from ray.tune.registry import ENV_CREATOR, _global_registry

from rllib_calql.envs.recorded import make_recorded

# In the place of an environment's name: the one that the dataset was recorded in.
FROM_DATASET = "from_dataset"
# Where its description is in env_config; what else is there are arguments for it.
RECORDED = "recorded"


def make_from_dataset(env_config: Mapping[str, Any]) -> gym.Env:
    """The recorded environment, see `CalQLConfig.environment`."""
    if RECORDED not in env_config:
        raise ValueError(
            f"environment({FROM_DATASET!r}) is for CalQL, whose dataset says what was recorded; in other configs "
            f"give the JSON of a gymnasium EnvSpec as env_config={{{RECORDED!r}: ...}}"
        )
    kwargs = {name: value for name, value in env_config.items() if name != RECORDED}
    return make_recorded(env_config[RECORDED], **kwargs)


def observation_space_of(name: Any, env_config: dict[str, Any]) -> gym.Space:
    """What the environment itself observes, whatever RLlib makes of it."""
    env = make_env(name, env_config)
    env.close()
    return env.observation_space


def make_env(name: Any, env_config: dict[str, Any]) -> gym.Env:
    """The environment by its Tune-registered or gymnasium name, or of the class itself."""
    if isinstance(name, str) and not _global_registry.contains(ENV_CREATOR, name):
        return gym.make(name, **env_config)
    create = _global_registry.get(ENV_CREATOR, name) if isinstance(name, str) else name
    return create(env_config if isinstance(env_config, EnvContext) else EnvContext(env_config, worker_index=0))
