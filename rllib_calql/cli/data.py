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


@dataclass(frozen=True, kw_only=True)
class CheckOptions(ReadOptions):
    env: Annotated[
        str | None,
        typer.Option("--env", "-e", help="Gymnasium id, module:id imports first; default: as recorded, if it is."),
    ] = None
    env_config: Annotated[str, typer.Option(help="JSON or YAML mapping: arguments of the environment.")] = "{}"
    config: Annotated[
        str,
        typer.Option(
            "--config",
            "-c",
            help="JSON or YAML mapping: the settings you will train with, of gamma, reward_scale, reward_bias, "
            "sparse_failure_reward, truncation_mode, normalize_reward.",
        ),
    ] = "{}"
    replay: Annotated[int, typer.Option(min=0, help="How many transitions to try in the environment.")] = 250
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False


@data_app.command("check")
@takes(CheckOptions)
def check(ctx: typer.Context, options: CheckOptions) -> None:
    """Tell whether a dataset fits an environment, and whether its calibration bound is sound.

    Exit code 0: nothing speaks against training. 1: a warning. 2: wrong usage.
    """
    with plain_errors(options):
        from rllib_calql.cli import data_check

        data_check.run(
            options.uri,
            parse_mapping(options.input_config, "--input-config"),
            options.env,
            parse_mapping(options.env_config, "--env-config"),
            parse_mapping(options.config, "--config"),
            num_replayed=options.replay,
            as_json=options.json,
        )


@data_app.callback()
def data() -> None:
    """Look at datasets, check them, convert and record them."""
