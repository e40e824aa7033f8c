"""Sources made of rows in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tree

from rllib_calql.data.rows import Metadata, Rows


class Chunks:
    """Rows in memory, cut at the given places."""

    def __init__(self, rows: Rows, cuts: list[int], metadata: Metadata | None = None) -> None:
        self.metadata, self._rows, self._cuts = metadata or Metadata(), rows, [0, *cuts, len(rows)]

    def chunks(self) -> Iterator[Rows]:
        columns: Any = vars(self._rows)
        for piece in map(slice, self._cuts[:-1], self._cuts[1:]):
            yield Rows(
                **tree.map_structure(lambda leaf, rows=piece: None if leaf is None else leaf[rows], columns)
            )


def flags(num_rows: int, *rows: int) -> np.ndarray:
    found = np.zeros(num_rows, bool)
    found[list(rows)] = True
    return found
