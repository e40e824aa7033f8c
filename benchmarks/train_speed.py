"""Times `algo.train()` beside the bare update, offline and online, on both API stacks, interleaved in one run.

    python -m benchmarks.train_speed --critic 256x2 --threads 1 --json OUT.json

Everything is in one process: an environment of random numbers with the given sizes, random offline rows, and for
each stack a running `CalQL`. A round gives each its turn. Reported are medians over rounds:
- the bare update (`CalQLUpdate.run` on batches from the replay), and drawing a batch alone,
- offline: milliseconds per update of whole `algo.train()` iterations, and the share of it that is the bare update,
- what an iteration costs beside its updates (results, metrics, RLlib's bookkeeping),
- online at one update per step: milliseconds per environment step, beside bare update + bare step and action,
- evaluation: milliseconds per step of `algo.evaluate()`, beside bare step and action.
"""

from __future__ import annotations

import argparse
import json
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
from ray.tune.registry import register_env

from rllib_calql import CalQL, CalQLConfig
from rllib_calql.data import Transitions

EPISODE = 100


class RandomNumbers(gym.Env):
    """Random observations and rewards; episodes of EPISODE steps."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.observation_space = gym.spaces.Box(-10.0, 10.0, (config["obs_dim"],), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (config["act_dim"],), np.float32)
        self._rng, self._time = np.random.default_rng(0), 0

    def _observation(self) -> np.ndarray:
        return self._rng.standard_normal(self.observation_space.shape, np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self._time = 0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._time += 1
        return self._observation(), float(self._rng.random()), False, self._time == EPISODE, {}


def random_rows(num_rows: int, obs_dim: int, act_dim: int) -> Transitions:
    """Episodes of EPISODE random rows."""
    rng = np.random.default_rng(0)
    ends = np.zeros(num_rows, bool)
    ends[EPISODE - 1 :: EPISODE] = ends[-1] = True
    return Transitions.from_arrays(
        observations=rng.standard_normal((num_rows, obs_dim), np.float32),
        actions=rng.uniform(-0.9, 0.9, (num_rows, act_dim)).astype(np.float32),
        rewards=rng.random(num_rows, np.float32),
        terminated=ends,
        truncated=np.zeros(num_rows, bool),
    )


def algorithm(options: argparse.Namespace, rows: Transitions, new_stack: bool, online: bool) -> CalQL:
    """A run in its offline phase, or in its online phase from the start."""
    width, layers = (int(part) for part in options.critic.split("x"))
    config = (
        CalQLConfig()
        .api_stack(enable_rl_module_and_learner=new_stack, enable_env_runner_and_connector_v2=new_stack)
        .environment("random-numbers", env_config={"obs_dim": options.obs_dim, "act_dim": options.act_dim})
        .offline_data(input_=rows)
        .training(
            num_offline_updates=0 if online else 10**9,
            num_online_env_steps=10**9,
            min_train_updates_per_iteration=options.updates,
            min_env_steps_per_iteration=EPISODE,
            online_capacity=100_000,
            utd_ratio=1.0,
            q_model_config={"fcnet_hiddens": [width] * layers},
            lagrangian=True,
            precision=options.precision,
        )
        .env_runners(num_env_runners=0)
        .evaluation(evaluation_interval=None, evaluation_duration=2, evaluation_config={"explore": False})
        .debugging(seed=0)
    )
    return config.build_algo()


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Medians over rounds, in milliseconds."""
    clock = time.process_time if options.cpu_time else time.perf_counter

    def seconds(function: Callable[[], object]) -> float:
        start = clock()
        function()
        return clock() - start

    rows = random_rows(options.rows, options.obs_dim, options.act_dim)
    stacks = {"policy stack": False, "new stack": True}
    offline = {name: algorithm(options, rows, new, online=False) for name, new in stacks.items()}
    online = {name: algorithm(options, rows, new, online=True) for name, new in stacks.items()}
    update = offline["policy stack"].update
    replay = offline["policy stack"].local_replay_buffer.replay
    env = RandomNumbers({"obs_dim": options.obs_dim, "act_dim": options.act_dim})

    def draw() -> Any:
        return replay.sample(256, online=False)

    def act_and_step() -> None:
        observation, _ = env.reset()
        for _ in range(EPISODE):
            noise = torch.randn(1, options.act_dim)
            action, _ = update.act(torch.as_tensor(observation).unsqueeze(0), noise)
            observation = env.step(action[0].numpy())[0]

    times: dict[str, list[float]] = {}

    def note(name: str, value: float, number: int = 1) -> None:
        times.setdefault(name, []).append(1000.0 * value / number)

    for number in range(1 + options.rounds):
        if number == 1:
            times.clear()  # the first round warms up
        note("draw a batch", seconds(lambda: [draw() for _ in range(200)]), 200)
        note("bare update", seconds(lambda: update.run(draw, options.updates)), options.updates)
        note("bare step and action", seconds(act_and_step), EPISODE)
        for name in stacks:
            start = time.perf_counter()
            note(f"{name}: offline, per update", seconds(offline[name].train), options.updates)
            beside = time.perf_counter() - start - offline[name]._seconds
            note(f"{name}: an iteration beside its updates, wall clock", beside)
            note(f"{name}: online, per step", seconds(online[name].train), EPISODE)
            note(f"{name}: evaluation, per step", seconds(online[name].evaluate), 2 * EPISODE)
    for algo in (*offline.values(), *online.values()):
        algo.stop()
    return {name: statistics.median(values) for name, values in times.items()}


def write_figures(path: Path, benchmark: str, threads: int, **figures: Any) -> None:
    """A JSON of the figures with the command and the versions that made them."""
    document = {
        "command": shlex.join(["python", "-m", f"benchmarks.{benchmark}", *sys.argv[1:]]),
        "threads": threads,
        "torch": torch.__version__,
        "ray": ray.__version__,
    }
    path.write_text(json.dumps({**document, **figures}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--critic", default="256x2", help="WIDTHxLAYERS (256x2)")
    parser.add_argument("--obs-dim", type=int, default=29)
    parser.add_argument("--act-dim", type=int, default=8)
    parser.add_argument("--rows", type=int, default=100_000, help="offline rows")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--updates", type=int, default=300, help="of an offline iteration")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true", help="count CPU time: on a machine that is not idle")
    parser.add_argument("--json", type=Path, help="where the figures go")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    ray.init("local", include_dashboard=False, log_to_driver=False)
    register_env("random-numbers", RandomNumbers)
    found = measure(options)
    for name, value in found.items():
        print(f"{name:56}{value:10.3f} ms")
    ideal = found["bare update"] + found["bare step and action"]
    shares = {}
    for name in ("policy stack", "new stack"):
        shares[f"{name}: bare update / offline"] = found["bare update"] / found[f"{name}: offline, per update"]
        shares[f"{name}: online / (bare update + step)"] = found[f"{name}: online, per step"] / ideal
    for name, share in shares.items():
        print(f"{name:56}{share:10.3f}")
    if options.json:
        write_figures(options.json, "train_speed", options.threads, milliseconds=found, shares=shares)


if __name__ == "__main__":
    main()
