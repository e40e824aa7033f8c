"""The `rllib` command. Importing the package, as this does, is what registers CalQL with RLlib and Tune."""

from __future__ import annotations

import typer

from rllib_calql.cli import evaluate as evaluation
from rllib_calql.cli import experiments, train
from rllib_calql.cli.common import UserError, new_app, plain_errors, takes
from rllib_calql.cli.options import Command, EvaluateOptions, Group, TrainAlgorithmOptions, TrainFileOptions

app = new_app("Train and evaluate RLlib algorithms, CalQL among them.")
train_app = typer.Typer(cls=Group, rich_markup_mode=None)
app.add_typer(train_app, name="train")


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
