"""Every file of tuned_configs/: valid as it stands, with stand-ins for its data in their real formats."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pytest
import tree
from typer.testing import CliRunner

from rllib_calql.cli.experiments import load_file
from rllib_calql.cli.rllib import app
from rllib_calql.data.sources.d4rl_tasks import TASKS
from rllib_calql.envs import register
from rllib_calql.presets import PRESETS
from tests.test_trajectories import as_npy

register()
FOLDER = Path(__file__).resolve().parents[1] / "tuned_configs"
# What others extend, without an environment of their own.
BASES = {"calql-adroit", "calql-kitchen", "calql-visual"}
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
EPISODES, LENGTH = 3, 5


def experiment(name: str) -> dict[str, Any]:
    (spec,) = load_file(str(FOLDER / f"{name}.yaml")).values()
    return spec


def stand_in(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Some episodes of the environment's shapes, which fail but for their last step."""
    env = gym.make(config["env"], **config.get("env_config", {}))
    spaces = {"observations": env.observation_space, "actions": env.action_space}
    env.close()
    rows = EPISODES * LENGTH
    columns = {
        name: np.array([tree.flatten(space.sample())[0] for _ in range(rows)]) for name, space in spaces.items()
    }
    ends = np.arange(rows) % LENGTH == LENGTH - 1
    failure = config.get("sparse_failure_reward") or 0.0
    return columns | {"rewards": (failure + ends).astype(np.float32), "terminals": ends}


def as_hdf5(path: Path, columns: dict[str, np.ndarray]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, column in columns.items():
            file[name] = column
    return path


def as_trajectories(path: Path, columns: dict[str, np.ndarray], *, human: bool) -> Path:
    """The authors' two kinds of Adroit files: a human's observations are dicts, a policy's are arrays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = []
    for start in range(0, EPISODES * LENGTH, LENGTH):
        part = {name: column[start : start + LENGTH] for name, column in columns.items()}
        states = [{"state_observation": row} if human else row for row in part["observations"]]
        content.append(
            {
                "observations": states,
                "next_observations": [*states[1:], states[-1]],
                "actions": part["actions"],
                "rewards": part["rewards"][:, None],
                "terminals": np.zeros((LENGTH, 1), dtype=bool),
            }
        )
    return as_npy(path, content)


def write_data(config: dict[str, Any]) -> list[str]:
    """Puts stand-ins where the config looks for its data; returns what the command line has to add."""
    columns = stand_in(config)
    source = config["input_"]
    if isinstance(source, str) and source.startswith("d4rl://"):
        name = source.removeprefix("d4rl://")
        assert name in TASKS
        as_hdf5(Path(f"{name}.hdf5"), columns)
        return ["--no-download"]
    if isinstance(source, list):
        for entry in source:
            as_trajectories(Path(entry["input"]), columns, human="2_sparse" in entry["input"])
        return []
    return ["--dataset", str(as_hdf5(Path("stand-in.hdf5"), columns))]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in BASES])
@pytest.mark.filterwarnings("ignore:.*(recorded in another environment|precision lowered):")
def test_a_dry_run_finds_nothing_wrong(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    config = experiment(name)["config"]
    options = write_data(config)
    result = CliRunner().invoke(app, ["train", "file", str(FOLDER / f"{name}.yaml"), "--dry-run", *options])
    assert result.exit_code == 0, result.output
    assert re.search(rf"env +{re.escape(config['env'])}\s", result.stdout)
    files = len(config["input_"]) if isinstance(config["input_"], list) else 1
    assert re.search(rf"transitions +{files * EPISODES * LENGTH}\s", result.stdout)
    assert re.search(rf"terminated episodes +{files * EPISODES}\s", result.stdout)


@pytest.mark.parametrize("name", sorted(BASES))
def test_a_base_file_is_no_task(name: str) -> None:
    result = CliRunner().invoke(app, ["train", "file", str(FOLDER / f"{name}.yaml"), "--dry-run"])
    assert result.exit_code == 1
    assert "Error: the offline phase needs data" in result.stderr


# Appendix D (steps), table 3 (weight, gap, mixing ratio) and the scripts (networks, scale of the rewards).
ANTMAZE = {
    "num_offline_updates": 1_000_000,
    "num_online_env_steps": 1_000_000,
    "min_q_weight": 5.0,
    "lagrangian": True,
    "lagrangian_thresh": 0.8,
    "max_target_backup": True,
    "mixing_ratio": 0.5,
    "sparse_failure_reward": 0.0,
    "reward_scale": 10.0,
    "reward_bias": -5.0,
    "policy_model_config": {"fcnet_hiddens": [256] * 2},
    "q_model_config": {"fcnet_hiddens": [256] * 4},
}
KITCHEN = {
    "num_offline_updates": 500_000,
    "num_online_env_steps": 1_250_000,
    "min_q_weight": 5.0,
    "lagrangian": False,
    "importance_sampling": False,
    "mixing_ratio": 0.25,
    "truncation_mode": "infinite",
    "reward_scale": 1.0,
    "reward_bias": 0.0,
    "policy_model_config": {"fcnet_hiddens": [512] * 3},
    "q_model_config": {"fcnet_hiddens": [512] * 3},
}
ADROIT = {
    "num_offline_updates": 20_000,
    "num_online_env_steps": 1_000_000,
    "min_q_weight": 1.0,
    "lagrangian": False,
    "mixing_ratio": 0.5,
    "input_config": {"success_reward": 0},
    "sparse_failure_reward": -1.0,
    "reward_scale": 10.0,
    "reward_bias": 5.0,
    "policy_model_config": {"fcnet_hiddens": [512] * 2},
    "q_model_config": {"fcnet_hiddens": [512] * 3},
}
VISUAL = {
    "num_offline_updates": 50_000,
    "num_online_env_steps": 100_000,
    "utd_ratio": 5.0,
    "min_q_weight": 5.0,
    "min_q_weight_online": 0.5,
    "num_target_actions": 4,
}


def maze(name: str) -> dict[str, Any]:
    return ANTMAZE | {"env": f"rllib_calql/AntMaze-{name}-v2"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("antmaze", maze("Medium") | {"input_": "d4rl://antmaze-medium-diverse-v2"}),
        ("antmaze-umaze", maze("UMaze") | {"input_": "d4rl://antmaze-umaze-v2"}),
        ("antmaze-umaze-diverse", maze("UMaze") | {"input_": "d4rl://antmaze-umaze-diverse-v2"}),
        ("antmaze-medium-play", maze("Medium") | {"input_": "d4rl://antmaze-medium-play-v2"}),
        ("antmaze-medium-diverse", maze("Medium") | {"input_": "d4rl://antmaze-medium-diverse-v2"}),
        ("antmaze-large-play", maze("Large") | {"input_": "d4rl://antmaze-large-play-v2"}),
        ("antmaze-large-diverse", maze("Large") | {"input_": "d4rl://antmaze-large-diverse-v2"}),
        ("kitchen-complete", KITCHEN | {"env": "rllib_calql/Kitchen-Complete-v0"}),
        ("kitchen-partial", KITCHEN | {"input_": "d4rl://kitchen-partial-v0"}),
        ("kitchen-mixed", KITCHEN | {"input_": "d4rl://kitchen-mixed-v0"}),
        ("adroit-pen", ADROIT | {"num_online_env_steps": 300_000, "env": "rllib_calql/Adroit-Pen-Binary-v0"}),
        ("adroit-door", ADROIT | {"env": "rllib_calql/Adroit-Door-Binary-v0"}),
        ("adroit-relocate", ADROIT | {"env": "rllib_calql/Adroit-Relocate-Binary-v0"}),
        ("visual", VISUAL | {"env_config": {"max_episode_steps": 40}}),
        ("visual-pointmaze", VISUAL | {"env": "rllib_calql/VisualPointMaze-UMaze-v3"}),
    ],
)
def test_the_papers_numbers(name: str, expected: dict[str, Any]) -> None:
    config = experiment(f"calql-{name}")["config"]
    assert {key: config[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("name", "expectile", "beta"),
    [("antmaze", 0.9, 10.0), ("kitchen", 0.7, 0.5), ("adroit-door", 0.8, 3.0), ("visual-pointmaze", 0.7, 10.0)],
)
def test_table_4s_numbers_of_iql(name: str, expectile: float, beta: float) -> None:
    config = experiment(f"iql-{name}")["config"]
    assert (config["preset"], config["expectile"], config["beta"]) == ("iql", expectile, beta)


def test_ablations_are_the_task_but_for_one_thing() -> None:
    pairs: dict[str, tuple[str, dict[str, Any]]] = {
        "calql-kitchen-learned": ("calql-kitchen-mixed", {"reference_value": "learned"}),
        "calql-antmaze-narrow": ("calql-antmaze", {"input_": "antmaze-medium-narrow.hdf5"}),
        "iql-visual-online-temperature": (
            "iql-visual-pointmaze",
            {"beta_online": {"grid_search": [1, 3, 5, 10, 25, 50]}},
        ),
    }
    for name, (base, delta) in pairs.items():
        config = experiment(name)["config"]
        assert config == experiment(base)["config"] | delta


def test_every_preset_has_a_file_for_antmaze() -> None:
    texts = [path.read_text() for path in FOLDER.glob("*.yaml")]
    texts = [text for text in texts if "extends: calql-antmaze.yaml" in text]
    presets = {line.split(":")[1].strip() for text in texts for line in text.splitlines() if "preset:" in line}
    assert presets | {"cal-ql"} == PRESETS.keys()
