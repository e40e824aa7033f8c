"""Size and time of the online rows in checkpoints: a million rows in full, then 10,000 new rows at a time.

python -m benchmarks.checkpoint_size --out results/checkpoint-size.json
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from rllib_calql.data import EpisodeStore, Transitions
from rllib_calql.data.replay_files import ReplayFiles
from rllib_calql.data.whole import check_whole, whole_folder

OBS_DIM, ACT_DIM, LENGTH = 29, 8, 1000


def episode(rng: np.random.Generator) -> Transitions:
    """1000 random rows."""
    rows = Transitions.from_episode(
        rng.normal(size=(LENGTH + 1, OBS_DIM)), rng.uniform(-1, 1, (LENGTH, ACT_DIM)), np.zeros(LENGTH), False
    )
    return Transitions(**{**vars(rows), "mc_returns": np.zeros(LENGTH)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--new-rows", type=int, default=10_000)
    parser.add_argument("--checkpoints", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    store = EpisodeStore(2 * args.rows, OBS_DIM, ACT_DIM)
    while len(store) < args.rows:
        store.append(episode(rng))
    keeper = ReplayFiles(store)
    with tempfile.TemporaryDirectory() as root:
        last: Path | None = None

        def save(number: int) -> dict[str, float]:
            nonlocal last
            path, start = Path(root, str(number)), time.perf_counter()
            with whole_folder(path, linked=last) as folder:
                keeper.save(folder / "replay")
            keeper.folder, last = path / "replay", path
            files = [file.stat() for file in path.rglob("*") if file.is_file()]
            return {
                "seconds": time.perf_counter() - start,
                "written_bytes": sum(file.st_size for file in files if file.st_nlink == 1),
                "total_bytes": sum(file.st_size for file in files),
            }

        full = save(0)
        increments = []
        for number in range(1, args.checkpoints + 1):
            for _ in range(args.new_rows // LENGTH):
                store.append(episode(rng))
            increments.append(save(number))
        start = time.perf_counter()
        check_whole(path := Path(root, str(args.checkpoints)))
        ReplayFiles(EpisodeStore(2 * args.rows, OBS_DIM, ACT_DIM)).restore(path / "replay")
        restore_seconds = time.perf_counter() - start

    def summary(name: str) -> dict[str, float]:
        values = [increment[name] for increment in increments]
        return {"min": min(values), "median": float(np.median(values)), "max": max(values)}

    result: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.checkpoint_size", *sys.argv[1:]]),
        "rows": args.rows,
        "observation_and_action_numbers": [OBS_DIM, ACT_DIM],
        "full": full,
        "new_rows_per_checkpoint": args.new_rows,
        "incremental": {name: summary(name) for name in ("seconds", "written_bytes")},
        "check_and_restore_seconds": restore_seconds,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
