"""`calql sweep`: what came out of a folder of Tune trials, finished or not. Reads files only; needs no Ray."""

from __future__ import annotations

import csv
import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from rllib_calql.cli.common import UserError
from rllib_calql.cli.runs import FAILURE, PARAMETERS, RESULTS, differing, flat, read_json, short, trial_rows

PROGRESS = ("calql.num_updates", "training_iteration")  # the first that results have is the curves' axis
MANY = 12  # curves that a legend can name


@dataclass(frozen=True)
class Point:
    """One evaluated training iteration."""

    iteration: int
    progress: float
    phase: str
    score: float


@dataclass(frozen=True)
class SweepTrial:
    """A trial as its folder tells.

    `config` is flat, with dots in the names of nested settings, and holds RLlib's defaults too; `given` are the
    names among them that the experiment has set.
    """

    name: str
    status: str
    iterations: int
    config: dict[str, Any]
    given: frozenset[str]
    curve: list[Point]
    switch: float | None = None  # where on the axis of progress the online phase began

    @property
    def last(self) -> float | None:
        """The score of the last evaluation."""
        return self.curve[-1].score if self.curve else None


def run(folder: str, metric: str, mode: str, out: str | None) -> None:
    """Prints trials and the best config; writes sweep.png, sweep.csv and sweep.json.

    Raises:
        UserError: no trials there, none with this metric, or no such mode.
    """
    if mode not in ("max", "min"):
        raise UserError(f"--mode {mode}: max or min")
    source = Path(folder).expanduser()
    trials = ranked(read_trials(source, metric.replace("/", ".")), mode)
    best = trials[0]
    if best.last is None:
        raise UserError(f"no result of the {len(trials)} trials below {folder} has the number {metric}")
    varied = differing([trial.config for trial in trials], {name for trial in trials for name in trial.given})
    console = Console()
    console.print(table(trials, varied, metric, mode))
    found = {name: best.config[name] for name in varied if name in best.config}
    settings = [f"--set {shlex.quote(f'{name}={json.dumps(value)}')}" for name, value in found.items()]
    typer.echo(f"best: {best.name} ({best.status}), {metric} {best.last:.4g}")
    typer.echo(" ".join(settings) or "no setting differs between trials")
    target = Path(out).expanduser() if out else source
    target.mkdir(parents=True, exist_ok=True)
    draw(trials, varied, metric, target / "sweep.png")
    write_csv(trials, metric, target / "sweep.csv")
    document = {
        "metric": metric,
        "mode": mode,
        "best": found,
        "trials": [
            {
                "name": trial.name,
                "status": trial.status,
                "iterations": trial.iterations,
                "config": {name: trial.config.get(name) for name in varied},
                "curve": [asdict(point) for point in trial.curve],
                "last": trial.last,
            }
            for trial in trials
        ],
    }
    (target / "sweep.json").write_text(json.dumps(document, indent=1) + "\n")
    typer.echo(f"wrote {target}/sweep.png, sweep.csv, sweep.json")


# ---- reading -----------------------------------------------------------------------------------------------


def read_trials(folder: Path, metric: str) -> list[SweepTrial]:
    """Every trial below the folder; `metric` with dots where results are nested."""
    found = sorted(folder.rglob(PARAMETERS))
    if not found:
        raise UserError(f"there is no trial of a Tune run below {folder}")
    statuses = _statuses(folder)
    return [_read_trial(path.parent, metric, statuses) for path in found]


def _statuses(folder: Path) -> dict[str, str]:
    """Tune's word for each trial's state, by the name of its folder; later states of an experiment last."""
    states = sorted(folder.rglob("experiment_state-*.json")) or sorted(
        folder.parent.glob("experiment_state-*.json")
    )
    trials = [json.loads(state) for path in states for state, _ in read_json(path).get("trial_data", [])]
    return {trial["relative_logdir"]: trial["status"] for trial in trials}


def _read_trial(folder: Path, metric: str, statuses: Mapping[str, str]) -> SweepTrial:
    given = dict(flat(read_json(folder / PARAMETERS)))
    config = given
    points: list[Point] = []
    offline, online = 0.0, False
    last: Mapping[str, Any] = {}
    for row in trial_rows(folder / RESULTS):
        last = row
        config = {**given, **dict(flat(row.get("config", {})))}  # population based training changes it on the way
        figures = dict(flat(row))
        iteration = int(row["training_iteration"])
        progress = next(float(figures[name]) for name in PROGRESS if name in figures)
        phase = figures.get("calql.phase", "")
        if phase == "offline":
            offline = progress
        online |= phase == "online"
        score = figures.get(metric)
        if isinstance(score, int | float) and math.isfinite(score):
            points.append(Point(iteration, progress, phase, float(score)))
    # (What a scheduler or a budget of time has ended is not "done", but Tune does not take it up again.)
    if last.get("done") or (last and statuses.get(folder.name) == "TERMINATED"):
        status = "ended"
    elif (folder / FAILURE).is_file():
        status = "failed"
    else:
        status = "unfinished" if last else "no result"
    iterations = int(last.get("training_iteration", 0))
    name = re.search(r"[0-9a-f]+_\d{5}(?=_\d)", folder.name)  # Tune's id of the trial
    title = name[0] if name else folder.name
    return SweepTrial(title, status, iterations, config, frozenset(given), points, offline if online else None)


# ---- comparing ---------------------------------------------------------------------------------------------


def ranked(trials: Iterable[SweepTrial], mode: str) -> list[SweepTrial]:
    """Best last score first; trials without one at the end."""
    sign = -1.0 if mode == "max" else 1.0
    return sorted(trials, key=lambda trial: math.inf if trial.last is None else sign * trial.last)


# ---- showing -----------------------------------------------------------------------------------------------


def table(trials: list[SweepTrial], varied: list[str], metric: str, mode: str) -> Table:
    """A row per trial, best first."""
    result = Table(title=metric, box=None)
    for column in ("trial", "status", "iterations", "last", mode, *(name.split(".")[-1] for name in varied)):
        result.add_column(column, overflow="fold")
    for trial in trials:
        scores = [point.score for point in trial.curve]
        cells = [short(trial.last), short(max(scores) if mode == "max" else min(scores))] if scores else ["-", "-"]
        settings = [short(trial.config.get(name)) for name in varied]
        result.add_row(trial.name, trial.status, str(trial.iterations), *cells, *settings)
    return result


def draw(trials: list[SweepTrial], varied: list[str], metric: str, path: Path) -> None:
    """A curve per trial, the best drawn bold, and where the online phase begins."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for rank, trial in enumerate(trials):
        label = ", ".join(f"{name.split('.')[-1]} {short(trial.config.get(name))}" for name in varied)
        x, y = [point.progress for point in trial.curve], [point.score for point in trial.curve]
        style: dict[str, Any] = {"linewidth": 2.5} if rank == 0 else {"linewidth": 1.0, "alpha": 0.7}
        axes.plot(x, y, marker=".", label=label if rank < MANY else None, **style)
    switches = {trial.switch for trial in trials if trial.curve and trial.switch is not None}
    for switch in switches:
        axes.axvline(switch, color="black", linestyle="--", linewidth=0.5)
    phases = any(point.phase for trial in trials for point in trial.curve)
    axes.set(
        xlabel=f"updates{' (dashed: the switch)' * bool(switches)}" if phases else "iterations", ylabel=metric
    )
    axes.grid(alpha=0.3)
    if varied:
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def write_csv(trials: list[SweepTrial], metric: str, path: Path) -> None:
    """A row per trial and evaluation."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "iteration", "progress", "phase", metric])
        for trial in trials:
            for point in trial.curve:
                writer.writerow([trial.name, point.iteration, point.progress, point.phase, point.score])
