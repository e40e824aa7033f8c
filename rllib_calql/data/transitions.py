"""The one columnar layout of experience: rows in time order, episode after episode."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self, TypedDict, cast

import numpy as np
import tree

from rllib_calql.data.assemble import clean_blocks
from rllib_calql.data.columns import (
    ObservationLayout,
    as_actions,
    as_flags,
    as_floats,
    as_observations,
    check_lengths,
    map_leaves,
    row_bytes,
)
from rllib_calql.data.errors import DatasetError, first_rows
from rllib_calql.data.frames import as_frames, stack_rows, stacked
from rllib_calql.data.gather import Gathered
from rllib_calql.data.mapped import MappedFolder
from rllib_calql.data.rows import COLUMNS, Metadata, OneChunk, Rows, Source, rows_per_chunk


class Batch(TypedDict):
    """B rows for one update, contiguous and float32; `dones` is 1 where the task ended (no bootstrap).

    Observations that are images (uint8) or were kept nested, and Discrete actions (int64) that no `Preparation`
    has numbered, come as they are; with `frame_stack` they are frames, (B, k, P) uint8.
    """

    observations: np.ndarray  # (B, obs_dim)
    actions: np.ndarray  # (B, act_dim)
    rewards: np.ndarray  # (B,)
    next_observations: np.ndarray  # (B, obs_dim)
    dones: np.ndarray  # (B,)
    mc_returns: np.ndarray  # (B,)


@dataclass(frozen=True, eq=False)
class Transitions:
    """N transitions in time order, E whole episodes one after the other.

    Observations are (N, obs_dim) float32, or (N, height, width, ...) uint8 images, or a dict or tuple of these
    where kept. The next observation of a row is the next row's observation, or at an episode's end its final
    observation; it is derived, not stored. Arrays are converted to the types below (no copy where they fit) and
    checked. `Transitions` are themselves a `Source`.

    Raises:
        DatasetError: columns are missing rows, not finite, empty, or the last episode has no end.
    """

    observations: Any  # (N, obs_dim) float32, see above
    actions: np.ndarray  # (N, act_dim) float32 as logged; (N,) int64 where Discrete
    rewards: np.ndarray  # (N,) float32
    terminated: np.ndarray  # (N,) bool: the task ended after this row; no bootstrap
    truncated: np.ndarray  # (N,) bool: the episode was cut off after this row; bootstraps
    final_observations: Any  # (E, obs_dim) float32, or as the observations: what followed each episode's last row
    mc_returns: np.ndarray | None = None  # (N,) float32: return-to-go, set by Preparation; -inf where unknown
    metadata: Metadata = field(default_factory=Metadata)  # what the source knew
    # Set by Preparation: what `take` makes of logged actions. Millions of rows need no second copy so.
    action_scaling: Callable[[np.ndarray], np.ndarray] | None = None
    # What `take` makes of observations with images: so many frames a row (see `frames`). None: as they are.
    frame_stack: int | None = None
    mapped: MappedFolder | None = None  # where the columns lie, if they are memory-mapped
    # No field: `open_columns` sets it on what it has opened, and what that is changed to has it not.
    as_written = False

    def __post_init__(self) -> None:
        columns: dict[str, Any] = {
            "observations": as_observations("observations", self.observations, "keep"),
            "actions": as_actions(self.actions),
            "rewards": as_floats("rewards", self.rewards, 1),
            "terminated": as_flags("terminated", self.terminated),
            "truncated": as_flags("truncated", self.truncated),
        }
        num_rows = check_lengths(columns)
        if num_rows == 0:
            raise DatasetError("the dataset is empty: it has no rows")
        columns["truncated"] = columns["truncated"] & ~columns["terminated"]
        columns["final_observations"] = as_observations("final_observations", self.final_observations, "keep")
        ends = np.flatnonzero(columns["terminated"] | columns["truncated"])
        if len(ends) == 0 or ends[-1] != num_rows - 1:
            raise DatasetError(
                f"the last row ({num_rows - 1}) must end its episode: flag it as terminated or truncated, "
                "or build with Transitions.from_arrays, which drops an unfinished tail"
            )
        map_leaves(
            lambda finals, rows: _check_finals(finals, rows, len(ends)),
            columns["final_observations"],
            columns["observations"],
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
    def unchecked(cls, **columns: Any) -> Self:
        """A view of columns already known to be right: no conversion, no check, no copy."""
        view = object.__new__(cls)
        view.__dict__.update(_ABSENT | columns)
        return view

    def __deepcopy__(self, memo: Any) -> Self:
        """Itself, for it is never written to: RLlib copies a config, and the data in it, many times over."""
        return self

    def changed(self, **columns: Any) -> Self:
        """Rows with some other columns, which are known to be right: no check, no copy."""
        return self.unchecked(**{name: getattr(self, name) for name in self.__dataclass_fields__} | columns)

    @classmethod
    def from_episode(cls, observations: Any, actions: np.ndarray, rewards: np.ndarray, terminated: bool) -> Self:
        """One whole episode of T steps: observations (T+1, obs_dim) or nested, actions (T, act_dim), rewards (T,).

        `terminated`: the task ended at the last step; otherwise the episode was cut off there.
        """
        rewards = np.asarray(rewards)
        if not isinstance(observations, (Mapping, tuple)):
            observations = np.asarray(observations)
        lengths = {len(leaf) for leaf in tree.flatten(observations)}
        if lengths != {len(rewards) + 1}:
            raise DatasetError(
                f"an episode of {len(rewards)} rewards needs {len(rewards) + 1} observations "
                f"(the final one too), not {', '.join(map(str, lengths))}"
            )
        last = np.arange(1, len(rewards) + 1) == len(rewards)
        begun, final = (map_leaves(lambda leaf, rows=rows: leaf[rows], observations) for rows in (_BEGUN, _FINAL))
        return cls(begun, actions, rewards, last & terminated, last & (not terminated), final)

    @classmethod
    def from_arrays(
        cls,
        observations: Any,
        actions: np.ndarray,
        rewards: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        next_observations: Any = None,
    ) -> Self:
        """Builds from flat logged rows (an own dataset), losing nothing silently.

        `assemble.clean_blocks` says what becomes of time-outs, gaps and an unfinished tail.

        Raises:
            DatasetError: columns do not fit each other, are not finite or not in time order, or nothing
                remains.

        Warns:
            DatasetWarning: counts rows that were dropped and episodes that were cut.
        """
        rows = Rows(
            observations=observations,
            actions=actions,
            rewards=rewards,
            terminated=terminated,
            truncated=truncated,
            next_observations=next_observations,
        )
        return cls.from_source(OneChunk(rows))

    @classmethod
    def from_source(cls, source: Source, observations: ObservationLayout = "flatten") -> Self:
        """Reads all rows of a source into memory; `clean_blocks` has the rules, errors and warnings."""
        blocks = clean_blocks(source, observations)
        first = next(blocks)
        gathered = Gathered(first, source.metadata.num_rows or 0)
        for block in blocks:
            gathered.add(block)
        return cls.unchecked(**gathered.columns(), metadata=replace(source.metadata, num_rows=gathered.whole))

    @classmethod
    def concatenate(cls, parts: Sequence[Transitions]) -> Transitions:
        """All rows of all parts, in order. Either every part has `mc_returns` or none."""
        if not parts:
            raise DatasetError("nothing to concatenate")
        with_returns = [part.mc_returns is not None for part in parts]
        if any(with_returns) != all(with_returns):
            raise DatasetError("some parts have mc_returns and some do not: prepare all of them the same way")
        shapes = [part.row_shapes for part in parts]
        if any(shape != shapes[0] for shape in shapes):
            raise DatasetError(f"parts have different (observation, action) dimensions: {shapes}")
        names = [*COLUMNS, "final_observations", *(["mc_returns"] if all(with_returns) else [])]
        columns = {name: map_leaves(_concatenated, *(getattr(part, name) for part in parts)) for name in names}
        return cls.unchecked(
            **columns,
            metadata=replace(parts[0].metadata, num_rows=sum(map(len, parts))),
            action_scaling=parts[0].action_scaling,
            frame_stack=parts[0].frame_stack,
        )

    def __len__(self) -> int:
        return len(self.rewards)

    def __reduce__(self) -> Any:
        """Mapped columns are opened again by whoever unpickles them; others go along."""
        if self.mapped is not None and self.as_written:
            return _open_folder, (str(self.mapped.path),)
        names = self.__dataclass_fields__
        return _unpickled, (type(self), {name: getattr(self, name) for name in names} | {"mapped": None})

    @cached_property
    def episode_ends(self) -> np.ndarray:
        """(E,) int64: the row number of each episode's last row."""
        return np.flatnonzero(self.terminated | self.truncated)

    def reading_through(self) -> AbstractContextManager[None]:
        """To be held while whole columns are read from start to end: mapped files are then read ahead."""
        return nullcontext() if self.mapped is None else self.mapped.reading_through()

    @property
    def parts(self) -> tuple[Transitions, ...]:
        """These alone; a `Mixture` has several."""
        return (self,)

    def each(self, function: Callable[[Transitions], Transitions]) -> Transitions:
        """What `function` makes of these; of a `Mixture`, of each dataset."""
        return function(self)

    @property
    def num_episodes(self) -> int:
        return tree.flatten(self.final_observations)[0].shape[0]

    @property
    def obs_dim(self) -> int:
        """Numbers of a flat observation; with `frame_stack`, bytes of a frame.

        Raises:
            DatasetError: observations are images, or were kept nested, and have no `frame_stack`.
        """
        if self.frame_stack is not None:
            return row_bytes(self.observations)
        if not isinstance(self.observations, np.ndarray) or self.observations.ndim != 2:
            raise DatasetError(f"observations are not vectors but {self.row_shapes[0]}")
        return int(self.observations.shape[1])

    @property
    def act_dim(self) -> int:
        """Numbers of an action; 1 where they are Discrete."""
        return 1 if self.actions.ndim == 1 else int(self.actions.shape[1])

    @property
    def row_shapes(self) -> tuple[Any, Any]:
        """The shape of an observation, as its columns are nested, and of an action."""
        return map_leaves(lambda leaf: leaf.shape[1:], self.observations), self.actions.shape[1:]

    @cached_property
    def fingerprint(self) -> str:
        """Short hash that tells this dataset from others, whatever format it was read from.

        Sizes, flags and 16 blocks of 256 rows spread over the logged columns enter, so it takes milliseconds.
        Prepared rows keep the fingerprint of the rows they were made of.
        """
        digest = hashlib.sha256(repr((len(self), self.num_episodes, self.row_shapes)).encode())
        size = 256
        starts = np.unique(np.linspace(0, max(0, len(self) - size), 16).astype(np.int64))
        for start in starts:
            for name in ("observations", "actions", "rewards"):
                for leaf in tree.flatten(getattr(self, name)):
                    digest.update(np.ascontiguousarray(leaf[start : start + size]).tobytes())
        digest.update(np.packbits(self.terminated).tobytes())
        digest.update(self.episode_ends.astype("<i8").tobytes())
        for leaf in tree.flatten(self.final_observations):
            digest.update(np.ascontiguousarray(leaf[:4096]).tobytes())
        return digest.hexdigest()[:16]

    def next_observations(self, rows: np.ndarray | slice | None = None) -> Any:
        """(B, obs_dim), or as the observations: what followed each of `rows` (numbers from 0; all by default)."""
        if rows is None or isinstance(rows, slice):
            rows = np.arange(len(self))[rows if rows is not None else slice(None)]
        ended = np.flatnonzero(self.terminated.take(rows) | self.truncated.take(rows))
        episodes = np.searchsorted(self.episode_ends, rows[ended]) if len(ended) else ended

        def following(leaf: np.ndarray, final: np.ndarray) -> np.ndarray:
            result = leaf.take(rows + 1, axis=0, mode="clip")
            if len(ended):
                result[ended] = final[episodes]
            return result

        return map_leaves(following, self.observations, self.final_observations)

    def take(self, rows: np.ndarray) -> Batch:
        """Copies `rows` (row numbers from 0) into a batch; needs `mc_returns`."""
        if self.mc_returns is None:
            raise ValueError("these transitions have no mc_returns yet: pass them through a Preparation first")
        if self.mapped is not None:
            self.mapped.will_need(rows)
        observations, following = self._observed(rows)
        return {
            "observations": observations,
            "actions": self.scaled_actions(rows),
            "rewards": self.rewards.take(rows),
            "next_observations": following,
            "dones": self.terminated.take(rows).astype(np.float32),
            "mc_returns": self.mc_returns.take(rows),
        }

    def _observed(self, rows: np.ndarray) -> tuple[Any, Any]:
        """What is seen at `rows` and after them."""
        if self.frame_stack is None:
            return map_leaves(lambda leaf: leaf.take(rows, axis=0), self.observations), self.next_observations(
                rows
            )
        shown = stack_rows(rows, self.episode_ends, self.frame_stack)
        frames = as_frames(map_leaves(lambda leaf: leaf.take(shown.ravel(), axis=0), self.observations))
        return stacked(frames.reshape(*shown.shape, -1), as_frames(self.next_observations(rows)))

    def draw(self, generator: np.random.Generator, count: int) -> Batch:
        """`count` rows, uniformly with replacement."""
        return self.take(generator.integers(len(self), size=count))

    def scaled_actions(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Actions of `rows` (all by default) as they train: normalised and clipped where prepared so."""
        actions = self.actions if rows is None else self.actions.take(rows, axis=0)
        return actions if self.action_scaling is None else self.action_scaling(actions)

    def chunks(self) -> Iterator[Rows]:
        """The rows as a source gives them, without `mc_returns`."""
        size = rows_per_chunk(2 * row_bytes(self.observations) + row_bytes(self.actions) + 4)
        for start in range(0, len(self), size):
            rows = slice(start, start + size)
            yield Rows(
                observations=map_leaves(lambda leaf, rows=rows: leaf[rows], self.observations),
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
            yield self._episode(number, slice(start, end + 1))
            start = end + 1

    def _episode(self, number: int, rows: slice) -> Transitions:
        columns = {name: map_leaves(lambda leaf: leaf[rows], getattr(self, name)) for name in COLUMNS}
        finals = map_leaves(lambda leaf: leaf[number : number + 1], self.final_observations)
        returns = None if self.mc_returns is None else self.mc_returns[rows]
        return self.changed(**columns, final_observations=finals, mc_returns=returns, mapped=None)


_BEGUN, _FINAL = slice(None, -1), slice(-1, None)  # of an episode's observations
_ABSENT: dict[str, Any] = {
    "mc_returns": None,
    "metadata": Metadata(),
    "action_scaling": None,
    "frame_stack": None,
    "mapped": None,
}


def joined(batches: Sequence[Batch]) -> Batch:
    """The rows of all batches (at least one) in one."""
    if len(batches) == 1:
        return batches[0]
    columns = {name: map_leaves(_concatenated, *(batch[name] for batch in batches)) for name in batches[0]}  # type: ignore[literal-required]
    return cast(Batch, columns)


def _concatenated(*leaves: np.ndarray) -> np.ndarray:
    return np.concatenate(leaves)


def _open_folder(path: str) -> Transitions:
    from rllib_calql.data.storage import open_folder  # imports this module

    return open_folder(path)


def _unpickled(cls: type[Transitions], columns: dict[str, Any]) -> Transitions:
    return cls.unchecked(**columns)


def _check_finals(finals: np.ndarray, rows: np.ndarray, num_episodes: int) -> None:
    if finals.shape != (num_episodes, *rows.shape[1:]):
        raise DatasetError(
            f"final_observations has shape {finals.shape}, but {num_episodes} episodes end and observations have "
            f"{' x '.join(map(str, rows.shape[1:]))} numbers"
        )
