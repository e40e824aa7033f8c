"""A process killed with SIGKILL in the middle of the online phase; a new one goes on from its last checkpoint."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import collect_pendulum
from tests.test_resume import deterministic, small_config

ITERATIONS = 6  # 2 offline, 4 online
KILLED_AFTER = 4

# Arguments: folder of the checkpoint; "kill" or "resume".
PROGRAM = f"""
import json, os, signal, sys
import ray, torch
from rllib_calql import CalQL
from tests.conftest import collect_pendulum
from tests.test_resume import deterministic, small_config

folder, what = sys.argv[1:]
torch.set_num_threads(1)
ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False)
if what == "kill":
    algo = small_config(collect_pendulum(20), 0).build_algo()
    for _ in range({KILLED_AFTER}):
        algo.train()
    algo.save(folder)
    def die(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)
    algo.update.update_targets = die  # in the middle of the next iteration's updates
    algo.train()
else:
    algo = CalQL.from_checkpoint(folder, input_=collect_pendulum(20))
    for _ in range({ITERATIONS - KILLED_AFTER}):
        print("BLOCK", json.dumps(deterministic(algo.train()["calql"])), flush=True)
"""


def run(folder: Path, what: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).resolve().parents[1]
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), what],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.mark.usefixtures("ray_session")
def test_killed_run_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    killed = run(tmp_path, "kill")
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    resumed = run(tmp_path, "resume")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    found = [json.loads(line.removeprefix("BLOCK ")) for line in resumed.stdout.splitlines() if "BLOCK" in line]

    algo = small_config(collect_pendulum(20), 0).build_algo()
    expected: list[dict[str, Any]] = [deterministic(algo.train()["calql"]) for _ in range(ITERATIONS)]
    algo.stop()
    assert found == json.loads(json.dumps(expected[KILLED_AFTER:]))
