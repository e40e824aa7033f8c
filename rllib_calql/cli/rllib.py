"""The `rllib` command. Importing the package, as this does, is what registers CalQL with RLlib and Tune."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from rllib_calql.cli import evaluate as evaluation
from rllib_calql.cli import experiments, train
from rllib_calql.cli.options import (
    Command,
    EvaluateOptions,
    Group,
    LogOptions,
    TrainAlgorithmOptions,
    TrainFileOptions,
    UserError,
    takes,
)

app = typer.Typer(
    help="Train and evaluate RLlib algorithms, CalQL among them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
train_app = typer.Typer(cls=Group, rich_markup_mode=None)
app.add_typer(train_app, name="train")


@contextmanager
def plain_errors(options: LogOptions) -> Iterator[None]:
    """An error becomes one line and an exit code: 2 for what the user wrote, 1 for what went wrong."""
    try:
        yield
    except typer.Exit:
        raise
    except Exception as error:
        if options.vv:
            raise
        text = " ".join(str(error).split())
        # Messages of these two kinds are written for people; of other errors the kind says most.
        if not isinstance(error, (UserError, ValueError)):
            text = f"{type(error).__name__}: {text} (-vv shows the traceback)"
        typer.echo(f"Error: {text}", err=True)
        raise typer.Exit(2 if isinstance(error, UserError) else 1) from None


@train_app.callback(invoke_without_command=True)
@takes(TrainAlgorithmOptions)
def train_algorithm(ctx: typer.Context, options: TrainAlgorithmOptions) -> None:
    """Train an algorithm named on the command line, or, with `train file`, the experiments of a file."""
    with plain_errors(options):
        if ctx.invoked_subcommand is None:
            train.run(experiments.from_command_line(options), options)
        elif options != TrainAlgorithmOptions():
            raise UserError(f"options go after `train {ctx.invoked_subcommand}`, not before it")


@train_app.command("file", cls=Command)
@takes(TrainFileOptions)
def train_file(ctx: typer.Context, options: TrainFileOptions) -> None:
    """Train the experiments of a YAML file, or the `config` (and `stop`) of a Python file."""
    with plain_errors(options):
        train.run(experiments.from_file(options), options)


@app.command("evaluate", cls=Command)
@takes(EvaluateOptions)
def evaluate(ctx: typer.Context, options: EvaluateOptions) -> None:
    """Run a trained policy, without exploration, in an environment of its own."""
    with plain_errors(options):
        evaluation.run(options)


def main() -> None:
    app(prog_name="rllib")


if __name__ == "__main__":
    main()
