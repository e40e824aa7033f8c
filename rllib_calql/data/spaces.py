"""Gymnasium spaces as JSON: Boxes, Discrete, and Dicts and Tuples of them."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

# A space of more numbers is refused when read: no dataset's row is so large.
_MAX_NUMBERS = 1 << 24


def space_to_json(space: gym.Space | None) -> dict[str, Any] | None:
    """What `json.dumps` takes; None for kinds of spaces that are not known here."""
    if isinstance(space, spaces.Box):
        return {
            "type": "Box",
            "shape": list(space.shape),
            "dtype": space.dtype.name,
            "low": _compact(space.low),
            "high": _compact(space.high),
        }
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.Dict):
        inner = [[key, space_to_json(entry)] for key, entry in space.spaces.items()]
        return None if any(entry is None for _, entry in inner) else {"type": "Dict", "spaces": inner}
    if isinstance(space, spaces.Tuple):
        entries = [space_to_json(entry) for entry in space.spaces]
        return None if None in entries else {"type": "Tuple", "spaces": entries}
    return None


def space_from_json(written: dict[str, Any] | None) -> gym.Space | None:
    """The space that was written (ValueError, KeyError or TypeError where it was not written here)."""
    if written is None:
        return None
    kind = written["type"]
    if kind == "Box":
        shape, dtype = tuple(map(int, written["shape"])), np.dtype(written["dtype"])
        if math.prod(shape) > _MAX_NUMBERS or min(shape, default=0) < 0:
            raise ValueError(f"a Box of shape {shape}")
        low, high = (np.broadcast_to(np.asarray(written[key], dtype), shape) for key in ("low", "high"))
        return spaces.Box(low, high, shape, dtype.type)
    if kind == "Discrete":
        return spaces.Discrete(int(written["n"]), start=int(written["start"]))
    if kind == "Dict":
        return spaces.Dict([(str(key), space_from_json(entry)) for key, entry in written["spaces"]])
    if kind == "Tuple":
        return spaces.Tuple([space_from_json(entry) for entry in written["spaces"]])
    raise ValueError(f"a space of type {kind!r}")


def _compact(bounds: np.ndarray) -> Any:
    """One number where all are the same."""
    same = bounds.size > 0 and (bounds == bounds.flat[0]).all()
    return bounds.flat[0].item() if same else bounds.tolist()
