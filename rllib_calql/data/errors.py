"""What goes wrong with data: one error, one warning."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class DatasetError(ValueError):
    """The data cannot be used as they are; the message says what, where, and what to do."""


class DatasetWarning(UserWarning):
    """The data are usable, but rows were dropped or changed; the message counts them."""


# Rows named in a message.
NAMED_ROWS = 5


def first_rows(bad: np.ndarray, *, first: int = 0) -> str:
    """Names the first rows where `bad` (n,) is true: `rows 3, 7, 9 and 12 more`; row numbers start at `first`."""
    rows = np.flatnonzero(bad)
    return name_rows((rows[:NAMED_ROWS] + first).tolist(), len(rows))


def name_rows(rows: Sequence[int], count: int) -> str:
    """The same for the first few row numbers of `count`."""
    named = ", ".join(str(row) for row in rows)
    more = f" and {count - len(rows)} more" if count > len(rows) else ""
    return f"row{'s' if count > 1 else ''} {named}{more}"
