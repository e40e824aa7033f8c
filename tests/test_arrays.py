"""Numpy's data: dicts of arrays and `.npz` files."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rllib_calql.data import DatasetError, DatasetWarning, Transitions, open_dataset, open_source

N = 40


def columns(**changes: Any) -> dict[str, Any]:
    """Two episodes of 20 rows: one terminated, one truncated."""
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(N + 1, 3)).astype(np.float32)
    plain = {
        "observations": observations[:-1],
        "next_observations": observations[1:],
        "actions": rng.uniform(-1, 1, size=(N, 2)),
        "rewards": rng.normal(size=N).astype(np.float32),
        "terminated": np.arange(N) == 19,
        "truncated": np.arange(N) == 39,
    }
    return {name: values for name, values in {**plain, **changes}.items() if values is not None}


def written(path: Path, compressed: bool = False, **arrays: Any) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


def assert_same(data: Transitions, other: Transitions) -> None:
    for name in ("observations", "actions", "rewards", "terminated", "truncated", "final_observations"):
        np.testing.assert_array_equal(getattr(data, name), getattr(other, name))


@pytest.mark.parametrize("compressed", [False, True])
def test_a_dict_and_its_npz_are_the_same(tmp_path: Path, compressed: bool) -> None:
    given = columns()
    data = open_dataset(given)
    np.testing.assert_array_equal(data.observations, given["observations"])
    np.testing.assert_array_equal(data.actions, given["actions"].astype(np.float32))
    np.testing.assert_array_equal(data.episode_ends, [19, 39])
    np.testing.assert_array_equal(data.final_observations, given["next_observations"][[19, 39]])
    path = written(tmp_path / "data.npz", compressed, **given, seed=3, notes="of any kind", returns=np.zeros(2))
    assert_same(open_dataset(path), data)
    assert open_source(given).metadata.num_rows == N


def test_other_columns_may_hold_anything(tmp_path: Path) -> None:
    given = columns()
    more: dict[str, Any] = {
        "infos": [{"a": 1}] * N,
        "ragged": [[1], [1, 2]],
        "text": np.full((N, 2), "x"),
        "none": np.zeros((N, 0)),
    }
    assert_same(open_dataset({**given, **more}), open_dataset(given))
    more |= {"infos": np.array(more["infos"]), "ragged": np.array([[1], 2], dtype=object)}
    assert_same(open_dataset(written(tmp_path / "data.npz", **given, **more)), open_dataset(given))


def test_names_flags_and_ids() -> None:
    given = columns()
    renamed = {
        "obs": given["observations"].tolist(),
        "action": given["actions"],
        "reward": given["rewards"][:, None],
        "timeouts": given["truncated"].astype(np.uint8),
        "done": (given["terminated"] | given["truncated"]).astype(float),
        "new_obs": given["next_observations"],
    }
    assert_same(open_dataset(renamed), open_dataset(given))
    own = {f"my_{name}": values for name, values in given.items()}
    names = {name: f"my_{name}" for name in given}
    assert_same(open_dataset(own, columns=names), open_dataset(given))
    by_id = columns(terminated=None, truncated=None, episode_id=np.repeat(["a", "b"], 20))
    data = open_dataset(by_id)
    np.testing.assert_array_equal(np.flatnonzero(data.truncated), [19, 39])


def test_nested_observations_images_and_discrete_actions(tmp_path: Path) -> None:
    given = columns(next_observations=None, actions=np.arange(N) % 3, truncated=np.zeros(N, bool))
    given["terminated"] = np.arange(N) % 20 == 19
    rng = np.random.default_rng(1)
    nested: dict[str, Any] = {
        "goal": rng.normal(size=(N, 2)),
        "body": {"legs": rng.normal(size=(N, 3)), "head": rng.normal(size=N)},
        "camera": rng.integers(256, size=(N, 4, 5, 3), dtype=np.uint8),
        "contacts": rng.random((N, 2)) < 0.5,
    }
    given["observations"] = nested
    flat = {f"observations/{key}": nested[key] for key in ("goal", "camera", "contacts")}
    flat |= {f"observations/body/{key}": values for key, values in nested["body"].items()}
    path = written(
        tmp_path / "data.npz", **{**columns(**{**given, "observations": None, "next_observations": None}), **flat}
    )
    for source in (given, path):
        kept: Any = open_dataset(source, observations="keep")
        np.testing.assert_array_equal(kept.actions, np.arange(N) % 3)
        assert kept.actions.dtype.kind == "i"
        np.testing.assert_array_equal(kept.observations["camera"], nested["camera"])
        np.testing.assert_array_equal(kept.observations["contacts"], nested["contacts"])
        np.testing.assert_array_equal(kept.observations["body"]["head"][:, 0], nested["body"]["head"].astype("f4"))
    del given["observations"]["camera"]
    vectors = open_dataset(given)
    expected = [nested["body"]["head"][:, None], nested["body"]["legs"], nested["contacts"], nested["goal"]]
    np.testing.assert_array_equal(vectors.observations, np.concatenate(expected, axis=1).astype("f4"))


def test_truth_values_are_numbers_and_no_images() -> None:
    board = np.random.default_rng(0).random((N, 3, 3)) < 0.5
    data = open_dataset(columns(observations=board, next_observations=None))
    np.testing.assert_array_equal(data.observations, board[: len(data)].reshape(-1, 9).astype(np.float32))


@pytest.mark.parametrize("kind", ["fortran", ">f8", "f2", "i1"])
def test_any_array_of_numbers(tmp_path: Path, kind: str) -> None:
    numbers = np.arange(N * 3).reshape(N, 3) % 100
    stored = np.asfortranarray(numbers) if kind == "fortran" else numbers.astype(kind)
    given = columns(observations=stored, next_observations=None, truncated=np.zeros(N, bool))
    given["terminated"] = np.arange(N) == N - 1
    for source in (given, written(tmp_path / "data.npz", **given)):
        np.testing.assert_array_equal(open_dataset(source).observations, numbers)


def test_episodes_go_on_in_the_next_file(tmp_path: Path) -> None:
    given = columns()
    whole = open_dataset(given)
    for number, rows in enumerate((slice(0, 7), slice(7, 30), slice(30, N))):
        written(tmp_path / f"part-{number * 5}.npz", **{name: values[rows] for name, values in given.items()})
    (tmp_path / "about.json").write_text("{}")
    for path in (tmp_path, tmp_path / "part-*.npz"):
        assert_same(open_dataset(path), whole)


@pytest.mark.filterwarnings("ignore::rllib_calql.data.DatasetWarning")
@pytest.mark.parametrize("compressed", [False, True])
def test_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compressed: bool) -> None:
    given = columns(observations=np.asfortranarray(columns()["observations"]))
    path = written(tmp_path / "data.npz", compressed, **given)
    whole = [open_dataset(path), open_dataset(path, success_reward=given["rewards"][11])]
    assert len(whole[1]) == 12
    monkeypatch.setattr("rllib_calql.data.rows.CHUNK_BYTES", 200)
    assert_same(open_dataset(path), whole[0])
    assert_same(open_dataset(given), whole[0])
    assert_same(open_dataset(path, success_reward=given["rewards"][11]), whole[1])
    assert max(len(rows) for rows in open_source(path).chunks()) < 10


def test_reading_needs_the_memory_of_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n = 400_000
    arrays = {name: np.zeros((n, 10), dtype="f4") for name in ("observations", "actions")}
    path = written(tmp_path / "data.npz", True, **arrays, rewards=np.zeros(n), dones=np.zeros(n, bool))
    del arrays
    monkeypatch.setattr("rllib_calql.data.rows.CHUNK_BYTES", 1 << 20)
    tracemalloc.start()
    assert sum(len(rows) for rows in open_source(path).chunks()) == n
    assert tracemalloc.get_traced_memory()[1] < 8e6  # of 35e6
    tracemalloc.stop()


# --- refused ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": None}, r"has no column for rewards \(rewards, reward\); its columns are observations"),
        ({"terminated": None, "truncated": None}, "has no column that says where episodes end"),
        ({"rewards": np.zeros(N - 1)}, "columns have different numbers of rows: .*'rewards': 39"),
        ({"rewards": np.zeros((N, 2))}, "column 'rewards' must be one number per row"),
        ({"observations": np.full((N, 3), "text")}, "column 'observations', row 0 is null"),
        ({"observations": np.full((N, 3), None)}, "observations(.npy)? holds Python objects.*unpickled"),
        ({"observations": np.zeros(N, dtype=[("x", "f4")])}, "observations(.npy)? is an array of .*x"),
        ({"observations": np.zeros((N, 3), "M8[s]")}, "is an array of datetime64"),
        ({"observations": np.zeros((N, 0))}, "column 'observations', row 0 is null"),
    ],
)
def test_columns_that_cannot_be_used(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    given = columns(**changes)
    with pytest.raises(DatasetError, match=rf"the given arrays.*({message})"):
        open_dataset(given)
    path = written(tmp_path / "data.npz", **given)
    with pytest.raises(DatasetError, match=rf"data\.npz.*({message})"):
        open_dataset(path)


def npy(shape: tuple[int, ...], content: bytes, version: bytes = b"\x01\x00", descr: str = "'<f4'") -> bytes:
    """A `.npy` whose header may say anything."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY" + version + len(header).to_bytes(2, "little") + header + content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            npy((10**12, 3), b"few"),
            r"observations.npy claims 12,000,000,000,000 bytes \(shape .*the file is damaged",
        ),
        (npy((N, 3), b"few"), "observations.npy claims 480 bytes"),
        (npy((-N, 3), bytes(480)), "cannot be read as a .npz file|different numbers of rows"),
        (npy((N, 3), b"", descr="'O'"), "observations.npy holds Python objects"),
        (npy((N, 3), b"", version=b"\x03\x00"), "observations.npy is an array of records"),
        (npy((N, 3), b"", descr="__import__('os').system('true')"), "cannot be read as a .npz file"),
        (npy((N, 3), b"", descr="'<f4', ("), "cannot be read as a .npz file"),
        (b"not numpy", "cannot be read as a .npz file"),
        (b"", "cannot be read as a .npz file"),
    ],
)
def test_hostile_members(tmp_path: Path, content: bytes, message: str) -> None:
    path = written(tmp_path / "data.npz", **columns(observations=None))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("observations.npy", content)
    with pytest.raises(DatasetError, match=rf"data\.npz.*({message})"):
        open_dataset(path)


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros packed more tightly than numpy's deflate can."""
    monkeypatch.setattr("rllib_calql.data.sources.array_files._SMALL_BYTES", 1 << 20)
    path = written(tmp_path / "data.npz", **columns(observations=None))
    size = 1 << 24
    with zipfile.ZipFile(path, "a", zipfile.ZIP_LZMA) as archive, archive.open("observations.npy", "w") as member:
        member.write(npy((size // 4 // 3, 3), b""))
        for _ in range(size >> 20):
            member.write(bytes(1 << 20))
    with pytest.raises(DatasetError, match=r"observations.npy claims 16,777,\d{3} bytes"):
        open_source(path)


@pytest.mark.parametrize("kept", [0, 0.5, 0.99])
def test_cut_short_and_damaged(tmp_path: Path, kept: float) -> None:
    path = written(tmp_path / "data.npz", True, **columns())
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(DatasetError, match=r"data.npz cannot be read as a .npz file \(is it complete\?\)"):
        open_dataset(path)
    damaged = bytearray(content)
    damaged[200:220] = bytes(20)
    path.write_bytes(damaged)
    with pytest.raises(DatasetError, match=r"data\.npz"):
        open_dataset(path)


def test_options(tmp_path: Path) -> None:
    path = written(tmp_path / "data.npz", **columns())
    with pytest.raises(DatasetError, match=r"data\.npz is not read as a pickle: leave out allow_pickle"):
        open_dataset(path, allow_pickle=True)
    with pytest.raises(DatasetError, match="a dict of arrays is not read as a pickle"):
        open_dataset(columns(), allow_pickle=True)
    with pytest.raises(DatasetError, match="unknown option reward for arrays: it takes columns, success_reward"):
        open_dataset(columns(), reward=1)
    with pytest.raises(DatasetError, match="no row has the success_reward 5"):
        open_dataset(columns(), success_reward=5)
    with pytest.warns(DatasetWarning, match="do not lead to a success"):
        open_dataset(columns(), success_reward=columns()["rewards"][3])
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    (tmp_path / "one.npy").write_bytes(buffer.getvalue())
    with pytest.raises(
        DatasetError, match=r"one\.npy: is a single array: write the columns of a dataset as \.npz"
    ):
        open_dataset(tmp_path / "one.npy", allow_pickle=True)
