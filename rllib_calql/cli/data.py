"""`calql data`: look at datasets, check them, convert and record them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from rllib_calql.cli.common import (
    DebugOptions,
    UserError,
    new_app,
    parse_mapping,
    plain_errors,
    plain_warnings,
    takes,
)
from rllib_calql.data import DatasetError

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
    with plain_errors(options), plain_warnings():
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

    Exit code 0: nothing speaks against training. 1: a warning. 2: wrong usage, or data that cannot be read.
    """
    with plain_errors(options), plain_warnings():
        from rllib_calql.cli import data_check

        try:
            data_check.run(
                options.uri,
                parse_mapping(options.input_config, "--input-config"),
                options.env,
                parse_mapping(options.env_config, "--env-config"),
                parse_mapping(options.config, "--config"),
                num_replayed=options.replay,
                as_json=options.json,
            )
        except DatasetError as error:  # not code 1, which is a warning's
            raise UserError(str(error)) from error


@dataclass(frozen=True, kw_only=True)
class WriteOptions(DebugOptions):
    observations: Annotated[
        str | None,
        typer.Option(help="Dict and Tuple observations: flatten or keep; by default Minari's are kept."),
    ] = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a dataset that is there.")] = False


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(ReadOptions, WriteOptions):
    destination: Annotated[
        str,
        typer.Argument(metavar="DST", help="A folder (Arrow), FILE.hdf5 (D4RL's layout) or minari://NAME-v0."),
    ]
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read pickled arrays, through a restricted unpickler.")
    ] = False


@data_app.command("convert")
@takes(ConvertOptions)
def convert(ctx: typer.Context, options: ConvertOptions) -> None:
    """Write a dataset as an Arrow folder (memory-mapped when read), a D4RL file or a Minari dataset.

    It is read and written in bounded memory, and is there when it is whole, or not at all.
    """
    with plain_errors(options), plain_warnings():
        from rllib_calql.cli import data_convert

        data_convert.run(
            options.uri,
            options.destination,
            parse_mapping(options.input_config, "--input-config"),
            allow_pickle=options.allow_pickle,
            observations=options.observations,
            overwrite=options.overwrite,
        )


@dataclass(frozen=True, kw_only=True)
class CollectOptions(WriteOptions):
    out: Annotated[
        str,
        typer.Option(metavar="DST", help="A folder (Arrow), FILE.hdf5 (D4RL's layout) or minari://NAME-v0."),
    ]
    episodes: Annotated[int, typer.Option(min=1, help="How many episodes.")]
    env: Annotated[
        str | None, typer.Option("--env", "-e", help="Gymnasium id; by default the checkpoint's environment.")
    ] = None
    env_config: Annotated[str, typer.Option(help="JSON or YAML mapping: arguments of the environment.")] = "{}"
    checkpoint: Annotated[str | None, typer.Option(help="Checkpoint of a trained policy.")] = None
    policy: Annotated[str | None, typer.Option(help="random, instead of a checkpoint.")] = None
    seed: Annotated[int, typer.Option(min=0, help="Episode number i is a function of seed + i.")] = 0
    explore: Annotated[
        bool, typer.Option("--explore/--no-explore", help="Sample from the trained policy, or take its mode.")
    ] = True


@data_app.command("collect")
@takes(CollectOptions)
def collect(ctx: typer.Context, options: CollectOptions) -> None:
    """Record episodes of a trained or a random policy as a dataset."""
    with plain_errors(options), plain_warnings():
        from rllib_calql.cli import data_collect

        data_collect.run(
            options.out,
            env=options.env,
            env_config=parse_mapping(options.env_config, "--env-config"),
            checkpoint=options.checkpoint,
            policy=options.policy,
            num_episodes=options.episodes,
            seed=options.seed,
            explore=options.explore,
            observations=options.observations,
            overwrite=options.overwrite,
        )


@data_app.callback()
def data() -> None:
    """Look at datasets, check them, convert and record them."""
