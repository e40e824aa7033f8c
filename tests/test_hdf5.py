"""HDF5 files that are damaged, hostile or large."""

from __future__ import annotations

import contextlib
import itertools
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from rllib_calql.data import DatasetError, DatasetWarning, open_dataset, open_source
from rllib_calql.data.rows import Rows
from rllib_calql.data.sources.d4rl import _step_limits
from rllib_calql.data.sources.successes import up_to_successes

N = 40


def write(path: Path, **columns: Any) -> Path:
    """A file of N rows, two episodes; `columns` replace or (None) remove its columns, or write them."""
    rng = np.random.default_rng(0)
    plain = {
        "observations": rng.normal(size=(N, 3)).astype(np.float32),
        "actions": rng.uniform(-1, 1, size=(N, 2)).astype(np.float32),
        "rewards": rng.normal(size=N).astype(np.float32),
        "terminals": np.arange(N) % 20 == 19,
        "timeouts": np.zeros(N, dtype=bool),
    }
    with h5py.File(path, "w") as file:
        for name, values in {**plain, **columns}.items():
            if callable(values):
                values(file, name)
            elif values is not None:
                file[name] = values
    return path


def absurd_rows(file: h5py.File, name: str) -> None:
    file.create_dataset(name, shape=(10**12, 3), dtype="f4")


def absurd_width(file: h5py.File, name: str) -> None:
    file.create_dataset(name, shape=(N, 10**11), dtype="f4", chunks=(1, 1000), compression="gzip")


def huge_blocks(file: h5py.File, name: str) -> None:
    file.create_dataset(name, shape=(N, 3), maxshape=(None, 3), chunks=(1 << 27, 3), dtype="f4")


def external_link(file: h5py.File, name: str) -> None:
    other = write(Path(file.filename).with_name("secret.hdf5"))
    file[name] = h5py.ExternalLink(str(other), "observations")


def soft_link(file: h5py.File, name: str) -> None:
    file["hidden"] = np.zeros((N, 3))
    file[name] = h5py.SoftLink("/hidden")


def external_storage(file: h5py.File, name: str) -> None:
    other = Path(file.filename).with_name("secret.bin")
    other.write_bytes(bytes(N * 3 * 4))
    file.create_dataset(name, shape=(N, 3), dtype="f4", external=[(str(other), 0, h5py.h5f.UNLIMITED)])


def virtual(file: h5py.File, name: str) -> None:
    layout = h5py.VirtualLayout(shape=(N, 3), dtype="f4")
    layout[:] = h5py.VirtualSource("secret.hdf5", "observations", shape=(N, 3))
    file.create_virtual_dataset(name, layout)


def references(file: h5py.File, name: str) -> None:
    file.create_dataset(name, data=np.array([file.ref] * N, dtype=h5py.ref_dtype), dtype=h5py.ref_dtype)


def ragged(file: h5py.File, name: str) -> None:
    dataset = file.create_dataset(name, shape=(N,), dtype=h5py.vlen_dtype(np.float32))
    dataset[0] = np.ones(3, dtype=np.float32)


@pytest.mark.parametrize(
    ("observations", "message"),
    [
        (absurd_rows, r"'observations' claims 12,000,000,000,000 bytes .* holds only 0 bytes of it: .*damaged"),
        (absurd_width, r"'observations' claims 16,000,000,000,000 bytes"),
        (huge_blocks, r"'observations' is stored in blocks of 1,610,612,736 bytes .* smaller chunks"),
        (external_link, r"'observations' is a link to 'observations' of '.*secret.hdf5': links are not followed"),
        (soft_link, r"'observations' is a link to '/hidden': links are not followed"),
        (external_storage, r"'observations' keeps its values in other files"),
        (virtual, r"'observations' keeps its values in other files"),
        (references, r"'observations' holds object, and only numbers are read"),
        (ragged, r"'observations' holds object, and only numbers are read"),
        (np.full(N, b"text"), r"'observations' holds \|S4, and only numbers are read"),
        (np.zeros(N, dtype=[("x", "f4")]), r"'observations' holds .*, and only numbers are read"),
        (h5py.Empty("f4"), r"'observations' is empty: it has a type and no values"),
        (np.float32(1), r"observations must have the shape \(rows, ...\), not \(\)"),
        (np.zeros((N - 1, 3)), r"columns have different numbers of rows: .*'observations': 39"),
        (lambda file, name: file.create_group(name), "there is no column 'observations'; the file has: actions"),
        (lambda file, name: file.__setitem__(name, np.dtype("f4")), "there is no column 'observations'"),
    ],
)
def test_what_is_not_read(tmp_path: Path, observations: Any, message: str) -> None:
    path = write(tmp_path / "data.hdf5", observations=observations)
    tracemalloc.start()
    with pytest.raises(DatasetError, match=rf"data\.hdf5: .*{message}"):
        open_source(path)
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


@pytest.mark.parametrize("column", ["rewards", "terminals", "timeouts"])
def test_one_number_per_row(tmp_path: Path, column: str) -> None:
    with pytest.raises(DatasetError, match=rf"{column} must have the shape \(rows\), not \(40, 2\)"):
        open_source(write(tmp_path / "data.hdf5", **{column: np.zeros((N, 2))}))
    plain = open_dataset(write(tmp_path / "data.hdf5"))
    with h5py.File(tmp_path / "data.hdf5", "a") as file:
        values = file[column][()]
        del file[column]
        file[column] = values[:, None].astype(np.float64)
    np.testing.assert_array_equal(open_dataset(tmp_path / "data.hdf5").rewards, plain.rewards)
    np.testing.assert_array_equal(open_dataset(tmp_path / "data.hdf5").terminated, plain.terminated)


def test_flags_that_are_neither(tmp_path: Path) -> None:
    flags = np.where(np.arange(N) == 7, np.nan, 0)
    with pytest.raises(DatasetError, match=r"data.hdf5: .*NaN.* in row 7"):
        open_dataset(write(tmp_path / "data.hdf5", timeouts=flags))


@pytest.mark.parametrize("kept", [0.2, 0.6, 0.95])
def test_a_file_cut_short(tmp_path: Path, kept: float) -> None:
    path = write(tmp_path / "data.hdf5")
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(DatasetError, match=r"data.hdf5 cannot be read as an HDF5 file \(is it complete\?\)"):
        open_dataset(path)


def test_overwritten_bytes_are_an_error_or_other_numbers(tmp_path: Path) -> None:
    """Never another exception, whatever byte is wrong."""
    whole = write(tmp_path / "data.hdf5").read_bytes()
    rng = np.random.default_rng(1)
    for _ in range(60):
        damaged = bytearray(whole)
        for position in rng.integers(len(whole), size=3):
            damaged[position] = rng.integers(256)
        (tmp_path / "damaged.hdf5").write_bytes(damaged)
        with contextlib.suppress(DatasetError):
            for _rows in open_source(tmp_path / "damaged.hdf5").chunks():
                pass


def test_a_column_of_zeros_that_was_never_written(tmp_path: Path) -> None:
    def never_written(file: h5py.File, name: str) -> None:
        file.create_dataset(name, shape=(N,), dtype=bool, chunks=(N,))

    data = open_dataset(write(tmp_path / "data.hdf5", timeouts=never_written))
    assert len(data) == N
    assert not data.truncated.any()


# --- in chunks ---


def small_chunks(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    monkeypatch.setattr("rllib_calql.data.rows.CHUNK_BYTES", num_bytes)


@pytest.mark.filterwarnings("ignore::rllib_calql.data.DatasetWarning")
@pytest.mark.parametrize("options", [{}, {"success_reward": 0.0}, {"max_episode_steps": 7}])
def test_chunks_are_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    rng = np.random.default_rng(2)
    columns = {"rewards": rng.integers(-1, 1, N)}
    if "max_episode_steps" in options:
        columns["timeouts"] = None  # type: ignore[assignment]
    path = write(tmp_path / "data.hdf5", **columns)
    whole = open_dataset(path, **options)
    small_chunks(monkeypatch, 100)
    source = open_source(path, **options)
    assert source.metadata.num_rows == N
    for _ in range(2):  # from the start at each call
        assert max(len(rows) for rows in source.chunks()) < 5
    chunked = open_dataset(path, **options)
    for name in ("observations", "actions", "rewards", "terminated", "truncated", "final_observations"):
        np.testing.assert_array_equal(getattr(chunked, name), getattr(whole, name))


def test_reading_needs_the_memory_of_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    num_rows = 400_000

    def zeros(*shape: int) -> Callable[[h5py.File, str], None]:
        return lambda file, name: file.create_dataset(
            name, data=np.zeros((num_rows, *shape), dtype=np.float32), chunks=(5000, *shape), compression="gzip"
        )

    path = write(
        tmp_path / "data.hdf5",
        **{name: zeros(10) for name in ("observations", "actions")},
        **{name: zeros() for name in ("rewards", "terminals", "timeouts")},
    )
    small_chunks(monkeypatch, 1 << 20)
    tracemalloc.start()
    assert sum(len(rows) for rows in open_source(path).chunks()) == num_rows
    assert tracemalloc.get_traced_memory()[1] < 6e6  # of 37e6
    tracemalloc.stop()


def test_the_step_counter_goes_on_across_chunks() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        terminated = rng.random(30) < 0.15
        counter, expected = 0, []
        for terminal in terminated:
            counter += 1
            expected.append(counter % 4 == 0)
            counter = 0 if terminal else counter
        since_end, found = 0, []
        for part in np.split(terminated, sorted(rng.choice(np.arange(1, 30), 3, replace=False))):
            flags, since_end = _step_limits(part, 4, since_end)
            found += flags.tolist()
        assert found == expected


@pytest.mark.filterwarnings("ignore::rllib_calql.data.DatasetWarning")
def test_rows_up_to_the_last_success_against_a_loop() -> None:
    rng = np.random.default_rng(4)
    for _ in range(200):
        n = 30
        rewards = -(rng.random(n) < 0.8).astype(float)
        truncated, terminated = rng.random(n) < 0.1, rng.random(n) < 0.05
        if not (rewards == 0).any():
            continue
        expected, episode = [], []
        for row in range(n):
            episode.append(row)
            if rewards[row] == 0:
                expected += episode
            if rewards[row] == 0 or terminated[row] or truncated[row]:
                episode = []
        numbers = np.arange(n)
        rows = Rows(
            observations={"a": numbers[:, None], "b": (numbers,)},
            actions=numbers[:, None],
            rewards=rewards,
            terminated=terminated,
            truncated=truncated,
        )
        borders = [0, *sorted(rng.choice(np.arange(1, n), 3, replace=False)), n]
        chunks = [rows.take(slice(*border)) for border in itertools.pairwise(borders)]
        kept = list(up_to_successes(chunks, 0.0))
        nested: Any = [part.observations for part in kept]
        assert [row for part in nested for row in part["b"][0]] == expected
        assert [bool(flag) for part in kept for flag in part.terminated] == [
            bool(rewards[row] == 0 or terminated[row]) for row in expected
        ]


def test_successes_count_what_they_drop() -> None:
    rows = Rows(
        observations=np.zeros((4, 1)),
        actions=np.zeros((4, 1)),
        rewards=np.array([-1.0, 0.0, -1.0, -1.0]),
        terminated=np.zeros(4, dtype=bool),
        truncated=np.zeros(4, dtype=bool),
    )
    with pytest.warns(DatasetWarning, match=r"2 of 4 rows do not lead to a success \(reward 0\)"):
        assert sum(map(len, up_to_successes([rows], 0.0))) == 2
    with pytest.raises(DatasetError, match="no row has the success_reward 3"):
        list(up_to_successes([rows], 3.0))
