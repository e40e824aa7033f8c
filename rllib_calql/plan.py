"""What a config would do, found out by opening its dataset and its environment; nothing is trained."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
from ray.rllib.models.catalog import ModelCatalog

from rllib_calql.algorithm import CalQL
from rllib_calql.checkpoint import checkpoint_weights
from rllib_calql.config import CalQLConfig
from rllib_calql.core.factory import make_update
from rllib_calql.core.hyperparameters import UpdateConfig
from rllib_calql.data import Mixture
from rllib_calql.data.frames import frames_space, has_images
from rllib_calql.dataset import check_capacity, check_environment, on_this_node, open_offline_data
from rllib_calql.envs.creation import make_env
from rllib_calql.envs.frames import with_frames


def make_plan(config: CalQLConfig) -> dict[str, dict[str, Any]]:
    """Sections of named figures: data, environment, phases, networks, resources.

    Raises:
        ValueError: the config is refused. DatasetError: the data cannot be used, or do not fit.
    """
    config = config.copy(copy_frozen=False)
    config.validate()
    env = None if config.env is None else make_env(config.env, config.env_config)
    observation_space, action_space, environment = _spaces(config, env)
    data = open_offline_data(on_this_node(config), observation_space, action_space).rows
    if data is not None:
        check_environment(data, env)
    if env is not None:
        env.close()
    update = make_update(observation_space, action_space, UpdateConfig.from_settings(vars(config)))
    if config.load_weights_from is not None:
        # they exist, and their names and shapes fit
        update.load_weights(checkpoint_weights(config.load_weights_from, update.weights()))
    new_stack = config.enable_rl_module_and_learner
    online = max(0, config.num_online_env_steps - config.warmup_env_steps)
    offline, per_iteration = config.num_offline_updates, config.min_train_updates_per_iteration
    plan: dict[str, dict[str, Any]] = {
        "environment": environment,
        "phases": {
            "offline updates": offline,
            "offline iterations": math.ceil(offline / per_iteration),
            "online environment steps": config.num_online_env_steps,
            "online updates": math.floor(online * config.utd_ratio),
            "batch size": config.total_train_batch_size,
            "mixing ratio": config.mixing_ratio,
        },
        "networks": {
            "actor": "-".join(map(str, config.policy_model_config["fcnet_hiddens"])),
            "critics": f"{config.num_critics} x " + "-".join(map(str, config.q_model_config["fcnet_hiddens"])),
            "actor parameters": sum(p.numel() for p in update.actor.parameters()),
            "critic parameters": sum(p.numel() for p in update.critics.parameters()),
            "precision": config.precision,
        },
        "resources": {
            "API stack": "new" if new_stack else "Policy (old)",
            "env runners": config.num_env_runners,
            "environments per runner": config.num_envs_per_env_runner,
            "evaluation runners": config.evaluation_num_env_runners,
            "learners": config.num_learners,
            "GPUs of the update": config.num_gpus_per_learner if new_stack else config.num_gpus,
            "bundles": CalQL.default_resource_request(config.to_dict()).bundles,
        },
    }
    if data is not None:
        plan["data"] = {
            "dataset": config.input_ if isinstance(config.input_, str) else "given in memory",
            "transitions": len(data),
            "episodes": data.num_episodes,
            "terminated episodes": sum(int(part.terminated.sum()) for part in data.parts),
            "rewards after scaling": _range([part.rewards for part in data.parts]),
            "returns-to-go": _range([part.mc_returns for part in data.parts if part.mc_returns is not None]),
        }
        if isinstance(data, Mixture):
            plan["data"]["dataset"] = f"{len(data.parts)} datasets"
            plan["data"]["shares of a batch"] = ", ".join(f"{share:.3g}" for share in data.shares)
    return plan


def _range(columns: list[np.ndarray]) -> str:
    low, high = min(column.min() for column in columns), max(column.max() for column in columns)
    return f"{round(float(low), 6):g} to {round(float(high), 6):g}"


def _spaces(config: CalQLConfig, env: gym.Env | None) -> tuple[gym.spaces.Box, gym.spaces.Box, dict[str, Any]]:
    """Spaces as the policy sees them, from the environment or, without one, from the config."""
    if env is None:
        if config.observation_space is None or config.action_space is None:
            raise ValueError(
                "without an environment the config needs its spaces: "
                "environment(observation_space=..., action_space=...)"
            )
        observed = config.observation_space
        if has_images(observed):
            observed = frames_space(observed, config.frame_stack)
        return observed, config.action_space, {"id": "none"}
    given, env = env.observation_space, with_frames(env, config.frame_stack)
    observation_space = ModelCatalog.get_preprocessor_for_space(env.observation_space).observation_space
    described = {
        "id": str(config.env),
        "observations": str(given),
        "actions": str(env.action_space),
        "time limit": getattr(env.spec, "max_episode_steps", None),
    }
    action_space = env.action_space
    check_capacity(config, env)
    return observation_space, action_space, described
