"""What goes wrong with data: one error, one warning."""

from __future__ import annotations

import numpy as np


class DatasetError(ValueError):
    """The data cannot be used as they are; the message says what, where, and what to do."""


class DatasetWarning(UserWarning):
    """The data are usable, but rows were dropped or changed; the message counts them."""


def first_rows(bad: np.ndarray, limit: int = 5) -> str:
    """Names the first rows where `bad` (N,) is true: `rows 3, 7, 9 and 12 more`."""
    rows = np.flatnonzero(bad)
    named = ", ".join(str(row) for row in rows[:limit])
    more = f" and {len(rows) - limit} more" if len(rows) > limit else ""
    return f"row{'s' if len(rows) > 1 else ''} {named}{more}"
