"""Times one gradient step of this package beside its rivals', interleaved in one run.

    python -m benchmarks.update_speed --critic 256x4
    python -m benchmarks.update_speed --critic 256x2 --d3rlpy-python /path/to/d3rlpy-env/bin/python --json OUT.json
    python -m benchmarks.update_speed --rival other="/path/to/python my_contestant.py"

Contestants: this package in float32 and bfloat16, RLlib's CQL on both API stacks, d3rlpy's CalQL where its Python
is given (d3rlpy pins another gymnasium than Ray: `python -m venv ENV; ENV/bin/pip install torch d3rlpy`), and any
other program that keeps to `benchmarks/contestant.py`. Each is a process of its own; in every round each gets the
machine in turn. Reported are medians over rounds of the steps per second, by wall clock and by the process's CPU
time (which a busy machine disturbs less), and ratios to d3rlpy or, without it, to the first. `gemm` is the
machine's own rate for a large product.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.contestant import Settings

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Contestant:
    """A running contestant and the seconds per step of each round."""

    name: str
    command: list[str]
    settings: Settings
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    steps: int = 1

    def start(self) -> bool:
        """Whether it is ready; otherwise it says why itself, on standard error."""
        threads = str(self.settings["threads"])
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        python, *arguments = self.command
        self.process = subprocess.Popen(
            [python, *arguments[:2], json.dumps(self.settings), *arguments[2:]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        return "ready" in self._answer()

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else {}

    def time(self, seconds: float) -> None:
        """One round of about `seconds`."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{self.steps}\n")
        self.process.stdin.flush()
        answer = self._answer()
        self.wall.append(answer["wall"] / self.steps)
        self.cpu.append(answer["cpu"] / self.steps)
        self.steps = max(1, round(seconds / self.wall[-1]))

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def contestants(options: argparse.Namespace) -> list[Contestant]:
    """Everyone who takes part with these options."""
    width, _, layers = options.critic.partition("x")
    settings: Settings = {
        "critic": [int(width)] * int(layers),
        "actor": [256, 256],
        "obs_dim": options.obs_dim,
        "act_dim": options.act_dim,
        "batch_size": options.batch_size,
        "num_actions": options.num_actions,
        "num_critics": options.num_critics,
        "precision": "float32",
        "device": options.device,
        "tf32": options.tf32,
        "threads": options.threads,
    }
    found = []
    for precision in options.precision:
        command = [sys.executable, "-m", "benchmarks.ours"]
        found.append(Contestant(f"ours {precision}", command, {**settings, "precision": precision}))
    if options.device == "cuda":
        command = [sys.executable, "-m", "benchmarks.ours", "eager"]
        found.append(Contestant("ours float32, eager", command, settings))
    if not options.only_ours and options.device == "cpu" and options.num_critics == 2:
        for stack in ("old", "new"):
            command = [sys.executable, "-m", "benchmarks.rllib_cql", stack]
            found.append(Contestant(f"RLlib CQL, {stack} stack", command, settings))
    if options.d3rlpy_python:
        found.append(Contestant("d3rlpy", [options.d3rlpy_python, "-m", "benchmarks.d3rlpy_calql"], settings))
    for rival in options.rival:
        name, _, command_line = rival.partition("=")
        found.append(Contestant(name, shlex.split(command_line), settings))
    return found


def gemm_rate(threads: int) -> dict[str, float]:
    """GFLOP/s of a product of large matrices, per precision: the most that this machine gives."""
    import time

    import torch

    torch.set_num_threads(threads)
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
        out = torch.empty_like(left)
        times = []
        for _ in range(12):
            start = time.perf_counter()
            torch.mm(left, right, out=out)
            times.append(time.perf_counter() - start)
        rates[str(dtype).removeprefix("torch.")] = 2 * 2048**3 / min(times) / 1e9
    return rates


def product_flops(options: argparse.Namespace) -> float:
    """Floating-point operations of one step's critic products; the actor's network is below 1 % of it."""
    width, layers = (int(part) for part in options.critic.split("x"))
    per_row = 2 * (width * width * (layers - 1) + width * (options.act_dim + 1))
    trained, target = 1 + 3 * options.num_actions, options.num_actions
    state_part = 2 * options.obs_dim * width  # forward twice, one weight gradient
    return float(options.num_critics * options.batch_size * ((3 * trained + target) * per_row + 3 * state_part))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--critic", default="256x4", help="WIDTHxLAYERS (256x4)")
    parser.add_argument("--obs-dim", type=int, default=29)
    parser.add_argument("--act-dim", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--num-actions", type=int, default=10)
    parser.add_argument("--num-critics", type=int, default=2)
    parser.add_argument("--precision", nargs="+", default=["float32", "bfloat16"], help="ours; both by default")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--tf32", action="store_true", help="TensorFloat-32 products on a GPU, for all")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--d3rlpy-python", help="the Python of an environment with torch and d3rlpy")
    parser.add_argument("--rival", action="append", default=[], metavar="NAME=COMMAND", help="see above")
    parser.add_argument("--only-ours", action="store_true", help="leave RLlib's CQL out")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=2.0, help="per contestant and round")
    parser.add_argument("--json", type=Path, help="where the figures go")
    options = parser.parse_args()

    peak = gemm_rate(options.threads) if options.device == "cpu" else {}
    running = [contestant for contestant in contestants(options) if contestant.start()]
    for _ in range(1 + options.rounds):  # the first finds how many steps fit a round
        for contestant in running:
            contestant.time(options.seconds)
    report: dict[str, dict[str, Any]] = {}
    for contestant in running:
        contestant.stop()
        wall, cpu = (statistics.median(seconds[1:]) for seconds in (contestant.wall, contestant.cpu))
        report[contestant.name] = {"updates_per_second": 1 / wall, "updates_per_cpu_second": 1 / cpu}
        rate = peak.get(contestant.settings["precision"])
        if rate:
            report[contestant.name]["share_of_gemm_rate"] = product_flops(options) / wall / 1e9 / rate
    baseline = report.get("d3rlpy") or next(iter(report.values()))
    print(f"critics {options.num_critics} x {options.critic}, {options.threads} thread(s), {options.device}")
    print(f"{'':24}{'updates/s':>10}{'per CPU s':>10}{'ratio':>8}{'CPU ratio':>10}{'of GEMM rate':>14}")
    for name, row in report.items():
        row["ratio"] = row["updates_per_second"] / baseline["updates_per_second"]
        row["cpu_ratio"] = row["updates_per_cpu_second"] / baseline["updates_per_cpu_second"]
        share = f"{row['share_of_gemm_rate']:.0%}" if "share_of_gemm_rate" in row else ""
        figures = f"{row['updates_per_second']:10.2f}{row['updates_per_cpu_second']:10.2f}"
        print(f"{name:24}{figures}{row['ratio']:8.2f}{row['cpu_ratio']:10.2f}{share:>14}")
    for precision, rate in peak.items():
        print(f"gemm {precision:19}{rate:10.0f} GFLOP/s")
    if options.json:
        command = shlex.join(["python", "-m", "benchmarks.update_speed", *sys.argv[1:]])
        machine = {"processor": platform.processor(), "python": platform.python_version()}
        document = {"command": command, "machine": machine, "gemm_gflops": peak, "contestants": report}
        options.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
