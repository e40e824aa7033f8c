"""Several datasets as one, each with a weight."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from rllib_calql.data.errors import DatasetError
from rllib_calql.data.rows import Metadata
from rllib_calql.data.transitions import Batch, Transitions, joined


@dataclass(frozen=True, eq=False)
class Mixture:
    """Datasets that rows are drawn from in proportion to their weights.

    Of a batch of n rows, dataset k gives `n * weight_k / sum(weights)` rows, rounded up or down at random so that
    it is exactly so many on average; within a dataset rows are drawn uniformly, with replacement. Without
    weights every row of all datasets is as likely as any other. The size of a mixture is the number of all rows,
    whatever the weights.

    Raises:
        DatasetError: no datasets, rows of different kinds, or weights that are none.
    """

    parts: tuple[Transitions, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.parts:
            raise DatasetError("a mixture needs at least one dataset")
        if len({str(part.row_shapes) for part in self.parts}) > 1:
            shapes = ", ".join(str(part.row_shapes) for part in self.parts)
            raise DatasetError(f"datasets of a mixture have different (observation, action) dimensions: {shapes}")
        if self.weights is not None:
            if len(self.weights) != len(self.parts):
                raise DatasetError(f"{len(self.weights)} weights for {len(self.parts)} datasets")
            for weight in self.weights:
                _check_weight(weight)

    def each(self, function: Callable[[Transitions], Transitions]) -> Mixture:
        """The mixture of what `function` makes of each dataset."""
        return Mixture(tuple(map(function, self.parts)), self.weights)

    @cached_property
    def shares(self) -> np.ndarray:
        """(K,): of the rows that are drawn, those that each dataset gives; they add up to 1."""
        weights = np.array(self.weights or [len(part) for part in self.parts], dtype=np.float64)
        return weights / weights.sum()

    def draw(self, generator: np.random.Generator, count: int) -> Batch:
        """`count` rows, dataset after dataset."""
        edges = np.floor(np.cumsum(self.shares) * count + generator.random())
        edges[-1] = count  # whatever the rounding of the sum
        counts = np.diff(edges, prepend=0).astype(int)
        return joined([part.draw(generator, n) for part, n in zip(self.parts, counts, strict=True) if n > 0])

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @property
    def num_episodes(self) -> int:
        """Episodes of all datasets."""
        return sum(part.num_episodes for part in self.parts)

    @property
    def obs_dim(self) -> int:
        """As that of `Transitions`."""
        return self.parts[0].obs_dim

    @property
    def act_dim(self) -> int:
        """As that of `Transitions`."""
        return self.parts[0].act_dim

    @property
    def metadata(self) -> Metadata:
        """That of the first dataset; the number of rows is that of all."""
        return Metadata(**{**vars(self.parts[0].metadata), "num_rows": len(self)})

    @cached_property
    def fingerprint(self) -> str:
        """Of the datasets' fingerprints and weights."""
        named = repr(([part.fingerprint for part in self.parts], self.weights))
        return hashlib.sha256(named.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Entry:
    """A dataset of a mixture as it is written: what `open_dataset` opens, its weight, and the reader's options."""

    input: Any
    weight: float | None
    options: dict[str, Any]


def entries_of(written: Sequence[Any]) -> list[Entry]:
    """Reads `[input, ...]` or `[{"input": input, "weight": number, **options}, ...]`.

    Raises:
        DatasetError: it is neither, some entries have a weight and some do not, or a weight is not above 0.
    """
    entries = []
    for item in written:
        if isinstance(item, Mapping) and "input" in item:
            options = dict(item)
            entry = Entry(options.pop("input"), options.pop("weight", None), options)
        else:
            entry = Entry(item, None, {})
        if isinstance(entry.input, (list, tuple)):
            raise DatasetError(
                "an entry of several datasets is one dataset, or a dict {'input': dataset, 'weight': number} with "
                f"the reader's options, not {entry.input!r}"
            )
        if entry.weight is not None:
            _check_weight(entry.weight)
        entries.append(entry)
    if not entries:
        raise DatasetError("the list of datasets is empty")
    if len({entry.weight is None for entry in entries}) > 1:
        raise DatasetError("some datasets have a weight and some do not: give one to each, or to none")
    return entries


def _check_weight(weight: Any) -> None:
    number = isinstance(weight, (int, float, np.number)) and not isinstance(weight, bool)
    if not number or not (weight > 0 and math.isfinite(weight)):
        raise DatasetError(f"the weight of a dataset must be a number above 0, not {weight!r}")
