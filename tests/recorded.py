"""Small recorded runs, as learning-curve files and in memory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rllib_calql.cli.runs import Run

SETTINGS = {"env": "rllib_calql/AntMaze-UMaze-v2", "input": "../data/umaze.hdf5", "seed": 0}


def offline(updates: int, **figures: float) -> dict[str, Any]:
    return {"phase": "offline", "num_updates": updates, "num_online_env_steps": 0, **figures}


def online(steps: int, updates: int | None = None, **figures: float) -> dict[str, Any]:
    done = 1000 + steps if updates is None else updates
    return {"phase": "online", "num_updates": done, "num_online_env_steps": steps, **figures}


def fine_tuned(before: float, after: float, regret: float = 0.5, drop: float = 0.0) -> list[dict[str, Any]]:
    """A curve with three evaluations."""
    return [
        offline(500, normalized_score=0.0),
        offline(1000, normalized_score=before),
        online(200),
        online(400, normalized_score=after, cumulative_regret=regret, switch_drop=drop),
    ]


def a_run(curve: Sequence[dict[str, Any]], preset: str | None = "cal-ql", **settings: Any) -> Run:
    given = {**SETTINGS, **settings}
    return Run(f"run-{given['seed']}", given, frozenset(given), preset, list(curve))


def write_curve(path: Path, curve: Sequence[dict[str, Any]], **settings: Any) -> Path:
    path.write_text(json.dumps({"settings": {**SETTINGS, **settings}, "curve": curve}))
    return path


def write_trial(folder: Path, curve: Sequence[dict[str, Any]], **settings: Any) -> Path:
    """A trial's folder as Tune writes it."""
    folder.mkdir(parents=True)
    config = {**SETTINGS, **settings}
    (folder / "params.json").write_text(json.dumps(config))
    rows = [
        {"training_iteration": number, "calql": row, "config": {**config, "num_critics": 2}}
        for number, row in enumerate(curve, 1)
    ]
    (folder / "result.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
