"""The `calql` command. Each command imports what it needs when it runs, so that none waits for another's Ray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from rllib_calql.cli.common import DebugOptions, new_app, plain_errors, stop_on_sigterm, takes
from rllib_calql.cli.data import data_app

app = new_app("Everything around Cal-QL besides training it (for that: rllib train).")
app.add_typer(data_app, name="data")


@app.callback()
def calql() -> None:
    """Keeps `calql` a command of commands, however few there are."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions(DebugOptions):
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Checkpoint folder of a CalQL run.")]
    format: Annotated[
        str, typer.Option(help="torchscript (torch.jit.load), torch (torch.export.load) or onnx (onnxruntime).")
    ] = "torchscript"
    out: Annotated[str, typer.Option(metavar="FILE", help="The file to write.")]


@app.command("export")
@takes(ExportOptions)
def export(ctx: typer.Context, options: ExportOptions) -> None:
    """Write a checkpoint's policy as one file that needs neither this package nor Ray."""
    with plain_errors(options):
        from rllib_calql.cli import export

        export.run(options.checkpoint, options.format, options.out)


@dataclass(frozen=True, kw_only=True)
class SweepOptions(DebugOptions):
    folder: Annotated[
        str, typer.Argument(metavar="FOLDER", help="Folder of a Tune run, such as ~/ray_results/NAME.")
    ]
    metric: Annotated[str, typer.Option(help="Result to compare by, slashes where nested.")] = (
        "calql/normalized_score"
    )
    mode: Annotated[str, typer.Option(help="Whether the metric is to be large (max) or small (min).")] = "max"
    out: Annotated[str | None, typer.Option(metavar="DIR", help="Where the files go; FOLDER by default.")] = None


@app.command("sweep")
@takes(SweepOptions)
def sweep(ctx: typer.Context, options: SweepOptions) -> None:
    """Compare the trials of a Tune run: best settings, table, curves as PNG, CSV and JSON."""
    with plain_errors(options):
        from rllib_calql.cli import sweep

        sweep.run(options.folder, options.metric, options.mode, options.out)


@dataclass(frozen=True, kw_only=True)
class ReportOptions(DebugOptions):
    results: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]RESULTS...",
            help="Learning curves (JSON), Tune's trials, or folders of them; NAME= names their method.",
        ),
    ]
    by: Annotated[
        list[str] | None, typer.Option(metavar="SETTING", help="Tell methods apart by this setting. Repeatable.")
    ] = None
    out: Annotated[str, typer.Option(metavar="DIR", help="Where report.md and the figures go.")] = "report"
    format: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FORMAT", help="Of the figures: png, svg or pdf. Repeatable; by default png and svg."
        ),
    ] = None


@app.command("report")
@takes(ReportOptions)
def report(ctx: typer.Context, options: ReportOptions) -> None:
    """Compare methods over seeds and tasks: tables like the paper's, and figures."""
    with plain_errors(options):
        from rllib_calql.cli import report

        report.run(options.results, options.by or [], options.out, options.format or ["png", "svg"])


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(DebugOptions):
    results: Annotated[
        list[str],
        typer.Argument(
            metavar="RESULTS|CHECKPOINT...",
            help="Learning curves (JSON), Tune's trials, folders of them, or checkpoints.",
        ),
    ]


@app.command("doctor")
@takes(DoctorOptions)
def doctor(ctx: typer.Context, options: DoctorOptions) -> None:
    """Say in plain words what is off with a run. Exit code: 0 nothing, 1 something, 2 nothing to look at."""
    with plain_errors(options):
        from rllib_calql.cli import doctor

        doctor.run(options.results)


def main() -> None:
    stop_on_sigterm()
    app(prog_name="calql")


if __name__ == "__main__":
    main()
