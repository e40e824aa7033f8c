"""One Ray for the whole test session, and small real datasets."""

from __future__ import annotations

import os
from collections.abc import Iterator

import gymnasium as gym
import numpy as np
import pytest
import ray
import torch

from rllib_calql.data import Transitions

# Workers inherit it: many small processes on few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A small local Ray, started once."""
    torch.set_num_threads(1)
    ray.init("local", num_cpus=4, include_dashboard=False, object_store_memory=150_000_000, log_to_driver=False)
    yield
    ray.shutdown()


def collect_pendulum(num_episodes: int, seed: int = 0) -> Transitions:
    """Real Pendulum-v1 episodes of a random policy (actions in the environment's [-2, 2])."""
    env = gym.make("Pendulum-v1", max_episode_steps=50)
    rng = np.random.default_rng(seed)
    episodes = []
    for index in range(num_episodes):
        observation, _ = env.reset(seed=seed + index)
        observations, actions, rewards = [observation], [], []
        done = False
        while not done:
            action = rng.uniform(-2.0, 2.0, size=1).astype(np.float32)
            observation, reward, terminated, truncated, _ = env.step(action)
            observations.append(observation)
            actions.append(action)
            rewards.append(float(reward))
            done = terminated or truncated
        episodes.append(
            Transitions.from_episode(np.array(observations), np.array(actions), np.array(rewards), terminated)
        )
    return Transitions.concatenate(episodes)


@pytest.fixture(scope="session")
def pendulum_data() -> Transitions:
    """20 episodes of 50 steps."""
    return collect_pendulum(20)
