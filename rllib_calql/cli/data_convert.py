"""`calql data convert` and what it shares with `collect`: a source goes to a destination."""

from __future__ import annotations

from typing import Any

import typer

from rllib_calql.cli.common import UserError, counting
from rllib_calql.data import open_source
from rllib_calql.data.columns import ObservationLayout
from rllib_calql.data.rows import Source
from rllib_calql.data.writers import write_to


def run(
    uri: str,
    destination: str,
    reader_options: dict[str, Any],
    *,
    allow_pickle: bool,
    observations: str | None,
    overwrite: bool,
) -> None:
    """Reads and writes, in bounded memory.

    Raises:
        UserError: no such layout of observations. DatasetError: the data cannot be read, or not be written there.
    """
    if allow_pickle:
        typer.echo(
            "--allow-pickle: pickles are read by an unpickler that makes numpy arrays, numbers, texts and plain "
            "containers, and refuses anything else; no code of the file is run",
            err=True,
        )
        reader_options = {**reader_options, "allow_pickle": True}
    write(open_source(uri, **reader_options), destination, observations=observations, overwrite=overwrite)


def write(source: Source, destination: str, *, observations: str | None, overwrite: bool) -> None:
    """Writes a source with a progress bar, and says what came of it."""
    layout: ObservationLayout | None
    match observations:
        case None | "flatten" | "keep":
            layout = observations
        case _:
            raise UserError(f"--observations {observations}: choose flatten or keep")
    written = 0
    with counting("writing", source.metadata.num_rows) as bar:

        def progress(rows: int) -> None:
            nonlocal written
            written = rows
            bar(rows)

        write_to(destination, source, observations=layout, overwrite=overwrite, progress=progress)
    typer.echo(f"{destination}: {written:,} rows (calql data info {destination})")
