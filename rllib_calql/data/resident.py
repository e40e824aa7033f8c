"""A replay's rows in a device's memory, from which batches are drawn without the host."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rllib_calql.data.mixture import Mixture
from rllib_calql.data.replay import MixedReplay
from rllib_calql.data.transitions import Transitions

ROWS_PER_COPY = 1 << 16


class ResidentReplay:
    """What a `MixedReplay` draws from, as columns on a device; a batch is drawn by kernels alone.

    The offline rows come first, then a ring of as many rows as the online store may hold. Which rows are live, and
    how many of a batch are offline, are numbers on the device that `refresh` sets: a CUDA graph that draws stays
    valid while online episodes come in. The draws are distributed as the replay's own, from another generator.

    Args:
        replay: its rows are copied by `refresh`, those that are new.
        batch_size: rows of a batch.
        device: where the columns lie.
        dtype: of the columns.
    """

    def __init__(
        self, replay: MixedReplay, batch_size: int, device: torch.device | str, dtype: torch.dtype = torch.float32
    ) -> None:
        self._replay, self._batch_size = replay, batch_size
        self._num_offline = 0 if replay.offline is None else len(replay.offline)
        size = self._num_offline + replay.online.capacity
        widths = {"observations": replay.online.obs_dim, "actions": replay.online.act_dim}
        widths["next_observations"] = replay.online.obs_dim
        names = ("observations", "actions", "rewards", "next_observations", "dones", "mc_returns")
        shapes = {name: (size, widths[name]) if name in widths else (size,) for name in names}
        self.columns = {name: torch.empty(shape, dtype=dtype, device=device) for name, shape in shapes.items()}
        self._position = torch.arange(batch_size, device=device)
        # Offline rows of a batch; the first live online row and the number of them.
        self._bounds = torch.zeros(3, dtype=torch.int64, device=device)
        self._store_rows: object = None
        self._num_copied = 0
        parts = () if replay.offline is None else replay.offline.parts
        lengths = np.array([len(part) for part in parts] or [1])
        starts = np.cumsum(lengths) - lengths
        self._offline: object = None
        shares = replay.offline.shares if isinstance(replay.offline, Mixture) else np.ones(1)
        self._shares = torch.as_tensor(np.cumsum(shares), device=device)  # of each dataset and those before
        self._lengths, self._starts = (torch.as_tensor(numbers, device=device) for numbers in (lengths, starts))

    @staticmethod
    def bytes_needed(replay: MixedReplay, dtype: torch.dtype = torch.float32) -> int:
        """Bytes of the columns."""
        rows = replay.online.capacity + (0 if replay.offline is None else len(replay.offline))
        return dtype.itemsize * rows * (2 * replay.online.obs_dim + replay.online.act_dim + 3)

    def refresh(self, *, online: bool) -> None:
        """Takes over online rows that are new and the rule of the phase, as `MixedReplay.sample` has them."""
        store, offline = self._replay.online, self._replay.offline
        if offline is not None and offline is not self._offline:  # at first, and with other reference values
            for part, first in zip(offline.parts, self._starts.tolist(), strict=True):
                self._copy(part, 0, len(part), first)
            self._offline = offline
        if store.generation is not self._store_rows:  # the store was emptied or restored
            self._store_rows, self._num_copied = store.generation, store.num_rows_added - len(store)
        capacity, added = store.capacity, store.num_rows_added
        new = min(added - self._num_copied, len(store))
        if store.rows is not None and new > 0:
            start = (added - new) % capacity
            before_wrap = min(new, capacity - start)
            first = len(store) - new
            self._copy(store.rows, first, first + before_wrap, self._num_offline + start)
            self._copy(store.rows, first + before_wrap, len(store), self._num_offline)
        self._num_copied = added
        num_offline = self._replay.num_offline_rows(self._batch_size, online=online)
        self._bounds.copy_(torch.tensor([num_offline, (added - len(store)) % capacity, len(store)]))

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        """A batch on the device, with the update's names; offline rows first."""
        num_offline, first, live = self._bounds
        capacity = self._replay.online.capacity
        # In double precision every row of up to 2^53 can be hit.
        share = torch.rand(
            self._batch_size, dtype=torch.float64, device=self._position.device, generator=generator
        )
        is_offline = self._position < num_offline
        part = self._part(num_offline, generator)
        count = torch.where(is_offline, self._lengths[part], live)
        number = torch.minimum((share * count).long(), count - 1)
        rows = torch.where(
            is_offline, self._starts[part] + number, self._num_offline + (first + number) % capacity
        )
        return {name: column.index_select(0, rows) for name, column in self.columns.items()}

    def _part(self, num_offline: Tensor, generator: torch.Generator) -> Tensor:
        """(batch_size,): the dataset that each offline row comes from, by the rule of `Mixture.draw`."""
        if len(self._shares) == 1:
            return torch.zeros_like(self._position)
        offset = torch.rand(1, dtype=torch.float64, device=self._position.device, generator=generator)
        edges = torch.floor(self._shares * num_offline + offset).long()
        return torch.searchsorted(edges, self._position, right=True).clamp(max=len(edges) - 1)

    def _copy(self, rows: Transitions, start: int, stop: int, target: int) -> None:
        for begin in range(start, stop, ROWS_PER_COPY):
            numbers = np.arange(begin, min(begin + ROWS_PER_COPY, stop))
            to = target + begin - start
            for name, values in rows.take(numbers).items():
                self.columns[name][to : to + len(numbers)].copy_(torch.as_tensor(values))
