"""Whole runs of the shipped PointMaze experiment; `make test-slow`."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.learning_curve import load_config, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.usefixtures("ray_session")]

CONFIG = Path(__file__).resolve().parents[1] / "tuned_configs" / "calql-pointmaze.yaml"


def test_pointmaze_is_solved_without_a_dip() -> None:
    curve = run(load_config(CONFIG, []), "pointmaze")
    scores = [(row["phase"], row["success_rate"]) for row in curve if "success_rate" in row]
    at_switch = [score for phase, score in scores if phase == "offline"][-1]
    assert 0.2 <= at_switch <= 0.95
    assert max(score for _, score in scores[-3:]) >= 0.95
    assert curve[-1]["switch_drop"] <= 0.1
