"""The demo: Cal-QL beside CQL on PointMaze through the `rllib` command, and a picture of both.

    python examples/demo.py --out demo              # trains, then draws demo/learning_curves.png
    python examples/demo.py --out demo --draw-only  # draws again from the results there

The curves themselves, the `calql` block of every iteration, go into demo/curves.json.

Both methods train at the same time, a core each, from tuned_configs/calql-pointmaze.yaml; CQL is that file with
`calibrate: false`. All settings of the file can be overridden: `--set num_offline_updates=1000`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

CONFIG = Path(__file__).resolve().parents[1] / "tuned_configs" / "calql-pointmaze.yaml"
COLOURS = {"Cal-QL": "tab:blue", "CQL": "tab:orange"}
Curve = list[dict[str, Any]]


def train(out: Path, seeds: list[int], overrides: list[str]) -> None:
    """Runs both methods to their ends; results go below `out`."""
    rllib = Path(sys.executable).with_name("rllib")
    settings = ["calibrate={grid_search: [true, false]}", f"seed={{grid_search: {seeds}}}", *overrides]
    command = [str(rllib), "train", "file", str(CONFIG), "--storage-path", str(out.resolve())]
    for setting in settings:
        command += ["--set", setting]
    subprocess.run(command, check=True)


def read_curves(out: Path) -> dict[str, list[Curve]]:
    """The `calql` blocks of every trial below `out`, by method."""
    curves: dict[str, list[Curve]] = defaultdict(list)
    for path in sorted(out.rglob("result.json")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        if rows:
            method = "Cal-QL" if rows[-1]["config"]["calibrate"] else "CQL"
            curves[method].append([row["calql"] for row in rows])
    return dict(curves)


def draw(curves: dict[str, list[Curve]], path: Path) -> None:
    """Success over both phases, and Q-values against returns, with the switch marked."""
    figure, (success, values) = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
    for method, runs in curves.items():
        for number, curve in enumerate(runs):
            evaluated = [row for row in curve if "success_rate" in row]
            label = method if number == 0 else None
            colour = COLOURS[method]
            x = [row["num_updates"] for row in evaluated]
            success.plot(x, [row["success_rate"] for row in evaluated], ".-", color=colour, label=label)
            x = [row["num_updates"] for row in curve]
            values.plot(
                x, [row["q_data_mean"] for row in curve], color=colour, label=label and f"{method}: Q(s, a)"
            )
            if method == "Cal-QL" and number == 0:
                returns = [row["mc_return_mean"] for row in curve]
                values.plot(x, returns, ":", color="grey", label="return-to-go of the batches")
    switch = max(row["num_updates"] for run in curves["Cal-QL"] for row in run if row["phase"] == "offline")
    for axis in (success, values):
        axis.axvline(switch, color="black", linestyle="--", linewidth=1)
        axis.text(switch, 1.01, "switch", transform=axis.get_xaxis_transform(), ha="center", va="bottom")
        axis.set_xlabel("gradient updates (offline, then one per environment step)")
        axis.grid(alpha=0.3)
        axis.legend()
    success.set_ylabel("success rate in evaluation")
    success.set_ylim(-0.03, 1.03)
    values.set_ylabel("mean Q-value of the batches")
    figure.savefig(path, dpi=130)


def summary(curves: dict[str, list[Curve]]) -> str:
    """A line per run: success at the switch, at the end, and the drop between."""
    lines = []
    for method, runs in curves.items():
        for number, curve in enumerate(runs):
            offline = [row for row in curve if row["phase"] == "offline" and "success_rate" in row]
            last = [row for row in curve if "success_rate" in row][-1]
            lines.append(
                f"{method} run {number}: success at the switch {offline[-1]['success_rate']:.2f}, at the end "
                f"{last['success_rate']:.2f}; switch_drop {last['switch_drop']:.2f}, "
                f"cumulative regret {last['cumulative_regret']:.3f}"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting")
    parser.add_argument("--draw-only", action="store_true")
    options = parser.parse_args()
    if not options.draw_only:
        shutil.rmtree(options.out, ignore_errors=True)
        options.out.mkdir(parents=True)
        train(options.out, options.seeds, options.set)
    curves = read_curves(options.out)
    picture = options.out / "learning_curves.png"
    draw(curves, picture)
    (options.out / "curves.json").write_text(json.dumps(curves, indent=1))
    print(summary(curves))
    print(f"drew {picture}")


if __name__ == "__main__":
    main()
