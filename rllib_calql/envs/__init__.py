"""Environments that plain gymnasium ids do not give, registered with gymnasium under `rllib_calql/`."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

# Where each is defined, and its time limit: D4RL's of AntMaze v2, of maze2d for PointMaze, and of the
# kitchens; those of the binary Adroit tasks are of Cal-QL's experiments; DoorKey's is a short one.
_TASKS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "AntMaze-UMaze-v2": ("mazes:AntMaze", 700, {"maze": "umaze"}),
    "AntMaze-Medium-v2": ("mazes:AntMaze", 1000, {"maze": "medium"}),
    "AntMaze-Large-v2": ("mazes:AntMaze", 1000, {"maze": "large"}),
    "PointMaze-UMaze-v3": ("mazes:PointMaze", 300, {"maze": "umaze"}),
    "PointMaze-Medium-v3": ("mazes:PointMaze", 600, {"maze": "medium"}),
    "PointMaze-Large-v3": ("mazes:PointMaze", 800, {"maze": "large"}),
    "VisualPointMaze-UMaze-v3": ("visual:VisualPointMaze", 300, {"maze": "umaze"}),
    "VisualPointMaze-Medium-v3": ("visual:VisualPointMaze", 600, {"maze": "medium"}),
    "Adroit-Pen-Binary-v0": ("adroit:Pen", 100, {}),
    "Adroit-Door-Binary-v0": ("adroit:Door", 200, {}),
    "Adroit-Relocate-Binary-v0": ("adroit:Relocate", 200, {}),
    "Kitchen-Complete-v0": ("kitchen:Kitchen", 280, {"task": "complete"}),
    "Kitchen-Partial-v0": ("kitchen:Kitchen", 280, {"task": "partial"}),
    "Kitchen-Mixed-v0": ("kitchen:Kitchen", 280, {"task": "mixed"}),
    "MiniGrid-DoorKey-5x5-v0": ("minigrid:DoorKey", 100, {"size": 5}),
}


def register() -> None:
    """Make the ids (`gymnasium.make("rllib_calql/AntMaze-UMaze-v2")`) known; harmless when repeated."""
    for name, (place, limit, arguments) in _TASKS.items():
        if f"rllib_calql/{name}" not in gym.registry:
            gym.register(
                f"rllib_calql/{name}",
                entry_point=f"rllib_calql.envs.{place}",
                max_episode_steps=limit,
                kwargs=arguments,
            )
