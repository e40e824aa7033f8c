"""Real Tune runs: a population that mutates, and what `calql sweep` makes of its folder."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from ray import tune
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.tune import run_experiments
from ray.tune.schedulers import PopulationBasedTraining
from typer.testing import CliRunner, Result

from rllib_calql import CalQLConfig, Transitions
from rllib_calql.cli import train
from rllib_calql.cli.calql import app
from rllib_calql.cli.sweep import read_trials
from rllib_calql.data import write_dataset
from tests.test_resume import BOTH_STACKS, small_config

PNG = b"\x89PNG\r\n\x1a\n"


def sweep(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["sweep", *map(str, arguments)])


@pytest.mark.usefixtures("ray_session")
@BOTH_STACKS
def test_a_checkpoint_goes_on_with_changed_settings(
    pendulum_data: Transitions, tmp_path: Path, new_stack: bool
) -> None:
    """What population based training does to a trial: a new algorithm takes over another's checkpoint."""
    donor = small_config(pendulum_data, 0, new_stack, actor_lr=1e-3).build_algo()
    donor.train()
    donor.save(str(tmp_path))
    changed: dict[str, Any] = {"actor_lr": 0.0, "critic_lr": 1e-2, "tau": 1.0, "min_q_weight": 0.5, "gamma": 0.9}
    taker = small_config(pendulum_data, 0, new_stack, **changed).build_algo()
    taker.restore(str(tmp_path))
    before, donated = taker.update.weights(), donor.update.weights()
    np.testing.assert_equal(before, donated)
    assert [group["lr"] for group in taker.update.optimizer.param_groups[:2]] == [0.0, 1e-2]
    assert (taker.update.config.min_q_weight, taker.update.config.gamma) == (0.5, 0.9)
    assert taker.train()["calql"]["num_updates"] == 20
    after = taker.update.weights()
    for name in before:
        if name.startswith("actor."):
            np.testing.assert_array_equal(after[name], before[name], err_msg=name)
        if name.startswith("critics.weights"):
            moved = np.abs(after[name] - before[name]).max()
            assert 1e-2 < moved <= 1.1e-1  # ten steps of Adam, each of about the learning rate
            np.testing.assert_array_equal(after[f"target_{name}"], after[name])  # tau = 1
    donor.stop()
    taker.stop()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_population_based_training_changes_the_live_algorithm(pendulum_data: Transitions, tmp_path: Path) -> None:
    class Record(RLlibCallback):
        """What the update really uses; and the trial with the larger learning rate is the better one."""

        def on_train_result(self, *, algorithm: Any, result: dict[str, Any], **kwargs: Any) -> None:
            (actor_lr, *_) = [group["lr"] for group in algorithm.update.optimizer.param_groups]
            tau, num_updates = algorithm.update.config.tau, algorithm.update.num_updates
            result |= {"actor_lr": actor_lr, "tau": tau, "num_updates": num_updates, "score": actor_lr}

    config = small_config(pendulum_data, 0, num_offline_updates=40, num_online_env_steps=0)
    config.training(actor_lr=tune.grid_search([1e-4, 1e-3]), tau=0.01)
    config.evaluation(evaluation_interval=None).callbacks(Record)
    population = PopulationBasedTraining(
        time_attr="training_iteration",
        perturbation_interval=2,
        quantile_fraction=0.5,
        resample_probability=0.0,
        hyperparam_mutations={"actor_lr": tune.loguniform(1e-5, 1e-2), "tau": tune.uniform(1e-3, 0.1)},
        synch=True,
    )
    tuner = tune.Tuner(
        "CalQL",
        param_space=config,
        tune_config=tune.TuneConfig(metric="score", mode="max", scheduler=population),
        run_config=tune.RunConfig(name="pbt", storage_path=str(tmp_path), verbose=0),
    )
    results = tuner.fit()
    assert results.num_errors == 0
    changed = 0
    for path in (tmp_path / "pbt").glob("*/result.json"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert [row["num_updates"] for row in rows] == [10 * row["training_iteration"] for row in rows]
        for row in rows:
            assert [row[name] for name in ("actor_lr", "tau")] == [
                row["config"][name] for name in ("actor_lr", "tau")
            ]
        changed += rows[0]["tau"] != rows[-1]["tau"]
    assert changed >= 1  # at first the worse trial took over the better one, and changed it

    done = sweep(tmp_path / "pbt", "--metric", "score")
    assert done.exit_code == 0, done.output
    document = json.loads((tmp_path / "pbt" / "sweep.json").read_text())
    assert {"actor_lr", "tau"} <= document["best"].keys()
    assert [trial["status"] for trial in document["trials"]] == ["ended", "ended"]
    assert [trial["iterations"] for trial in document["trials"]] == [4, 4]


def mapped_memory(folder: Path) -> dict[str, float]:
    """Resident bytes of the files mapped from a folder: all of them, and this process's share."""
    found, counts = {"Rss": 0.0, "Pss": 0.0}, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *values = line.split()
        if not name.endswith(":"):
            counts = str(folder) in line
        elif counts and name[:-1] in found:
            found[name[:-1]] += 1024.0 * int(values[0])
    return found


@pytest.mark.usefixtures("ray_session")
def test_trials_on_one_machine_share_one_mapped_dataset(tmp_path: Path) -> None:
    folder, num_rows, rng = tmp_path / "data", 50_000, np.random.default_rng(0)
    ends = np.arange(num_rows) % 100 == 99
    data = Transitions.from_arrays(
        observations=rng.normal(size=(num_rows, 40)).astype(np.float32),
        actions=rng.uniform(-1.0, 1.0, (num_rows, 2)).astype(np.float32),
        rewards=rng.normal(size=num_rows).astype(np.float32),
        terminated=ends,
        truncated=np.zeros(num_rows, bool),
    )
    write_dataset(data, folder)
    size = sum(path.stat().st_size for path in folder.iterdir())

    class Measure(RLlibCallback):
        """In both trials at the same time."""

        def on_train_result(self, *, algorithm: Any, result: dict[str, Any], **kwargs: Any) -> None:
            self.meet("before")
            result["memory"] = mapped_memory(folder)
            self.meet("after")

        def meet(self, where: str) -> None:
            (tmp_path / f"{where}-{os.getpid()}").touch()
            for _ in range(600):
                if len(list(tmp_path.glob(f"{where}-*"))) == 2:
                    return
                time.sleep(0.1)
            raise TimeoutError("the other trial did not come")

    config = (
        CalQLConfig()
        .environment(
            observation_space=gym.spaces.Box(-np.inf, np.inf, (40,)), action_space=gym.spaces.Box(-1, 1, (2,))
        )
        .offline_data(input_=str(folder))
        .training(
            num_offline_updates=5,
            min_train_updates_per_iteration=5,
            num_online_env_steps=0,
            actor_lr=tune.grid_search([1e-4, 1e-3]),
        )
        .callbacks(Measure)
    )
    run_config = tune.RunConfig(storage_path=str(tmp_path / "results"), verbose=0)
    results = tune.Tuner("CalQL", param_space=config, run_config=run_config).fit()
    assert results.num_errors == 0
    assert {result.config["actor_lr"] for result in results} == {1e-4, 1e-3}
    memories = [result.metrics["memory"] for result in results]
    assert len(memories) == 2
    assert all(memory["Rss"] > 0.9 * size for memory in memories)
    assert sum(memory["Pss"] for memory in memories) < 1.1 * size


class Endless(tune.Trainable):
    def step(self) -> dict[str, Any]:
        time.sleep(0.05)
        return {}


class Budget(tune.Stopper):
    """Ends everything once there is a result, as a `time_budget_s` does: through `stop_all`."""

    spent = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        self.spent = True
        return False

    def stop_all(self) -> bool:
        return self.spent


class Interrupt(tune.Callback):
    def on_trial_result(self, **info: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("stop", "callbacks", "code", "status"), [(Budget(), [], 0, "ended"), (None, [Interrupt()], 130, "unfinished")]
)
def test_what_a_budget_ends_is_not_interrupted(
    tmp_path: Path, stop: tune.Stopper | None, callbacks: list[tune.Callback], code: int, status: str
) -> None:
    ends, handler = train.Ends(), signal.getsignal(signal.SIGINT)
    spec = {"run": Endless, "storage_path": str(tmp_path), "stop": stop}
    trials = run_experiments({"x": spec}, callbacks=[ends, *callbacks], verbose=0)
    signal.signal(signal.SIGINT, handler)
    assert train.report(trials, ends) == code
    sweep(tmp_path, "--metric", "training_iteration")
    (trial,) = json.loads((tmp_path / "sweep.json").read_text())["trials"]
    assert trial["status"] == status


def write_trial(
    folder: Path, config: dict[str, Any], rows: list[dict[str, Any]], tail: str = "", error: str | None = None
) -> None:
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps(config))
    (folder / "result.json").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    if error is not None:
        (folder / "error.txt").write_text(error)


def row(iteration: int, score: float | None, phase: str = "offline", **more: Any) -> dict[str, Any]:
    block = {"phase": phase, "num_updates": 100 * iteration}
    return {
        "training_iteration": iteration,
        "calql": block if score is None else block | {"normalized_score": score},
        **more,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Trials as interrupted and failed runs leave them."""
    folder = tmp_path / "run"
    model = {"fcnet_hiddens": [8]}
    good, poor = {"lr": 0.5, "q": model, "seed": 0}, {"lr": 0.1, "q": model, "seed": 0}
    # 1 ended, after a restore that repeated iteration 2; iteration 3 was not evaluated
    rows = [row(1, 0.1), row(2, 0.9), row(2, 0.2), row(3, None), row(4, 0.7, "online", done=True)]
    write_trial(folder / "CalQL_x_ab12_00000_0_lr=0.5_2026", good, rows)
    # 2 killed while it wrote its third result
    write_trial(
        folder / "CalQL_x_ab12_00001_1_lr=0.1_2026", poor, [row(1, 0.8), row(2, 0.3)], '{"calql": {"num_up'
    )
    # 3 failed at once, 4 later, 5 never began
    write_trial(folder / "CalQL_x_ab12_00002_2_2026", poor | {"lr": 0.2}, [], error="ValueError: no")
    write_trial(folder / "CalQL_x_ab12_00003_3_2026", poor | {"lr": 0.3}, [row(1, 0.4)], error="Died")
    write_trial(folder / "CalQL_x_ab12_00004_4_2026", poor | {"q": {"fcnet_hiddens": [8, 8]}}, [])
    return folder


def test_sweep_of_interrupted_and_failed_trials(folder: Path, tmp_path: Path) -> None:
    done = sweep(folder, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "best: ab12_00000 (ended), calql/normalized_score 0.7" in done.output
    assert "--set lr=0.5 --set 'q.fcnet_hiddens=[8]'" in done.output
    document = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert document["best"] == {"lr": 0.5, "q.fcnet_hiddens": [8]}
    assert [(trial["name"][-1], trial["status"], trial["last"]) for trial in document["trials"]] == [
        ("0", "ended", 0.7),
        ("3", "failed", 0.4),
        ("1", "unfinished", 0.3),
        ("2", "failed", None),
        ("4", "no result", None),
    ]
    with (tmp_path / "out" / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [
        (entry["iteration"], entry["progress"], entry["phase"], entry["calql/normalized_score"])
        for entry in rows
        if entry["trial"] == "ab12_00000"
    ] == [("1", "100.0", "offline", "0.1"), ("2", "200.0", "offline", "0.2"), ("4", "400.0", "online", "0.7")]
    assert (tmp_path / "out" / "sweep.png").read_bytes().startswith(PNG)
    # The switch is told by all results, those without the metric, too.
    assert [trial.switch for trial in read_trials(folder, "calql.cumulative_regret")] == [300.0, *[None] * 4]
    done = sweep(folder, "--mode", "min")
    assert "best: ab12_00001 (unfinished)" in done.output
    assert (folder / "sweep.png").is_file()


def test_sweep_compares_what_was_set_across_the_api_stacks(tmp_path: Path) -> None:
    # The results hold RLlib's defaults as well, which differ between the stacks; functions are told by address.
    old = {"new_stack": False, "lr": 0.1, "runner": "<class 'Old'>", "exploration": {"type": "Stochastic"}}
    new = {"new_stack": True, "lr": 0.2, "runner": "<class 'New'>", "exploration": {}}
    write_trial(tmp_path / "old", {"lr": 0.1, "map": "<function at 0x1>"}, [row(1, 0.1, config=old)])
    write_trial(
        tmp_path / "new", {"lr": 0.2, "map": "<function at 0x2>", "new_stack": True}, [row(1, 0.2, config=new)]
    )
    done = sweep(tmp_path)
    assert done.exit_code == 0, done.output
    document = json.loads((tmp_path / "sweep.json").read_text())
    assert document["best"] == {"lr": 0.2, "new_stack": True}
    assert document["trials"][1]["config"] == {"lr": 0.1, "new_stack": False}


def test_unusable_sweeps_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "params.json").write_text("{")
    for arguments, message in (
        ([tmp_path / "broken"], "params.json: broken, not a JSON file"),
        ([tmp_path / "empty"], "there is no trial of a Tune run below"),
        ([folder, "--metric", "calql/score"], "no result of the 5 trials below"),
        ([folder, "--mode", "best"], "--mode best: max or min"),
    ):
        done = sweep(*arguments)
        assert done.exit_code == 2
        assert message in done.stderr
