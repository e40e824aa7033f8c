"""Experiment files that say only what differs from another: `extends`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.learning_curve import load_config
from rllib_calql.cli.common import UserError
from rllib_calql.cli.experiments import from_file, load_file
from rllib_calql.cli.options import TrainFileOptions
from tests.test_cli import web

__all__ = ["web"]

BASE = {
    "base": {
        "run": "CalQL",
        "env": "A-v0",
        "stop": {"training_iteration": 7},
        "config": {
            "input": "d4rl://antmaze-umaze-v2",
            "input_config": {"rewards": "dense"},
            "gamma": 0.9,
            "actor_lr": {"uniform": [0.1, 0.2]},
            "policy_model_config": {"fcnet_hiddens": [8, 8], "fcnet_activation": "tanh"},
        },
    }
}


def write(path: Path, **experiments: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(experiments))
    return str(path)


def test_what_a_file_says_is_laid_over_its_base(tmp_path: Path) -> None:
    write(tmp_path / "bases" / "base.yaml", **BASE)
    write(
        tmp_path / "bases" / "middle.yaml", middle={"extends": "base.yaml", "config": {"gamma": 0.8, "tau": 0.1}}
    )
    (tmp_path / "data.hdf5").touch()
    config = {
        "input_": "data.hdf5",
        "env": "B-v0",
        "actor_lr": {"loguniform": [0.1, 0.3]},
        "policy_model_config": {"fcnet_hiddens": [4]},
    }
    top = write(
        tmp_path / "top.yaml", top={"extends": "bases/middle.yaml", "config": config}, other={"run": "PPO"}
    )
    assert load_file(top) == {
        "top": {
            "run": "CalQL",
            "stop": {"training_iteration": 7},
            "config": {
                "env": "B-v0",
                "input_": str(tmp_path / "data.hdf5"),
                "input_config": {"rewards": "dense"},
                "gamma": 0.8,
                "tau": 0.1,
                "actor_lr": {"loguniform": [0.1, 0.3]},
                "policy_model_config": {"fcnet_hiddens": [4], "fcnet_activation": "tanh"},
            },
        },
        "other": {"run": "PPO", "config": {}},
    }


def test_the_command_line_and_the_learning_curve_change_the_whole(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", **BASE)
    delta = {"extends": "base.yaml", "env": "B-v0", "config": {"actor_lr": 0.1}}
    path = write(tmp_path / "top.yaml", top=delta)
    changes = ["gamma=0.5", "policy_model_config.fcnet_hiddens=[3]", "input=x.hdf5"]
    spec = from_file(TrainFileOptions(config_file=path, set_=changes, env="C-v0"))["top"]
    assert (spec["config"]["env"], spec["config"]["gamma"], spec["config"]["input_"]) == ("C-v0", 0.5, "x.hdf5")
    assert "input" not in spec["config"]
    config = load_config(Path(path), changes)
    assert (config.env, config.gamma, config.input_) == ("B-v0", 0.5, "x.hdf5")
    assert config.policy_model_config["fcnet_hiddens"] == [3]
    assert config.policy_model_config["fcnet_activation"] == "tanh"


def test_installed_files_and_urls_are_bases_too(tmp_path: Path, web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "share" / "rllib_calql" / "tuned_configs" / "base.yaml", **BASE)
    write(tmp_path / "share" / "rllib_calql" / "tuned_configs" / "task.yaml", task={"extends": "base.yaml"})
    own = write(tmp_path / "own" / "own.yaml", own={"extends": "tuned_configs/task.yaml"})
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert load_file(own)["own"]["config"]["env"] == "A-v0"
    found = load_file(f"{web}/share/rllib_calql/tuned_configs/task.yaml")
    assert found["task"]["config"]["env"] == "A-v0"


@pytest.mark.parametrize(
    ("extends", "message"),
    [
        ("nowhere.yaml", "experiment 'a' extends nowhere.yaml: there is no file nowhere.yaml"),
        ("a.yaml", "goes round in a circle: .*a.yaml -> .*a.yaml"),
        ("b.yaml", "goes round in a circle: .*a.yaml -> .*b.yaml -> .*a.yaml"),
        ("two.yaml", "extends .*two.yaml, which holds 2 experiments"),
        (["b.yaml"], r"extends takes the name of a file, not \['b.yaml'\]"),
    ],
)
def test_bases_that_are_none_are_refused(tmp_path: Path, extends: Any, message: str) -> None:
    path = write(tmp_path / "a.yaml", a={"extends": extends})
    write(tmp_path / "b.yaml", b={"extends": "a.yaml"})
    write(tmp_path / "two.yaml", one={}, two={})
    with pytest.raises(UserError, match=message):
        load_file(path)
