"""Environments as RLlib's configs name them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


def env_creator(name: Any) -> Callable[[EnvContext], gym.Env]:
    """What makes the environment of a Tune-registered or gymnasium name, or of the class itself.

    Looked up here, because the processes of asynchronous environments must not ask Ray.
    """
    if not isinstance(name, str):
        return name
    if _global_registry.contains(ENV_CREATOR, name):
        return _global_registry.get(ENV_CREATOR, name)
    return lambda env_config: gym.make(name, **env_config)


def make_env(name: Any, env_config: dict[str, Any]) -> gym.Env:
    """The environment by its Tune-registered or gymnasium name, or of the class itself."""
    return env_creator(name)(EnvContext(env_config, worker_index=0))
