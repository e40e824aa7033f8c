"""Episodes of a policy in an environment of its own: what `rllib evaluate` and `calql data collect` play."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import tree
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_calql.cli.common import UserError
from rllib_calql.cli.experiments import merged
from rllib_calql.cli.policies import Trained
from rllib_calql.data.frames import frame_layout
from rllib_calql.data.rows import Rows
from rllib_calql.envs.creation import RECORDED, make_env
from rllib_calql.envs.frames import with_frames


def environment_of(config: dict[str, Any], changes: Mapping[str, Any], arguments: Mapping[str, Any]) -> gym.Env:
    """The environment that a policy is evaluated in.

    Args:
        config: of the policy's algorithm: names an environment, and perhaps another for evaluation.
        changes: `env` and `env_config` of the command line, laid over these.
        arguments: more arguments of the environment.

    Raises:
        UserError: neither names one.
    """
    for change in (config.get("evaluation_config") or {}, changes):
        if change.get("env", config.get("env")) != config.get("env"):
            # What the dataset has recorded goes with the environment that was asked of it.
            kept = {key: value for key, value in (config.get("env_config") or {}).items() if key != RECORDED}
            config = config | {"env_config": kept}
        config = merged(config, {key: change[key] for key in ("env", "env_config") if key in change})
    if not config.get("env"):
        raise UserError("the checkpoint was made without an environment: name one with --env")
    return make_env(config["env"], {**(config.get("env_config") or {}), **arguments})


def environment_for(trained: Trained, changes: Mapping[str, Any], arguments: Mapping[str, Any]) -> gym.Env:
    """See `environment_of`; with observations as the policy takes them."""
    env = environment_of(trained.config, changes, arguments)
    if layout := frame_layout(trained.observation_space):
        return with_frames(env, layout.frame_stack)
    flat = trained.calql is not None and isinstance(trained.observation_space, gym.spaces.Box)
    if flat and not isinstance(env.observation_space, gym.spaces.Box):
        return gym.wrappers.FlattenObservation(env)  # as CalQL's own runners
    return env


def check_spaces(env: gym.Env, trained: Trained) -> None:
    for what in ("observation_space", "action_space"):
        has, needs = getattr(env, what), getattr(trained, what)
        if type(has) is not type(needs) or _size(has) != _size(needs):
            raise UserError(f"the environment has {what} {has}, but the policy was made for {needs}")


def _size(space: gym.Space) -> tuple[Any, ...]:
    flat = gym.spaces.flatdim(space) if space.is_np_flattenable else None
    return space.shape, flat, getattr(space, "start", None)  # of Discrete spaces, whose shape says nothing


def play(
    env: gym.Env, trained: Trained, *, num_episodes: int, num_steps: int = 0, seed: int = 0, explore: bool = False
) -> Iterator[SingleAgentEpisode]:
    """Whole episodes until a limit (0: none); one that the limit on steps cuts is not counted.

    Episode number i, from 0, and its exploration are a function of `seed + i` and the policy.
    """
    steps = number = 0
    while not (num_episodes and number >= num_episodes):
        episode = SingleAgentEpisode(observation_space=env.observation_space, action_space=env.action_space)
        observation, info = env.reset(seed=seed + number)
        trained.begin_episode(seed + number)
        episode.add_env_reset(observation, info)
        while not episode.is_done:
            if num_steps and steps >= num_steps:
                return
            action, record = trained.act(episode, explore)
            seen = {"env_observations": observation, "env_actions": action}
            observation, reward, terminated, truncated, info = env.step(action)
            # Connectors may change the episode's own observations, and its actions are the policy's.
            seen["env_next_observations"] = observation
            episode.add_env_step(
                observation,
                record.pop(Columns.ACTIONS),
                reward,
                info,
                terminated=terminated,
                truncated=truncated,
                extra_model_outputs=record | seen,
            )
            steps += 1
        number += 1
        yield episode


def rows_of(episode: SingleAgentEpisode) -> Rows:
    """A played episode as the environment saw it."""
    last = np.arange(len(episode)) == len(episode) - 1

    def column(name: str) -> Any:
        steps = list(episode.get_extra_model_outputs(f"env_{name}"))
        return tree.map_structure(lambda *leaves: np.stack(leaves), *steps)  # they may be Dicts or Tuples

    return Rows(
        observations=column("observations"),
        next_observations=column("next_observations"),
        actions=column("actions"),
        rewards=np.asarray(episode.get_rewards()),
        terminated=last & episode.is_terminated,
        truncated=last & (not episode.is_terminated),
    )
