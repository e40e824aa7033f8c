"""What is said about a dataset before it is trusted: is it whole, does it fit an environment?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete

from rllib_calql.data.summary import Column, Summary

INSIDE_WALLS = 0.01  # share of positions inside a maze's walls from which on it is another maze


@dataclass(frozen=True)
class Finding:
    """One thing found, in plain words; `advice` names the setting to change."""

    kind: Literal["fine", "note", "warning"]
    text: str
    advice: str = ""


# ---- the rows themselves -----------------------------------------------------------------------------------


def row_findings(summary: Summary) -> Iterator[Finding]:
    """What would be refused or dropped."""
    if summary.missing:
        names = [column.name for column in [*summary.columns, summary.rewards] if column.nan + column.infinite]
        yield Finding(
            "warning",
            f"{summary.missing:,} numbers of {', '.join(names)} are missing or infinite: training refuses them",
            "repair or drop these rows",
        )
    if not summary.num_episodes:
        yield Finding(
            "warning",
            "no episode has an end: no row is terminated or truncated",
            "flag each episode's last row, or give the reader the step limit (max_episode_steps)",
        )
    elif summary.unfinished_rows:
        text = f"{summary.unfinished_rows:,} rows at the end belong to an episode without an end: they are dropped"
        yield Finding("note", text)


# ---- spaces ------------------------------------------------------------------------------------------------


def same_shapes(summary: Summary, env: gym.Env) -> bool:
    """Whether observations and actions have as many numbers as the environment's."""
    return all(
        _numbers(_columns(summary, what)) == (1 if isinstance(space, Discrete) else gym.spaces.flatdim(space))
        for what, space in (("observation", env.observation_space), ("action", env.action_space))
    )


def space_findings(summary: Summary, env: gym.Env) -> Iterator[Finding]:
    """Whether rows are such as the environment gives and takes."""
    actions = env.action_space
    if summary.metadata.actions_normalized and isinstance(actions, Box):
        yield Finding(
            "note", "actions are taken as normalised to [-1, 1], as RLlib logs them before it clips them"
        )
        numbers = [number for column in _columns(summary, "action") for number in (*column.low, *column.high)]
        actions = Box(min(-1.0, *numbers), max(1.0, *numbers), actions.shape)
    for what, space in (("observation", env.observation_space), ("action", actions)):
        yield from _space_findings(what, _columns(summary, what), space)
    limit = getattr(env.spec, "max_episode_steps", None)
    if limit is not None and summary.num_episodes and (longest := int(summary.lengths.max())) > limit:
        yield Finding(
            "warning",
            f"the longest episode has {longest} steps, the environment stops after {limit}",
            f"set env_config={{'max_episode_steps': {longest}}}, or take the environment the data come from",
        )
    layout = getattr(env.unwrapped, "layout", None)
    if hasattr(layout, "is_wall") and summary.row_sample is not None:
        yield _wall_finding(summary.row_sample, layout)


def _space_findings(what: str, columns: list[Column], space: gym.Space) -> Iterator[Finding]:
    shapes = ", ".join("x".join(map(str, column.shape)) or "1" for column in columns)
    if isinstance(space, Discrete):
        whole = len(columns) == 1 and columns[0].dtype.kind in "iu" and columns[0].shape in ((), (1,))
        inside = whole and space.start <= columns[0].low[0] and columns[0].high[0] < space.start + space.n
        if not inside:
            yield Finding("warning", f"{what}s of shape {shapes} do not belong to {space}", _ANOTHER)
        return
    flat = gym.spaces.flatten_space(space)
    numbers = _numbers(columns)
    if not isinstance(flat, Box) or flat.shape != (numbers,):
        wanted = flat.shape[0] if isinstance(flat, Box) else space
        text = f"{what}s have {numbers} numbers ({shapes}), the environment's {wanted}"
        yield Finding("warning", text, _ANOTHER)
        return
    low, high = (
        np.concatenate([np.broadcast_to(getattr(column, name), _numbers([column])) for column in columns])
        for name in ("low", "high")
    )
    margin = 1e-4 * np.maximum(1.0, np.abs(np.where(np.isfinite(flat.high), flat.high, 0.0)))
    outside = (low < flat.low - margin) | (high > flat.high + margin)
    if outside.any():
        worst = int(np.flatnonzero(outside)[0])
        yield Finding(
            "warning",
            f"{int(outside.sum())} of {numbers} {what} numbers leave the environment's bounds, such as number "
            f"{worst}: {low[worst]:.4g} to {high[worst]:.4g}, not {flat.low[worst]:.4g} to {flat.high[worst]:.4g}",
            "they are clipped in training: rescale them if they are in other units"
            if what == "action"
            else _ANOTHER,
        )
        return
    yield Finding("fine", f"{what}s: {numbers} numbers, within the environment's bounds")
    wider = flat.is_bounded() and (flat.high > 1.0 + margin).all() and (flat.low < -1.0 - margin).all()
    if what == "action" and wider and np.abs([low, high]).max() <= 1.0:
        yield Finding(
            "note",
            f"actions stay in [-1, 1], but the environment's bounds are {flat.low.min():g} to {flat.high.max():g}",
            "if they are normalised, set input_config={'actions_normalized': True}",
        )


_ANOTHER = "take the environment the data come from, or set it up as there (env_config)"


def _columns(summary: Summary, what: str) -> list[Column]:
    return [column for column in summary.columns if column.name.startswith(what)]


def _numbers(columns: list[Column]) -> int:
    return sum(int(np.prod(column.shape)) for column in columns)


def _wall_finding(positions: np.ndarray, layout: Any) -> Finding:
    inside = float(np.mean(layout.is_wall(positions[np.isfinite(positions).all(axis=1)])))
    if inside <= INSIDE_WALLS:
        return Finding("fine", f"positions: {1 - inside:.1%} lie in the maze's free cells")
    other = "gymnasium" if layout.frame == "d4rl" else "d4rl"
    return Finding(
        "warning",
        f"{inside:.1%} of the positions lie inside the maze's walls: another origin, direction or maze",
        f"set env_config={{'frame': '{other}'}}, or maze_map, start_cell and goal_cell as in the data",
    )
