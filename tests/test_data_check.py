"""`calql data check`: what it warns of, in which words, and its exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from rllib_calql.cli.calql import app
from rllib_calql.data import Preparation, Transitions
from rllib_calql.data.calibration import calibration_findings
from rllib_calql.data.findings import Finding, row_findings, same_shapes, space_findings
from rllib_calql.data.rows import Rows
from rllib_calql.data.summary import Summary, summarise
from tests.chunks import Chunks


def calql(*args: str | Path) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def summary(
    *episodes: tuple[list[float], bool], observations: np.ndarray | None = None, actions: np.ndarray | None = None
) -> Summary:
    """Of episodes given as rewards and whether they end as terminated (else cut off)."""
    rewards = np.array([reward for rewards, _ in episodes for reward in rewards], np.float32)
    ends = np.cumsum([len(rewards) for rewards, _ in episodes]) - 1
    terminated, truncated = np.zeros(len(rewards), bool), np.zeros(len(rewards), bool)
    terminated[ends] = [kind for _, kind in episodes]
    truncated[ends] = [not kind for _, kind in episodes]
    default = np.zeros((len(rewards), 2), np.float32)
    rows = Rows(
        observations=default if observations is None else observations,
        actions=default if actions is None else actions,
        rewards=rewards,
        terminated=terminated,
        truncated=truncated,
    )
    return summarise(Chunks(rows, []))


def warnings_of(found: Summary, **settings: Any) -> list[Finding]:
    findings = list(calibration_findings(found, Preparation(**settings)))
    return [finding for finding in findings if finding.kind == "warning"]


# ---- calibration -------------------------------------------------------------------------------------------

SPARSE = summary(([0.0] * 20 + [1.0], True), ([0.0] * 5, False))
DENSE = summary(*[([-1.0 - 0.01 * step for step in range(50)], False)] * 4)


def test_sparse_failures_without_the_failure_rule() -> None:
    (found,) = warnings_of(SPARSE, reward_scale=10.0, reward_bias=-5.0)
    assert "1 of 2 episodes only ever get the reward 0" in found.text
    assert found.advice.startswith("set sparse_failure_reward=0 ")
    assert warnings_of(SPARSE, reward_scale=10.0, reward_bias=-5.0, sparse_failure_reward=0.0) == []
    assert warnings_of(SPARSE) == []  # failing is worth 0 either way


def test_failure_reward_that_is_none() -> None:
    (found,) = warnings_of(SPARSE, reward_scale=10.0, reward_bias=-5.0, sparse_failure_reward=-5.0)
    assert "sparse_failure_reward=-5 is no reward of these data (rewards: 0, 1)" in found.text
    (found,) = warnings_of(SPARSE, sparse_failure_reward=1.0)
    assert found.advice == "set sparse_failure_reward=0"
    dense = warnings_of(DENSE, sparse_failure_reward=0.0, truncation="drop")
    assert "(rewards: dense)" in dense[0].text


def test_dense_negative_rewards_with_time_outs() -> None:
    (found,) = warnings_of(DENSE)
    assert "4 of 4 episodes are cut off while rewards are negative, -1.25 a step" in found.text
    assert "For the 100% of rows within 100 steps" in found.text
    assert "up to -124:" in found.text
    assert "truncation_mode='infinite'" in found.advice
    assert "'drop'" in found.advice
    for settings in ({"truncation": "infinite"}, {"truncation": "drop"}, {"reward_bias": 3.0}):
        assert warnings_of(DENSE, **settings) == []


def test_rewarding_steps_without_success() -> None:
    (found,) = warnings_of(SPARSE, reward_bias=1.0, sparse_failure_reward=0.0)
    assert "never succeeding is worth 100, success 2 and the end" in found.text


def test_scale_of_returns() -> None:
    dense = summary(*[([1.0 + 0.01 * step for step in range(50)], True), ([1.5] * 7, True)] * 4)
    assert warnings_of(dense) == []
    (large,) = warnings_of(dense, reward_scale=1000.0)
    assert "returns-to-go reach 4.8" in large.text
    assert large.advice == "set reward_scale to about 1e+01"
    (small,) = warnings_of(dense, reward_scale=1e-4)
    assert "stay below 0.0048" in small.text
    assert small.advice == "set reward_scale to about 0.2"


def test_time_outs_flagged_as_terminations() -> None:
    (found,) = warnings_of(summary(*[([0.1 * step for step in range(15)], True)] * 6))
    assert "6 episodes are flagged as terminated after exactly 15 steps" in found.text


def test_episodes_that_go_on_after_success_are_noted() -> None:
    going_on = summary(([0.0, 1.0, 1.0, 1.0], False), ([0.0, 0.0, 1.0, 1.0], False))
    notes = [found for found in calibration_findings(going_on, Preparation()) if found.kind == "note"]
    assert "the reward 1 comes on 5 rows of 2 episodes" in notes[0].text


# ---- rows and spaces ---------------------------------------------------------------------------------------


def test_missing_values_and_ends() -> None:
    broken = summary(([np.nan, 1.0], True))
    assert "1 numbers of rewards are missing" in next(row_findings(broken)).text
    endless = Rows(
        observations=np.zeros((3, 2)),
        actions=np.zeros((3, 2)),
        rewards=np.zeros(3),
        terminated=np.zeros(3, bool),
        truncated=np.zeros(3, bool),
    )
    (found,) = row_findings(summarise(Chunks(endless, [])))
    assert "no episode has an end" in found.text


def test_spaces() -> None:
    env = gym.make("Pendulum-v1")  # cos, sin, velocity up to 8; torque up to 2; 200 steps
    good = np.array([[1, 0, 3], [0, 1, -8]], np.float32)

    def texts(observations: np.ndarray, actions: np.ndarray, steps: int = 2) -> list[str]:
        found = summary(([0.0] * steps, False), observations=observations, actions=actions)
        assert same_shapes(found, env) == (observations.shape[1] == 3 and actions.shape[1] == 1)
        return [f"{finding.kind}: {finding.text}" for finding in space_findings(found, env)]

    assert texts(good, np.array([[1.5], [-2.0]])) == [
        "fine: observations: 3 numbers, within the environment's bounds",
        "fine: actions: 1 numbers, within the environment's bounds",
    ]
    assert texts(good, np.array([[1.0], [-1.0]]))[-1].startswith("note: actions stay in [-1, 1]")
    assert texts(good, np.array([[2.5], [0.0]]))[-1] == (
        "warning: 1 of 1 action numbers leave the environment's bounds, such as number 0: 0 to 2.5, not -2 to 2"
    )
    assert texts(2 * good, np.array([[2.0], [0.0]]))[0].startswith("warning: 3 of 3 observation numbers leave")
    assert texts(good[:, :2], np.array([[2.0], [0.0]]))[0] == (
        "warning: observations have 2 numbers (2), the environment's 3"
    )
    longest = texts(np.repeat(good, 101, axis=0), np.full((202, 1), 1.5), 202)[-1]
    assert longest == "warning: the longest episode has 202 steps, the environment stops after 200"
    discrete = summary(([0.0, 0.0], False), observations=good, actions=np.array([2, 5]))
    assert not same_shapes(discrete, gym.make("MountainCar-v0"))
    assert "do not belong to Discrete(3)" in [*space_findings(discrete, gym.make("MountainCar-v0"))][1].text


# ---- the command -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(pendulum_data: Transitions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("check") / "pendulum.hdf5"
    with h5py.File(path, "w") as columns:
        for name in ("observations", "actions", "rewards"):
            columns[name] = getattr(pendulum_data, name)
        columns["terminals"], columns["timeouts"] = pendulum_data.terminated, pendulum_data.truncated
    return path


def test_data_that_fit(file: Path) -> None:
    result = calql("data", "check", file, "--env", "Pendulum-v1", "-c", "{truncation_mode: infinite}")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[:2] == [
        "FINE    observations: 3 numbers, within the environment's bounds",
        "FINE    actions: 1 numbers, within the environment's bounds",
    ]
    assert "(100.0%) go as logged" in lines[2]
    assert lines[-1] == "0 warnings"


def test_dense_negative_rewards_are_an_exit_code(file: Path) -> None:
    result = calql("data", "check", file)
    assert result.exit_code == 1
    assert "-> set truncation_mode='infinite'" in result.stdout
    for advised in ("infinite", "bootstrap", "drop"):
        result = calql("data", "check", file, "-c", f"{{truncation_mode: {advised}}}")
        assert result.exit_code == 0, result.output


def test_a_warning_is_said_once_however_often_the_data_are_read(file: Path, pendulum_data: Transitions) -> None:
    success = json.dumps({"success_reward": float(pendulum_data.rewards[20])})
    arguments = ("--env", "Pendulum-v1", "--input-config", success)
    result = calql("data", "check", file, *arguments)
    assert result.stderr.count("do not lead to a success") == 1


def test_data_of_another_environment(file: Path) -> None:
    arguments = ("--env", "Pendulum-v1", "--env-config", "{g: 2.0}", "-c", "{truncation_mode: drop}", "--json")
    result = calql("data", "check", file, *arguments)
    assert result.exit_code == 1
    findings = json.loads(result.stdout)["findings"]
    (warning,) = [finding for finding in findings if finding["kind"] == "warning"]
    assert "replay: 3 of 245 transitions" in warning["text"]
    assert "other dynamics" in warning["advice"]
    assert calql("data", "check", file, "--env", "MountainCarContinuous-v0").exit_code == 1


class Breaking(gym.Wrapper):
    """An environment that cannot bear being stepped."""

    def step(self, action: Any) -> Any:
        raise RuntimeError("too hot")


def test_an_environment_that_fails_does_not_end_the_check(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gym, "make", lambda name, make=gym.make: Breaking(make(name)))
    result = calql("data", "check", file, "--env", "Pendulum-v1", "-c", "{truncation_mode: drop}")
    assert result.exit_code == 0
    assert "NOTE    replay: the environment failed (RuntimeError: too hot)" in result.stdout


def test_wrong_usage(file: Path) -> None:
    cases: list[tuple[list[str], str]] = [
        (["--env", "Nope-v0"], "(of another package: PACKAGE:Nope-v0, such as"),
        (["--env", "nopackage:Nope-v0"], "No module named 'nopackage'"),
        (["--env", "Pendulum-v1", "--env-config", "{nope: 1}"], "unexpected keyword argument 'nope'"),
        (["--env-config", "{g: 1}"], "--env-config needs --env"),
        (["-c", "{tau: 1}"], "--config: tau has no part in the bound; gamma, reward_scale"),
        (["-c", "{gamma: 2}"], "gamma must be in [0, 1]"),
        (["-c", "{gamma: abc}"], "--config: gamma must be a number, not 'abc'"),
        (["-c", "{normalize_reward: 1}"], "--config: normalize_reward must be true or false"),
    ]
    for arguments, message in cases:
        result = calql("data", "check", file, *arguments)
        assert result.exit_code == 2, result.output
        assert message in result.stderr
    assert calql("data", "check", "nowhere.hdf5").exit_code == 2  # 1 is a warning's
