"""Ten million transitions on disk and in memory: writing, opening, drawing batches, returns-to-go, memory.

python -m benchmarks.data_scale --out results/data-scale.json
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import shlex
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from rllib_calql.data import Metadata, MixedReplay, Preparation, Rows, Transitions, open_dataset, return_to_go
from rllib_calql.data import mapped as mapped_files
from rllib_calql.data.storage_writer import write_dataset

OBS_DIM, ACT_DIM = 29, 8
RAW_BYTES = 4 * (OBS_DIM + ACT_DIM + 1) + 2  # float32 columns and two flags
BATCH = 256


class Noise:
    """Episodes of 100 to 1000 rows of noise, a tenth of which end in a terminal; no next observations."""

    def __init__(self, num_rows: int) -> None:
        self.metadata = Metadata(num_rows=num_rows)
        self._num_rows = num_rows

    def chunks(self) -> Iterator[Rows]:
        """100,000 rows at a time."""
        rng = np.random.default_rng(0)
        left = self._num_rows
        while left > 0:
            count = min(left, 100_000)
            ends = rng.random(count) < 1 / 550
            terminated = ends & (rng.random(count) < 0.1)
            left -= count
            terminated[-1] |= left == 0
            yield Rows(
                observations=rng.standard_normal((count, OBS_DIM), dtype=np.float32),
                actions=rng.uniform(-1, 1, (count, ACT_DIM)).astype(np.float32),
                rewards=rng.standard_normal(count, dtype=np.float32),
                terminated=terminated,
                truncated=ends & ~terminated,
            )


def memory() -> dict[str, int]:
    """Bytes of this process: its own, the most that these have been, and of mapped files (page cache)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = {
        name: int(text.split()[0]) * 1024 for name, text in (line.split(":") for line in lines if "kB" in line)
    }
    own, files = values["RssAnon"], values["RssFile"]
    return {"own": own, "peak_own": own + values["VmHWM"] - values["VmRSS"], "files": files}


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def evict(folder: Path) -> None:
    """Takes a dataset's files out of the page cache."""
    os.sync()
    for file in folder.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def quiet(function: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function()


# --- each of these runs in a process of its own ---


def writing(folder: Path, rows: int) -> dict[str, Any]:
    quiet(lambda: write_dataset(Noise(200_000), folder.with_name("warm-up")))
    generating = seconds(lambda: [None for _ in Noise(rows).chunks()])
    before, peak = memory()["own"], 0

    def watch(_: int) -> None:
        nonlocal peak
        peak = max(peak, memory()["own"])

    took = seconds(lambda: quiet(lambda: write_dataset(Noise(rows), folder, progress=watch)))
    data = open_dataset(folder)
    size = sum(file.stat().st_size for file in folder.iterdir())
    return {
        "transitions": len(data),
        "episodes": data.num_episodes,
        "writing_seconds_without_making_the_noise": took - generating,
        "writing_adds_bytes": peak - before,
        "bytes_per_transition": size / len(data),
        "of_raw_columns": size / len(data) / RAW_BYTES,
    }


def mapped(folder: Path, rows: int) -> dict[str, Any]:
    evict(folder)
    opening_cold = seconds(lambda: open_dataset(folder))
    opening = [seconds(lambda: open_dataset(folder)) for _ in range(20)]
    before = memory()
    raw = open_dataset(folder)
    start = time.perf_counter()
    data = Preparation(action_low=-np.ones(ACT_DIM), action_high=np.ones(ACT_DIM))(raw)
    preparing = time.perf_counter() - start
    replay = MixedReplay(data, 1000, 1.0, 0, OBS_DIM, ACT_DIM)
    for column in (data.observations, data.actions):  # warm: all of it in the page cache
        for first in range(0, len(column), 1 << 20):
            column[first : first + (1 << 20)].max()
    batches = [seconds(lambda: replay.sample(BATCH, online=False)) for _ in range(5000)]
    after = memory()
    return {
        "opening_seconds_cold": opening_cold,
        "opening_seconds": float(np.median(opening)),
        "preparing_seconds": preparing,
        "training_adds_bytes_beyond_page_cache": after["own"] - before["own"],
        "mapped_bytes_in_page_cache": after["files"] - before["files"],
        "batch_milliseconds_mapped_warm": 1000 * float(np.median(batches)),
        "batch_milliseconds_mapped_warm_p99": 1000 * float(np.quantile(batches, 0.99)),
    }


def in_memory(folder: Path, rows: int) -> dict[str, Any]:
    raw = open_dataset(folder)
    loaded = Transitions.unchecked(
        **{name: np.array(getattr(raw, name)) for name in ("observations", "actions", "rewards", "terminated")},
        truncated=np.array(raw.truncated),
        final_observations=np.array(raw.final_observations),
    )
    data = Preparation()(loaded)
    replay = MixedReplay(data, 1000, 1.0, 0, OBS_DIM, ACT_DIM)
    batches = [seconds(lambda: replay.sample(BATCH, online=False)) for _ in range(5000)]
    rewards, flags = loaded.rewards, (loaded.terminated, loaded.truncated)
    return {
        "batch_milliseconds_in_memory": 1000 * float(np.median(batches)),
        "batch_milliseconds_in_memory_p99": 1000 * float(np.quantile(batches, 0.99)),
        "return_to_go_seconds": min(seconds(lambda: return_to_go(rewards, *flags, 0.99)) for _ in range(3)),
        "return_to_go_seconds_sparse": min(
            seconds(lambda: return_to_go(rewards, *flags, 0.99, sparse_failure_reward=0.0)) for _ in range(3)
        ),
    }


def cold(folder: Path, rows: int) -> dict[str, Any]:
    """Files that are not in the page cache: read as small files are, and as those larger than memory are."""
    result = {}
    for name, available in (("reading_ahead", None), ("single_pages", 1)):
        data = Preparation()(open_dataset(folder))
        assert data.mapped is not None
        for column in data.mapped.columns:
            column.memory.madvise(mmap.MADV_DONTNEED)  # pages in use cannot be evicted
        evict(folder)
        with mock.patch.object(mapped_files, "_memory", lambda size=available or 1 << 60: size):
            data.mapped.expect_random_reads()
        generator, before = np.random.default_rng(1), bytes_read()
        batches = [seconds(partial(data.draw, generator, BATCH)) for _ in range(10)]
        result[f"batch_milliseconds_cold_{name}"] = 1000 * float(np.mean(batches))
        result[f"batch_megabytes_read_cold_{name}"] = (bytes_read() - before) / 1e6 / len(batches)
        del data, column
    return result


def bytes_read() -> int:
    """What this process has made the system read from disks."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["read_bytes"])


PARTS = {part.__name__: part for part in (writing, mapped, in_memory, cold)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, help="where the dataset is made and deleted again")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        args.out.write_text(json.dumps(PARTS[args.part](args.folder, args.rows)))
        return
    result: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.data_scale", *sys.argv[1:]]),
        "rows": args.rows,
        "observation_and_action_numbers": [OBS_DIM, ACT_DIM],
        "batch": BATCH,
        "cpus": os.cpu_count(),
    }
    with tempfile.TemporaryDirectory(dir=args.folder) as root:
        for part in PARTS:
            out = Path(root, "part.json")
            arguments = ["--rows", str(args.rows), "--folder", str(Path(root, "data")), "--out", str(out)]
            subprocess.run([sys.executable, "-m", "benchmarks.data_scale", "--part", part, *arguments], check=True)
            result |= json.loads(out.read_text())
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
