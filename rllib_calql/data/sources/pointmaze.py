"""`pointmaze://NAME`: small PointMaze datasets, walked by scripted controllers in real MuJoCo on first use.

Walkers follow the shortest way through the maze's cells with a velocity controller and Gaussian action noise.
A `Recipe` says which walkers, how many rows, and the seed; the same recipe gives the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tree
from filelock import FileLock

from rllib_calql.data.sources.made import made_once, made_path, played, recipe_of
from rllib_calql.data.storage import open_folder
from rllib_calql.data.storage_writer import write_dataset
from rllib_calql.data.transitions import Transitions

# Change of velocity (m/s) that a full action gives in one simulation step: 100 N on 4.19 kg for 0.01 s.
_FULL_ACTION = 0.239


@dataclass(frozen=True)
class Walker:
    """How the episodes of one kind are walked.

    Attributes:
        share: of the dataset's episodes.
        noise: standard deviation of the Gaussian added to each action, which is then clipped to [-1, 1].
        speed: wanted speed towards the next cell, m/s.
        wanders: heads for random cells, one after another, instead of the goal.
        starts_anywhere: starts in a random free cell instead of the start cell.
    """

    share: float
    noise: float
    speed: float = 2.0
    wanders: bool = False
    starts_anywhere: bool = False


@dataclass(frozen=True)
class Recipe:
    """A named dataset.

    Attributes:
        env_id, env: the registered environment and its arguments.
        walkers: who walks in it.
        num_rows: at least so many; the last episode is walked to its end.
        seed: of everything.
    """

    env_id: str
    walkers: tuple[Walker, ...]
    num_rows: int
    env: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0


_UMAZE = {"frame_skip": 5, "max_episode_steps": 100, "position_noise": 0.25}
_MEDIUM = {"frame_skip": 5, "max_episode_steps": 150, "position_noise": 0.25}

_VISUAL = {"size": 32, "frame_skip": 10, "max_episode_steps": 40, "position_noise": 0.25}

RECIPES: dict[str, Recipe] = {
    # Good demonstrations from the one start to the goal, and nothing else.
    "umaze-expert": Recipe("rllib_calql/PointMaze-UMaze-v3", (Walker(1.0, noise=0.1),), 20_000),
    # As "medium-narrow", in the small maze.
    "umaze-narrow": Recipe(
        "rllib_calql/PointMaze-UMaze-v3",
        (Walker(0.5, noise=0.3, speed=3.0), Walker(0.5, noise=0.5, speed=3.0, wanders=True)),
        5_000,
        _UMAZE,
    ),
    # One start, half of the episodes noisy demonstrations and half without aim: narrow where it succeeds.
    "medium-narrow": Recipe(
        "rllib_calql/PointMaze-Medium-v3",
        (Walker(0.5, noise=0.3, speed=3.0), Walker(0.5, noise=0.5, speed=3.0, wanders=True)),
        10_000,
        _MEDIUM,
    ),
    # Both as the small maze is seen by a camera above it.
    "umaze-pixels": Recipe(
        "rllib_calql/VisualPointMaze-UMaze-v3",
        (Walker(0.5, noise=0.3, speed=3.0), Walker(0.5, noise=0.5, speed=3.0, wanders=True)),
        4_000,
        _VISUAL,
    ),
    # Walks between random cells: wide, and the goal is met by chance only.
    "medium-play": Recipe(
        "rllib_calql/PointMaze-Medium-v3",
        (Walker(1.0, noise=0.5, speed=3.0, wanders=True, starts_anywhere=True),),
        30_000,
        _MEDIUM,
    ),
}


def open(name: str, *, cache_dir: str | Path | None = None) -> Transitions:
    """The named dataset as raw rows: reward 1 at the goal (terminated), else 0; time-outs are truncated.

    Args:
        name: one of `RECIPES`.
        cache_dir: see `made.made_once`.

    Raises:
        DatasetError: there is no such recipe, or the cached file is damaged.
        ImportError: gymnasium-robotics is missing (extra `robotics`).
    """
    recipe = recipe_of("pointmaze", name, RECIPES)
    if "Visual" in recipe.env_id:
        path = made_path(f"pointmaze-{name}", recipe, cache_dir)
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):  # trials that start together make it once
            if not path.exists():
                write_dataset(generate(recipe), path, observations="keep")
        return open_folder(path)
    return made_once(f"pointmaze-{name}", recipe, lambda: generate(recipe), cache_dir)


def generate(recipe: Recipe) -> Transitions:
    """Walks whole episodes until there are at least `num_rows` rows."""
    shares = np.array([walker.share for walker in recipe.walkers])

    def walk(env: Any, rng: np.random.Generator) -> Transitions:
        return _walk(env, recipe.walkers[rng.choice(len(shares), p=shares / shares.sum())], rng)

    return played(recipe.env_id, recipe.env, recipe.num_rows, recipe.seed, walk)


def _walk(env: Any, walker: Walker, rng: np.random.Generator) -> Transitions:
    """One episode of a walker."""
    layout = env.unwrapped.layout
    free = layout.free_cells()
    start = free[rng.integers(len(free))] if walker.starts_anywhere else layout.start
    observation, _ = env.reset(options={"start_cell": start})
    observations, actions, rewards = [observation], [], []
    target: tuple[int, int] | None = None if walker.wanders else layout.goal
    distances = layout.distances_to(layout.goal)
    full_action = _FULL_ACTION * env.unwrapped.frame_skip
    terminated = truncated = False
    while not (terminated or truncated):
        position, velocity = env.unwrapped.state[:2], env.unwrapped.state[2:]
        cell = tuple(layout.xy_to_cell(position))
        if target is None or (walker.wanders and cell == target):
            row, column = free[rng.integers(len(free))]
            target = int(row), int(column)
            distances = layout.distances_to(target)
        way = layout.cell_to_xy(_nearer(cell, distances)) - position
        wanted_velocity = walker.speed * way / max(float(np.linalg.norm(way)), 0.1)
        action = (wanted_velocity - velocity) / full_action + walker.noise * rng.standard_normal(2)
        action = np.clip(action, -1.0, 1.0).astype(np.float32)
        observation, reward, terminated, truncated, _ = env.step(action)
        observations.append(observation)
        actions.append(action)
        rewards.append(reward)
    stacked = tree.map_structure(lambda *leaves: np.stack(leaves), *observations)
    return Transitions.from_episode(stacked, np.stack(actions), np.array(rewards), terminated)


def _nearer(cell: tuple[int, ...], distances: np.ndarray) -> tuple[int, int]:
    """The neighbour of a free cell on the shortest way to where `distances` is 0; there, the cell itself."""
    row, column = cell
    near = [(row, column), (row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
    return min((other for other in near if distances[other] >= 0), key=lambda other: int(distances[other]))
