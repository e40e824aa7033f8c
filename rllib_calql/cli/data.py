"""`calql data`: look at datasets, check them, convert and record them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from rllib_calql.cli.common import DebugOptions, new_app, plain_errors, takes

data_app = new_app("Look at datasets, check them, convert and record them.")


@dataclass(frozen=True, kw_only=True)
class InfoOptions(DebugOptions):
    uri: Annotated[str, typer.Argument(metavar="URI", help="Dataset: a path, or a URI such as d4rl://NAME.")]


@data_app.callback()
def data() -> None:
    """Look at datasets, check them, convert and record them."""


@data_app.command("info")
@takes(InfoOptions)
def info(ctx: typer.Context, options: InfoOptions) -> None:
    """Tell what is in a dataset."""
    with plain_errors(options):
        from rllib_calql.data import open_dataset

        data = open_dataset(options.uri)
        typer.echo(f"{options.uri}: {len(data)} rows, {data.num_episodes} episodes")
