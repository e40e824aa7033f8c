"""Where datasets come from: `open_dataset` finds the reader of a URI."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

from rllib_calql.data.errors import DatasetError
from rllib_calql.data.transitions import Transitions

# A module here per scheme and file ending; each has `load(name, **options) -> Transitions`.
_SCHEMES = {"d4rl": "d4rl", "pointmaze": "pointmaze"}
_ENDINGS = {".hdf5": "read_hdf5", ".h5": "read_hdf5"}
UNDERSTOOD = "d4rl://NAME, pointmaze://NAME, or the path of a .hdf5 or .h5 file in D4RL's layout"


def open_dataset(uri: str | Path, **options: Any) -> Transitions:
    """Opens a dataset: raw rows, in the environment's units.

    Args:
        uri: `d4rl://NAME` (D4RL's cache folder, else downloaded), `pointmaze://NAME` (made on first use), or
            the path of an HDF5 file in D4RL's flat layout.
        **options: what the reader takes, see `sources.d4rl.read_hdf5`, `sources.d4rl.load`,
            `sources.pointmaze.load`.

    Raises:
        DatasetError: unknown kind of URI or option, or the data cannot be used as they are.

    Warns:
        DatasetWarning: counts rows that were dropped.
    """
    text = str(uri)
    scheme, separator, name = text.partition("://")
    if separator and scheme in _SCHEMES:
        module, function, target = _SCHEMES[scheme], "load", name
    elif not separator and Path(text).suffix.lower() in _ENDINGS:
        module, function, target = "d4rl", _ENDINGS[Path(text).suffix.lower()], text
    else:
        raise DatasetError(f"do not know how to open {text!r}: understood are {UNDERSTOOD}")
    reader = getattr(import_module(f"{__name__}.{module}"), function)
    known = list(inspect.signature(reader).parameters)[1:]
    if unknown := sorted(set(options) - set(known)):
        raise DatasetError(f"unknown option {', '.join(unknown)} for {text!r}: it takes {', '.join(known)}")
    return reader(target, **options)
