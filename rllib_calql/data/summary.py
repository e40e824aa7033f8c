"""What is in a dataset: figures gathered in one pass over a source's chunks, whatever state the rows are in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tree
from gymnasium.spaces import Box

from rllib_calql.data.errors import DatasetError
from rllib_calql.data.rows import Metadata, Rows, Source

SAMPLE = 20_000  # rows that are kept for pictures (up to twice as many)
MAX_REWARD_VALUES = 10  # rewards with more values than this are not counted one by one
SATURATED = 1e-3  # an action this near to its bound (in half ranges) is saturated
_PIECE = 1 << 21  # numbers that are looked at together, in float64


@dataclass(frozen=True, eq=False)
class Column:
    """One leaf of the observations or actions.

    Attributes:
        name: such as `observations` or `observations/achieved_goal`.
        shape, dtype: of one row, as logged.
        nan, infinite: how many numbers are.
        low, high, mean, std: of the finite numbers; (n,), one each per number of a vector, else (1,).
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    nan: int
    infinite: int
    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    std: np.ndarray


@dataclass(frozen=True, eq=False)
class Summary:
    """What `summarise` finds. An episode ends at a row that is terminated or truncated.

    Attributes:
        metadata: the source's own.
        num_rows: all of them, also those that a dataset made of them would drop.
        unfinished_rows: rows after the last end.
        columns: of observations, then of actions.
        rewards: reward column; rewards that are not finite count as 0 below.
        reward_values: how often each reward occurs; empty where there are more than `MAX_REWARD_VALUES`.
        saturation: share of action numbers at a bound; None where no bounds are known.
        has_next_observations: whether the source logs them.
        returns, lengths, terminated, best_rewards: (E,) sum of rewards, steps, whether it ended as terminated, and
            largest reward of each finished episode.
        row_sample: (n, 2) the first two observation numbers of rows at equal distances; None without two.
        episode_sample: the rewards of episodes at equal distances.
    """

    metadata: Metadata
    num_rows: int
    unfinished_rows: int
    columns: list[Column]
    rewards: Column
    reward_values: dict[float, int]
    saturation: float | None
    has_next_observations: bool
    returns: np.ndarray
    lengths: np.ndarray
    terminated: np.ndarray
    best_rewards: np.ndarray
    row_sample: np.ndarray | None
    episode_sample: list[np.ndarray]

    @property
    def num_episodes(self) -> int:
        return len(self.returns)

    @property
    def successes(self) -> np.ndarray | None:
        """(E,) bool: the episode met the better of the only two rewards there are; None for other rewards."""
        return self.best_rewards == max(self.reward_values) if len(self.reward_values) == 2 else None

    @property
    def missing(self) -> int:
        """How many numbers are not finite, rewards included."""
        return sum(column.nan + column.infinite for column in [*self.columns, self.rewards])

    @property
    def bytes_in_memory(self) -> int:
        """Of the rows as they train: 4 bytes a number, integers as logged; reward, return and two flags."""
        sizes = (
            int(np.prod(column.shape)) * (column.dtype.itemsize if column.dtype.kind in "iub" else 4)
            for column in self.columns
        )
        return self.num_rows * (sum(sizes) + 4 + 4 + 2)


def summarise(source: Source, progress: Callable[[int], object] = lambda rows: None) -> Summary:
    """Reads a source once, in memory bounded by a chunk and about 25 bytes per episode.

    Args:
        source: what to read.
        progress: called with the number of rows read so far.

    Raises:
        DatasetError: there are no rows, or they cannot be read.
    """
    gathering: _Gathering | None = None
    for rows in source.chunks():
        if len(rows):
            gathering = gathering or _Gathering(rows, source.metadata)
            gathering.add(rows)
            progress(gathering.num_rows)
    if gathering is None:
        raise DatasetError("the dataset is empty: it has no rows")
    return gathering.result()


class _Gathering:
    def __init__(self, first: Rows, metadata: Metadata) -> None:
        self.metadata, self.has_next_observations = metadata, first.next_observations is not None
        leaves = [leaf for _, leaf in _leaves(first)]
        self.columns = [Moments(leaf) for leaf in leaves]
        self.rewards = Moments(first.rewards)
        self.names = [name for name, _ in _leaves(first)]
        self.num_rows = 0
        self.episodes = _Episodes()
        self.values: dict[float, int] | None = {}
        vector = leaves[0].ndim == 2 and leaves[0].shape[1] > 1
        self.row_sample = _Thinned(SAMPLE) if vector else None
        box = None if metadata.actions_normalized else metadata.action_space
        self.bounds = (box.low, box.high) if isinstance(box, Box) and box.is_bounded() else None
        self.saturated = 0

    def add(self, rows: Rows) -> None:
        for moments, (_, leaf) in zip(self.columns, _leaves(rows), strict=True):
            moments.add(leaf)
        self.rewards.add(rows.rewards)
        rewards = np.nan_to_num(rows.rewards.astype(np.float64), posinf=0.0, neginf=0.0)
        if self.values is not None:
            values, counts = np.unique(rows.rewards[np.isfinite(rows.rewards)], return_counts=True)
            for value, count in zip(values.tolist(), counts.tolist(), strict=True):
                self.values[value] = self.values.get(value, 0) + count
            if len(self.values) > MAX_REWARD_VALUES:
                self.values = None
        self.episodes.add(rewards, rows.terminated, rows.truncated)
        if isinstance(rows.actions, np.ndarray) and rows.actions.dtype.kind == "f":
            low, high = self.bounds or (-1.0, 1.0)
            margin = SATURATED * (high - low) / 2.0
            self.saturated += int(((rows.actions <= low + margin) | (rows.actions >= high - margin)).sum())
        if self.row_sample is not None:
            self.row_sample.add(_leaves(rows)[0][1][:, :2])
        self.num_rows += len(rows)

    def result(self) -> Summary:
        columns = [moments.result(name) for name, moments in zip(self.names, self.columns, strict=True)]
        actions = [column for column in columns if column.name.startswith("actions")]
        numbers = self.num_rows * int(np.prod(actions[0].shape))
        # Without known bounds, numbers that stay in [-1, 1] are taken for normalised actions.
        bounded = self.bounds is not None or (actions[0].low.min() >= -1.0 and actions[0].high.max() <= 1.0)
        known = bounded and len(actions) == 1 and actions[0].dtype.kind == "f"
        return Summary(
            metadata=self.metadata,
            num_rows=self.num_rows,
            columns=columns,
            rewards=self.rewards.result("rewards"),
            reward_values=dict(sorted((self.values or {}).items())),
            saturation=self.saturated / numbers if known else None,
            has_next_observations=self.has_next_observations,
            row_sample=None if self.row_sample is None else self.row_sample.result(),
            **self.episodes.result(),
        )


def _leaves(rows: Rows) -> list[tuple[str, np.ndarray]]:
    """Observations' leaves in gymnasium's order of flattening, then the actions'."""
    return [
        ("/".join([name, *map(str, path)]), leaf)
        for name in ("observations", "actions")
        for path, leaf in tree.flatten_with_path(getattr(rows, name))
    ]


class _Thinned:
    """Rows at equal distances, at most `2 * limit` of them: when there are more, every other one goes."""

    def __init__(self, limit: int) -> None:
        self._limit, self._step, self._seen = limit, 1, 0
        self._parts: list[np.ndarray] = []

    def add(self, items: np.ndarray) -> None:
        self._parts.append(np.array(items[-self._seen % self._step :: self._step]))
        self._seen += len(items)
        while sum(map(len, self._parts)) > 2 * self._limit:
            self._parts, self._step = [np.concatenate(self._parts)[::2]], 2 * self._step

    def result(self) -> np.ndarray:
        return np.concatenate(self._parts)


class Moments:
    """Extremes, mean and deviation of a growing column (n, ...), in little memory.

    Samples are merged as Chan, Golub and LeVeque (1979) do.
    """

    def __init__(self, first: np.ndarray) -> None:
        self.shape, self.dtype = first.shape[1:], first.dtype
        self.width = self.shape[0] if len(self.shape) == 1 else 1
        self.nan = self.infinite = 0
        self.count: Any = np.zeros(self.width)
        self.mean, self.squares = np.zeros(self.width), np.zeros(self.width)
        self.low, self.high = np.full(self.width, np.inf), np.full(self.width, -np.inf)

    def add(self, values: np.ndarray) -> None:
        step = max(1, _PIECE // max(1, int(np.prod(self.shape))))
        for start in range(0, len(values), step):
            self._add(np.asarray(values[start : start + step], np.float64).reshape(-1, self.width))

    def _add(self, values: np.ndarray) -> None:
        finite: Any = np.isfinite(values)
        count: Any = len(values)
        if finite.all():
            finite = True
        else:
            self.nan += int(np.isnan(values).sum())
            self.infinite += int(np.isinf(values).sum())
            count = finite.sum(axis=0)
        self.low = np.minimum(self.low, values.min(axis=0, initial=np.inf, where=finite))
        self.high = np.maximum(self.high, values.max(axis=0, initial=-np.inf, where=finite))
        mean = values.sum(axis=0, where=finite) / np.maximum(count, 1)
        squares = np.square(values - mean).sum(axis=0, where=finite)
        total = np.maximum(self.count + count, 1)
        difference = mean - self.mean
        self.squares += squares + difference**2 * self.count * count / total
        self.mean += difference * count / total
        self.count = self.count + count

    @property
    def std(self) -> np.ndarray:
        """The standard deviation, per number of a vector."""
        return np.sqrt(self.squares / np.maximum(self.count, 1))

    def result(self, name: str) -> Column:
        """As the summary has it."""
        return Column(
            name, self.shape, self.dtype, self.nan, self.infinite, self.low, self.high, self.mean, self.std
        )


class _Episodes:
    """Sums over each episode's rewards; the episode that a chunk leaves open goes on in the next."""

    def __init__(self) -> None:
        self._open: list[np.ndarray] = []
        self._columns: dict[str, list[np.ndarray]] = {
            name: [] for name in ("returns", "lengths", "terminated", "best_rewards")
        }
        self._sample: list[np.ndarray] = []
        self._step, self._count = 1, 0

    def add(self, rewards: np.ndarray, terminated: np.ndarray, truncated: np.ndarray) -> None:
        ends = np.flatnonzero(terminated | truncated)
        if not len(ends):
            self._open.append(rewards)
            return
        stops = ends + 1 + sum(map(len, self._open))
        starts = np.append(0, stops[:-1])
        joined = np.concatenate([*self._open, rewards])
        whole = joined[: stops[-1]]
        self._open = [joined[stops[-1] :].copy()]
        self._columns["returns"].append(np.add.reduceat(whole, starts))
        self._columns["best_rewards"].append(np.maximum.reduceat(whole, starts))
        self._columns["lengths"].append(stops - starts)
        self._columns["terminated"].append(np.asarray(terminated)[ends] != 0)
        for number in range(-self._count % self._step, len(ends), self._step):
            self._sample.append(whole[starts[number] : stops[number]].copy())
        self._count += len(ends)
        while len(self._sample) > 1 and sum(map(len, self._sample)) > 10 * SAMPLE:
            self._sample, self._step = self._sample[::2], 2 * self._step

    def result(self) -> dict[str, Any]:
        columns = {
            name: np.concatenate(parts) if parts else np.zeros(0, bool if name == "terminated" else np.float64)
            for name, parts in self._columns.items()
        }
        return {**columns, "unfinished_rows": sum(map(len, self._open)), "episode_sample": self._sample}
