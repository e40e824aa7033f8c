"""How the time of a step and the memory grow with the sizes: batch, ensemble, actions, dataset, env runners.

    python -m benchmarks.scaling [batch ensemble high-utd actions dataset runners] --json OUT.json

`high-utd` compares 10 LayerNorm critics (2 of them in the target) with 2. Within a series the sizes take turns in
every round; reported are medians of wall and CPU milliseconds and the peak memory of the process afterwards.
"""

from __future__ import annotations

import argparse
import json
import resource
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.train_speed import random_rows
from rllib_calql.core import CalQLUpdate, UpdateConfig
from rllib_calql.data.prepare import Preparation
from rllib_calql.data.replay import MixedReplay

OBS_DIM, ACT_DIM = 29, 8
BASE: dict[str, Any] = {"lagrangian": True, "critic_hiddens": (256, 256)}
Row = dict[str, Any]


def take_turns(jobs: dict[str, Callable[[], object]], rounds: int) -> list[Row]:
    """Medians of the jobs' milliseconds, one call each per round."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
    for _ in range(1 + rounds):
        for name, job in jobs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            job()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    rows: list[Row] = []
    for name, pairs in times.items():
        wall_ms, cpu_ms = (1000.0 * statistics.median(column) for column in zip(*pairs[1:], strict=True))
        rows.append({"size": name, "wall_ms": wall_ms, "cpu_ms": cpu_ms})
    rows[-1]["peak_mb_of_the_series"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return rows


def step_of(batch_size: int = 256, **settings: Any) -> Callable[[], object]:
    """A step of an update with these settings on a fixed batch."""
    update = CalQLUpdate(OBS_DIM, ACT_DIM, UpdateConfig(**(BASE | settings)), seed=0)
    rng = np.random.default_rng(0)
    shapes = {"observations": (OBS_DIM,), "next_observations": (OBS_DIM,), "actions": (ACT_DIM,)}
    names = ("observations", "next_observations", "actions", "rewards", "dones", "mc_returns")
    batch = {
        name: torch.as_tensor(rng.uniform(-0.9, 0.9, (batch_size, *shapes.get(name, ()))), dtype=torch.float32)
        for name in names
    }
    return lambda: update.step(batch)


def batch(rounds: int) -> list[Row]:
    return take_turns({str(size): step_of(size) for size in (64, 128, 256, 512, 1024, 2048)}, rounds)


def ensemble(rounds: int) -> list[Row]:
    return take_turns({str(size): step_of(num_critics=size) for size in (1, 2, 5, 10)}, rounds)


def high_utd(rounds: int) -> list[Row]:
    wide = step_of(num_critics=10, num_target_critics=2, critic_layer_norm=True)
    jobs = {
        "2 critics": step_of(),
        "2 critics, LayerNorm": step_of(critic_layer_norm=True),
        "10 critics, LayerNorm, 2 in the target": wide,
        "20 updates of those 10": lambda: [wide() for _ in range(20)],
    }
    return take_turns(jobs, rounds)


def actions(rounds: int) -> list[Row]:
    jobs = {str(size): step_of(num_actions=size, num_target_actions=size) for size in (1, 4, 10, 20, 40)}
    return take_turns(jobs, rounds)


def dataset(rounds: int) -> list[Row]:
    jobs: dict[str, Callable[[], object]] = {}
    for size in (10**5, 10**6, 10**7):
        rows = random_rows(size, OBS_DIM, ACT_DIM)
        replay = MixedReplay(Preparation()(rows), 1000, 0.5, 0, OBS_DIM, ACT_DIM)
        jobs[f"{size:,} rows, 100 batches"] = partial(draw_batches, replay)
    return take_turns(jobs, rounds)


def draw_batches(replay: MixedReplay) -> None:
    for _ in range(100):
        replay.sample(256, online=False)


def runners(rounds: int) -> list[Row]:
    """An online iteration of at least 400 steps (and 40 updates) with remote env runners."""
    import ray
    from ray.tune.registry import register_env

    from benchmarks.train_speed import RandomNumbers
    from rllib_calql import CalQL, CalQLConfig

    ray.init("local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    register_env("random-numbers", RandomNumbers)

    def algorithm(number: int) -> CalQL:
        config = (
            CalQLConfig()
            .environment("random-numbers", env_config={"obs_dim": OBS_DIM, "act_dim": ACT_DIM})
            .training(num_offline_updates=0, num_online_env_steps=10**9, online_capacity=100_000, utd_ratio=0.1)
            .training(min_env_steps_per_iteration=400)
            .env_runners(num_env_runners=number)
            .debugging(seed=0)
        )
        return config.build_algo()

    algorithms = {str(number): algorithm(number) for number in (0, 1, 2, 4)}
    rows = take_turns({name: algo.train for name, algo in algorithms.items()}, rounds)
    for algo in algorithms.values():
        algo.stop()
    return rows


SERIES: dict[str, Callable[[int], list[Row]]] = {
    "batch": batch,
    "ensemble": ensemble,
    "high-utd": high_utd,
    "actions": actions,
    "dataset": dataset,
    "runners": runners,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("series", nargs="*", metavar="SERIES", help=f"some of {', '.join(SERIES)} (all)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="where the figures go")
    options = parser.parse_args()
    if unknown := set(options.series) - set(SERIES):
        parser.error(f"no series {', '.join(sorted(unknown))}; there are {', '.join(SERIES)}")
    torch.set_num_threads(options.threads)
    found = {}
    for name in options.series or SERIES:
        found[name] = SERIES[name](options.rounds)
        print(name)
        for row in found[name]:
            peak = f"{row['peak_mb_of_the_series']:10.0f} MB" if "peak_mb_of_the_series" in row else ""
            print(f"  {row['size']:42}{row['wall_ms']:10.2f} ms{row['cpu_ms']:10.2f} ms CPU{peak}", flush=True)
    if options.json:
        command = shlex.join(["python", "-m", "benchmarks.scaling", *sys.argv[1:]])
        document = {"command": command, "threads": options.threads, "series": found}
        options.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
