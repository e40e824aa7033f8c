"""`rllib evaluate`, and one real `rllib train` before it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_calql import CalQL, CalQLConfig, Transitions
from rllib_calql.cli import evaluate
from tests.test_cli import SMALL, refused, rllib


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "would never end"),
        (["--out", "x.pkl"], "must end in .json or .npz"),
        (["--save-info", "--out", "x.json"], "--save-info needs --out FILE.npz"),
        (["--set", "a=1"], "No such option"),
        ([], "name a CHECKPOINT, or with --algo"),
        (["."], "is not an RLlib checkpoint"),
        ([".", "--config", "{lr: 1, env_config: {}}"], "['lr'] cannot change a trained policy"),
    ],
)
def test_unusable_evaluations_are_refused(arguments: list[str], message: str) -> None:
    assert message in refused(rllib("evaluate", *arguments))


def episode_of(infos: list[dict[str, Any]], terminated: bool) -> SingleAgentEpisode:
    """Rewards 0, 0, ..., 1."""
    box = gym.spaces.Box(-1, 1, (1,))
    episode = SingleAgentEpisode(observation_space=box, action_space=box)
    episode.add_env_reset(np.zeros(1), {})
    for step, info in enumerate(infos):
        last = step == len(infos) - 1
        ends = {"terminated": terminated and last, "truncated": not terminated and last}
        episode.add_env_step(np.full(1, step + 1.0), np.full(1, 10.0 * step), float(last), info, **ends)
    return episode


def test_success_is_what_the_environment_says() -> None:
    said = episode_of([{"success": False}, {"success": True}, {"success": False}], terminated=False)
    assert evaluate.succeeded(said, reward_means_success=False) == 1.0
    assert evaluate.succeeded(episode_of([{"success": False}], True), reward_means_success=True) == 0.0
    assert evaluate.succeeded(episode_of([{}], terminated=True), reward_means_success=False) is None
    assert evaluate.succeeded(episode_of([{}], terminated=True), reward_means_success=True) == 1.0
    assert evaluate.succeeded(episode_of([{}], terminated=False), reward_means_success=True) == 0.0
    shares = episode_of([{"success": 0.25}, {"success": 0.75}, {"success": 0.5}], terminated=False)
    assert evaluate.succeeded(shares, reward_means_success=True) == 0.75


@pytest.fixture(params=[False, True], ids=["policy_stack", "new_stack"])
def checkpoint(
    request: pytest.FixtureRequest, ray_session: None, pendulum_data: Transitions, tmp_path: Path
) -> Iterator[tuple[CalQL, Path]]:
    config = (
        CalQLConfig()
        .api_stack(enable_rl_module_and_learner=request.param, enable_env_runner_and_connector_v2=request.param)
        .environment("Pendulum-v1", env_config={"max_episode_steps": 30})
        .offline_data(input_=pendulum_data)
        .training(
            num_offline_updates=3,
            min_train_updates_per_iteration=3,
            num_online_env_steps=0,
            train_batch_size=8,
        )
        .debugging(seed=0)
    )
    algorithm = config.build_algo()
    algorithm.train()
    algorithm.save(str(tmp_path / "checkpoint"))
    yield algorithm, tmp_path / "checkpoint"
    algorithm.stop()


def test_evaluate_plays_the_checkpoints_policy(
    checkpoint: tuple[CalQL, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm, path = checkpoint
    returns = []
    env = gym.make("Pendulum-v1", max_episode_steps=30)
    for seed in (5, 6):
        observation, _ = env.reset(seed=seed)
        total, done = 0.0, False
        while not done:
            action = algorithm.compute_single_action(observation, explore=False)
            observation, reward, _, done, _ = env.step(action)
            total += float(reward)
        returns.append(total)
    arguments: list[str | Path] = ["evaluate", path, "--algo", "CalQL", "--seed", "5"]
    result = rllib(*arguments, "--episodes", "2", "--out", tmp_path / "out.json")
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "out.json").read_text())
    assert summary["returns"] == pytest.approx(returns)
    assert summary["lengths"] == [30, 30]
    assert (summary["success_rate"], summary["successes"]) == (0.0, [False, False])

    # --steps cuts the third episode, which is then not counted
    saved: list[str | Path] = ["--steps", "75", "--out", tmp_path / "out.npz", "--save-info"]
    wild = "{explore: true, env_config: {g: 9.0}}"
    result = rllib(*arguments, *saved, "--config", wild)
    assert result.exit_code == 0, result.output
    columns = np.load(tmp_path / "out.npz")
    assert columns["observations"].shape == columns["next_observations"].shape == (60, 3)
    np.testing.assert_array_equal(np.flatnonzero(columns["truncated"]), [29, 59])
    assert not columns["terminated"].any()
    assert list(columns["infos"][:2]) == ["{}", "{}"]
    env = gym.make("Pendulum-v1", g=9.0)
    np.testing.assert_array_equal(columns["observations"][0], env.reset(seed=5)[0])
    for row in range(30):
        observation, reward, *_ = env.step(columns["actions"][row])
        np.testing.assert_array_equal(columns["next_observations"][row], observation)
        assert columns["rewards"][row] == pytest.approx(reward)
    np.testing.assert_array_equal(columns["observations"][1:30], columns["next_observations"][:29])

    # without --steps, --episodes is the only limit; without either there is one on steps
    monkeypatch.setattr(evaluate, "STEPS", 40)
    assert rllib(*arguments, "--episodes", "2").output.count("Episode") == 2
    assert rllib(*arguments).output.count("Episode") == 1

    # what is damaged is not played
    state = next(file for file in sorted(path.rglob("*.pkl")) if "polic" in str(file) or "learner" in str(file))
    whole = state.read_bytes()
    state.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert f"{state.name} of the checkpoint" in refused(rllib(*arguments))
    state.write_bytes(whole)

    assert "no episode ended within --steps 10" in refused(rllib(*arguments, "--steps", "10"))
    assert "the checkpoint is of CalQL" in refused(rllib("evaluate", path, "--algo", "PPO"))
    wrong = refused(rllib("evaluate", path, "--env", "MountainCarContinuous-v0", "--config", "{env_config: {}}"))
    assert "the environment has observation_space Box" in wrong
    assert "the policy was made for Box" in wrong


def test_train_and_evaluate_for_real(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL))
    command = [sys.executable, "-m", "rllib_calql.cli.rllib", "train", "file", "small.yaml"]
    limits = ["--ray-num-cpus", "1", "--ray-object-store-memory", "100000000"]
    done = subprocess.run(
        [*command, "--storage-path", "results", "--set", "lr=1e-3", *limits],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    (trial,) = (tmp_path / "results" / "small").glob("PPO_CartPole*")
    params = json.loads((trial / "params.json").read_text())
    assert (params["lr"], params["num_epochs"]) == (1e-3, 1)
    (path,) = trial.glob("checkpoint_*")
    assert f"rllib evaluate {path}" in done.stdout
    result = rllib("evaluate", path, "--episodes", "2", "--out", tmp_path / "out.json")
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "out.json").read_text())
    # CartPole's reward is 1 per step, and it does not speak of success.
    assert summary["returns"] == summary["lengths"]
    assert len(summary["returns"]) == 2
    assert "success_rate" not in summary
