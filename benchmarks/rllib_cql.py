"""Contestant: RLlib's own CQL, `python -m benchmarks.rllib_cql SETTINGS old|new`.

As near as it allows: it has no calibration, no maximum over target actions, and no working Lagrange form. The
Policy stack has the same networks. The new stack's default networks have encoders of their own for observation,
action and their fusion: more parameters at the same widths.
"""

from __future__ import annotations

import sys

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.algorithms.cql import CQLConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch

from benchmarks.contestant import Settings, serve, settings
from benchmarks.ours import random_batch


def rllib_batch(config: Settings) -> SampleBatch:
    batch = random_batch(config)
    return SampleBatch(
        {
            "obs": batch["observations"],
            "new_obs": batch["next_observations"],
            "actions": batch["actions"],
            "rewards": batch["rewards"],
            "terminateds": batch["dones"] > 0,
            "truncateds": np.zeros(len(batch["dones"]), bool),
        }
    )


def main() -> None:
    config, new_stack = settings(), sys.argv[2] == "new"
    torch.set_num_threads(config["threads"])
    observation_space = gym.spaces.Box(-np.inf, np.inf, (config["obs_dim"],), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (config["act_dim"],), np.float32)
    cql = (
        CQLConfig()
        .api_stack(enable_rl_module_and_learner=new_stack, enable_env_runner_and_connector_v2=new_stack)
        .environment(observation_space=observation_space, action_space=action_space)
        .framework("torch")
        .training(
            train_batch_size=config["batch_size"],
            num_actions=config["num_actions"],
            bc_iters=0,
            twin_q=True,
            policy_model_config={"fcnet_hiddens": config["actor"], "fcnet_activation": "relu"},
            q_model_config={"fcnet_hiddens": config["critic"], "fcnet_activation": "relu"},
        )
        .offline_data(actions_in_input_normalized=True)
    )
    batch = rllib_batch(config)
    if not new_stack:
        from ray.rllib.algorithms.cql.cql_torch_policy import CQLTorchPolicy

        policy = CQLTorchPolicy(observation_space, action_space, cql.to_dict())
        serve(lambda steps: [policy.learn_on_batch(batch) for _ in range(steps)])
        return
    cql.rl_module(model_config={"fcnet_hiddens": config["critic"], "fcnet_activation": "relu", "twin_q": True})
    learner = cql.build_learner(spaces={DEFAULT_MODULE_ID: (observation_space, action_space)})
    rows = config["batch_size"]

    def run(steps: int) -> None:
        for _ in range(steps):
            learner.update(batch=MultiAgentBatch({DEFAULT_MODULE_ID: batch}, rows))

    serve(run)


if __name__ == "__main__":
    main()
