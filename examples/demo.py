"""The demo: Cal-QL beside CQL on PointMaze through the `rllib` command, and `calql report` of both.

    python examples/demo.py --out demo     # trains, then writes demo/report/: report.md and its figures

Both methods train at the same time, a core each, from tuned_configs/calql-pointmaze.yaml. All settings of the file
can be overridden: `--set num_offline_updates=1000`.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

CONFIG = Path(__file__).resolve().parents[1] / "tuned_configs" / "calql-pointmaze.yaml"
COMMANDS = Path(sys.executable).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder; an earlier demo there is replaced")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting")
    options = parser.parse_args()
    found = {path.name for path in options.out.iterdir()} if options.out.is_dir() else set()
    if others := found - {CONFIG.stem, "report"}:
        parser.error(f"--out {options.out}: that folder holds something else than an earlier demo: {min(others)}")
    shutil.rmtree(options.out, ignore_errors=True)
    grid = ["preset={grid_search: [cal-ql, cql]}", f"seed={{grid_search: {options.seeds}}}"]
    settings = [argument for setting in [*grid, *options.set] for argument in ("--set", setting)]
    storage = ["--storage-path", options.out.resolve()]
    subprocess.run([COMMANDS / "rllib", "train", "file", CONFIG, *storage, *settings], check=True)
    subprocess.run([COMMANDS / "calql", "report", options.out, "--out", options.out / "report"], check=True)


if __name__ == "__main__":
    main()
