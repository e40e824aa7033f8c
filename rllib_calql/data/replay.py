"""Online episodes, and the mixture of offline and online rows that an update sees."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from rllib_calql.data.mixture import Mixture
from rllib_calql.data.transitions import Batch, Transitions, joined


class _Window:
    """Columns that grow at the end and shrink at the front; what is live is one contiguous slice."""

    def __init__(self, size: int, shapes: Mapping[str, tuple[tuple[int, ...], type]]) -> None:
        # np.empty leaves pages untouched, so unused capacity costs no memory
        self._columns: dict[str, np.ndarray] = {
            name: np.empty((size, *shape), dtype) for name, (shape, dtype) in shapes.items()
        }
        self._size = size
        self._head = self._tail = 0

    def __len__(self) -> int:
        return self._tail - self._head

    def drop(self, count: int) -> None:
        self._head += count

    def append(self, columns: Mapping[str, np.ndarray]) -> None:
        count = len(columns[next(iter(self._columns))])
        if self._tail + count > self._size:
            self._to_the_front()
        for name, column in self._columns.items():
            column[self._tail : self._tail + count] = columns[name]
        self._tail += count

    def _to_the_front(self) -> None:
        """In blocks no larger than the room there: of what overlaps, numpy would make a copy first."""
        block = max(1, self._head)
        for column in self._columns.values():
            for start in range(self._head, self._tail, block):
                stop = min(start + block, self._tail)
                column[start - self._head : stop - self._head] = column[start:stop]
        self._head, self._tail = 0, len(self)

    def view(self) -> dict[str, np.ndarray]:
        return {name: column[self._head : self._tail] for name, column in self._columns.items()}


class EpisodeStore:
    """Whole online episodes, first in first out, at most `capacity` rows.

    Live rows are always one contiguous window of preallocated columns (a quarter larger than `capacity`);
    evicting moves the window's head, and reaching the end moves the window to the front. With `frame_stack`,
    observations are frames of `obs_dim` bytes, each stored once.
    """

    def __init__(self, capacity: int, obs_dim: int, act_dim: int, frame_stack: int | None = None) -> None:
        if capacity < 1:
            raise ValueError(f"the replay capacity must be at least 1 row, not {capacity}")
        self.capacity, self.obs_dim, self.act_dim, self.frame_stack = capacity, obs_dim, act_dim, frame_stack
        self.clear()

    def clear(self) -> None:
        """Forgets all rows and counters."""
        size = self.capacity + self.capacity // 4
        observation = ((self.obs_dim,), np.float32 if self.frame_stack is None else np.uint8)
        self._rows = _Window(
            size,
            {
                "observations": observation,
                "actions": ((self.act_dim,), np.float32),
                "rewards": ((), np.float32),
                "terminated": ((), np.bool_),
                "truncated": ((), np.bool_),
                "mc_returns": ((), np.float32),
            },
        )
        self._episodes = _Window(size, {"final_observations": observation, "lengths": ((), np.int64)})
        self.generation = object()  # another one after each emptying
        self.rows: Transitions | None = None
        self.num_rows_added = 0
        self.num_episodes_added = 0

    def append(self, episode: Transitions) -> None:
        """Adds an episode (or several); evicts the oldest whole episodes until there is room.

        Views of `rows` taken before are no longer valid.

        Raises:
            ValueError: no `mc_returns`, other dimensions, or longer than the capacity.
        """
        if episode.mc_returns is None:
            raise ValueError(
                "an episode needs mc_returns to enter the replay: pass it through a Preparation first"
            )
        if (episode.obs_dim, episode.act_dim) != (self.obs_dim, self.act_dim):
            raise ValueError(
                f"the episode has {episode.obs_dim} observation and {episode.act_dim} action numbers, "
                f"the replay {self.obs_dim} and {self.act_dim}"
            )
        if len(episode) > self.capacity:
            raise ValueError(
                f"an episode of {len(episode)} rows does not fit a replay capacity of {self.capacity}: enlarge it"
            )
        self._evict(len(self._rows) + len(episode) - self.capacity)
        self._rows.append({**vars(episode), "actions": episode.scaled_actions()})
        self._episodes.append(
            {
                "final_observations": episode.final_observations,
                "lengths": np.diff(episode.episode_ends, prepend=-1),
            }
        )
        self.num_rows_added += len(episode)
        self.num_episodes_added += episode.num_episodes
        self.rows = self._view()

    def _evict(self, num_rows: int) -> None:
        if num_rows > 0:
            reached = np.cumsum(self._episodes.view()["lengths"])
            count = int(np.searchsorted(reached, num_rows)) + 1
            self._episodes.drop(count)
            self._rows.drop(int(reached[count - 1]))

    def _view(self) -> Transitions:
        return Transitions.unchecked(
            **self._rows.view(),
            final_observations=self._episodes.view()["final_observations"],
            frame_stack=self.frame_stack,
        )

    def __len__(self) -> int:
        return len(self._rows)


class MixedReplay:
    """Draws batches from fixed offline rows and a growing store of online episodes, with replacement.

    Offline rows come from one dataset, or from several in proportion to their weights (`Mixture`).

    `mixing_ratio` is the share of offline rows in an online batch: a number in [0, 1]; -1 for the offline
    rows' share of all rows ever seen, `N_offline / (N_offline + online rows ever added)`, where N_offline is the
    number of rows of all datasets, whatever their weights; or a schedule
    `[[env_steps, ratio], ...]`, linear between its points and constant outside.
    """

    def __init__(
        self,
        offline: Transitions | Mixture | None,
        capacity: int,
        mixing_ratio: float | Sequence[Sequence[float]],
        seed: int | None,
        obs_dim: int,
        act_dim: int,
        frame_stack: int | None = None,
    ) -> None:
        if offline is not None:
            for part in offline.parts:
                if part.mc_returns is None:
                    raise ValueError("the offline rows need mc_returns: pass them through a Preparation first")
                if part.mapped is not None:
                    part.mapped.expect_random_reads()
            if (offline.obs_dim, offline.act_dim) != (obs_dim, act_dim):
                raise ValueError(
                    f"the offline rows have {offline.obs_dim} observation and {offline.act_dim} action "
                    f"numbers, not {obs_dim} and {act_dim}"
                )
        check_mixing_ratio(mixing_ratio)
        self.offline = offline
        self.online = EpisodeStore(capacity, obs_dim, act_dim, frame_stack)
        self.mixing_ratio = mixing_ratio
        self._generator = np.random.default_rng(seed)

    def add(self, episode: Transitions) -> None:
        """Adds a finished, prepared online episode."""
        self.online.append(episode)

    def offline_share(self) -> float:
        """The share of offline rows in force now."""
        added = self.online.num_rows_added
        if not _is_number(self.mixing_ratio):
            steps, ratios = np.asarray(self.mixing_ratio, dtype=np.float64).T
            return float(np.interp(added, steps, ratios))
        if self.mixing_ratio == -1:
            offline = 0 if self.offline is None else len(self.offline)
            return offline / (offline + added) if offline + added else 1.0
        return float(cast(float, self.mixing_ratio))

    def sample(self, batch_size: int, *, online: bool) -> Batch:
        """A batch of `batch_size` rows, uniformly with replacement.

        `online=False`: offline rows only. `online=True`: exactly `floor(ratio * batch_size)` offline rows
        first, then online ones. Where one side has no rows, all come from the other.

        Raises:
            ValueError: there are no rows at all, or `batch_size` is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"a batch needs at least 1 row, not {batch_size}")
        old, new = self.offline, self.online.rows
        num_old = self.num_offline_rows(batch_size, online=online)
        parts = [
            rows.draw(self._generator, count)
            for rows, count in ((old, num_old), (new, batch_size - num_old))
            if rows is not None and count > 0
        ]
        return joined(parts)

    def num_offline_rows(self, batch_size: int, *, online: bool) -> int:
        """How many rows of a batch are offline ones now (ValueError: there are no rows at all)."""
        if self.offline is None and self.online.rows is None:
            raise ValueError(
                "nothing to sample from: there is neither an offline dataset nor an online episode yet"
            )
        if self.offline is None:
            return 0
        if self.online.rows is None or not online:
            return batch_size
        return math.floor(self.offline_share() * batch_size)

    def get_state(self) -> dict[str, Any]:
        """The random generator, in plain numbers; `ReplayFiles` keeps the online rows."""
        return {"generator": self._generator.bit_generator.state}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Takes over what `get_state` gave: the next samples are the same, given the same rows."""
        self._generator.bit_generator.state = state["generator"]


def check_mixing_ratio(mixing_ratio: float | Sequence[Sequence[float]]) -> None:
    """Refuses (ValueError) what is not in [0, 1], -1, or a schedule `[[env_steps, ratio], ...]`."""
    if _is_number(mixing_ratio):
        if mixing_ratio != -1 and not 0.0 <= cast(float, mixing_ratio) <= 1.0:
            raise ValueError(
                "mixing_ratio must be in [0, 1], -1 (in proportion to the data), or a schedule, not "
                f"{mixing_ratio}"
            )
        return
    try:
        points = np.asarray(mixing_ratio, dtype=np.float64)
    except (TypeError, ValueError):
        points = np.zeros(0)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) == 0:
        raise ValueError(f"a mixing_ratio schedule is [[env_steps, ratio], ...], not {mixing_ratio!r}")
    steps, ratios = points.T
    if not (np.diff(steps) > 0).all() or not (steps >= 0).all():
        raise ValueError(
            f"the env_steps of a mixing_ratio schedule must increase from 0 or more, not {steps.tolist()}"
        )
    if not ((ratios >= 0) & (ratios <= 1)).all():
        raise ValueError(f"the ratios of a mixing_ratio schedule must be in [0, 1], not {ratios.tolist()}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
