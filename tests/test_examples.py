"""Examples run to their ends, and the demo's refusal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments], capture_output=True, text=True, check=False
    )


def test_the_demo_deletes_nothing_but_an_earlier_demo(tmp_path: Path) -> None:
    (tmp_path / "calql-pointmaze").mkdir()
    (tmp_path / "thesis").mkdir()
    done = run("demo.py", "--out", tmp_path)
    assert done.returncode == 2
    assert "holds something else than an earlier demo: thesis" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"calql-pointmaze", "thesis"}


SHORT = ("--num-samples", "2", "--num-offline-updates", "500", "--num-online-env-steps", "500")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("python_use.py", (), "action at the start: ["),
        ("numpy_dataset.py", (), "10000 rows in 50 episodes"),
        ("rllib_logs.py", (), "online "),
        ("switch_callback.py", (), "switch after 1000 updates with score "),
        ("tune_asha.py", SHORT, "  min_q_weight = "),
        ("tune_pbt.py", SHORT, "calql sweep "),
    ],
)
def test_examples_run_to_their_ends(name: str, arguments: tuple[str, ...], said: str) -> None:
    done = run(name, *arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    assert said in done.stdout
