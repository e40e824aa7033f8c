"""Evaluates a checkpoint: only the policy is loaded, neither dataset nor Ray are needed.

    python examples/evaluate_checkpoint.py CHECKPOINT --env rllib_calql/PointMaze-UMaze-v3 --episodes 10

`rllib evaluate CHECKPOINT --episodes 10` does the same from the command line.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import numpy as np
from ray.rllib.core.rl_module import RLModule
from ray.rllib.policy.policy import Policy
from ray.rllib.utils.spaces.space_utils import unsquash_action

import rllib_calql  # noqa: F401  (registers the environments)


def load(checkpoint: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The best action for an observation, within the environment's bounds."""
    module = checkpoint.resolve() / "learner_group" / "learner" / "rl_module" / "default_policy"
    if module.is_dir():  # a run on the new API stack
        return RLModule.from_checkpoint(str(module)).act
    policy = Policy.from_checkpoint(str(checkpoint))["default_policy"]

    def act(observation: np.ndarray) -> np.ndarray:
        action, _, _ = policy.compute_single_action(observation, explore=False)
        return unsquash_action(action, policy.action_space_struct)

    return act


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--env", required=True)
    parser.add_argument("--episodes", type=int, default=10)
    options = parser.parse_args()

    act = load(Path(options.checkpoint))
    env = gym.make(options.env)
    returns, successes = [], []
    for episode in range(options.episodes):
        observation, _ = env.reset(seed=episode)
        total, done, success = 0.0, False, 0.0
        while not done:
            observation, reward, terminated, truncated, info = env.step(act(observation))
            total += float(reward)
            success = max(success, float(info.get("success", terminated and float(reward) > 0.0)))
            done = terminated or truncated
        returns.append(total)
        successes.append(success)
    print(f"{options.episodes} episodes: return {np.mean(returns):.2f}, success {np.mean(successes):.0%}")


if __name__ == "__main__":
    main()
