"""Environments as RLlib's configs name them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from ray.rllib.env.env_context import EnvContext
from ray.tune.registry import ENV_CREATOR, _global_registry


def make_env(name: Any, env_config: dict[str, Any]) -> gym.Env:
    """The environment by its Tune-registered or gymnasium name, or of the class itself."""
    if isinstance(name, str) and not _global_registry.contains(ENV_CREATOR, name):
        return gym.make(name, **env_config)
    create = _global_registry.get(ENV_CREATOR, name) if isinstance(name, str) else name
    return create(EnvContext(env_config, worker_index=0))
