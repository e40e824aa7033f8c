"""Evaluates a checkpoint: only the policy is loaded, neither dataset nor Ray are needed.

    python examples/evaluate_checkpoint.py CHECKPOINT --env rllib_calql/PointMaze-UMaze-v3 --episodes 10

`rllib evaluate CHECKPOINT --episodes 10` does the same from the command line.
"""

from __future__ import annotations

import argparse

import gymnasium as gym
import numpy as np
from ray.rllib.policy.policy import Policy
from ray.rllib.utils.spaces.space_utils import unsquash_action

import rllib_calql  # noqa: F401  (registers the environments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--env", required=True)
    parser.add_argument("--episodes", type=int, default=10)
    options = parser.parse_args()

    policy = Policy.from_checkpoint(options.checkpoint)["default_policy"]
    env = gym.make(options.env)
    returns, successes = [], []
    for episode in range(options.episodes):
        observation, _ = env.reset(seed=episode)
        total, done, success = 0.0, False, False
        while not done:
            action, _, _ = policy.compute_single_action(observation, explore=False)
            observation, reward, terminated, truncated, info = env.step(
                unsquash_action(action, policy.action_space_struct)
            )
            total += float(reward)
            success |= bool(info.get("success", terminated and float(reward) > 0.0))
            done = terminated or truncated
        returns.append(total)
        successes.append(success)
    print(f"{options.episodes} episodes: return {np.mean(returns):.2f}, success {np.mean(successes):.0%}")


if __name__ == "__main__":
    main()
