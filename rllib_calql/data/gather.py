"""Blocks of clean rows become whole columns in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import tree

from rllib_calql.data.assemble import Block
from rllib_calql.data.columns import map_leaves
from rllib_calql.data.rows import COLUMNS


class Gathered:
    """Blocks put together in memory: the columns of a single block as they are, else in growing arrays."""

    def __init__(self, first: Block, expected_rows: int) -> None:
        self._only: Block | None = first
        self._expected = expected_rows
        self._columns: dict[str, Any] = {}
        self._finals = [first.final_observations]
        self._size = len(first)
        self.whole = _whole(first, 0, 0)

    def add(self, block: Block) -> None:
        if self._only is not None:
            for name in COLUMNS:
                self._columns[name] = map_leaves(
                    lambda leaf: _Growing(leaf, self._expected), getattr(self._only, name)
                )
            self._only = None
        for name in COLUMNS:
            tree.map_structure(_Growing.append, self._columns[name], getattr(block, name))
        self._finals.append(block.final_observations)
        self.whole = _whole(block, self._size, self.whole)
        self._size += len(block)

    def columns(self) -> dict[str, Any]:
        finals = map_leaves(lambda *leaves: np.concatenate(leaves), *self._finals)
        if self._only is not None:
            kept = {
                name: map_leaves(lambda leaf: leaf[: self.whole], getattr(self._only, name)) for name in COLUMNS
            }
        else:
            kept = {
                name: tree.map_structure(lambda leaf: leaf.cut(self.whole), self._columns[name])
                for name in COLUMNS
            }
        return {**kept, "final_observations": finals}


class _Growing:
    """A column of unknown length. Resizing in place moves pages, not rows."""

    def __init__(self, first: np.ndarray, expected_rows: int) -> None:
        try:
            self._rows = np.empty((max(expected_rows, len(first)), *first.shape[1:]), first.dtype)
        except (MemoryError, ValueError):  # what a dataset says of itself may be absurd
            self._rows = np.empty_like(first)
        self._size = 0
        self.append(first)

    def append(self, rows: np.ndarray) -> None:
        size = self._size + len(rows)
        if size > len(self._rows):
            self._resize(max(size, self._size + self._size // 4))
        self._rows[self._size : size] = rows
        self._size = size

    def cut(self, num_rows: int) -> np.ndarray:
        self._resize(num_rows)
        return self._rows

    def _resize(self, num_rows: int) -> None:
        self._rows.resize((num_rows, *self._rows.shape[1:]), refcheck=False)


def _whole(block: Block, start: int, before: int) -> int:
    ends = block.ends
    return start + int(ends[-1]) + 1 if len(ends) else before
