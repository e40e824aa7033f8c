"""The `rllib` command: what it reads, what it changes, and what it refuses."""

from __future__ import annotations

import functools
import http.server
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.rllib.algorithms.ppo import PPO
from ray.tune.schedulers import ASHAScheduler
from typer.testing import CliRunner, Result

from rllib_calql import CalQLConfig
from rllib_calql.cli import experiments, search, train
from rllib_calql.cli.common import UserError
from rllib_calql.cli.options import REFUSED, TrainFileOptions, TrainOptions
from rllib_calql.cli.rllib import app

SMALL = {
    "small": {
        "run": "PPO",
        "env": "CartPole-v1",
        "stop": {"training_iteration": 1},
        "config": {
            "num_env_runners": 0,
            "lr": 3e-4,
            "train_batch_size_per_learner": 100,
            "minibatch_size": 50,
            "num_epochs": 1,
        },
    }
}


def rllib(*args: str | Path) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def refused(result: Result, code: int = 2) -> str:
    """The one error line of a command that ended with this code."""
    assert result.exit_code == code, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, result.stderr
    return lines[0].removeprefix("Error: ")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


def from_yaml(tmp_path: Path, text: str, **options: Any) -> dict[str, Any]:
    path = tmp_path / "file.yaml"
    path.write_text(textwrap.dedent(text))
    return experiments.from_file(TrainFileOptions(config_file=str(path), **options))


def changed(in_file: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    return experiments.override("x", {"run": "PPO", "config": in_file or {}}, TrainOptions(**options))


# ---- options -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", REFUSED)
@pytest.mark.parametrize("command", [["train"], ["train", "file", "x.yaml"], ["evaluate", "x"]], ids=" ".join)
def test_what_no_longer_works_is_refused_with_the_reason(command: list[str], option: str) -> None:
    assert refused(rllib(*command, f"{option}=1")) == f"{option} is refused: {REFUSED[option]}"


def test_options_before_the_subcommand_are_not_lost(small: Path) -> None:
    assert "options go after `train file`" in refused(rllib("train", "--env", "X", "file", small))


def test_removed_subcommands_are_unknown() -> None:
    for command in ("rollout", "example"):
        assert rllib(command).exit_code == 2


def test_help_names_every_option() -> None:
    text = rllib("train", "file", "--help").output
    for option in ("--dataset", "--set", "--dry-run", "--no-download", "--checkpoint-freq", "-vv"):
        assert option in text


def test_train_needs_an_algorithm() -> None:
    assert "name an algorithm" in refused(rllib("train"))
    assert "there is no algorithm 'Nope'; known are ['APPO'" in refused(rllib("train", "--algo", "Nope"))
    assert "'CalQL'" in refused(rllib("train", "--algo", "Nope"))


# ---- files -------------------------------------------------------------------------------------------------


def test_yaml_numbers_are_numbers(tmp_path: Path) -> None:
    text = "a: {run: PPO, env: E, config: {lr: 3e-4, b: 1E+2, c: -.5e1, d: 1_000, e: '3e-4', f: e3, g: 2e}}"
    config = from_yaml(tmp_path, text)["a"]["config"]
    del config["env"]
    assert config == {"lr": 3e-4, "b": 100.0, "c": -5.0, "d": 1000, "e": "3e-4", "f": "e3", "g": "2e"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {run: PPO", "not valid YAML"),
        ("- a", "must be a mapping"),
        ("{}", "holds no experiment"),
        ("a: 3", "experiment 'a' must be a mapping"),
        ("a: {env: E}", "`run`, the name of the algorithm, is missing"),
        ("a: {run: PPO, checkpoint_freq: 3}", "checkpoint_freq is refused: write checkpoint_config"),
        ("a: {run: PPO, resources_per_trial: {cpu: 1}}", "asks for its own resources"),
        ("a: {run: PPO, local_dir: /x}", "local_dir is refused: write storage_path"),
        ("a: {run: PPO, sotp: {}}", "unknown key 'sotp'; known are .*'stop'"),
        ("a: {run: PPO, restore: /nowhere}", "no checkpoint folder /nowhere"),
        ("a: {run: PPO, config: [1, 2]}", r"'a': config must be a mapping, not \[1, 2\]"),
        ("a: {run: PPO, stop: 5}", "stop must be a mapping, not 5"),
        ("a: {run: PPO, scheduler: {a: 1}}", "scheduler must be a text"),
        ("a: {run: PPO, checkpoint_config: [1]}", "checkpoint_config must be a mapping"),
        ("a: {run: PPO, checkpoint_config: {checkpoint_freq: 5}}", "checkpoint_config: .*'checkpoint_freq'"),
        ("a: {run: PPO, checkpoint_config: {num_to_keep: 0}}", "checkpoint_config: .*num_to_keep"),
    ],
)
def test_unusable_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_yaml(tmp_path, text)


def test_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    assert "there is no file nowhere.yaml" in refused(rllib("train", "file", "nowhere.yaml"))
    (tmp_path / "x.txt").write_text("")
    assert "neither a .yaml nor a .py file" in refused(rllib("train", "file", tmp_path / "x.txt"))


def test_python_file_gives_config_and_stop(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from ray.rllib.algorithms.ppo import PPOConfig\n"
        "config = PPOConfig().environment('CartPole-v1').training(gamma=0.5)\n"
        "stop = {'training_iteration': 7}\n"
    )
    spec = experiments.from_file(TrainFileOptions(config_file=str(path)))["mine"]
    assert (spec["run"], spec["stop"]) == (PPO, {"training_iteration": 7})
    assert (spec["config"]["env"], spec["config"]["gamma"]) == ("CartPole-v1", 0.5)
    (variant,) = experiments.variants("mine", spec)
    assert (variant.config.gamma, variant.unknown_keys) == (0.5, [])
    spec = experiments.from_file(TrainFileOptions(config_file=str(path), stop="{time_total_s: 3}"))["mine"]
    assert spec["stop"] == {"time_total_s": 3}
    path.write_text("config = {}")
    with pytest.raises(UserError, match="must define `config`, an AlgorithmConfig; found dict"):
        experiments.load_file(str(path))


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """The address of a web server on loopback that serves the temporary folder."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_config_file_may_be_a_url(small: Path, web: str) -> None:
    assert experiments.load_file(f"{web}/small.yaml?version=1").keys() == {"small"}
    with pytest.raises(UserError, match=r"cannot download .*nowhere.yaml: HTTP Error 404"):
        experiments.load_file(f"{web}/nowhere.yaml")


def test_tuned_configs_of_an_installed_package_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "share" / "rllib_calql" / "tuned_configs"
    folder.mkdir(parents=True)
    (folder / "a.yaml").write_text("a: {run: PPO}")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert experiments.load_file("tuned_configs/a.yaml").keys() == {"a"}


# ---- changes from the command line -------------------------------------------------------------------------


def test_config_options_are_merged_in_order() -> None:
    config = {
        "model": {"fcnet_hiddens": [1], "fcnet_activation": "tanh"},
        "lr": {"grid_search": [1, 2]},
        "gamma": 1,
    }
    spec = changed(
        config,
        config='{"model": {"fcnet_hiddens": [2, 2]}, "gamma": 0.5, "env": "A"}',
        set_=["gamma=0.9", "env_config.maze.size=3", "lr={grid_search: [3e-4]}", "env=B"],
        env="C",
    )
    assert spec["config"] == {
        "model": {"fcnet_hiddens": [2, 2], "fcnet_activation": "tanh"},
        "lr": {"grid_search": [3e-4]},
        "gamma": 0.9,
        "env_config": {"maze": {"size": 3}},
        "env": "C",
    }
    assert config["gamma"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": "[1]"}, "--config must be a mapping"),
        ({"config": "{"}, "--config is not valid YAML or JSON"),
        ({"set_": ["gamma"]}, "--set takes KEY=VALUE, not 'gamma'"),
        ({"set_": ["a={"]}, "--set a is not valid YAML"),
        ({"stop": "3"}, "--stop must be a mapping"),
        ({"framework": "tf2"}, "only torch"),
        ({"download": False}, "PPO does not download"),
        ({"restore": "/nowhere"}, "no checkpoint folder /nowhere"),
    ],
)
def test_unusable_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        changed(**options)


def test_dataset_replaces_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data.hdf5").touch()
    monkeypatch.chdir(tmp_path)
    spec: dict[str, Any] = {
        "run": "CalQL",
        "config": {"input_": "d4rl://a", "input_config": {"rewards": "dense"}},
    }
    config = experiments.override("x", spec, TrainOptions(dataset="data.hdf5", download=False))["config"]
    # Absolute, because a trial runs in a folder of its own.
    assert config["input_"] == str(tmp_path / "data.hdf5")
    assert config["input_config"] == {"rewards": "dense"}  # there is nothing to download
    config = experiments.override("x", spec, TrainOptions(download=False))["config"]
    assert config["input_config"] == {"rewards": "dense", "download": False}
    assert changed(dataset="d4rl://pen-human-v1")["config"]["input_"] == "d4rl://pen-human-v1"


def test_downloads_are_switched_off_where_there_are_some() -> None:
    spec: dict[str, Any] = {"run": "CalQL", "config": {"input_": "minari://a/b-v0"}}
    config = experiments.override("x", spec, TrainOptions(download=False))["config"]
    assert config["input_config"] == {"download": False}
    spec["config"]["input_"] = ["d4rl://a", "pointmaze://b", {"input": "minari://c/d-v0", "weight": 2.0}]
    config = experiments.override("x", spec, TrainOptions(download=False))["config"]
    assert config["input_"] == [
        {"input": "d4rl://a", "download": False},
        {"input": "pointmaze://b"},
        {"input": "minari://c/d-v0", "weight": 2.0, "download": False},
    ]
    assert "input_config" not in config


def test_data_beside_the_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "data.hdf5").touch()
    spec = from_yaml(tmp_path, "a: {run: CalQL, config: {input_: data.hdf5}}")["a"]
    assert spec["config"]["input_"] == str(tmp_path / "data.hdf5")


@pytest.mark.parametrize(
    ("in_file", "options", "expected"),
    [
        ({}, {}, {"checkpoint_at_end": True}),
        ({"checkpoint_at_end": False}, {}, {"checkpoint_at_end": False}),
        ({"checkpoint_at_end": False}, {"checkpoint_at_end": True}, {"checkpoint_at_end": True}),
        (
            {"checkpoint_frequency": 5, "num_to_keep": 2},
            {"checkpoint_freq": 0},
            {"checkpoint_at_end": True, "checkpoint_frequency": 0, "num_to_keep": 2},
        ),
        (
            {},
            {"keep_checkpoints_num": 3, "checkpoint_score_attr": "min-loss"},
            {
                "checkpoint_at_end": True,
                "num_to_keep": 3,
                "checkpoint_score_attribute": "loss",
                "checkpoint_score_order": "min",
            },
        ),
    ],
)
def test_checkpoint_settings_are_the_files_unless_given(
    in_file: dict[str, Any], options: dict[str, Any], expected: dict[str, Any]
) -> None:
    spec = {"run": "PPO", "config": {}, "checkpoint_config": in_file}
    assert experiments.override("x", spec, TrainOptions(**options))["checkpoint_config"] == expected


def test_tune_settings_are_the_files_unless_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = "a: {run: PPO, env: E, num_samples: 2, storage_path: here, stop: {time_total_s: 1}, max_failures: 3}"
    spec = from_yaml(tmp_path, text)["a"]
    assert (spec["num_samples"], spec["max_failures"], spec["stop"]) == (2, 3, {"time_total_s": 1})
    assert spec["storage_path"] == str(tmp_path / "here")
    experiment = from_yaml(tmp_path, text, num_samples=4, storage_path="s3://b/c", experiment_name="n")["n"]
    assert (experiment["num_samples"], experiment["storage_path"]) == (4, "s3://b/c")
    with pytest.raises(UserError, match="holds 2 experiments"):
        from_yaml(tmp_path, "a: {run: PPO}\nb: {run: PPO}", experiment_name="n")


# ---- checking ----------------------------------------------------------------------------------------------


def test_every_grid_point_is_checked() -> None:
    spec = changed({"env": "E", "lr": {"grid_search": [0.1, 0.2]}, "typo": 1})
    first, second = experiments.variants("x", spec)
    assert (first.label, first.config.lr, first.unknown_keys) == ("x, lr=0.1", 0.1, ["typo"])
    assert (second.label, second.config.lr) == ("x, lr=0.2", 0.2)
    assert train.resources(first) == {"CPU": 3.0}
    with pytest.raises(ValueError, match="neither an environment"):
        list(experiments.variants("x", changed()))


def test_search_spaces_and_schedulers_of_a_file(tmp_path: Path) -> None:
    text = """
        x:
            run: CalQL
            scheduler: ASHA
            scheduler_config: {metric: calql/normalized_score, mode: max, max_t: 9}
            config:
                actor_lr: {loguniform: [1e-4, 1e-2]}
                critic_lr: {uniform: [0, 1]}
                tau: {grid_search: [0.1, 0.2]}
                q_model_config: {fcnet_hiddens: {choice: [[8], [8, 8]]}, fcnet_activation: tanh}
    """
    spec = from_yaml(tmp_path, text, set_=["critic_lr={choice: [0.5]}"])["x"]
    config = spec["config"]
    rates = [config["actor_lr"].sample() for _ in range(50)]
    assert 1e-4 <= min(rates) < 1e-3 < max(rates) <= 1e-2
    assert config["critic_lr"].sample() == 0.5
    assert config["tau"] == {"grid_search": [0.1, 0.2]}
    assert config["q_model_config"]["fcnet_hiddens"].sample() in ([8], [8, 8])
    assert isinstance(search.make_scheduler(spec["scheduler"], spec["scheduler_config"]), ASHAScheduler)
    pbt = {"hyperparam_mutations": {"tau": {"choice": [0.5]}}, "metric": "m", "mode": "max"}
    mutations = search.make_scheduler("pbt", pbt)._hyperparam_mutations
    assert mutations["tau"].sample() == 0.5


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("{uniform: 3}", "config.tau: uniform takes a list, not 3"),
        ("{uniform: [1, 2, 3]}", "config.tau: uniform does not take [1, 2, 3]"),
        ("{loguniform: [0, 1]}", "config.tau: loguniform does not take [0, 1]"),
    ],
)
def test_unusable_search_spaces_are_refused(small: Path, space: str, message: str) -> None:
    assert message in refused(rllib("train", "file", small, "--set", f"tau={space}"))


def test_trial_larger_than_the_machine_is_refused() -> None:
    (variant,) = experiments.variants("x", changed({"env": "E", "num_env_runners": 3}))
    train.refuse_too_large([variant], {"CPU": 4.0})
    with pytest.raises(UserError, match=r"x needs 4 CPU, Ray has 2: lower num_env_runners.*--ray-num-cpus 4$"):
        train.refuse_too_large([variant], {"CPU": 2.0})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scheduler", "best"], "scheduler best is none of"),
        (["--scheduler-config", "{max_t: 3}"], "fifo has no ['max_t']"),
        (["--scheduler", "async_hyperband", "--scheduler-config", "{mode: up}"], "scheduler_config: "),
        (["--wandb-key", "k"], "need --wandb-project"),
    ],
)
def test_schedulers_and_loggers_are_checked(small: Path, options: list[str], message: str) -> None:
    assert message in refused(rllib("train", "file", small, "--dry-run", *options))


def test_time_budgets_that_tune_would_drop_are_refused(tmp_path: Path) -> None:
    found = from_yaml(tmp_path, "a: {run: PPO, env: E}\nb: {run: PPO, env: E, time_budget_s: 5}")
    with pytest.raises(UserError, match="time_budget_s counts for the whole file"):
        train.run(found, TrainOptions(dry_run=True))


def test_dry_run_prints_the_plan_and_trains_nothing(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "started_ray", None)
    monkeypatch.setattr(CalQLConfig, "plan", lambda self: {"data": {"transitions": 1234}})
    result = rllib("train", "file", small, "--dry-run", "--set", "nonsense=1")
    assert result.exit_code == 0, result.output
    assert "CartPole-v1" in result.stdout
    assert "PPO has no setting nonsense" in result.stderr
    offline = ["--set", "input_=x.hdf5", "--set", "num_online_env_steps=0", "--dry-run"]
    result = rllib("train", "--algo", "CalQL", "--env", "Pendulum-v1", *offline)
    assert result.exit_code == 0, result.output
    assert "1234" in result.stdout


def test_invalid_config_is_one_line_and_code_1() -> None:
    arguments = ["train", "--algo", "CalQL", "--env", "Pendulum-v1", "--dry-run", "--set", "critic_lr=quick"]
    assert refused(rllib(*arguments), code=1).startswith("critic_lr must be a number, not 'quick'")
    assert isinstance(rllib(*arguments, "-vv").exception, ValueError)
