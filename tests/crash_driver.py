"""A driver that trains with a checkpoint after every iteration, and kills itself where it is told to.

    python -m tests.crash_driver FOLDER MOMENT ADDRESS_OF_RAY JSON_OF_SETTINGS

It goes on from FOLDER/checkpoint where there is one, to iteration 6 (2 offline, 4 online). Each finished iteration
prints `BLOCK` and its number and `calql` block. MOMENT is a key of `MOMENTS`, or `never`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import torch

from rllib_calql import CalQL
from rllib_calql.data import replay_files, whole
from tests.conftest import collect_pendulum
from tests.test_resume import deterministic, small_config

ITERATIONS = 6


def die(*args: Any, **kwargs: Any) -> None:
    """What a crash does: no clean-up, no exception."""
    os.kill(os.getpid(), signal.SIGKILL)


def _at_an_update(algo: CalQL) -> None:
    setattr(algo.local_replay_buffer.replay, "sample", die)  # noqa: B010


def _at_an_evaluation(algo: CalQL) -> None:
    setattr(algo, "evaluate", die)  # noqa: B010


def _while_collecting(algo: CalQL) -> None:
    setattr(algo.local_replay_buffer, "add_episode", die)  # noqa: B010


def _writing_rows(algo: CalQL) -> None:
    replay_files.ReplayFiles._written = die  # type: ignore[method-assign,assignment]


def _before_the_manifest(algo: CalQL) -> None:
    whole._write_manifest = die


def _between_renames(algo: CalQL) -> None:
    rename = Path.rename

    def rename_and_die(path: Path, target: Path) -> Path:
        rename(path, target)
        die()
        return target

    Path.rename = rename_and_die  # type: ignore[method-assign,assignment]


# Which iteration the crash is in, and how it comes about. In this order, a run survives all of them.
MOMENTS: dict[str, tuple[int, Callable[[CalQL], None]]] = {
    "offline": (2, _at_an_update),
    "switch": (2, _at_an_evaluation),
    "collecting": (3, _while_collecting),
    "online": (4, _at_an_update),
    "rows": (4, _writing_rows),
    "manifest": (5, _before_the_manifest),
    "renames": (5, _between_renames),
}


def train(algo: CalQL, checkpoint: Path | None, moment: str = "never") -> None:
    """Trains to iteration 6, with a checkpoint after each; dies at the moment."""
    iteration, crash = MOMENTS.get(moment, (0, die))
    while algo.training_iteration < ITERATIONS:
        if algo.training_iteration + 1 == iteration:
            crash(algo)
        result = algo.train()
        print("BLOCK", json.dumps([algo.training_iteration, deterministic(result["calql"])]), flush=True)
        if checkpoint is not None:
            algo.save(str(checkpoint))


def main() -> None:
    folder, moment, address = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    given = json.loads(sys.argv[4])
    torch.set_num_threads(1)
    ray.init(address, log_to_driver=False)
    checkpoint, data = folder / "checkpoint", collect_pendulum(20)
    # "renames" leaves the checkpoint under another name, from which it is recovered
    if any(folder.iterdir()):
        algo = CalQL.from_checkpoint(checkpoint, input_=data)
    else:
        algo = small_config(data, **given).build_algo()
    train(algo, checkpoint, moment)


if __name__ == "__main__":
    main()
