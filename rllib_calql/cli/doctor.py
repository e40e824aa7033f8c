"""`calql doctor`: says in plain words what is off with a run, or with the run that a checkpoint is of."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import typer

from rllib_calql.cli.common import UserError
from rllib_calql.cli.doctor_checks import CHECKS, Finding, findings
from rllib_calql.cli.report_groups import SCORE, preset_name, task_name
from rllib_calql.cli.runs import RESULTS, Row, Run, flat, read_runs, read_trial

RUN = Path("calql", "run.json")  # in a checkpoint


def run(arguments: list[str]) -> None:
    """Prints what was found.

    Raises:
        UserError: nothing to look at, or a broken file. typer.Exit: code 1 where something is off.
    """
    runs = [run for argument in arguments for run in _read(argument)]
    for run in runs:
        if not run.curve:
            typer.echo(f"{run.source}: no result yet\n")
    runs = [run for run in runs if run.curve]
    if not runs:
        raise UserError("there is no result to look at yet")
    found = [findings(run) for run in runs]
    for one, ailments in zip(runs, found, strict=True):
        typer.echo("\n".join(_told(one, ailments)) + "\n")
    if any(found):
        raise typer.Exit(1)


def _read(argument: str) -> list[Run]:
    path = Path(argument).expanduser()
    return [read_checkpoint(path)] if (path / RUN).is_file() else read_runs([argument])


def _told(run: Run, ailments: list[Finding]) -> Iterable[str]:
    last = run.curve[-1]
    yield f"{run.source}: {run.label or preset_name(run)} on {task_name(run)}, seed {run.seed}"
    yield (
        f"{len(run.curve)} iterations, {last['num_updates']:,} updates, {last['num_online_env_steps']:,} "
        f"environment steps, in the {last['phase']} phase"
    )
    if not ailments:
        yield f"Nothing found in {len(CHECKS)} checks."
    for number, ailment in enumerate(ailments, 1):
        yield f"{number}. {ailment.what}"
        yield f"   seen: {ailment.evidence}"
        yield f"   try:  {ailment.advice}"


def read_checkpoint(folder: Path) -> Run:
    """The run of a checkpoint: its trial's results up to there, or else what the checkpoint itself remembers.

    Raises:
        UserError: it is not whole.
    """
    from rllib_calql.checkpoint import local_checkpoint, saved_config, saved_update

    try:
        with local_checkpoint(folder) as local:
            saved = json.loads((local / RUN).read_text())
            update = saved_update(local)
            settings = dict(flat(saved_config(local)[1].to_dict()))
    except ValueError as error:
        raise UserError(str(error)) from error
    trial = folder.parent
    recorded = read_trial(trial, until=saved["training_iteration"]) if (trial / RESULTS).is_file() else None
    curve = (recorded.curve if recorded else []) or list(
        _remembered(saved["summary"], update["num_updates"], settings["num_offline_updates"])
    )
    curve[-1] = {**curve[-1], **_weight_figures(update["weights"], settings["alpha_multiplier"])}
    given = recorded or Run("", settings, frozenset(), None, [])
    return replace(given, source=str(folder), settings=settings, curve=curve)


def _remembered(summary: dict[str, Any], num_updates: int, num_offline_updates: int) -> Iterable[Row]:
    """The scores around the switch as iterations."""
    before, after = summary["score_at_switch"], summary["scores_after_switch"]
    counts = {"num_updates": min(num_updates, num_offline_updates), "num_online_env_steps": 0}
    yield {"phase": "offline", **counts} | ({} if before is None else {SCORE: before})
    if summary["switched"]:
        counts = {"num_updates": num_updates, "num_online_env_steps": summary["num_online_env_steps"]}
        online: Row = {"phase": "online", **counts}
        if before is not None and after:
            online["switch_drop"] = max(0.0, before - min(after))
        yield from [{**online, SCORE: score} for score in after] or [online]


def _weight_figures(weights: dict[str, np.ndarray], alpha_multiplier: float) -> Row:
    """The checkpoint's own figures: temperatures, and a weight that is not a number where there is one."""
    factors = {"alpha": alpha_multiplier, "alpha_prime": 1.0}
    figures = {
        name: factor * float(np.exp(weights[f"log_{name}"]))
        for name, factor in factors.items()
        if f"log_{name}" in weights
    }
    broken = [name for name, array in weights.items() if not np.isfinite(array).all()]
    return {**figures, **{f"weights {name}": float("nan") for name in broken}}
