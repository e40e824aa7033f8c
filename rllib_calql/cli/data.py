"""`calql data`: look at datasets, check them, convert and record them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from rllib_calql.cli.common import DebugOptions, new_app, parse_mapping, plain_errors, takes

data_app = new_app("Look at datasets, check them, convert and record them.")


@dataclass(frozen=True, kw_only=True)
class ReadOptions(DebugOptions):
    uri: Annotated[str, typer.Argument(metavar="URI", help="Dataset: a path, or a URI such as d4rl://NAME.")]
    input_config: Annotated[str, typer.Option(help="JSON or YAML mapping: options of the dataset's reader.")] = (
        "{}"
    )


@dataclass(frozen=True, kw_only=True)
class InfoOptions(ReadOptions):
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False
    plot: Annotated[str | None, typer.Option(metavar="OUT.png", help="Draw returns, lengths and states.")] = None
    gamma: Annotated[float, typer.Option(min=0.0, max=1.0, help="Discount of the drawn return-to-go.")] = 0.99


@data_app.command("info")
@takes(InfoOptions)
def info(ctx: typer.Context, options: InfoOptions) -> None:
    """Tell what is in a dataset: episodes, returns, success, actions, missing values, memory."""
    with plain_errors(options):
        from rllib_calql.cli import data_info

        reader = parse_mapping(options.input_config, "--input-config")
        data_info.run(options.uri, reader, as_json=options.json, plot=options.plot, gamma=options.gamma)


@data_app.callback()
def data() -> None:
    """Look at datasets, check them, convert and record them."""
