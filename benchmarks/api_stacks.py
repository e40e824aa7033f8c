"""RLlib's two API stacks side by side: updates per second, and environment steps per second of the local runner.

    python -m benchmarks.api_stacks [--rounds 11] [--updates 20] [--out results/api-stacks.json]

The variants take turns, a short iteration each, so that whatever else the machine does meets all of them; ratios
are of the CPU time (of all processes concerned) of neighbouring iterations. One thread, 29/8 dimensions, batch
256, critics 2x256, as for AntMaze.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import ray
import torch

from rllib_calql import CalQL, CalQLConfig
from rllib_calql.data import Transitions

OBS_DIM, ACT_DIM = 29, 8
STEPS = 1000  # of the environment, per iteration
VARIANTS = {"policy stack": (False, 0), "new stack": (True, 0), "new stack, 1 remote learner": (True, 1)}


def some_data(num_episodes: int = 100, length: int = 1000) -> Transitions:
    """Rows of AntMaze's shape; what is in them does not matter for speed."""
    rng = np.random.default_rng(0)
    rows = num_episodes * length
    last = np.arange(1, rows + 1) % length == 0
    return Transitions.from_arrays(
        rng.normal(size=(rows, OBS_DIM)).astype(np.float32),
        rng.uniform(-1, 1, (rows, ACT_DIM)).astype(np.float32),
        np.zeros(rows, np.float32),
        np.zeros(rows, bool),
        last,
        next_observations=None,
    )


def updating(data: Transitions, new_stack: bool, num_learners: int, updates: int) -> CalQL:
    """A run of the offline phase."""
    config = (
        CalQLConfig()
        .api_stack(enable_rl_module_and_learner=new_stack, enable_env_runner_and_connector_v2=new_stack)
        .environment(
            observation_space=gym.spaces.Box(-np.inf, np.inf, (OBS_DIM,)),
            action_space=gym.spaces.Box(-1.0, 1.0, (ACT_DIM,)),
        )
        .offline_data(input_=data)
        .training(num_online_env_steps=0, min_train_updates_per_iteration=updates, lagrangian=True)
        .debugging(seed=0)
    )
    if num_learners:
        config.learners(num_learners=num_learners)
    return config.build_algo()


def acting(new_stack: bool) -> CalQL:
    """A run that only collects: the updates that its steps earn are next to none."""
    config = (
        CalQLConfig()
        .api_stack(enable_rl_module_and_learner=new_stack, enable_env_runner_and_connector_v2=new_stack)
        .environment("Pendulum-v1")
        .training(num_offline_updates=0, utd_ratio=1e-9, min_env_steps_per_iteration=STEPS)
        .debugging(seed=0)
    )
    return config.build_algo()


def cpu_seconds(algo: CalQL) -> float:
    """CPU time so far of this process and of the remote learners."""
    seconds = time.process_time()
    if algo.config.num_learners > 0:
        seconds += sum(r.get() for r in algo.learner_group.foreach_learner(lambda learner: time.process_time()))
    return seconds


def paces(runs: dict[str, CalQL], figure: str, units: int, rounds: int) -> dict[str, Any]:
    """Medians: the figure (units per second), CPU milliseconds per unit, and its ratio to the first run's."""
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, algo in runs.items():
            before = cpu_seconds(algo)
            speed = algo.train()["calql"][figure]
            if number:  # the first warms up
                speeds[name].append(speed)
                cpu[name].append(1000.0 * (cpu_seconds(algo) - before) / units)
    first = next(iter(cpu.values()))
    return {
        name: {
            "per_second": round(statistics.median(speeds[name]), 2),
            "cpu_ms": round(statistics.median(cpu[name]), 3),
            "cpu_ratio": round(statistics.median(c / f for c, f in zip(cpu[name], first, strict=True)), 3),
            "per_second_all": [round(value, 2) for value in speeds[name]],
            "cpu_ms_all": [round(value, 3) for value in cpu[name]],
        }
        for name in runs
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    data = some_data()
    learning = {name: updating(data, *variant, options.updates) for name, variant in VARIANTS.items()}
    collecting = {name: acting(new_stack) for name, (new_stack, learners) in VARIANTS.items() if not learners}
    report = {
        "command": shlex.join(["python", "-m", "benchmarks.api_stacks", *sys.argv[1:]]),
        "torch": torch.__version__,
        "ray": ray.__version__,
        "updates_per_second": paces(learning, "updates_per_second", options.updates, options.rounds),
        "env_steps_per_second": paces(collecting, "env_steps_per_second", STEPS, options.rounds),
    }
    for algo in (*learning.values(), *collecting.values()):
        algo.stop()
    text = json.dumps(report, indent=1)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
