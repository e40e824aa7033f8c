"""Environment steps per second by number of env runners and of environments, on both API stacks.

    python -m benchmarks.sampling_speed --out results/sampling-speed.json

`sampling` rows only collect (Pendulum-v1, an actor of two layers of 256): what runners and environments bring.
`training` rows are online iterations with updates (`--utd-ratio`), synchronous and with `overlap_sampling`, in
turns. A figure is the median of `--repeats` stretches of `--seconds` (`--training-seconds`), after a warm-up. A
stretch with overlap pays for its last episodes, which it does not use.
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
from functools import partial
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


def stretch(algo: Any, run: Callable[[], Any], seconds: float) -> float:
    """Steps per second while `run` is called again and again."""
    algo.take_in_requested()
    start, before = time.perf_counter(), algo.summary.num_online_env_steps
    while time.perf_counter() - start < seconds:
        run()
    return (algo.summary.num_online_env_steps - before) / (time.perf_counter() - start)


def measure(args: argparse.Namespace, training: list[dict[str, Any]], **settings: Any) -> list[dict[str, Any]]:
    """A row of results per entry of `training`, whose algorithms run in turns; `{}` stands for collecting only."""
    algos = [config_of(**settings, **given).build_algo() for given in training]
    paces: list[list[float]] = [[] for _ in algos]
    for _ in range(1 + args.repeats):
        for algo, given, found in zip(algos, training, paces, strict=True):
            run, seconds = (algo.train, args.training_seconds) if given else (partial(collect, algo), args.seconds)
            found.append(stretch(algo, run, seconds))
    for algo in algos:
        algo.stop()
    return [
        {
            "kind": "training" if given else "sampling",
            **settings,
            **given,
            "env_steps_per_second": round(statistics.median(found[1:]), 1),
            "load": round(os.getloadavg()[0], 1),
        }
        for given, found in zip(training, paces, strict=True)
    ]


def collect(algo: Any) -> None:
    """A round of episodes, which are only counted."""
    for episode in algo.stack.collect():
        algo.summary.add_episode(len(episode.rows), 0.0)


def settings(utd_ratio: float) -> list[dict[str, Any]]:
    """What is measured."""
    stacks = ("policy", "new")
    sampling: list[dict[str, Any]] = [
        {"training": [{}], "stack": stack, "runners": runners, "envs": envs, "mode": "sync"}
        for stack in stacks
        for runners in (0, 1, 2)
        for envs in (1, 4, 8)
    ]
    asynchronous: list[dict[str, Any]] = [
        {"training": [{}], "stack": "new", "runners": runners, "envs": envs, "mode": "async"}
        for runners in (0, 1)
        for envs in (4, 8)
    ]
    both = [{"utd_ratio": utd_ratio, "overlap_sampling": overlap} for overlap in (False, True)]
    training: list[dict[str, Any]] = [
        {"training": both, "stack": stack, "runners": runners, "envs": 1, "mode": "sync"}
        for stack in stacks
        for runners in (1, 2)
    ]
    return training + sampling + asynchronous


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--training-seconds", type=float, default=12.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--utd-ratio", type=float, default=0.02)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    found: list[dict[str, Any]] = []
    for given in settings(args.utd_ratio):
        found += measure(args, **given)
        print(*map(json.dumps, found[-len(given["training"]) :]), sep="\n", flush=True)
    result = {
        "command": shlex.join(["python", "-m", "benchmarks.sampling_speed", *sys.argv[1:]]),
        "cores": os.cpu_count(),
        "environment": "Pendulum-v1, episodes of 200 steps",
        "rows": found,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
