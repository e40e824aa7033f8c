"""What every contestant of the speed benchmarks does: build an update, then time some steps whenever it is asked.

A contestant is a process of its own, so that thread pools and allocators do not mix and each may live in another
Python environment (this file needs nothing but the standard library). Its settings come as JSON in the first
argument. Per line on its standard input, the number of steps to make, it answers with a line of JSON: wall and
CPU seconds.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import TypedDict


class Settings(TypedDict):
    critic: list[int]  # hidden widths
    actor: list[int]
    obs_dim: int
    act_dim: int
    batch_size: int
    num_actions: int
    num_critics: int
    precision: str
    device: str
    tf32: bool  # on a GPU
    threads: int


def settings() -> Settings:
    """This contestant's settings."""
    return json.loads(sys.argv[1])


def serve(run: Callable[[int], object]) -> None:
    """Answers requests until the input ends; `run` makes so many steps and waits for the device."""
    # Libraries print to standard output; the answers have it for themselves.
    answers, sys.stdout = sys.stdout, sys.stderr
    run(3)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        run(int(line))
        times = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        print(json.dumps(times), file=answers, flush=True)
