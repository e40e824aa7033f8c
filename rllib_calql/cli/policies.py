"""Policies out of checkpoints, on either API stack: no Ray, no environment runners, no dataset."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.connectors.agent.mean_std_filter import MeanStdObservationFilterAgentConnector
from ray.rllib.connectors.agent.obs_preproc import ObsPreprocessorConnector
from ray.rllib.connectors.env_to_module import EnvToModulePipeline
from ray.rllib.connectors.module_to_env import ModuleToEnvPipeline
from ray.rllib.core import (
    COMPONENT_ENV_RUNNER,
    COMPONENT_ENV_TO_MODULE_CONNECTOR,
    COMPONENT_LEARNER,
    COMPONENT_LEARNER_GROUP,
    COMPONENT_MODULE_TO_ENV_CONNECTOR,
    COMPONENT_RL_MODULE,
    DEFAULT_MODULE_ID,
)
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module import RLModule
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.policy.policy import Policy
from ray.rllib.utils.typing import ActionConnectorDataType, AgentConnectorDataType

from rllib_calql.checkpoint import RUN
from rllib_calql.cli.common import UserError
from rllib_calql.cli.experiments import algorithm_class
from rllib_calql.core.update import Update
from rllib_calql.data.frames import frame_layout
from rllib_calql.data.whole import MANIFEST, CheckpointError, check_whole, recover
from rllib_calql.new_stack.rl_module import CalQLTorchRLModule
from rllib_calql.old_stack.policy import CalQLTorchPolicy

# From an episode so far to the action for its environment, and what the policy's connectors want recorded.
Act = Callable[[SingleAgentEpisode, bool], tuple[Any, dict[str, Any]]]


@dataclass(frozen=True)
class Trained:
    """A policy, the config of its algorithm, and the spaces of the environment it was made for."""

    act: Act
    config: dict[str, Any]
    observation_space: gym.Space
    action_space: gym.Space
    calql: Update | CalQLTorchRLModule | None = None  # CalQL's networks; None of other algorithms
    score_range: tuple[float, float] | None = None  # episode returns that score 0 and 1, as the run knew them
    begin_episode: Callable[[int], object] = torch.manual_seed  # starts the exploration of an episode by its seed


def restored(checkpoint: Path, algo: str | None = None) -> Trained:
    """The policy in an algorithm's checkpoint.

    Raises:
        UserError: it is none, not one of `algo`, or one of CalQL's that is damaged.
    """
    checkpoint = recover(checkpoint).resolve()
    if (checkpoint / RUN).is_file() or (checkpoint / MANIFEST).is_file():
        try:
            check_whole(checkpoint)
        except CheckpointError as error:
            raise UserError(str(error)) from error
    new_stack = (checkpoint / "class_and_ctor_args.pkl").is_file()
    if not new_stack and not (checkpoint / "policies").is_dir():
        raise UserError(f"{checkpoint} is not an RLlib checkpoint (a folder such as .../checkpoint_000003)")
    if algo is not None:
        file, key = ("class_and_ctor_args", "class") if new_stack else ("algorithm_state", "algorithm_class")
        stored = pickle.loads((checkpoint / f"{file}.pkl").read_bytes())[key]
        # Tune trains a subclass, made on the fly, of the same name.
        if stored.__name__ != algorithm_class(algo).__name__:
            raise UserError(f"--algo {algo}: the checkpoint is of {stored.__name__}")
    trained = _new_stack(checkpoint) if new_stack else _old_stack(checkpoint)
    run = checkpoint / RUN
    return replace(trained, score_range=json.loads(run.read_text())["score_range"]) if run.is_file() else trained


def _old_stack(checkpoint: Path) -> Trained:
    policies = Policy.from_checkpoint(str(checkpoint))
    if list(policies) != [DEFAULT_MODULE_ID]:
        raise UserError(
            f"only single-agent checkpoints can be evaluated; this one has policies {sorted(policies)}"
        )
    policy = policies[DEFAULT_MODULE_ID]

    # Those that make an observation what the policy was trained on, as in `Algorithm.compute_single_action`.
    kinds = (ObsPreprocessorConnector, MeanStdObservationFilterAgentConnector)
    connectors = [connector for kind in kinds for connector in policy.agent_connectors[kind]]
    for connector in (*connectors, policy.action_connectors):
        connector.in_eval()
    memory: dict[str, list[Any]] = {}

    def act(episode: SingleAgentEpisode, explore: bool) -> tuple[Any, dict[str, Any]]:
        data = [AgentConnectorDataType("env", "agent", {Columns.OBS: episode.get_observations(-1)})]
        for connector in connectors:
            data = connector(data)
        started = len(episode) > 0
        action, memory["state"], _ = policy.compute_single_action(
            data[0].data[Columns.OBS],
            memory["state"] if started else policy.get_initial_state(),
            prev_action=episode.get_actions(-1) if started else np.zeros_like(policy.action_space.sample()),
            prev_reward=episode.get_rewards(-1) if started else 0.0,
            explore=explore,
        )
        output = ActionConnectorDataType("env", "agent", {}, (action, memory["state"], {}))
        return policy.action_connectors(output).output[0], {Columns.ACTIONS: action}

    # A preprocessed space (one-hot, flattened) remembers what it was made from.
    observation_space = policy.observation_space
    if frame_layout(observation_space) is None:
        observation_space = getattr(observation_space, "original_space", observation_space)
    if not isinstance(policy, CalQLTorchPolicy):
        return Trained(act, policy.config, observation_space, policy.action_space)
    return Trained(
        act,
        policy.config,
        observation_space,
        policy.action_space,
        policy.update,
        begin_episode=policy.begin_episode,
    )


def _new_stack(checkpoint: Path) -> Trained:
    config = pickle.loads((checkpoint / "class_and_ctor_args.pkl").read_bytes())["ctor_args_and_kwargs"][0][0]
    modules = checkpoint / COMPONENT_LEARNER_GROUP / COMPONENT_LEARNER / COMPONENT_RL_MODULE
    names = sorted(path.name for path in modules.iterdir() if path.is_dir())
    if names != [DEFAULT_MODULE_ID]:
        raise UserError(f"only single-agent checkpoints can be evaluated; this one has modules {names}")
    module = RLModule.from_checkpoint(str(modules / DEFAULT_MODULE_ID))
    if isinstance(module, CalQLTorchRLModule):  # it has no connectors, and may never have had an environment

        def act_alone(episode: SingleAgentEpisode, explore: bool) -> tuple[Any, dict[str, Any]]:
            action = module.act(episode.get_observations(-1), explore)
            return action, {Columns.ACTIONS: action}

        return Trained(
            act_alone,
            config,
            module.observation_space,
            module.action_space,
            module,
            begin_episode=lambda seed: module.begin_episode(0, seed),
        )
    runner = checkpoint / COMPONENT_ENV_RUNNER
    to_module = EnvToModulePipeline.from_checkpoint(str(runner / COMPONENT_ENV_TO_MODULE_CONNECTOR))
    to_env = ModuleToEnvPipeline.from_checkpoint(str(runner / COMPONENT_MODULE_TO_ENV_CONNECTOR))

    def act(episode: SingleAgentEpisode, explore: bool) -> tuple[Any, dict[str, Any]]:
        call = {"episodes": [episode], "rl_module": module, "explore": explore, "shared_data": {}}
        batch = to_module(batch={}, **call)
        output = to_env(batch=(module.forward_exploration if explore else module.forward_inference)(batch), **call)
        record = {key: value[0] for key, value in output.items()}
        return record.pop(Columns.ACTIONS_FOR_ENV, record[Columns.ACTIONS]), record

    return Trained(act, config, to_module.input_observation_space, to_module.input_action_space)
