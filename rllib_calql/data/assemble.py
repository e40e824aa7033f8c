"""Chunks of logged rows become `Transitions`: the one place that knows what to do with imperfect logs."""

from __future__ import annotations

import numpy as np

from rllib_calql.data.errors import DatasetError
from rllib_calql.data.rows import Rows, Source
from rllib_calql.data.transitions import Transitions


def assemble(source: Source) -> Transitions:
    """Reads all rows of a source.

    Raises:
        DatasetError: the rows cannot be used, see `Transitions.from_arrays`.

    Warns:
        DatasetWarning: counts rows that were dropped and episodes that were cut.
    """
    if isinstance(source, Transitions):
        return source
    chunks = list(source.chunks())
    if not chunks:
        raise DatasetError("the dataset is empty: it has no rows")
    columns = {
        name: np.concatenate([getattr(chunk, name) for chunk in chunks])
        for name in Rows.__dataclass_fields__
        if getattr(chunks[0], name) is not None
    }
    return Transitions.from_arrays(**columns)
