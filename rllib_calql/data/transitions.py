"""The one columnar layout of experience: rows in time order, episode after episode."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypedDict

import numpy as np

from rllib_calql.data.errors import DatasetError, DatasetWarning, first_rows
from rllib_calql.data.rows import Metadata, Rows, rows_per_chunk

# The share of rows whose next observation may differ from the next row's before the rows count as out of
# order.
MAX_BROKEN_ROWS = 0.1


class Batch(TypedDict):
    """B rows for one update, all float32 and contiguous; `dones` is 1 where the task ended (no bootstrap)."""

    observations: np.ndarray  # (B, obs_dim)
    actions: np.ndarray  # (B, act_dim)
    rewards: np.ndarray  # (B,)
    next_observations: np.ndarray  # (B, obs_dim)
    dones: np.ndarray  # (B,)
    mc_returns: np.ndarray  # (B,)


@dataclass(frozen=True, eq=False)
class Transitions:
    """N transitions in time order, E whole episodes one after the other.

    The next observation of a row is the next row's observation, or at an episode's end its final observation;
    it is derived, not stored. Arrays are converted to the types below (no copy where they fit) and checked.

    Raises:
        DatasetError: columns are missing rows, not finite, empty, or the last episode has no end.
    """

    observations: np.ndarray  # (N, obs_dim) float32
    actions: np.ndarray  # (N, act_dim) float32
    rewards: np.ndarray  # (N,) float32
    terminated: np.ndarray  # (N,) bool: the task ended after this row; no bootstrap
    truncated: np.ndarray  # (N,) bool: the episode was cut off after this row; bootstraps
    final_observations: np.ndarray  # (E, obs_dim) float32: what followed each episode's last row
    mc_returns: np.ndarray | None = None  # (N,) float32: return-to-go, set by Preparation; -inf where unknown
    metadata: Metadata = field(default_factory=Metadata)  # what the source knew

    def __post_init__(self) -> None:
        columns = _checked_columns(self.observations, self.actions, self.rewards, self.terminated, self.truncated)
        columns["truncated"] = columns["truncated"] & ~columns["terminated"]
        columns["final_observations"] = _floats("final_observations", self.final_observations, 2)
        ends = np.flatnonzero(columns["terminated"] | columns["truncated"])
        num_rows, obs_dim = columns["observations"].shape
        if len(ends) == 0 or ends[-1] != num_rows - 1:
            raise DatasetError(
                f"the last row ({num_rows - 1}) must end its episode: flag it as terminated or truncated, "
                "or build with Transitions.from_arrays, which drops an unfinished tail"
            )
        if columns["final_observations"].shape != (len(ends), obs_dim):
            raise DatasetError(
                f"final_observations has shape {columns['final_observations'].shape}, "
                f"but {len(ends)} episodes end and observations have {obs_dim} numbers"
            )
        if self.mc_returns is not None:
            mc_returns = np.asarray(self.mc_returns, dtype=np.float32)
            if mc_returns.shape != (num_rows,):
                raise DatasetError(f"mc_returns has shape {mc_returns.shape} for {num_rows} rows")
            bad = np.isnan(mc_returns) | (mc_returns == np.inf)
            if bad.any():
                raise DatasetError(f"mc_returns are not finite (nor -inf) in {first_rows(bad)}")
            columns["mc_returns"] = mc_returns
        for name, column in columns.items():
            object.__setattr__(self, name, column)

    @classmethod
    def unchecked(cls, **columns: Any) -> Transitions:
        """A view of columns already known to be right: no conversion, no check, no copy."""
        view = object.__new__(cls)
        view.__dict__.update(columns)
        return view

    @classmethod
    def from_episode(
        cls, observations: np.ndarray, actions: np.ndarray, rewards: np.ndarray, terminated: bool
    ) -> Transitions:
        """One whole episode of T steps: observations (T+1, obs_dim), actions (T, act_dim), rewards (T,).

        `terminated`: the task ended at the last step; otherwise the episode was cut off there.
        """
        observations, rewards = np.asarray(observations), np.asarray(rewards)
        if len(observations) != len(rewards) + 1:
            raise DatasetError(
                f"an episode of {len(rewards)} rewards needs {len(rewards) + 1} observations "
                f"(the final one too), not {len(observations)}"
            )
        last = np.arange(1, len(rewards) + 1) == len(rewards)
        return cls(
            observations[:-1], actions, rewards, last & terminated, last & (not terminated), observations[-1:]
        )

    @classmethod
    def from_arrays(
        cls,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        next_observations: np.ndarray | None = None,
    ) -> Transitions:
        """Builds from flat logged rows (an own dataset, D4RL), losing nothing silently.

        - A row flagged both terminated and truncated is terminated.
        - The final observation of an episode comes from `next_observations` (N, obs_dim) where given.
          Otherwise a truncated row is dropped, its observation becomes the final one and the row before it
          the truncated end; a terminated row's final observation is its own (it has no part in the TD
          target).
        - A row inside an episode whose `next_observations` is not the next row's observation ends its episode
          as truncated; more than a tenth of such rows means that the rows are not in time order.
        - Rows after the last end are dropped.

        Raises:
            DatasetError: columns do not fit each other, are not finite or not in time order, or nothing
                remains.

        Warns:
            DatasetWarning: counts rows that were dropped and episodes that were cut.
        """
        columns = _checked_columns(observations, actions, rewards, terminated, truncated)
        columns["truncated"] = columns["truncated"] & ~columns["terminated"]
        following = None
        if next_observations is not None:
            following = _floats("next_observations", next_observations, 2)
            if following.shape != columns["observations"].shape:
                raise DatasetError(
                    f"next_observations has shape {following.shape}, observations {columns['observations'].shape}"
                )
            columns["truncated"] = columns["truncated"] | _broken(columns, following)
        num_rows = len(columns["rewards"])
        ended = columns["terminated"] | columns["truncated"]
        ends = np.flatnonzero(ended)
        whole = int(ends[-1]) + 1 if len(ends) else 0
        if whole < num_rows:
            _warn(
                f"{num_rows - whole} of {num_rows} rows at the end of the data belong to an episode without "
                "an end (neither terminated nor truncated) and were dropped"
            )
        if following is not None:
            return cls._kept({k: v[:whole] for k, v in columns.items()}, following[ends])
        return cls._kept(*_without_truncated_rows({k: v[:whole] for k, v in columns.items()}))

    @classmethod
    def _kept(cls, columns: dict[str, Any], final_observations: np.ndarray) -> Transitions:
        if len(columns["rewards"]) == 0:
            raise DatasetError(
                "no complete episode remains: flag the last row of each episode as terminated or truncated, "
                "and give next_observations (or the row after it) if episodes are cut off"
            )
        return cls(**columns, final_observations=final_observations)

    @classmethod
    def concatenate(cls, parts: Sequence[Transitions]) -> Transitions:
        """All rows of all parts, in order. Either every part has `mc_returns` or none."""
        if not parts:
            raise DatasetError("nothing to concatenate")
        with_returns = [part.mc_returns is not None for part in parts]
        if any(with_returns) != all(with_returns):
            raise DatasetError("some parts have mc_returns and some do not: prepare all of them the same way")
        dims = {(part.obs_dim, part.act_dim) for part in parts}
        if len(dims) > 1:
            raise DatasetError(f"parts have different (observation, action) dimensions: {sorted(dims)}")
        absent = {"metadata"} if all(with_returns) else {"metadata", "mc_returns"}
        names = [name for name in cls.__dataclass_fields__ if name not in absent]
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        return cls(**columns, metadata=parts[0].metadata)

    def __len__(self) -> int:
        return len(self.rewards)

    @cached_property
    def episode_ends(self) -> np.ndarray:
        """(E,) int64: the row number of each episode's last row."""
        return np.flatnonzero(self.terminated | self.truncated)

    @property
    def num_episodes(self) -> int:
        return len(self.final_observations)

    @property
    def obs_dim(self) -> int:
        return int(self.observations.shape[1])

    @property
    def act_dim(self) -> int:
        return int(self.actions.shape[1])

    def next_observations(self, rows: np.ndarray | slice | None = None) -> np.ndarray:
        """(B, obs_dim): what followed each of `rows` (row numbers from 0; all rows by default)."""
        if rows is None or isinstance(rows, slice):
            rows = np.arange(len(self))[rows if rows is not None else slice(None)]
        result = self.observations.take(rows + 1, axis=0, mode="clip")
        ended = np.flatnonzero(self.terminated.take(rows) | self.truncated.take(rows))
        if len(ended):
            result[ended] = self.final_observations[np.searchsorted(self.episode_ends, rows[ended])]
        return result

    def take(self, rows: np.ndarray) -> Batch:
        """Copies `rows` (row numbers from 0) into a batch; needs `mc_returns`."""
        if self.mc_returns is None:
            raise ValueError("these transitions have no mc_returns yet: pass them through a Preparation first")
        return {
            "observations": self.observations.take(rows, axis=0),
            "actions": self.actions.take(rows, axis=0),
            "rewards": self.rewards.take(rows),
            "next_observations": self.next_observations(rows),
            "dones": self.terminated.take(rows).astype(np.float32),
            "mc_returns": self.mc_returns.take(rows),
        }

    def chunks(self) -> Iterator[Rows]:
        """The rows as a source gives them (`Transitions` are one), without `mc_returns`."""
        size = rows_per_chunk(4 * (2 * self.obs_dim + self.act_dim + 1))
        for start in range(0, len(self), size):
            rows = slice(start, start + size)
            yield Rows(
                observations=self.observations[rows],
                actions=self.actions[rows],
                rewards=self.rewards[rows],
                terminated=self.terminated[rows],
                truncated=self.truncated[rows],
                next_observations=self.next_observations(rows),
            )

    def episodes(self) -> Iterator[Transitions]:
        """Each episode as a view, without copying."""
        start = 0
        for number, end in enumerate(self.episode_ends):
            rows = slice(start, end + 1)
            yield Transitions.unchecked(
                observations=self.observations[rows],
                actions=self.actions[rows],
                rewards=self.rewards[rows],
                terminated=self.terminated[rows],
                truncated=self.truncated[rows],
                final_observations=self.final_observations[number : number + 1],
                mc_returns=None if self.mc_returns is None else self.mc_returns[rows],
                metadata=self.metadata,
            )
            start = end + 1


def _checked_columns(
    observations: Any, actions: Any, rewards: Any, terminated: Any, truncated: Any
) -> dict[str, np.ndarray]:
    columns = {
        "observations": _floats("observations", observations, 2),
        "actions": _floats("actions", actions, 2),
        "rewards": _floats("rewards", rewards, 1),
        "terminated": _flags("terminated", terminated),
        "truncated": _flags("truncated", truncated),
    }
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DatasetError(f"columns have different numbers of rows: {lengths}")
    if lengths["rewards"] == 0:
        raise DatasetError("the dataset is empty: it has no rows")
    return columns


def _floats(name: str, column: Any, ndim: int) -> np.ndarray:
    column = np.asarray(column)
    if ndim == 1 and column.ndim == 2 and column.shape[1] == 1:
        column = column[:, 0]
    if column.ndim != ndim or 0 in column.shape[1:] or column.dtype.kind not in "fiub":
        expected = "(rows,)" if ndim == 1 else "(rows, numbers per row)"
        raise DatasetError(f"{name} must be numbers of shape {expected}, not {column.dtype} {column.shape}")
    with np.errstate(over="ignore"):  # what overflows float32 becomes infinite and is reported as such
        column = column.astype(np.float32, copy=False)
    finite = np.isfinite(column)
    if not finite.all():
        bad = ~(finite if ndim == 1 else finite.all(axis=1))
        raise DatasetError(
            f"{name} has NaN, infinite or too large values for float32 in {first_rows(bad)}: repair or drop them"
        )
    return column


def _flags(name: str, column: Any) -> np.ndarray:
    column = np.asarray(column)
    return column if column.dtype == bool and column.ndim == 1 else _floats(name, column, 1) != 0


def _broken(columns: dict[str, np.ndarray], following: np.ndarray) -> np.ndarray:
    """(N,) bool: rows inside an episode that are not followed by the next row's observation."""
    broken = ~np.isclose(following[:-1], columns["observations"][1:], rtol=1e-4, atol=1e-5).all(axis=1)
    broken = np.append(broken, False) & ~(columns["terminated"] | columns["truncated"])
    count = int(broken.sum())
    if count > MAX_BROKEN_ROWS * len(broken):
        raise DatasetError(
            f"{count} of {len(broken)} rows are not followed by their next_observations "
            f"({first_rows(broken)}): rows must be in time order, episode after episode; if they are, flag "
            "each episode's last row"
        )
    if count:
        _warn(
            f"{count} rows inside an episode are not followed by their next_observations "
            f"({first_rows(broken)}); the episode was cut there, as truncated"
        )
    return broken


def _without_truncated_rows(columns: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Drops truncated rows, whose next observation is unknown; returns the columns and the final
    observations."""
    terminated, dropped = columns["terminated"], columns["truncated"]
    followed_by_dropped = np.append(dropped[1:], False)
    truncated = followed_by_dropped & ~terminated & ~dropped
    ends = np.flatnonzero(terminated | truncated)
    # A terminated row's next observation is unknown and without effect (no bootstrap): its own stands in for
    # it.
    final_observations = columns["observations"][ends + truncated[ends]]
    count = int(dropped.sum())
    if count == 0:
        return columns, final_observations
    vanished = count - int(truncated.sum())
    _warn(
        f"{count} of {len(dropped)} rows are truncated ends without a next observation and were dropped; "
        "their observation serves as the final one of the row before"
        + (f" ({vanished} episodes had no other row)" if vanished else "")
    )
    kept = {name: column[~dropped] for name, column in {**columns, "truncated": truncated}.items()}
    return kept, final_observations


def _warn(message: str) -> None:
    warnings.warn(message, DatasetWarning, stacklevel=3)
