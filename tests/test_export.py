"""A policy as a file: what it computes, what it says of itself, and that it needs neither this package nor Ray."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core.rl_module import RLModule
from ray.rllib.policy.policy import Policy
from ray.rllib.utils.spaces.space_utils import unsquash_action
from typer.testing import CliRunner

from rllib_calql import CalQL, CalQLConfig, Transitions
from rllib_calql.cli.calql import app
from rllib_calql.cli.export import parts
from rllib_calql.cli.rllib import app as rllib
from rllib_calql.core import export
from rllib_calql.core.export import DeterministicPolicy, ExportError, export_policy, read_policy
from rllib_calql.core.networks import TanhGaussianActor
from tests.test_resume import BOTH_STACKS

LOW, HIGH = np.array([-2.0, 0.0]), np.array([2.0, 10.0])
SUFFIXES = {"torchscript": ".pt", "torch": ".pt2", "onnx": ".onnx"}


@pytest.fixture(scope="module")
def actor() -> TanhGaussianActor:
    """With actions all over the range; an untrained actor's are near zero."""
    torch.manual_seed(0)
    actor = TanhGaussianActor(3, 2, (32, 32), "silu")
    with torch.no_grad():
        next(actor.layers[-1].parameters()).mul_(100.0)
    return actor


@pytest.fixture(scope="module")
def policy(actor: TanhGaussianActor) -> DeterministicPolicy:
    return DeterministicPolicy(actor, torch.tensor([1.0, -2.0, 0.0]), torch.tensor([0.5, 3.0, 1.0]), LOW, HIGH)


def by_hand(actor: TanhGaussianActor, observations: np.ndarray) -> np.ndarray:
    normalized = (observations - [1.0, -2.0, 0.0]) / [0.5, 3.0, 1.0]
    with torch.no_grad():
        squashed = torch.tanh(actor(torch.as_tensor(normalized, dtype=torch.float32)).mean).numpy()
    return LOW + (squashed + 1.0) / 2.0 * (HIGH - LOW)


@pytest.mark.parametrize("format", export.FORMATS)
def test_every_format_acts_as_the_policy(
    format: Any, policy: DeterministicPolicy, actor: TanhGaussianActor, tmp_path: Path
) -> None:
    observations = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)
    expected = by_hand(actor, observations)
    assert expected.std(axis=0) == pytest.approx((HIGH - LOW) / 4, rel=0.7)  # not all at one end
    file = tmp_path / f"policy{SUFFIXES[format]}"
    worst = export_policy(policy, file, format, {"of": "test"}, observations, expected)
    assert worst < 1e-5
    act, metadata = read_policy(file, format)
    assert metadata == {"of": "test"}
    for rows in (observations, observations[:1]):  # any batch size
        np.testing.assert_allclose(act(rows), expected[: len(rows)], atol=1e-5 * (HIGH - LOW).min())
    far = act(np.array([[1e6, -1e6, 1e6]], np.float32))
    assert (far >= LOW).all()
    assert (far <= HIGH).all()
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_file_that_fails_the_check_is_not_written(policy: DeterministicPolicy, tmp_path: Path) -> None:
    file = tmp_path / "policy.pt"
    file.write_text("the last good one")
    observations = np.zeros((4, 3), np.float32)
    wrong = policy(torch.zeros(4, 3)).numpy() + np.array([0.0, 2e-4])
    for expected in (wrong, np.full((4, 2), np.nan)):
        with pytest.raises(ExportError, match="not written: on 4 observations the torchscript file's actions"):
            export_policy(policy, file, "torchscript", {}, observations, expected)
    assert file.read_text() == "the last good one"
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_onnx_needs_its_packages(
    policy: DeterministicPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ExportError, match=r"format onnx needs onnxscript: pip install 'rllib_calql\[export\]'"):
        export_policy(policy, tmp_path / "x.onnx", "onnx", {}, np.zeros((1, 3)), np.zeros((1, 2)))


# ---- checkpoints -------------------------------------------------------------------------------------------


class DictPendulum(gym.ObservationWrapper):
    """Pendulum with its observation in named parts."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(gym.make("Pendulum-v1", **config))
        space: Any = self.env.observation_space
        low, high = space.low, space.high
        self.observation_space = gym.spaces.Dict(
            {"angle": gym.spaces.Box(low[:2], high[:2]), "speed": gym.spaces.Box(low[2:], high[2:])}
        )

    def observation(self, observation: np.ndarray) -> dict[str, np.ndarray]:
        return {"speed": observation[2:], "angle": observation[:2]}


def save_checkpoint(config: CalQLConfig, folder: Path) -> CalQL:
    algo = config.build_algo()
    algo.train()
    weights = algo.update.weights()
    algo.update.load_weights({"actor.layers.2.weight": 100.0 * weights["actor.layers.2.weight"]})
    algo.save(str(folder))
    return algo


def config(data: Transitions, new_stack: bool) -> CalQLConfig:
    small = {"fcnet_hiddens": [16, 16]}
    return (
        CalQLConfig()
        .api_stack(enable_rl_module_and_learner=new_stack, enable_env_runner_and_connector_v2=new_stack)
        .environment(DictPendulum, env_config={"max_episode_steps": 20})
        .offline_data(input_=data)
        .training(
            num_offline_updates=1,
            min_train_updates_per_iteration=1,
            num_online_env_steps=0,
            train_batch_size=8,
            normalize_observations=True,
            policy_model_config=small,
            q_model_config=small,
        )
        .debugging(seed=0)
    )


def calql(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


# Reads each file with nothing but torch or onnxruntime, and says its actions.
STRANGER = """
import json, sys
sys.modules["ray"] = sys.modules["rllib_calql"] = sys.modules["gymnasium"] = None
import numpy as np, torch, onnxruntime
observation = np.array([json.loads(sys.argv[1])], np.float32)
extra = {"metadata.json": ""}
script = torch.jit.load("policy.pt", _extra_files=extra)
program = torch.export.load("policy.pt2").module()
session = onnxruntime.InferenceSession("policy.onnx")
print(json.dumps({
    "torchscript": script(torch.as_tensor(observation)).tolist(),
    "torch": program(torch.as_tensor(observation)).tolist(),
    "onnx": session.run(["actions"], {"observations": observation})[0].tolist(),
    "metadata": json.loads(extra["metadata.json"]),
}))
"""


@pytest.mark.usefixtures("ray_session")
@BOTH_STACKS
def test_every_way_to_act_gives_the_same_action(
    pendulum_data: Transitions, tmp_path: Path, new_stack: bool
) -> None:
    algo = save_checkpoint(config(pendulum_data, new_stack), tmp_path / "checkpoint")
    for format, suffix in SUFFIXES.items():
        file = tmp_path / f"policy{suffix}"
        done = calql("export", tmp_path / "checkpoint", "--format", format, "--out", file)
        assert done.exit_code == 0, done.output
        assert "3 observations to 1 actions; on 1000 observations at most" in done.output
    observation = {"angle": np.array([0.6, -0.8], np.float32), "speed": np.array([2.0], np.float32)}
    expected = algo.compute_single_action(observation, explore=False)
    assert 0.01 < abs(expected[0]) < 1.99
    samples = {float(algo.compute_single_action(observation, explore=True)[0]) for _ in range(3)}
    assert len(samples) == 3
    algo.stop()
    restored = CalQL.from_checkpoint(str(tmp_path / "checkpoint"), input_=pendulum_data)
    np.testing.assert_array_equal(restored.compute_single_action(observation, explore=False), expected)
    restored.stop()
    played = CliRunner().invoke(rllib, ["evaluate", str(tmp_path / "checkpoint"), "--episodes", "1"])
    assert "Episode 1: return -" in played.output
    flat = np.array([0.6, -0.8, 2.0], np.float32)
    if new_stack:
        module = RLModule.from_checkpoint(
            str(tmp_path / "checkpoint/learner_group/learner/rl_module/default_policy")
        )
        np.testing.assert_array_equal(module.act(flat), expected)
        actions = module.forward_inference({"obs": torch.as_tensor(flat)[None]})["actions"].numpy()
        np.testing.assert_allclose(2.0 * actions[0], expected, rtol=1e-6)
        with pytest.raises(ValueError, match="compute_single_action takes an observation and explore"):
            algo.compute_single_action(observation, full_fetch=True)
    else:
        policy = Policy.from_checkpoint(str(tmp_path / "checkpoint"))["default_policy"]
        action, _, _ = policy.compute_single_action(flat, explore=False)
        np.testing.assert_array_equal(unsquash_action(action, policy.action_space_struct), expected)

    command = [sys.executable, "-c", STRANGER, json.dumps([0.6, -0.8, 2.0])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    for format in SUFFIXES:
        np.testing.assert_allclose(said[format], [expected], atol=4e-5)
    metadata = said["metadata"]
    assert [(part["path"], part["first"], part["size"]) for part in metadata["observations"]["parts"]] == [
        (["angle"], 0, 2),
        (["speed"], 2, 1),
    ]
    assert metadata["actions"] == {"shape": ["batch", 1], "dtype": "float32", "low": [-2.0], "high": [2.0]}
    assert metadata["versions"]["torch"] == torch.__version__


def test_parts_of_a_nested_observation() -> None:
    box = gym.spaces.Box(-1, 1, (2, 2))
    space = gym.spaces.Dict({"b": gym.spaces.Tuple([box, gym.spaces.Discrete(3)]), "a": box})
    assert [(path, first) for path, _, first in parts(space)] == [(["a"], 0), (["b", 0], 4), (["b", 1], 8)]
    sample = {"a": np.full((2, 2), 0.5), "b": (np.full((2, 2), -0.5), 2)}
    np.testing.assert_array_equal(gym.spaces.flatten(space, sample), [0.5] * 4 + [-0.5] * 4 + [0, 0, 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([".", "--format", "keras", "--out", "x"], "--format keras: choose one of torchscript, onnx, torch"),
        ([".", "--out", "x"], "is not an RLlib checkpoint"),
    ],
)
def test_unusable_exports_are_refused(arguments: list[str], message: str) -> None:
    result = calql("export", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
