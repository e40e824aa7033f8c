"""Environments that plain gymnasium ids do not give, registered with gymnasium under `rllib_calql/`."""

from __future__ import annotations

import gymnasium as gym

# Time limits of D4RL: AntMaze v2, and maze2d for PointMaze.
_TASKS = {
    "AntMaze-UMaze-v2": ("AntMaze", "umaze", 700),
    "AntMaze-Medium-v2": ("AntMaze", "medium", 1000),
    "AntMaze-Large-v2": ("AntMaze", "large", 1000),
    "PointMaze-UMaze-v3": ("PointMaze", "umaze", 300),
    "PointMaze-Medium-v3": ("PointMaze", "medium", 600),
    "PointMaze-Large-v3": ("PointMaze", "large", 800),
}


def register() -> None:
    """Make the ids (`gymnasium.make("rllib_calql/AntMaze-UMaze-v2")`) known; harmless when repeated."""
    for name, (kind, maze, limit) in _TASKS.items():
        if f"rllib_calql/{name}" not in gym.registry:
            gym.register(
                f"rllib_calql/{name}",
                entry_point=f"rllib_calql.envs.mazes:{kind}",
                max_episode_steps=limit,
                kwargs={"maze": maze},
            )
