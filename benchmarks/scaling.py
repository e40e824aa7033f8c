"""How time and memory grow with the sizes: batch, ensemble, actions, dataset, env runners.

    python -m benchmarks.scaling [batch ensemble high-utd actions dataset runners] --json OUT.json

- `batch`, `ensemble`, `actions`: an update; of `actions` the conservative term and the target take so many each.
- `high-utd`: an update of 10 LayerNorm critics (2 of them in the target) beside one of 2, and 20 in one call.
- `dataset`: drawing a batch from a memory-mapped dataset of noise, all of it in the page cache.
- `runners`: an online environment step with so many remote runners (random numbers, an update per 100 steps).

Each size is a process of its own, and within a series they take turns in every round. Reported are medians of wall
and CPU milliseconds of that process, the most memory of its own that it has taken since its imports, its runners'
added (with theirs), and what it has mapped of files (besides libraries: the dataset).
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray
import torch
from ray.tune.registry import register_env

from benchmarks.data_scale import Noise, memory, quiet
from benchmarks.train_speed import EPISODE, RandomNumbers, write_figures
from rllib_calql import CalQLConfig
from rllib_calql.core import CalQLUpdate, UpdateConfig
from rllib_calql.data import MixedReplay, Preparation, open_dataset
from rllib_calql.data.storage_writer import write_dataset

OBS_DIM, ACT_DIM, BATCH = 29, 8, 256
BASE: dict[str, Any] = {"lagrangian": True, "critic_hiddens": (256, 256)}
Row = dict[str, Any]


class Job(NamedTuple):
    """What a process does when its turn comes."""

    run: Callable[[], object]
    units: int = 1  # of work in a run
    elsewhere: Callable[[], int] = lambda: 0  # bytes of other processes that work for this one


def take_turns(makers: Mapping[str, Callable[[], Job]], rounds: int) -> list[Row]:
    """A row per size: medians of milliseconds per unit of work, and megabytes after the last round."""
    context = multiprocessing.get_context("forkserver")
    # Ray, RLlib and torch, with what its optimisers import when the first is made
    context.set_forkserver_preload(["benchmarks.train_speed", "torch._dynamo"])
    answers: dict[str, list[Row]] = {name: [] for name in makers}
    pipes: dict[str, Connection] = {}
    processes = []
    try:
        for name, make in makers.items():
            pipes[name], theirs = context.Pipe()
            processes.append(context.Process(target=serve, args=(make, theirs, torch.get_num_threads())))
            processes[-1].start()
            theirs.close()
        for _ in range(1 + rounds):  # the first warms up
            for name, pipe in pipes.items():
                pipe.send("your turn")
                answers[name].append(pipe.recv())
    finally:
        for pipe in pipes.values():
            pipe.close()
        for process in processes:
            process.join()
    medians = ("wall_ms", "cpu_ms")
    return [
        {"size": name, **found[-1], **{key: statistics.median(row[key] for row in found[1:]) for key in medians}}
        for name, found in answers.items()
    ]


def serve(make: Callable[[], Job], pipe: Connection, threads: int) -> None:
    """Does the job whenever it is asked to, until nobody can ask any more."""
    torch.set_num_threads(threads)
    before = memory()
    job = make()
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        wall, cpu = time.perf_counter(), time.process_time()
        job.run()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        after = memory()
        own = after["peak_own"] - before["own"] + job.elsewhere()
        mapped = after["files"] - before["files"]
        pipe.send(
            {
                "wall_ms": 1000 * wall / job.units,
                "cpu_ms": 1000 * cpu / job.units,
                "own_mb": own / 1e6,
                "mapped_mb": mapped / 1e6,
            }
        )


def update_job(batch_size: int = BATCH, num_updates: int = 1, **settings: Any) -> Job:
    """Updates with these settings on a fixed batch."""
    update = CalQLUpdate(OBS_DIM, ACT_DIM, UpdateConfig(**(BASE | settings)), seed=0)
    rng = np.random.default_rng(0)
    shapes = {"observations": (OBS_DIM,), "next_observations": (OBS_DIM,), "actions": (ACT_DIM,)}
    names = (*shapes, "rewards", "dones", "mc_returns")
    batch = {
        name: rng.uniform(-0.9, 0.9, (batch_size, *shapes.get(name, ()))).astype(np.float32) for name in names
    }
    return Job(lambda: update.run(lambda: batch, num_updates))


def batch(rounds: int) -> list[Row]:
    sizes = (64, 128, 256, 512, 1024, 2048)
    return take_turns({str(size): partial(update_job, size) for size in sizes}, rounds)


def ensemble(rounds: int) -> list[Row]:
    return take_turns({str(size): partial(update_job, num_critics=size) for size in (1, 2, 5, 10)}, rounds)


def high_utd(rounds: int) -> list[Row]:
    ten = partial(update_job, num_critics=10, num_target_critics=2, critic_layer_norm=True)
    makers: dict[str, Callable[[], Job]] = {
        "2 critics": update_job,
        "2 critics, LayerNorm": partial(update_job, critic_layer_norm=True),
        "10 critics, LayerNorm, 2 in the target": ten,
        "20 updates of those 10 in one call": partial(ten, num_updates=20),
    }
    return take_turns(makers, rounds)


def actions(rounds: int) -> list[Row]:
    sizes = (1, 4, 10, 20, 40)
    makers = {str(size): partial(update_job, num_actions=size, num_target_actions=size) for size in sizes}
    return take_turns(makers, rounds)


def draw_job(folder: Path) -> Job:
    """Batches from a dataset on disk."""
    rows = Preparation()(open_dataset(folder))
    replay = MixedReplay(rows, 1000, 1.0, 0, OBS_DIM, ACT_DIM)
    for column in (rows.observations, rows.actions):
        column.max()  # reads it through
    units = 1000

    def draw() -> None:
        for _ in range(units):
            replay.sample(BATCH, online=False)

    return Job(draw, units)


def dataset(rounds: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as root:
        makers = {}
        for size in (10**5, 10**6, 10**7):
            folder = Path(root, str(size))
            quiet(partial(write_dataset, Noise(size), folder))
            makers[f"{size:,} rows"] = partial(draw_job, folder)
        return take_turns(makers, rounds)


def runners_job(number: int) -> Job:
    """Sixteen episodes, however many runners share them."""
    ray.init("local", num_cpus=1 + number, include_dashboard=False, log_to_driver=False)
    register_env("random-numbers", RandomNumbers)
    units = 16 * EPISODE
    config = (
        CalQLConfig()
        .api_stack(enable_rl_module_and_learner=False, enable_env_runner_and_connector_v2=False)
        .environment("random-numbers", env_config={"obs_dim": OBS_DIM, "act_dim": ACT_DIM})
        .training(num_offline_updates=0, num_online_env_steps=10**9, online_capacity=100_000, utd_ratio=0.01)
        .training(min_env_steps_per_iteration=units)
        .env_runners(num_env_runners=number)
        .debugging(seed=0)
    )
    algo = config.build_algo()
    group = algo.env_runner_group
    return Job(
        algo.train,
        units,
        lambda: sum(group.foreach_env_runner(lambda runner: memory()["own"], local_env_runner=False)),
    )


def runners(rounds: int) -> list[Row]:
    return take_turns({str(number): partial(runners_job, number) for number in (0, 1, 2, 4)}, rounds)


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
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="where the figures go")
    options = parser.parse_args()
    if unknown := set(options.series) - set(SERIES):
        parser.error(f"no series {', '.join(sorted(unknown))}; there are {', '.join(SERIES)}")
    torch.set_num_threads(options.threads)
    found = {}
    for name in options.series or SERIES:
        found[name] = SERIES[name](options.rounds)
        print(f"{name:38}{'ms':>10}{'CPU ms':>10}{'own MB':>10}{'mapped MB':>10}")
        for row in found[name]:
            figures = (row[key] for key in ("wall_ms", "cpu_ms", "own_mb", "mapped_mb"))
            print(f"  {row['size']:36}" + "".join(f"{figure:10.3f}" for figure in figures), flush=True)
    if options.json:
        write_figures(options.json, "scaling", options.threads, series=found)


if __name__ == "__main__":
    main()
