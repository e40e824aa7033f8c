"""What examples refuse."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_the_demo_deletes_nothing_but_an_earlier_demo(tmp_path: Path) -> None:
    (tmp_path / "calql-pointmaze").mkdir()
    (tmp_path / "thesis").mkdir()
    done = subprocess.run(
        [sys.executable, EXAMPLES / "demo.py", "--out", tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "holds something else than an earlier demo: thesis" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"calql-pointmaze", "thesis"}
