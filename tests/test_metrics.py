"""Scores, regret and the drop at the switch, by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from rllib_calql.metrics import SWITCH_WINDOW, RunSummary, WeightedMeans, evaluation_scores, normalized_score


@pytest.mark.parametrize(
    ("results", "score_range", "expected"),
    [
        # success alone is the score
        ({"custom_metrics": {"success_mean": 0.25}}, None, {"success_rate": 0.25, "normalized_score": 0.25}),
        ({"custom_metrics": {"success_mean": 0.0}}, None, {"success_rate": 0.0, "normalized_score": 0.0}),
        # a score range makes it a matter of returns: (-50 + 100) / (100 + 100)
        (
            {"custom_metrics": {"success_mean": 0.25}, "episode_return_mean": -50.0},
            (-100.0, 100.0),
            {"success_rate": 0.25, "normalized_score": 0.25},
        ),
        ({"episode_return_mean": 300.0}, (-100.0, 100.0), {"normalized_score": 2.0}),
        ({"episode_return_mean": 300.0}, [0.0, 200.0], {"normalized_score": 1.5}),
        ({"episode_return_mean": -200.0}, (-100.0, 100.0), {"normalized_score": -0.5}),
        # what does not exist is absent
        ({}, None, {}),
        ({}, (0.0, 1.0), {}),
        ({"custom_metrics": {}, "episode_return_mean": 5.0}, None, {}),
        ({"custom_metrics": {"success_mean": math.nan}, "episode_return_mean": math.nan}, (0.0, 1.0), {}),
        ({"custom_metrics": {"success_mean": 1.0}}, (0.0, 1.0), {"success_rate": 1.0, "normalized_score": 1.0}),
    ],
)
def test_evaluation_scores(results: dict[str, Any], score_range: Any, expected: dict[str, float]) -> None:
    assert evaluation_scores(results, score_range) == pytest.approx(expected)


def test_normalized_score_is_zero_and_one_at_its_ends() -> None:
    low, high = 3.8, 357.1
    scores = [normalized_score(value, (low, high)) for value in (low, high, (low + high) / 2)]
    assert scores == pytest.approx([0.0, 1.0, 0.5])


def test_a_new_summary_has_counters_only() -> None:
    assert RunSummary().figures() == {"num_online_env_steps": 0, "num_online_episodes": 0}


def test_cumulative_regret_is_the_mean_shortfall_of_online_episodes() -> None:
    summary = RunSummary()
    for length, score in ((100, 0.0), (50, 1.0), (10, 1.0), (40, 0.5)):
        summary.add_episode(length, score)
    # shortfalls 1, 0, 0 and 0.5, every episode alike whatever its length
    assert summary.figures() == {
        "num_online_env_steps": 200,
        "num_online_episodes": 4,
        "cumulative_regret": pytest.approx(0.375),
    }


@pytest.mark.parametrize(
    ("offline", "online", "expected"),
    [
        ([0.2, 0.6], [0.5, 0.1, 0.7], 0.5),  # the last score before online data counts, 0.6 - 0.1
        ([0.9, 0.3], [0.5, 0.4], 0.0),  # never below it: 0
        ([0.6], [0.5, 0.5, 0.5, 0.5, 0.5, 0.0], 0.1),  # the sixth evaluation is no switch any more
        ([0.6], [0.6, 0.6, 0.6, 0.6, 0.0, 0.6], 0.6),
        ([0.6], [0.8], 0.0),
        ([0.6], [], None),
        ([], [0.4, 0.2], None),  # without an evaluation at the switch there is nothing to fall from
    ],
)
def test_switch_drop(offline: list[float], online: list[float], expected: float | None) -> None:
    summary = RunSummary()
    for score in offline:
        summary.add_evaluation(score, online=False)
    for score in online:
        summary.add_evaluation(score, online=True)
    if expected is None:
        assert "switch_drop" not in summary.figures()
    else:
        assert summary.figures()["switch_drop"] == pytest.approx(expected)
    assert len(summary.scores_after_switch) <= SWITCH_WINDOW == 5


def test_a_drop_of_zero_is_reported() -> None:
    summary = RunSummary(score_at_switch=0.0, scores_after_switch=[0.0], num_online_episodes=1, score_sum=1.0)
    assert summary.figures() == {
        "num_online_env_steps": 0,
        "num_online_episodes": 1,
        "cumulative_regret": 0.0,
        "switch_drop": 0.0,
    }


def test_state_round_trip_goes_on_alike() -> None:
    summary = RunSummary()
    summary.add_evaluation(0.75, online=False)
    summary.add_episode(7, 0.5)
    summary.add_evaluation(0.5, online=True)
    state = summary.get_state()
    restored = RunSummary.from_state(json.loads(json.dumps(state)))  # plain numbers
    assert restored == summary
    for each in (summary, restored):
        each.add_episode(3, 1.0)
        each.add_evaluation(0.25, online=True)
    assert restored.figures() == summary.figures() == {
        "num_online_env_steps": 10,
        "num_online_episodes": 2,
        "cumulative_regret": 0.25,
        "switch_drop": 0.5,
    }  # fmt: skip
    # a state is a snapshot
    assert state["scores_after_switch"] == [0.5]


def test_weighted_means() -> None:
    means = WeightedMeans()
    assert means.result() == {}
    means.add({"loss": 1.0, "gap": 4.0}, 10)
    means.add({"loss": 4.0}, 5)
    means.add({"late": 7.0}, 2)
    # (10 * 1 + 5 * 4) / 15; figures that were absent for a while count where they existed
    assert means.result() == {"loss": pytest.approx(2.0), "gap": 4.0, "late": 7.0}


def test_steps_earn_updates_by_the_settings_of_their_time() -> None:
    run = RunSummary()
    run.earn_by(0.5, 10)
    run.add_episode(31, 0.0)
    assert run.num_updates_due == 10  # of 21 steps that count
    run.num_online_updates = 10
    run.earn_by(2.0, 10)
    assert run.num_updates_due == 0  # what is past earns nothing more, and loses nothing
    run.add_episode(5, 0.0)
    assert run.num_updates_due == 10
    run = RunSummary.from_state(run.get_state())
    run.earn_by(0.1, 0)
    assert run.num_updates_due == 10
    run.num_online_updates += 10
    run.add_episode(19, 0.0)
    assert run.num_updates_due == 1
