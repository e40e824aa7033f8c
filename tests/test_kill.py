"""Processes killed with SIGKILL; new ones go on from the last checkpoint as if nothing had happened."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayError

from rllib_calql import CalQL
from rllib_calql.data import Transitions
from rllib_calql.data.whole import CheckpointError
from tests.conftest import collect_pendulum
from tests.crash_driver import ITERATIONS, MOMENTS, train
from tests.test_resume import deterministic, small_config

Blocks = dict[int, dict[str, Any]]


def drive(folder: Path, moment: str, given: dict[str, Any]) -> Blocks:
    """Runs the driver in a process of its own until it dies at the moment; what its iterations reported."""
    address = ray.get_runtime_context().gcs_address
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash_driver", str(folder), moment, address, json.dumps(given)],
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == (0 if moment == "never" else -signal.SIGKILL), done.stderr[-3000:]
    return reported(done.stdout)


def reported(output: str) -> Blocks:
    lines = [line.removeprefix("BLOCK ") for line in output.splitlines() if line.startswith("BLOCK")]
    return dict(json.loads(line) for line in lines)


def uninterrupted(given: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> Blocks:
    algo = small_config(collect_pendulum(20), **given).build_algo()
    train(algo, None)
    algo.stop()
    return reported(capsys.readouterr().out)


@pytest.mark.usefixtures("ray_session")
def test_killed_while_it_saves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"num_env_runners": 0}
    first = drive(tmp_path, "manifest", given)
    assert list(first) == [1, 2, 3, 4, 5]
    second = drive(tmp_path, "never", given)
    assert list(second) == [5, 6]  # the checkpoint of iteration 5 was not whole
    assert {**first, **second} == uninterrupted(given, capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    "given",
    [{"num_env_runners": runners, "new_stack": new} for runners in (0, 1) for new in (False, True)],
    ids=["policy_stack", "new_stack", "policy_stack-remote", "new_stack-remote"],
)
def test_killed_at_every_moment_in_turn(
    tmp_path: Path, given: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """One run, killed seven times: in both phases, at the switch, and in the middle of checkpoints."""
    expected = uninterrupted(given, capsys)
    found: Blocks = {}
    moments = ["collecting", "manifest"] if given["num_env_runners"] else MOMENTS
    for moment in [*moments, "never"]:
        blocks = drive(tmp_path, moment, given)
        for number, block in blocks.items():  # an iteration done again gives the same
            assert block == expected[number], (moment, number)
        found.update(blocks)
    assert list(found) == list(range(1, ITERATIONS + 1))


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("num_learners", [1, 2])
def test_a_killed_learner_ends_the_run_which_goes_on_from_its_checkpoint(
    tmp_path: Path, pendulum_data: Transitions, num_learners: int
) -> None:
    config = small_config(pendulum_data, 0, True).learners(num_learners=num_learners)
    algo = config.build_algo()
    algo.train()
    algo.save(str(tmp_path / "checkpoint"))

    # where the learner that writes has no room, RLlib says nothing; the run itself goes on
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    algo.learner_group.foreach_learner(lambda _: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1])))
    with pytest.raises(CheckpointError, match="no learner has written its part"):
        algo.save(str(tmp_path / "checkpoint"))
    algo.learner_group.foreach_learner(lambda _: resource.setrlimit(resource.RLIMIT_FSIZE, limits))
    expected = [deterministic(algo.train()["calql"]) for _ in range(2)]

    pids = [result.get() for result in algo.learner_group.foreach_learner(lambda _: os.getpid())]
    os.kill(pids[-1], signal.SIGKILL)
    with pytest.raises(RayError):
        algo.train()
    with pytest.raises(CheckpointError, match=r"have died \(then go on from the last checkpoint\)"):
        algo.save(str(tmp_path / "checkpoint"))
    algo.stop()
    restored = CalQL.from_checkpoint(tmp_path / "checkpoint", input_=pendulum_data)
    assert [deterministic(restored.train()["calql"]) for _ in range(2)] == expected
    restored.stop()
