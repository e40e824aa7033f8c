"""Columns as the layout has them: what is converted, what is kept, what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import tree
from gymnasium import spaces

from rllib_calql.data.errors import DatasetError, first_rows
from rllib_calql.data.rows import Tree

# What becomes of Dict and Tuple observations: one vector in the order of gymnasium's `flatten`, or as they are.
ObservationLayout = Literal["flatten", "keep"]


def map_leaves(function: Callable[..., Any], *trees: Any) -> Any:
    """`function` applied to the leaves of trees of one structure; quick where the tree is one array."""
    if isinstance(trees[0], np.ndarray):
        return function(*trees)
    try:
        return tree.map_structure(function, *trees)
    except (TypeError, ValueError) as error:
        raise DatasetError(f"observations are nested in different ways: {error}") from error


def row_bytes(*columns: Tree) -> int:
    """Bytes that one row takes in these columns."""
    return sum(
        leaf.dtype.itemsize * math.prod(leaf.shape[1:]) for column in columns for leaf in tree.flatten(column)
    )


def as_observations(
    name: str, column: Any, layout: ObservationLayout, space: gym.Space | None = None, first: int = 0
) -> Tree:
    """(n, obs_dim) float32, or (n, height, width, ...) uint8 images, or nested such where kept.

    An array with more axes that is not of uint8 becomes a vector per row. `first`: row number of the first row,
    for messages.

    Raises:
        DatasetError: not numbers, not finite, or not what `space` says.
    """
    if not isinstance(column, (Mapping, tuple)):
        column = np.asarray(column)
        if column.ndim < 2:
            raise DatasetError(_expected(name, "(rows, numbers per row)", column))
    leaves = []

    def leaf(path: tuple[Any, ...], values: Any, space: gym.Space | None) -> np.ndarray:
        path_name = ".".join(map(str, (name, *path)))
        values = np.asarray(values)
        if is_image(values):
            if path and layout == "flatten":
                raise DatasetError(
                    f"{path_name} are images, which do not go into one vector with other observations: open the "
                    "dataset with observations='keep'"
                )
        else:
            if values.ndim:
                values = values.reshape(len(values), math.prod(values.shape[1:]))
            values = as_floats(path_name, values, 2, first)
        _check_width(path_name, values, space)
        leaves.append(values)
        return values

    kept = _walk(name, leaf, (), column, space)
    if layout == "keep" or isinstance(kept, np.ndarray):
        return kept
    if len({len(values) for values in leaves}) > 1:
        raise DatasetError(f"{name} have different numbers of rows: {[len(values) for values in leaves]}")
    return np.concatenate(leaves, axis=1)


def _walk(name: str, leaf: Callable[..., Any], path: tuple[Any, ...], column: Any, space: Any) -> Any:
    """Applies `leaf(path, values, space)` in the order of gymnasium's `flatten`: the space's, else sorted keys."""
    if isinstance(column, Mapping):
        inner = space.spaces if isinstance(space, spaces.Dict) else None
        keys = sorted(column) if inner is None else list(inner)
        if (space is not None and (inner is None or set(column) != set(keys))) or not keys:
            raise DatasetError(f"{name} have entries {sorted(column)}, which does not fit the space {space}")
        return {
            key: _walk(name, leaf, (*path, key), column[key], None if inner is None else inner[key])
            for key in keys
        }
    if isinstance(column, tuple):
        inner = space.spaces if isinstance(space, spaces.Tuple) else [None] * len(column)
        if (space is not None and not isinstance(space, spaces.Tuple)) or len(inner) != len(column) or not column:
            raise DatasetError(f"{name} have {len(column)} entries, which does not fit the space {space}")
        return tuple(
            _walk(name, leaf, (*path, index), values, inner[index]) for index, values in enumerate(column)
        )
    return leaf(path, column, space)


def _check_width(name: str, values: np.ndarray, space: gym.Space | None) -> None:
    width = math.prod(values.shape[1:])
    if space is not None and not (space.is_np_flattenable and spaces.flatdim(space) == width):
        raise DatasetError(f"{name} have {width} numbers per row, which does not fit the space {space}")


def is_image(values: np.ndarray) -> bool:
    """Whether a column is kept as images: uint8 with two or more axes per row."""
    return values.dtype == np.uint8 and values.ndim > 2


def as_actions(column: Any, space: gym.Space | None = None, first: int = 0) -> np.ndarray:
    """(n, act_dim) float32, or for a Discrete space, or a column (n,) of integers, (n,) int64.

    Raises:
        DatasetError: not numbers, not finite, or not what `space` says.
    """
    if isinstance(column, (Mapping, tuple)) or not (
        space is None or isinstance(space, (spaces.Box, spaces.Discrete))
    ):
        nested = f"the space {space}" if space is not None else "a Dict or Tuple space"
        raise DatasetError(f"actions belong to {nested}: only Box and Discrete actions can be used")
    column = np.asarray(column)
    if isinstance(space, spaces.Discrete) or (space is None and column.ndim == 1 and column.dtype.kind in "iu"):
        if column.ndim == 2 and column.shape[1] == 1:
            column = column[:, 0]
        if column.ndim != 1 or column.dtype.kind not in "iu":
            raise DatasetError(_expected("actions", "(rows,)", column, "integers"))
        if isinstance(space, spaces.Discrete):
            bad = (column < space.start) | (column >= space.start + space.n)
            if bad.any():
                raise DatasetError(f"actions are not in {space} in {first_rows(bad, first=first)}")
        return column.astype(np.int64, copy=False)
    if column.ndim > 2 or (space is not None and column.ndim == 1 and math.prod(space.shape) == 1):
        column = column.reshape(len(column), -1)
    actions = as_floats("actions", column, 2, first)
    _check_width("actions", actions, space)
    return actions


def as_floats(name: str, column: Any, ndim: int, first: int = 0) -> np.ndarray:
    """(n,) or (n, d) finite float32."""
    column = np.asarray(column)
    if ndim == 1 and column.ndim == 2 and column.shape[1] == 1:
        column = column[:, 0]
    if column.ndim != ndim or 0 in column.shape[1:] or column.dtype.kind not in "fiub":
        raise DatasetError(_expected(name, "(rows,)" if ndim == 1 else "(rows, numbers per row)", column))
    with np.errstate(over="ignore"):  # what overflows float32 becomes infinite and is reported as such
        column = column.astype(np.float32, copy=False)
    finite = np.isfinite(column)
    if not finite.all():
        bad = ~(finite if ndim == 1 else finite.all(axis=1))
        raise DatasetError(
            f"{name} has NaN, infinite or too large values for float32 in {first_rows(bad, first=first)}: repair "
            "or drop them"
        )
    return column


def as_flags(name: str, column: Any, first: int = 0) -> np.ndarray:
    """(n,) bool: what is not 0."""
    column = np.asarray(column)
    return column if column.dtype == bool and column.ndim == 1 else as_floats(name, column, 1, first) != 0


def check_lengths(columns: Mapping[str, Tree]) -> int:
    """The one number of rows of all columns (DatasetError where they differ)."""
    lengths = {name: _lengths(column) for name, column in columns.items()}
    found = set().union(*lengths.values())
    if len(found) > 1:
        named = {name: min(some) if len(some) == 1 else sorted(some) for name, some in lengths.items()}
        raise DatasetError(f"columns have different numbers of rows: {named}")
    return found.pop()


def _lengths(column: Tree) -> set[int]:
    return {len(leaf) for leaf in tree.flatten(column)}


def _expected(name: str, shape: str, column: np.ndarray, kind: str = "numbers") -> str:
    return f"{name} must be {kind} of shape {shape}, not {column.dtype} {column.shape}"
