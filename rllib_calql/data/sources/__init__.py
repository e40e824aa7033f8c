"""Where datasets come from: `open_source` finds the reader of a URI, `open_dataset` reads it."""

from __future__ import annotations

import glob
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, overload

import numpy as np

from rllib_calql.data.columns import ObservationLayout
from rllib_calql.data.errors import DatasetError
from rllib_calql.data.mixture import Entry, Mixture, entries_of
from rllib_calql.data.rows import Source
from rllib_calql.data.transitions import Transitions
from rllib_calql.data.whole import recover

# Readers as "module.function" of this package (or, with a dot in front, of the one above); a function takes what
# is named here and options as keywords, and returns a Source.
_SCHEMES = {  # SCHEME://NAME: the name
    "d4rl": "d4rl.open_task",
    "minari": "minari.open_named",
    "pointmaze": "pointmaze.open",
    "scripted": "scripted.open",
}
_SUFFIXES = {  # files and globs: the path
    ".hdf5": "d4rl.open",
    ".h5": "d4rl.open",
    ".parquet": "tables.open",
    ".pq": "tables.open",
    ".arrow": "tables.open",
    ".ipc": "tables.open",
    ".feather": "tables.open",
    ".json": "rllib_logs.open_json",
    ".npz": "arrays.open",
    ".npy": "arrays.open",
    ".pkl": "arrays.open",
    ".pickle": "arrays.open",
}
_FOLDERS = {  # folders that hold such a file (glob), the first that fits: the path
    "dataset.json": ".storage.open_folder",
    "data/metadata.json": "minari.open",
    "main_data.hdf5": "minari.open",
    "0/metadata.json": "minari.open",
    "**/*.parquet": "tables.open",
    "**/*.pq": "tables.open",
    "**/*.arrow": "tables.open",
    "**/*.ipc": "tables.open",
    "**/*.feather": "tables.open",
    "**/*.npz": "arrays.open",
    "**/*.json": "rllib_logs.open_json",
}
UNDERSTOOD = (
    "d4rl://NAME, minari://NAME, pointmaze://NAME, scripted://NAME, the path of a .hdf5 or .h5 file in D4RL's "
    "layout, of a folder of Minari's or of one that was written here, of a .npy, .pkl or .pickle file, or of "
    "Parquet, Arrow, Feather and .npz files or RLlib's logs (.json, .parquet): a file, a glob or a folder"
)


def open_source(uri: str | Path | Mapping[str, Any] | Source, **options: Any) -> Source:
    """Finds the reader of a dataset; reads no rows yet.

    Args:
        uri: `d4rl://NAME` (D4RL's cache folder, else downloaded), `minari://NAME` (Minari's folder, else
            downloaded), `pointmaze://NAME` or `scripted://NAME` (made on first use), the path of an HDF5 file
            in D4RL's flat layout, the folder of a Minari dataset or of one that `write_dataset` made, the path,
            glob or folder of Parquet, Arrow, Feather or .npz files or of RLlib's logs (.json, .parquet), a pickle
            (.npy, .pkl; read with `allow_pickle=True` only), a dict of arrays, or a `Source` (`Transitions` are
            one), returned as it is.
        **options: what the reader takes, see `sources.d4rl.open`, `sources.d4rl.open_task`,
            `sources.minari.open`, `sources.minari.open_named`, `sources.pointmaze.open`,
            `sources.scripted.open`, `sources.tables.open`, `sources.rllib_logs.open_json`, `sources.arrays.open`.

    Raises:
        DatasetError: unknown kind of URI or option, or nothing that can be read is there.
    """
    target: Any
    if isinstance(uri, Mapping):
        name, target = "arrays.open", uri
    elif isinstance(uri, (str, Path)):
        name, target = _reader(str(uri))
    else:
        if options:
            raise DatasetError(f"options {', '.join(sorted(options))} are for datasets opened by name or path")
        if not hasattr(uri, "chunks"):
            raise DatasetError(
                f"unknown kind of dataset: a {type(uri).__name__}; understood are {UNDERSTOOD}, a "
                "dict of arrays, and Transitions"
            )
        return uri
    module, _, function = name.rpartition(".")
    reader = getattr(import_module(f".{module}", __name__), function)
    known = list(inspect.signature(reader).parameters)[1:]
    what = repr(str(uri)) if isinstance(uri, (str, Path)) else "arrays"
    if unknown := sorted(set(options) - set(known)):
        raise DatasetError(
            f"unknown option {', '.join(unknown)} for {what}: it takes {', '.join(known) or 'none'}"
        )
    with _naming(uri):
        return reader(target, **options)


@overload
def open_dataset(
    uri: str | Path | Mapping[str, Any] | Source,
    *,
    observations: ObservationLayout | None = None,
    **options: Any,
) -> Transitions: ...


@overload
def open_dataset(
    uri: Mixture | list[Any] | tuple[Any, ...], *, observations: ObservationLayout | None = None, **options: Any
) -> Mixture: ...


def open_dataset(
    uri: str | Path | Mapping[str, Any] | Source | Mixture | list[Any] | tuple[Any, ...],
    *,
    observations: ObservationLayout | None = None,
    **options: Any,
) -> Transitions | Mixture:
    """Opens a dataset, or several: raw rows, in the environment's units.

    Args:
        uri: see `open_source`; or a list of such, or of dicts `{"input": uri, "weight": 2.0, **options}`, which
            makes a `Mixture` (`options` are added to those given here, and only go to what is opened by name).
            A `Mixture` is taken as it is, like the `Transitions` in it.
        observations: what becomes of Dict and Tuple observations: "flatten" makes one vector of them, in the
            order of gymnasium's `flatten`; "keep" keeps them, for other uses than training. By default they are
            flattened, but left as they are in `Transitions` and in our own Arrow folders.
        **options: see `open_source`.

    Raises:
        DatasetError: unknown kind of URI or option, or the data cannot be used as they are.

    Warns:
        DatasetWarning: counts rows that were dropped.
    """
    if observations not in (None, *get_args(ObservationLayout)):
        raise DatasetError(f"observations must be 'flatten' or 'keep', not {observations!r}")
    if isinstance(uri, Mixture):
        if observations is None and not options:
            return uri
        return uri.each(lambda part: open_dataset(part, observations=observations, **options))
    if isinstance(uri, (list, tuple)):
        entries = entries_of(uri)
        parts = [_open_entry(entry, observations, options) for entry in entries]
        return Mixture(tuple(parts), tuple(entry.weight for entry in entries if entry.weight is not None) or None)
    source = open_source(uri, **options)
    if isinstance(source, Transitions) and (
        observations != "flatten" or isinstance(source.observations, np.ndarray)
    ):
        return source
    with _naming(uri):
        return Transitions.from_source(source, observations or "flatten")


@contextmanager
def _naming(uri: Any) -> Iterator[None]:
    """Errors say which dataset is wrong, where they do not yet."""
    try:
        yield
    except DatasetError as error:
        if not isinstance(uri, (str, Path)) or str(Path(uri).expanduser()) in str(error) or str(uri) in str(error):
            raise
        raise DatasetError(f"{uri}: {error}") from error


def _open_entry(entry: Entry, observations: ObservationLayout | None, options: dict[str, Any]) -> Transitions:
    """One dataset of a mixture; its own options come before those of all."""
    given = entry.input() if callable(entry.input) else entry.input
    shared = options if isinstance(given, (str, Path)) else {}
    return open_dataset(given, **{"observations": observations, **shared, **entry.options})


def _reader(uri: str) -> tuple[str, str]:
    """The reader of a URI and what it is given."""
    scheme, separator, name = uri.partition("://")
    if separator:
        if scheme in _SCHEMES:
            return _SCHEMES[scheme], name
    elif uri:
        path = Path(uri).expanduser()
        if path.name and not path.exists():
            recover(path)
        if path.is_dir():
            for pattern, reader in _FOLDERS.items():
                if any(path.glob(pattern)):
                    return reader, str(path)
        elif path.suffix.lower() in _SUFFIXES:
            return _SUFFIXES[path.suffix.lower()], str(path)
        elif not path.exists() and not glob.has_magic(uri):
            raise DatasetError(f"there is nothing at {path}: check the path; understood are {UNDERSTOOD}")
    raise DatasetError(f"do not know how to open {uri!r}: understood are {UNDERSTOOD}")
