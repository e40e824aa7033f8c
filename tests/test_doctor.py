"""`calql doctor`: every check on a curve that it is about and on one that it is not, real runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rllib_calql.cli import doctor_checks as checks
from rllib_calql.cli.calql import app
from rllib_calql.cli.doctor_figures import evaluation_error, value_range
from rllib_calql.cli.runs import Run
from tests.recorded import a_run, offline, online, write_curve

RESULTS = Path(__file__).resolve().parents[1] / "results"
MAZE: dict[str, Any] = {
    "reward_scale": 10.0,
    "reward_bias": -5.0,
    "sparse_failure_reward": 0.0,
    "gamma": 0.99,
}  # -5 or 5 a step


def doctor(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["doctor", *map(str, arguments)])


def pre_training(changes: dict[str, Any] | None = None, **figures: list[float]) -> Run:
    """A run of as many offline iterations of 1000 updates as there are figures, in AntMaze's rewards."""
    length = max(map(len, figures.values()))
    rows = [
        offline(
            1000 * (i + 1), **{name: values[i] for name, values in figures.items() if not math.isnan(values[i])}
        )
        for i in range(length)
    ]
    return a_run(rows, **{**MAZE, **(changes or {})})


def switched(before: float, drop: float, **settings: Any) -> Run:
    rows = [
        offline(1000, normalized_score=before),
        online(500, normalized_score=before - drop, switch_drop=drop),
        online(1000, normalized_score=before, switch_drop=drop),
    ]
    return a_run(rows, evaluation_duration=100, **settings)


NAN = math.nan
SINKING = [-20.0, -40.0, -60.0, -80.0]
LOW_RETURN = [-320.0] * 4

# A check, a run that it is about, what the finding must say, a run that it is not about.
CASES: list[tuple[checks.Check, Run, str, Run]] = [
    (
        checks.not_a_number,
        a_run([offline(1000, critic_loss=1.0), offline(2000, critic_loss=math.inf)]),
        "critic_loss from update 2,000 on",
        a_run([offline(1000, critic_loss=1.0)]),
    ),
    (
        checks.diverging_q,
        pre_training(q_data_mean=[0.0, -700.0]),
        "q_data_mean is -700 at update 2,000; with these rewards and gamma no return lies outside -500 to 500",
        pre_training(q_data_mean=[0.0, -490.0]),
    ),
    (
        checks.diverging_q,  # rewards unknown: against the returns of the data
        pre_training({"sparse_failure_reward": None}, q_policy_mean=[10.0, 2100.0], mc_return_mean=[200.0, 200.0]),
        "q_policy_mean is 2100 at update 2,000; the returns of the data are 200",
        pre_training({"sparse_failure_reward": None}, q_policy_mean=[10.0, 1900.0], mc_return_mean=[200.0, 200.0]),
    ),
    (
        checks.returns_beyond_rewards,
        pre_training({"sparse_failure_reward": -1.0}, mc_return_mean=[-400.0, 20.0]),  # 10 (-1 or 0) - 5
        "mc_return_mean is 20 at update 2,000",
        pre_training({"sparse_failure_reward": -1.0}, mc_return_mean=[-400.0, -20.0]),
    ),
    (
        checks.failures_too_cheap,
        pre_training({"sparse_failure_reward": None}, mc_return_mean=[-100.0]),
        "mc_return_mean is -100",
        pre_training(mc_return_mean=[-100.0]),
    ),
    (
        checks.never_succeeds,
        pre_training(normalized_score=[0.0] * 3, mc_return_mean=[-320.0] * 3),
        "0 in all 3 evaluations up to update 3,000; the data's mean return is -320, and -500",
        pre_training(normalized_score=[0.0, 0.0, 0.05], mc_return_mean=[-320.0] * 3),
    ),
    (
        checks.never_succeeds,
        pre_training({"sparse_failure_reward": None}, normalized_score=[0.0] * 3),
        "0 in all 3 evaluations",
        pre_training(normalized_score=[0.0] * 2),
    ),
    (
        checks.lost_in_pretraining,
        pre_training({"bc_iters": 2000}, normalized_score=[0.4, 0.8, 0.0]),
        "score 0.80 at update 2,000, 0.00 at update 3,000; bc_iters=2,000",
        pre_training({"bc_iters": 2000}, normalized_score=[0.4, 0.8, 0.6]),
    ),
    (
        checks.lost_in_pretraining,
        pre_training(normalized_score=[0.1, 0.7, 0.1]),
        "score 0.70 at update 2,000, 0.10",
        pre_training(normalized_score=[0.1, 0.3, 0.1]),  # as 10 episodes may give
    ),
    (checks.dip_at_switch, switched(0.8, 0.3), "from 0.80 to 0.50", switched(0.8, 0.05)),
    (
        checks.scale_not_reached,
        pre_training(q_data_mean=SINKING, mc_return_mean=LOW_RETURN),
        "-80 at update 4,000 and moved by -20 in the last 1,000 updates; the data's mean return is -320, at that "
        "pace 12,000 updates",
        pre_training(q_data_mean=[-80.0, -110.0, -125.0, -130.0], mc_return_mean=LOW_RETURN),
    ),
    (
        checks.promises_too_much,
        pre_training(
            q_data_mean=SINKING[::-1],
            q_policy_mean=[-280.0, -300.0, -200.0, -150.0],
            mc_return_mean=LOW_RETURN,
            normalized_score=[NAN, NAN, NAN, 0.0],
        ),
        "q_policy_mean -150 against mc_return_mean -320 at update 4,000; it has risen from -300 at update 2,000",
        pre_training(  # a policy that is better than the data
            q_policy_mean=[-150.0] * 4, mc_return_mean=LOW_RETURN, normalized_score=[NAN, NAN, NAN, 0.9]
        ),
    ),
    (
        checks.promises_too_much,
        pre_training(q_policy_mean=[-150.0], mc_return_mean=[-320.0], normalized_score=[0.0]),
        "-150 against",
        pre_training(  # that is the scale, see there
            q_data_mean=SINKING, q_policy_mean=SINKING, mc_return_mean=LOW_RETURN, normalized_score=[0.0] * 4
        ),
    ),
    (
        checks.bound_always_on,
        pre_training(bound_rate=[0.1, 0.5, 0.9, 0.96, 0.99, 1.0]),
        "bound_rate is 0.96 or more from update 4,000 to update 6,000",
        pre_training(bound_rate=[0.1, 0.5, 0.9, 0.96, 0.99, 0.8]),
    ),
    (
        checks.bound_never_on,
        pre_training(bound_rate=[0.0, 0.0, 0.0005]),
        "0.0005 at most in 3 iterations",
        pre_training(bound_rate=[0.0, 0.0, 0.01]),
    ),
    (
        checks.entropy_collapse,
        pre_training(
            # (not at every step: figures are noisy)
            alpha=[0.1, 0.1, 0.1, 0.1, 0.1, 0.3, 0.2, 0.4],
            entropy=[-9.0] * 4 + [-20.0, -25.0, -30.0, -35.0],
        ),
        "entropy -20 at update 5,000, -35 at update 8,000; alpha 0.1, then 0.4",
        pre_training(
            alpha=[0.1, 0.1, 0.1, 0.1, 0.1, 0.2, 0.3, 0.4], entropy=[-9.0] * 4 + [-20.0, -15.0, -10.0, -9.0]
        ),
    ),
    (
        checks.entropy_collapse,
        pre_training({"target_entropy": -8.0}, alpha=[1.0] * 8, entropy=[-13.0] * 8),
        "(target -8)",
        pre_training({"target_entropy": -8.0}, alpha=[1.0] * 8, entropy=[-11.0] * 8),
    ),
    (
        checks.temperature_explodes,
        pre_training({"initial_alpha": 0.1}, alpha=[0.1, 0.2, 0.9, 2.0]),
        "alpha is 2 at update 4,000, from 0.1",
        pre_training({"initial_alpha": 0.1}, alpha=[0.1, 0.2, 1.9, 2.0]),
    ),
    (
        checks.multiplier_explodes,
        pre_training({"lagrangian": True, "lagrangian_thresh": 0.8}, alpha_prime=[3.0, 50.0, 500.0, 3600.0]),
        "alpha_prime is 3600 at update 4,000, and still growing; lagrangian_thresh=0.8",
        pre_training({"lagrangian": True, "lagrangian_thresh": 0.8}, alpha_prime=[3.0, 50.0, 3500.0, 3600.0]),
    ),
    (
        checks.multiplier_explodes,
        pre_training({"lagrangian": True, "lagrangian_thresh": 0.8}, alpha_prime=[1e6] * 4),
        "at its cap",
        pre_training(alpha_prime=[1e6] * 4),
    ),
    (
        checks.not_evaluated,
        pre_training(q_data_mean=SINKING),
        "no normalized_score in 4 iterations; evaluation_interval=None",
        pre_training(normalized_score=[NAN, NAN, 0.0]),
    ),
    (
        checks.not_evaluated,
        a_run([offline(1000, normalized_score=0.5), online(100), online(200)]),
        "no normalized_score in 2 iterations",
        a_run([offline(1000, normalized_score=0.5), online(100)]),  # may be on its way
    ),
]


@pytest.mark.parametrize(
    ("check", "sick", "evidence", "healthy"),
    CASES,
    ids=[f"{i}-{case[0].__name__}" for i, case in enumerate(CASES)],
)
def test_check(check: checks.Check, sick: Run, evidence: str, healthy: Run) -> None:
    found = check(sick)
    assert found is not None
    assert evidence in found.evidence
    assert found.advice
    assert check(healthy) is None


def test_every_check_is_tested() -> None:
    assert {case[0] for case in CASES} == set(checks.CHECKS)


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"calibrate": False}, "calibrate=False"),
        ({"calibrate_online": False}, "calibrate_online=False"),
        ({"min_q_weight_online": 0.0}, "min_q_weight_online=0.0 beside min_q_weight=5.0"),
        ({"mixing_ratio": 0.0}, "mixing_ratio=0.0"),
        ({"utd_ratio": 20.0}, "utd_ratio=20 without critic_layer_norm"),
        (
            {"utd_ratio": 20.0, "critic_layer_norm": True, "mixing_ratio": -1.0},
            "none of the settings known for it",
        ),
    ],
)
def test_dip_names_the_likely_setting(settings: dict[str, Any], advice: str) -> None:
    found = checks.dip_at_switch(switched(0.8, 0.3, **settings))
    assert found is not None
    assert found.advice.startswith(advice)
    assert found.advice.count(";") <= 2


def test_values_that_rewards_admit() -> None:
    assert value_range(a_run([], **MAZE)) == pytest.approx((-500.0, 500.0))
    binary: dict[str, Any] = {
        "reward_scale": 10.0,
        "reward_bias": 5.0,
        "sparse_failure_reward": -1.0,
        "gamma": 0.9,
    }
    assert value_range(a_run([], **binary)) == pytest.approx((-50.0, 50.0))
    assert value_range(a_run([], sparse_failure_reward=-1.0, gamma=0.9)) == pytest.approx((-10.0, 0.0))
    assert value_range(a_run([])) is None
    assert value_range(a_run([], **MAZE, normalize_reward=True)) is None


def test_recorded_runs() -> None:
    """results/README.md tells the story of these."""
    done = doctor(RESULTS / "antmaze-umaze-calql.json")
    assert done.exit_code == 1
    assert "1. The cloned policy was lost when the actor turned from the data to the critics." in done.output
    assert "seen: score 0.70 at update 20,000, 0.05 at update 45,000; bc_iters=20,000" in done.output
    assert "it has risen from -299.5 at update 20,000; score 0.05" in done.output
    assert "3." not in [line[:2] for line in done.output.splitlines()]
    done = doctor(RESULTS / "precision" / "pointmaze-float32-1.json")
    assert done.exit_code == 0
    assert f"Nothing found in {len(checks.CHECKS)} checks." in done.output


def test_what_the_limits_of_returns_do_not_hold_for() -> None:
    with_entropy = pre_training({"deterministic_backup": False}, q_data_mean=[-650.0])
    assert checks.diverging_q(with_entropy) is None  # Q holds the entropy to come, too
    assert checks.diverging_q(pre_training(q_data_mean=[-650.0])) is not None


@pytest.mark.parametrize(
    "settings",
    [{"evaluation_duration": "auto"}, {"evaluation_duration": 900, "evaluation_duration_unit": "timesteps"}],
)
def test_evaluations_of_no_known_number_of_episodes(settings: dict[str, Any]) -> None:
    assert evaluation_error(a_run([], **settings), 0.5) == pytest.approx(math.sqrt(0.25 / 10))


def test_a_run_without_a_result_yet_keeps_no_other_waiting(tmp_path: Path) -> None:
    write_curve(tmp_path / "new.json", [])
    write_curve(tmp_path / "old.json", [offline(1000, critic_loss=math.inf)])
    done = doctor(tmp_path)
    assert done.exit_code == 1
    assert f"{tmp_path / 'new.json'}: no result yet" in done.output
    assert "1. " in done.output


def test_input_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("[")
    for path, message in (
        (tmp_path / "broken.json", "broken"),
        (write_curve(tmp_path / "new.json", []), "no result"),
    ):
        done = doctor(path)
        assert done.exit_code == 2
        assert message in done.output


def test_advice_is_what_the_update_rule_takes() -> None:
    iql: dict[str, Any] = {"update_rule": "iql", "calibrate": False}
    assert "none of the settings" in checks._behind_a_dip(switched(0.8, 0.3, **iql))
    assert "none of the settings" in checks._behind_a_dip(switched(0.8, 0.3, calibrate=False, min_q_weight=0.0))
    for settings, advice in (({}, "min_q_weight"), ({"update_rule": "awac"}, "beta"), (iql, "beta or expectile")):
        found = checks.lost_in_pretraining(pre_training(settings, normalized_score=[0.1, 0.7, 0.1]))
        assert found is not None
        assert advice in found.advice
        assert ("min_q_weight" in found.advice) == (advice == "min_q_weight")


def test_temperature_is_measured_with_its_factor() -> None:
    rising = [1.5, 1.6, 1.7, 3.0]
    assert checks.temperature_explodes(pre_training(alpha=rising)) is None
    assert checks.temperature_explodes(pre_training({"alpha_multiplier": 0.1}, alpha=rising)) is not None
    assert checks.temperature_explodes(pre_training({"alpha_multiplier": 0.0}, alpha=[0.0] * 4)) is None
