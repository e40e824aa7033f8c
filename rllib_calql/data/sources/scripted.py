"""`scripted://NAME`: small datasets with discrete actions, made by scripted controllers on first use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from rllib_calql.data.sources.made import made_once, played, recipe_of
from rllib_calql.data.transitions import Transitions

Controller = Callable[[Any, np.ndarray], int]  # environment and observation to action


@dataclass(frozen=True)
class Recipe:
    """A named dataset.

    Attributes:
        env_id, env: the environment and its arguments.
        controller: "module:function" of this package, a `Controller`.
        noise: shares of random actions; each episode has one of them.
        num_rows: at least so many; the last episode is played to its end.
        seed: of everything.
    """

    env_id: str
    controller: str
    noise: tuple[float, ...]
    num_rows: int
    env: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0


RECIPES: dict[str, Recipe] = {
    # A pole that is held up for a while: no episode lasts to the time limit of 500 steps.
    "cartpole-noisy": Recipe("CartPole-v1", "data.sources.scripted:balance", (0.6, 0.8, 1.0), 10_000),
    # The way to key, door and goal with many missteps; a third of the episodes without aim.
    "doorkey-noisy": Recipe(
        "rllib_calql/MiniGrid-DoorKey-5x5-v0", "envs.minigrid:planned_action", (0.3, 0.6, 1.0), 10_000
    ),
}


def open(name: str, *, cache_dir: str | Path | None = None) -> Transitions:
    """The named dataset as raw rows.

    Args:
        name: one of `RECIPES`.
        cache_dir: see `made.made_once`.

    Raises:
        DatasetError: there is no such recipe, or the cached file is damaged.
        ImportError: minigrid is missing (extra `minigrid`).
    """
    recipe = recipe_of("scripted", name, RECIPES)
    return made_once(f"scripted-{name}", recipe, lambda: generate(recipe), cache_dir)


def generate(recipe: Recipe) -> Transitions:
    """Plays whole episodes until there are at least `num_rows` rows."""
    module, _, function = recipe.controller.partition(":")
    controller: Controller = getattr(import_module(f"rllib_calql.{module}"), function)

    def play(env: Any, rng: np.random.Generator) -> Transitions:
        return _play(env, controller, float(rng.choice(recipe.noise)), rng)

    return played(recipe.env_id, recipe.env, recipe.num_rows, recipe.seed, play)


def _play(env: Any, controller: Controller, noise: float, rng: np.random.Generator) -> Transitions:
    """One episode, with a share `noise` of random actions."""
    observation, _ = env.reset(seed=int(rng.integers(2**31)))
    observations, actions, rewards = [observation], [], []
    terminated = truncated = False
    while not (terminated or truncated):
        random = rng.random() < noise
        action = int(rng.integers(env.action_space.n)) if random else controller(env, observation)
        observation, reward, terminated, truncated, _ = env.step(action)
        observations.append(observation)
        actions.append(action)
        rewards.append(float(reward))
    return Transitions.from_episode(
        np.stack(observations), np.array(actions, np.int64), np.array(rewards), terminated
    )


def balance(env: Any, observation: np.ndarray) -> int:
    """CartPole: pushes the way that the pole falls; lets the cart drift."""
    _, _, angle, velocity = observation
    return int(angle + 0.3 * velocity > 0.0)
