"""Datasets that are made on first use, by playing a recipe, and kept in a file."""

from __future__ import annotations

import hashlib
import os
import uuid
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from rllib_calql.data.errors import DatasetError
from rllib_calql.data.rows import COLUMNS
from rllib_calql.data.transitions import Transitions

Recipe = TypeVar("Recipe")


def recipe_of(scheme: str, name: str, recipes: Mapping[str, Recipe]) -> Recipe:
    """The recipe of `scheme://name` (DatasetError: there is none)."""
    if name not in recipes:
        raise DatasetError(f"unknown dataset {scheme}://{name}; there are {', '.join(recipes)}")
    return recipes[name]


def played(
    env_id: str,
    env_arguments: Mapping[str, Any],
    num_rows: int,
    seed: int,
    play: Callable[[Any, np.random.Generator], Transitions],
) -> Transitions:
    """Whole episodes of a registered environment, until there are at least `num_rows` rows.

    Args:
        seed: of the environment and of the generator.
        play: plays one episode in the environment, by the generator.
    """
    import gymnasium as gym

    from rllib_calql.envs import register

    register()
    rng = np.random.default_rng(seed)
    env = gym.make(env_id, **env_arguments)
    env.reset(seed=seed)
    episodes: list[Transitions] = []
    while sum(map(len, episodes)) < num_rows:
        episodes.append(play(env, rng))
    env.close()
    return Transitions.concatenate(episodes)


def made_once(
    name: str, recipe: object, make: Callable[[], Transitions], cache_dir: str | Path | None
) -> Transitions:
    """The dataset of a recipe, from its file or, the first time, from `make`.

    Args:
        name, recipe, cache_dir: see `made_path`.
        make: makes the rows.

    Raises:
        DatasetError: the file is damaged.
    """
    path = made_path(name, recipe, cache_dir).with_suffix(".npz")
    if not path.exists():
        _save(path, make())
    try:
        with np.load(path, allow_pickle=False) as columns:
            return Transitions(**columns)
    except PermissionError as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
    except (ValueError, TypeError, KeyError, EOFError, OSError, zlib.error, zipfile.BadZipFile) as error:
        raise DatasetError(f"{path} is damaged ({error}): delete it, and it is made again") from error


def made_path(name: str, recipe: object, cache_dir: str | Path | None) -> Path:
    """Where the dataset of a recipe is kept, without a suffix; a changed recipe never meets an old file.

    Args:
        name: begins the file's name.
        recipe: whose `repr` says all that the rows depend on.
        cache_dir: the folder; by default `$RLLIB_CALQL_CACHE`, else `~/.cache/rllib_calql`.
    """
    folder = Path(cache_dir or os.environ.get("RLLIB_CALQL_CACHE") or Path.home() / ".cache" / "rllib_calql")
    return folder / f"{name}-{hashlib.sha256(repr(recipe).encode()).hexdigest()[:12]}"


def _save(path: Path, data: Transitions) -> None:
    """Writes the columns so that other processes see the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {name: getattr(data, name) for name in (*COLUMNS, "final_observations")}
    partial = path.with_name(f".{path.stem}-{uuid.uuid4().hex}.npz")  # with the permissions that new files have
    try:
        np.savez_compressed(partial, **columns)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
