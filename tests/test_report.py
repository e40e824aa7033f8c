"""`calql report`: what a run comes to, who belongs together, tables with numbers worked out by hand, figures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from typer.testing import CliRunner

from rllib_calql.cli.calql import app
from rllib_calql.cli.common import UserError
from rllib_calql.cli.report import comparison, improvement_cell, interquartile_table, score_cell, tables
from rllib_calql.cli.report_figures import band, by_task
from rllib_calql.cli.report_groups import grouped, method_names, outcome, preset_name, task_name
from rllib_calql.cli.runs import read_curve, read_runs, read_trial
from rllib_calql.cli.statistics import interquartile_mean, mean
from tests.recorded import a_run, fine_tuned, offline, online, write_curve, write_trial

RESULTS = Path(__file__).resolve().parents[1] / "results"


def report(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["report", *arguments])


# ---- numbers -----------------------------------------------------------------------------------------------


def test_mean_and_standard_error() -> None:
    assert mean([]) is None
    assert mean([0.25]) == (0.25, None)
    found = mean([1.0, 2.0, 6.0])  # squares about 3: 4 + 1 + 9, over n - 1 = 2: 7
    assert found is not None
    assert found == pytest.approx((3.0, math.sqrt(7.0 / 3.0)))


def test_interquartile_mean_leaves_out_the_outer_quarters_of_all_runs() -> None:
    found = interquartile_mean([[0.0, 0.5, 0.6, 9.0], [0.1, 0.3, 0.7, 0.8]])
    assert found is not None
    assert found.value == pytest.approx((0.3 + 0.5 + 0.6 + 0.7) / 4)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high


def test_bootstrap_is_stratified_by_task() -> None:
    """Runs that agree within their tasks leave nothing to chance, however far the tasks are apart."""
    assert interquartile_mean([[0.2, 0.2], [0.9, 0.9]]) == pytest.approx((0.55, 0.55, 0.55))
    assert interquartile_mean([[0.2], [0.9, 0.9]]) == pytest.approx((2.0 / 3.0, None, None))
    assert interquartile_mean([[], []]) is None


def test_outcome_is_of_the_last_evaluations() -> None:
    found = outcome(a_run([*fine_tuned(0.4, 0.9, 0.3, 0.1), online(600)]))
    assert (found.before, found.after, found.cumulative_regret, found.switch_drop) == (0.4, 0.9, 0.3, 0.1)
    assert found.improvement == pytest.approx(0.5)
    unfinished = outcome(a_run([offline(500, normalized_score=0.2), offline(1000, normalized_score=math.nan)]))
    assert (unfinished.before, unfinished.after, unfinished.improvement) == (0.2, None, None)


# ---- groups ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "AntMaze-UMaze-v2, umaze"),
        ({"input": "d4rl://antmaze-umaze-v2"}, "AntMaze-UMaze-v2, antmaze-umaze-v2"),
        ({"input": ["a/x.hdf5", "minari://D4RL/door/human-v2"]}, "AntMaze-UMaze-v2, x + human-v2"),
        ({"env": None}, "umaze"),
        ({"input": "sampler"}, "AntMaze-UMaze-v2"),
    ],
)
def test_task_is_environment_and_dataset(settings: dict[str, Any], name: str) -> None:
    assert task_name(a_run([], **settings)) == name


def test_methods_are_presets_and_what_differs_beside_the_seed(tmp_path: Path) -> None:
    files: dict[str, dict[str, Any]] = {
        "plain": {},
        "seed": {"seed": 1},
        "cql": {"calibrate": False},
        "sac": {"calibrate": False, "min_q_weight_online": 0.0},
        "half": {"calibrate": False, "min_q_weight_online": 0.0, "actor_lr": 0.0005, "evaluation_interval": 7},
        "corl": {"calibrate_online": False},
    }
    runs = [read_curve(write_curve(tmp_path / name, [], **settings)) for name, settings in files.items()]
    assert method_names(runs) == [
        "cal-ql",
        "cal-ql",
        "cql",
        "cql-sac, actor_lr=0.0001",
        "cql-sac, actor_lr=0.0005",
        "cal-ql, calibrate_online=False",
    ]
    assert method_names(runs[:3], by=["gamma"]) == ["cal-ql, gamma=0.99"] * 2 + ["cql, gamma=0.99"]
    # What it was started with; what was changed is said of the run.
    changed = a_run(fine_tuned(0.0, 1.0), preset="rlpd", utd_ratio=1.0, num_critics=5)
    assert preset_name(changed) == "rlpd"
    ((member,),) = grouped([changed])[task_name(changed)].values()
    assert member.notes == ("unlike the preset: num_critics=5, utd_ratio=1",)


def test_names_are_given_with_the_path(tmp_path: Path) -> None:
    first, second = (write_curve(tmp_path / name, fine_tuned(0.0, 1.0)) for name in ("a=b.json", "c.json"))
    runs = read_runs([str(first), f"mine={second}"])
    assert [run.label for run in runs] == [None, "mine"]
    assert method_names(runs) == ["cal-ql", "mine"]
    # Tune's folders of trials have such names.
    (tmp_path / "calibrate=False").mkdir()
    third = write_curve(tmp_path / "calibrate=False" / "tau=0.1.json", fine_tuned(0.0, 1.0))
    assert [run.label for run in read_runs([f"mine={third}", f"a=b={second}"])] == ["mine", "a=b"]


def test_a_trial_without_a_result_has_its_task(tmp_path: Path) -> None:
    trial = write_trial(tmp_path / "trial", [], input_="data/umaze.hdf5", input=None)
    assert task_name(read_trial(trial)) == "AntMaze-UMaze-v2, umaze"


# ---- reading -----------------------------------------------------------------------------------------------


def test_reads_trials_and_curves_from_folders(tmp_path: Path) -> None:
    curve = fine_tuned(0.25, 0.75)
    trial = write_trial(tmp_path / "experiment" / "trial_1", curve, preset="cql", seed=3)
    (trial / "checkpoint_000000").mkdir()
    (trial / "checkpoint_000000" / "run.json").write_text('{"settings": {}, "curve": []}')
    (tmp_path / "experiment" / "experiment_state-1.json").write_text("{}")
    (tmp_path / "experiment" / "basic-variant-state-1.json").write_bytes(
        b"\x80\x04"
    )  # a pickle, so called by Tune
    with (trial / "result.json").open("a") as file:
        # What is done after iteration 3 comes to nothing, as the trial is restored there; a line is cut by a kill.
        for iteration, steps in ((5, 300), (6, 400), (4, 999)):
            row = {"training_iteration": iteration, "calql": online(steps, normalized_score=1.0)}
            file.write(json.dumps(row) + "\n")
        file.write('{"tr')
    write_curve(tmp_path / "curve.json", curve)
    (tmp_path / "output-1.json").write_text('{"type": "SampleBatch"}\n{"type": "SampleBatch"}\n')
    (tmp_path / "figures.json").write_text('{"updates_per_second": 3}')
    tuned, recorded = read_runs([str(tmp_path)])
    assert (tuned.preset, tuned.seed, tuned.settings["num_critics"]) == ("cql", 3, 2)
    assert [row["num_online_env_steps"] for row in tuned.curve] == [0, 0, 200, 999]
    assert recorded.curve == curve
    assert recorded.settings["gamma"] == 0.99  # a default
    assert len(read_runs([str(trial / "result.json")])) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "run.json: broken, not a JSON file"),
        ('{"updates": 3}', "run.json: not a learning curve"),
        ('{"settings": {}, "curve": [{"episode_return_mean": 1}]}', "run.json: an iteration without the `calql`"),
    ],
)
def test_broken_files_are_refused_by_name(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_runs([str(tmp_path / "run.json")])
    done = report(str(tmp_path / "run.json"), "--out", str(tmp_path / "out"))
    assert done.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_refuses_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: there is no such file"):
        read_runs(["nowhere"])
    with pytest.raises(UserError, match="there is no run"):
        read_runs([str(tmp_path)])
    path = str(write_curve(tmp_path / "a.json", []))
    with pytest.raises(UserError, match="given twice"):
        read_runs([path, f"x={path}"])
    assert "one of png, svg, pdf" in report(path, "--format", "bmp").output
    assert "--by nosuch: no run has such a setting" in report(path, "--by", "nosuch").output


# ---- tables and figures ------------------------------------------------------------------------------------


def test_tables() -> None:
    runs = [
        a_run(fine_tuned(0.2, 0.6), seed=0),
        a_run(fine_tuned(0.4, 1.0), seed=1),
        a_run(fine_tuned(0.1, 0.4), preset="cql"),
        a_run(fine_tuned(0.5, 0.7), seed=0, env="Other"),
    ]
    groups = grouped(runs)
    # Standard errors of two values: half their difference.
    assert comparison(groups, score_cell).splitlines()[2:] == [
        "| AntMaze-UMaze-v2, umaze | 30.0 ± 10.0 → 80.0 ± 20.0 | 10.0 → 40.0 |",
        "| Other, umaze | 50.0 → 70.0 | - |",
    ]
    assert "| +50.0 ± 10.0 | +30.0 |" in comparison(groups, improvement_cell)
    middle = interquartile_table(groups)
    assert "| cal-ql | 2 of 2 | 3 | 36.7 | 76.7 | 0.50 |" in middle  # three runs: none is left out
    assert "| cql | 1 of 2 | 1 | 10.0 | 40.0 | 0.50 |" in middle
    text = tables(groups)
    assert "| **mean of the tasks** | 40.0 → 75.0 | - |" in text
    assert "| **mean of the tasks** | +35.0 (+87.5%) | - |" in text  # 35 of 40
    # No per cent of a score below zero; a run that has not come to an improvement has no part in them.
    below = [
        a_run(fine_tuned(-0.2, 0.1), seed=0),
        a_run([offline(1000, normalized_score=0.8)], seed=1),
        a_run(fine_tuned(0.1, 0.1), env="Other"),
    ]
    assert "| **mean of the tasks** | +15.0 |" in tables(grouped(below))
    positive = [*below[1:], a_run(fine_tuned(0.5, 0.8), seed=0)]
    assert "| **mean of the tasks** | +15.0 (+50.0%) |" in tables(grouped(positive))  # 15 of 30
    half = [a_run(fine_tuned(0.2, 0.6)), a_run([online(100, normalized_score=0.5)], env="Other")]
    assert "| cal-ql | 2 of 2 | 2 | - | 55.0 | - |" in interquartile_table(grouped(half))


def test_runs_that_are_not_like_the_others_are_named() -> None:
    longer = [*fine_tuned(0.2, 0.6), online(1000, normalized_score=0.9)]
    settings: dict[str, Any] = {"num_online_env_steps": 1000}
    runs = [
        a_run(longer, seed=0, **settings),
        a_run(fine_tuned(0.2, 0.6), seed=1, **settings),
        a_run([], seed=2, **settings),
        a_run([offline(500)], seed=3, **settings),
        a_run([offline(500), online(1000, normalized_score=0.1)], seed=3, **settings),
    ]
    ((members,),) = [methods.values() for methods in grouped(runs).values()]
    again = "another run has the same seed"
    drawn = [a_run(longer, seed=None, **settings), a_run(longer, seed=None, **settings)]
    assert [member.notes for found in grouped(drawn).values() for member in found["cal-ql"]] == [(), ()]
    assert [member.notes for member in members] == [
        (),
        ("shorter than others: 400 of 1,000 environment steps",),
        ("no result yet",),
        ("never evaluated", "ends before the switch, at update 500", again),
        ("not evaluated before the switch", again),
    ]


def test_offline_runs_and_runs_on_other_data_are_named() -> None:
    offline_only: dict[str, Any] = {"num_online_env_steps": 0, "input": "robot1/logs"}
    runs = [
        a_run([offline(1000, normalized_score=0.5)], seed=0, **offline_only),
        a_run([offline(100, normalized_score=0.5)], seed=1, **{**offline_only, "input": "robot2/logs"}),
    ]
    ((members,),) = [methods.values() for methods in grouped(runs).values()]
    assert [member.notes for member in members] == [
        ("input is not the same in all runs: robot1/logs",),
        ("shorter than others: 100 of 1,000 updates", "input is not the same in all runs: robot2/logs"),
    ]


def test_band_is_where_all_runs_are() -> None:
    first = a_run([offline(1000, q=1.0), online(100, q=3.0), online(300, q=5.0)])
    second = a_run([offline(500, q=9.0), offline(1000, q=3.0), online(200, q=7.0)])
    found = band([first, second, a_run([offline(500)])], "q")
    assert found is not None
    np.testing.assert_array_equal(found.x, [0, 100, 200])
    np.testing.assert_allclose(found.mean, [2.0, 4.0, 5.5])  # (1, 3), (3, 5), (4, 7)
    np.testing.assert_allclose(found.error, [1.0, 1.0, 1.5])
    assert band([a_run([offline(500)])], "q") is None


def test_report_of_recorded_runs(tmp_path: Path) -> None:
    patterns = ("antmaze-umaze-*.json", "precision/pointmaze-*.json")
    curves = sorted(str(path) for pattern in patterns for path in RESULTS.glob(pattern))
    done = report(*curves, "--out", str(tmp_path))
    assert done.exit_code == 0, done.output
    text = (tmp_path / "report.md").read_text()
    # results/README.md says the same.
    assert "| AntMaze-UMaze-v2, antmaze-umaze | 5.0 → 0.0 | - | - | 0.0 → 5.0 |" in text
    for name in ("learning-curves", "q-values", "bound-rate"):
        assert f"]({name}.png)" in text
        picture = imread(tmp_path / f"{name}.png")
        assert min(picture.shape[:2]) > 300
        assert picture[..., :3].std() > 0.05  # something is drawn
        assert "</svg>" in (tmp_path / f"{name}.svg").read_text()


def test_scores_outside_of_the_references_are_drawn(tmp_path: Path) -> None:
    groups = grouped([a_run(fine_tuned(-0.2, 1.2))])
    figure = by_task(groups, "normalized_score", "score", scale=100.0)
    assert figure is not None
    assert figure.axes[0].get_ylim() == (-20.0, 120.0)


def test_report_without_evaluations(tmp_path: Path) -> None:
    path = write_curve(tmp_path / "a.json", [offline(500, q_data_mean=1.0), offline(1000, q_data_mean=2.0)])
    done = report(str(path), "--out", str(tmp_path / "out"), "--format", "svg")
    assert done.exit_code == 0, done.output
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["q-values.svg", "report.md"]
    assert "never evaluated" in done.output
