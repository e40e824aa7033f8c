"""Environment steps per second by number of env runners and of environments, on both API stacks.

    python -m benchmarks.sampling_speed --out results/sampling-speed.json

`sampling` rows only collect (Pendulum-v1, an actor of two layers of 256): what runners and environments bring.
`training` rows are online iterations with updates (`--utd-ratio`), synchronous and with `overlap_sampling`. A
figure is the median of `--repeats` stretches of `--seconds`; every configuration is built and warmed up by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import ray
import torch

from rllib_calql import CalQLConfig
from rllib_calql.data import Transitions


def offline_episode() -> Transitions:
    """One episode of random actions: the offline phase is skipped, but a batch has offline rows."""
    env = gym.make("Pendulum-v1")
    observation, _ = env.reset(seed=0)
    observations, actions, rewards, done = [observation], [], [], False
    env.action_space.seed(0)
    while not done:
        actions.append(env.action_space.sample())
        observation, reward, terminated, truncated, _ = env.step(actions[-1])
        observations.append(observation)
        rewards.append(float(reward))
        done = terminated or truncated
    return Transitions.from_episode(np.array(observations), np.array(actions), np.array(rewards), False)


def config_of(stack: str, runners: int, envs: int, mode: str, **training: Any) -> CalQLConfig:
    """A config whose iterations are single rounds of the online phase."""
    new = stack == "new"
    config = (
        CalQLConfig()
        .api_stack(enable_rl_module_and_learner=new, enable_env_runner_and_connector_v2=new)
        .environment("Pendulum-v1")
        .offline_data(input_=offline_episode())
        .training(num_offline_updates=0, num_online_env_steps=10**9, online_capacity=100_000, **training)
        .env_runners(num_env_runners=runners, num_envs_per_env_runner=envs)
        .debugging(seed=0)
    )
    if new:
        config.env_runners(gym_env_vectorize_mode=mode)
    return config


def pace(algo: Any, run: Callable[[], Any], args: argparse.Namespace) -> float:
    """Steps per second while `run` is called again and again."""
    run()
    found = []
    for _ in range(args.repeats):
        start, before = time.perf_counter(), algo.summary.num_online_env_steps
        while time.perf_counter() - start < args.seconds:
            run()
        found.append((algo.summary.num_online_env_steps - before) / (time.perf_counter() - start))
    return round(statistics.median(found), 1)


def measure(args: argparse.Namespace, **settings: Any) -> dict[str, Any]:
    """One row of results."""
    kind = settings.pop("kind")
    training = (
        {"utd_ratio": args.utd_ratio, "overlap_sampling": settings.pop("overlap")} if kind == "training" else {}
    )
    algo = config_of(**settings, **training).build_algo()

    def collect() -> None:
        for episode in algo.stack.collect():
            algo.summary.add_episode(len(episode.rows), 0.0)

    steps = pace(algo, algo.train if kind == "training" else collect, args)
    algo.stop()
    row = {"kind": kind, **settings, **({"overlap": training["overlap_sampling"]} if training else {})}
    return {**row, "env_steps_per_second": steps, "load": round(os.getloadavg()[0], 1)}


def rows() -> list[dict[str, Any]]:
    """What is measured."""
    sampling = [
        {"kind": "sampling", "stack": stack, "runners": runners, "envs": envs, "mode": "sync"}
        for stack in ("policy", "new")
        for runners in (0, 1, 2)
        for envs in (1, 4, 8)
    ]
    asynchronous = [
        {"kind": "sampling", "stack": "new", "runners": runners, "envs": envs, "mode": "async"}
        for runners in (0, 1)
        for envs in (4, 8)
    ]
    training = [
        {"kind": "training", "stack": stack, "runners": runners, "envs": 1, "mode": "sync", "overlap": overlap}
        for stack in ("policy", "new")
        for runners in (1, 2)
        for overlap in (False, True)
    ]
    return sampling + asynchronous + training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--utd-ratio", type=float, default=0.02)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    found = []
    for row in rows():
        found.append(measure(args, **row))
        print(json.dumps(found[-1]), flush=True)
    result = {
        "command": shlex.join(["python", "-m", "benchmarks.sampling_speed", *sys.argv[1:]]),
        "cores": os.cpu_count(),
        "environment": "Pendulum-v1, episodes of 200 steps",
        "utd_ratio": args.utd_ratio,
        "rows": found,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
