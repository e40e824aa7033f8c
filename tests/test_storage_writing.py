"""Writing that is interrupted: processes killed, full disks, two writers."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rllib_calql.data import DatasetError, Metadata, Rows, open_dataset, write_dataset
from tests.test_storage import same, small

# Writes chunks for ever, and says when the first are on the disk.
ENDLESS = """
import sys
sys.argv[0] = "calql"  # which does without Ray
import numpy as np
from rllib_calql.data import Metadata, Rows
from rllib_calql.data import write_dataset

class Endless:
    metadata = Metadata()
    def chunks(self):
        ends = np.ones(1000, bool)
        while True:
            yield Rows(observations=np.zeros((1000, 9)), actions=np.zeros((1000, 2)), rewards=np.zeros(1000),
                       terminated=ends, truncated=~ends)

write_dataset(Endless(), sys.argv[1], progress=lambda rows: print(rows, flush=True))
"""


class Zeros:
    """Chunks of 1000 rows of 9 + 2 + 1 numbers."""

    def __init__(self, num_chunks: int, num_rows: int | None = None) -> None:
        self._num_chunks = num_chunks
        self.metadata = Metadata(num_rows=num_rows)

    def chunks(self) -> Iterator[Rows]:
        ends = np.arange(1000) == 999
        for _ in range(self._num_chunks):
            yield Rows(
                observations=np.zeros((1000, 9)),
                actions=np.zeros((1000, 2)),
                rewards=np.zeros(1000),
                terminated=ends,
                truncated=np.zeros(1000),
            )


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_writer_leaves_no_dataset(tmp_path: Path, how: signal.Signals) -> None:
    path = tmp_path / "data"
    before = write_dataset(small(), path)
    target = tmp_path / "new"
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(target)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    process.stdout.readline()
    with pytest.raises(DatasetError, match=r"another process is writing .*new: wait for it"):
        write_dataset(small(), target)
    process.send_signal(how)
    process.stdout.close()
    assert process.wait() != 0
    assert not target.exists()
    with pytest.raises(DatasetError):
        open_dataset(target)
    # what is left is hidden, and goes away with the next writing there
    left = sorted(file.name for file in tmp_path.iterdir())
    assert left == ([".new.lock", ".new.partial", "data"] if how == signal.SIGKILL else ["data"])
    assert same(write_dataset(small(), target), before)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["data", "new"]


def test_a_disk_that_becomes_full(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk's end; the error comes from the system itself."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(DatasetError, match=r"data could not be written: the disk is full. Nothing was left"):
            write_dataset(Zeros(50), tmp_path / "data")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_no_room_is_found_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=400_000))
    with pytest.raises(DatasetError, match=r"no room .* needs 0.48 MB, and the disk has 0.40 MB left"):
        write_dataset(Zeros(10, num_rows=10_000), tmp_path / "data")
    assert list(tmp_path.iterdir()) == []
    assert len(write_dataset(Zeros(10, num_rows=5_000), tmp_path / "data")) == 10_000


def test_memory_stays_bounded(tmp_path: Path) -> None:
    """60 MB are written; what grows are mapped pages of the result, looked at for its fingerprint."""
    code = f"""
import resource, sys
sys.argv[0] = "calql"  # which does without Ray
from pathlib import Path
from tests.test_storage_writing import Zeros
from rllib_calql.data import write_dataset
write_dataset(Zeros(10), {str(tmp_path / "warm")!r})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_dataset(Zeros(1250), {str(tmp_path / "data")!r})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    grown = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert (tmp_path / "data" / "observations.arrow").stat().st_size > 44_000_000
    assert grown < 20_000  # kB
