"""Where datasets go: `write_to` finds the writer of a destination, as `open_source` finds the reader of a URI."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rllib_calql.data.columns import ObservationLayout
from rllib_calql.data.errors import DatasetError
from rllib_calql.data.rows import Source

UNDERSTOOD = "a folder (Arrow), FILE.hdf5 (D4RL's layout) or minari://NAME-v0"


def write_to(
    destination: str | Path,
    source: Source,
    *,
    observations: ObservationLayout | None = None,
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda rows: None,
) -> None:
    """Reads a source once and writes it, in bounded memory. What is written is there when whole, or not at all.

    Args:
        destination: a folder (Arrow files, memory-mapped when read), `FILE.hdf5` or `.h5` (D4RL's layout) or
            `minari://NAME-v0` (in Minari's folder).
        source: rows are cleaned as by `Transitions.from_source`.
        observations: whether Dict and Tuple observations become one vector ("flatten") or are kept ("keep"); by
            default Minari's are kept and others flattened.
        overwrite: replace a dataset that is there already.
        progress: called with the number of rows written so far.

    Raises:
        DatasetError: no such kind of destination, something is there already, the rows cannot be used or kept so,
            or the disk refuses.

    Warns:
        DatasetWarning: counts rows that were dropped and episodes that were cut.
    """
    text = str(destination)
    scheme, separator, name = text.partition("://")
    if separator and scheme == "minari":
        from rllib_calql.data.writers import minari

        if overwrite:
            raise DatasetError(f"{text} cannot be overwritten: delete it first (minari delete {name})")
        minari.write(name, source, observations=observations or "keep", progress=progress)
        return
    suffix = Path(text).suffix.lower()
    if separator or suffix not in ("", ".hdf5", ".h5"):
        raise DatasetError(f"do not know how to write {text!r}: understood are {UNDERSTOOD}")
    if suffix in (".hdf5", ".h5"):
        from rllib_calql.data.writers import d4rl

        if observations == "keep":
            raise DatasetError(f"{text}: D4RL's layout has one vector per row: leave out observations='keep'")
        d4rl.write(text, source, overwrite=overwrite, progress=progress)
    else:
        from rllib_calql.data.storage_writer import write_dataset

        write_dataset(source, text, observations=observations or "flatten", overwrite=overwrite, progress=progress)
