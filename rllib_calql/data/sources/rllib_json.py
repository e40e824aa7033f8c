"""The lines of RLlib's JSON logs."""

from __future__ import annotations

import base64
import binascii
import itertools
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lz4.frame
import numpy as np
import tree

from rllib_calql.data.errors import DatasetError, DatasetWarning
from rllib_calql.data.rows import Rows, Tree
from rllib_calql.data.sources.rllib_logs import Dones, Fragment
from rllib_calql.data.unpickle import check_numbers, unpickle

# The columns that are read, where they are there: these, and others of one number per row.
_VECTORS = ("obs", "actions", "new_obs")
_MAX_COMPRESSION = 255  # that of lz4
_READ = (*_VECTORS, "rewards", "terminateds", "truncateds", "dones", "eps_id", "agent_index", "t")


@dataclass(frozen=True)
class Reader:
    """See `rllib_logs.open_json`."""

    files: tuple[Path, ...]
    allow_pickle: bool
    dones: Dones

    def fragments(self) -> Iterator[Fragment]:
        """The fragments of episodes in all lines of all files."""
        for path in self.files:
            with path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    if not line.strip():
                        continue
                    try:
                        yield from self._line(line)
                    except json.JSONDecodeError as error:
                        if line.endswith(b"\n"):
                            raise DatasetError(
                                f"{path}, line {number} is not JSON: {error}; delete the line, or write the log "
                                "again"
                            ) from error
                        warnings.warn(
                            f"{path}: the last line ({number}) breaks off, as in a killed run; it was dropped",
                            DatasetWarning,
                            stacklevel=2,
                        )
                    except (ValueError, RecursionError) as error:  # what json says of absurd numbers too
                        raise DatasetError(f"{path}, line {number}: {error}") from error

    def _line(self, line: bytes) -> Iterator[Fragment]:
        batch = _single_policy(json.loads(line))
        if missing := [name for name in ("obs", "actions", "rewards") if name not in batch]:
            raise DatasetError(f"the batch has no {missing[0]!r}; it has {', '.join(map(str, batch))}")
        columns = {name: self._column(batch, name) for name in _READ if name in batch}
        lengths = {name: len(leaf) for name, column in columns.items() for leaf in tree.flatten(column)}
        if len(set(lengths.values())) > 1:
            raise DatasetError(f"columns have different numbers of rows: {lengths}")
        flat = {name: np.asarray(columns[name]) for name in columns if name not in _VECTORS}
        for name, column in flat.items():
            if column.ndim != 1:
                raise DatasetError(f"{name!r} must be one number per row")
        terminated, truncated = self._ends(flat)
        rows = Rows(
            observations=columns["obs"],
            actions=columns["actions"],
            rewards=flat["rewards"],
            terminated=terminated,
            truncated=truncated,
            next_observations=columns.get("new_obs"),
        )
        if len(rows) == 0:
            return
        if "eps_id" not in flat:
            yield Fragment(None, None, rows)
            return
        marks = {name: flat[name] for name in ("eps_id", "agent_index", "t") if name in flat}
        changes = np.zeros(len(rows) - 1, dtype=bool)
        for name, mark in marks.items():
            changes |= mark[1:] != mark[:-1] + (name == "t")
        borders = [0, *(np.flatnonzero(changes) + 1), len(rows)]
        for start, end in itertools.pairwise(borders):
            episode = (marks["eps_id"][start], marks["agent_index"][start] if "agent_index" in marks else 0)
            yield Fragment(episode, int(marks["t"][start]) if "t" in marks else None, rows.take(slice(start, end)))

    def _ends(self, columns: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """(n,) bool each: terminated, truncated."""
        names = ("terminateds", "truncateds", "dones")
        flags = {name: columns[name] != 0 for name in names if name in columns}
        if not flags and "eps_id" not in columns:
            raise DatasetError(f"the batch does not say where episodes end: no {', '.join(names)} or eps_id")
        none = np.zeros(len(columns["rewards"]), dtype=bool)
        dones, truncated = flags.get("dones", none), flags.get("truncateds", none)
        told_by_dones = dones & ~truncated if self.dones == "terminated" else none
        terminated = flags.get("terminateds", told_by_dones)
        return terminated, truncated | (dones & ~terminated)

    def _column(self, batch: dict[str, Any], name: str) -> Tree:
        """(n, ...)"""
        column = batch[name]
        if isinstance(column, str):
            return unpack(column, name, self.allow_pickle)
        return _numbers(column, name)


def unpack(text: str, name: str, allow_pickle: bool) -> Tree:
    """The value of a packed column: base64 of an lz4 frame of a pickle.

    Raises:
        DatasetError: not allowed, damaged, or not numbers.
    """
    if not allow_pickle:
        raise DatasetError(
            f"column {name!r} is packed as a pickle. Open the log with allow_pickle=True, which reads numpy "
            "arrays and builtin types only and runs nothing else; or write logs with output_compress_columns=[]"
        )
    try:
        packed = base64.b64decode(text, validate=True)
        if lz4.frame.get_frame_info(packed)["content_size"] > _MAX_COMPRESSION * len(packed):
            raise ValueError("it claims to be larger than it can be")
        data = lz4.frame.decompress(packed)
    except (binascii.Error, ValueError, RuntimeError) as error:
        raise DatasetError(f"column {name!r} is damaged: {error}") from error
    try:
        return _numbers(unpickle(data), name)
    except DatasetError as error:
        raise DatasetError(f"column {name!r}: {error}") from error


def _numbers(value: Any, name: str) -> Tree:
    if isinstance(value, dict):
        return {key: _numbers(entry, f"{name}.{key}") for key, entry in value.items()}
    if isinstance(value, tuple):
        return tuple(_numbers(entry, f"{name}.{index}") for index, entry in enumerate(value))
    try:
        array = check_numbers(value)
    except ValueError as error:  # numpy's too, for lists of different lengths
        raise DatasetError(f"{name!r} must be numbers, as many in each row: {error}") from None
    if array.ndim == 0:
        raise DatasetError(f"{name!r} must be a column, not {value!r}")
    return array


def _single_policy(batch: Any) -> dict[str, Any]:
    kind = batch.get("type") if isinstance(batch, dict) else None
    if kind == "MultiAgentBatch" and isinstance(batch.get("policy_batches"), dict):
        policies = batch["policy_batches"]
        if len(policies) != 1:
            raise DatasetError(
                f"the batch is of {len(policies)} policies ({', '.join(policies)}): CalQL trains one policy, so "
                "write a log of each policy by itself"
            )
        (batch,) = policies.values()
    elif kind != "SampleBatch":
        raise DatasetError("not a batch of RLlib: it has no type SampleBatch or MultiAgentBatch")
    if not isinstance(batch, dict):
        raise DatasetError("the policy's batch is not a dict of columns")
    return {name: column for name, column in batch.items() if name != "type"}
