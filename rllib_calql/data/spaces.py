"""Metadata and gymnasium spaces as JSON; of spaces Boxes, Discrete, and Dicts and Tuples of them."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from rllib_calql.data.rows import Metadata

# What reading JSON that was not written here may raise.
DAMAGED = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)
# The attribute of HDF5 files that holds it.
METADATA = "calql_metadata"

# A space of more numbers is refused when read: no dataset's row is so large.
_MAX_NUMBERS = 1 << 24


def metadata_to_json(metadata: Metadata) -> dict[str, Any]:
    """What `json.dumps` takes; `num_rows` is left out."""
    return {
        "observation_space": space_to_json(metadata.observation_space),
        "action_space": space_to_json(metadata.action_space),
        "environment": metadata.environment,
        "score_range": None if metadata.score_range is None else list(metadata.score_range),
        "actions_normalized": metadata.actions_normalized,
        "source": metadata.source,
    }


def metadata_from_json(written: dict[str, Any]) -> Metadata:
    """What was written (one of `DAMAGED` where it was not written here)."""
    scores = written["score_range"]
    environment, source = written["environment"], written["source"]
    for text in (environment, source):
        if not isinstance(text, (str, type(None))):
            raise TypeError(f"{text!r} is no text")
    return Metadata(
        observation_space=space_from_json(written["observation_space"]),
        action_space=space_from_json(written["action_space"]),
        environment=environment,
        score_range=None if scores is None else (float(scores[0]), float(scores[1])),
        actions_normalized=bool(written["actions_normalized"]),
        source=source,
    )


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
