"""Parquet, Arrow and Feather tables: every way to put a step into a row, and every way to get it wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from rllib_calql.data import DatasetError, Transitions, open_dataset
from rllib_calql.data.sources import open_source

# Five rows: an episode of 3 that is cut off, then one of 2 that terminates.
OBSERVATIONS = np.array([[0, 10], [1, 11], [2, 12], [5, 15], [6, 16]], np.float32)
NEXT = np.array([[1, 11], [2, 12], [3, 13], [6, 16], [7, 17]], np.float32)
ACTIONS = np.array([[0.1], [0.2], [0.3], [0.4], [0.5]], np.float32)
REWARDS = [1.0, 2.0, 3.0, 4.0, 5.0]
TERMINATED = [False, False, False, False, True]
TRUNCATED = [False, False, True, False, False]
EXPECTED = Transitions(
    OBSERVATIONS, ACTIONS, np.array(REWARDS), np.array(TERMINATED), np.array(TRUNCATED), NEXT[[2, 4]]
)


def lists(array: np.ndarray) -> pa.Array:
    return pa.array(array.tolist(), pa.list_(pa.float32()))


def columns(**changes: Any) -> dict[str, Any]:
    """The five rows as columns of lists; a change of None removes a column."""
    table = {
        "observations": lists(OBSERVATIONS),
        "actions": lists(ACTIONS),
        "rewards": REWARDS,
        "terminated": TERMINATED,
        "truncated": TRUNCATED,
        "next_observations": lists(NEXT),
        **changes,
    }
    return {name: column for name, column in table.items() if column is not None}


def write(path: Path, table: dict[str, Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path, **options)
    return path


def assert_same(data: Transitions, expected: Transitions = EXPECTED) -> None:
    names = ("observations", "actions", "rewards", "terminated", "truncated", "final_observations")
    for name in names:
        np.testing.assert_array_equal(getattr(data, name), getattr(expected, name), err_msg=name)


def arrow_file(path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, pa.table(columns()).schema) as writer:
        writer.write_table(pa.table(columns()), max_chunksize=2)


def arrow_stream(path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, pa.table(columns()).schema) as writer:
        writer.write_table(pa.table(columns()))


@pytest.mark.parametrize(
    ("name", "writer"),
    [
        ("a.parquet", lambda path: pq.write_table(pa.table(columns()), path, row_group_size=2)),
        ("a.pq", lambda path: pq.write_table(pa.table(columns()), path)),
        ("a.feather", lambda path: pa.feather.write_feather(pa.table(columns()), path)),
        ("a.arrow", arrow_file),
        ("a.ipc", arrow_stream),
    ],
)
def test_reads_every_format(tmp_path: Path, name: str, writer: Any) -> None:
    writer(tmp_path / name)
    assert_same(open_dataset(tmp_path / name))
    assert_same(open_dataset(tmp_path))  # the folder
    assert_same(open_dataset(f"{tmp_path}/*{Path(name).suffix}"))  # a glob


def per_number(name: str, array: np.ndarray, first: int = 0) -> dict[str, Any]:
    return {f"{name}_{first + index}": array[:, index] for index in range(array.shape[1])}


@pytest.mark.parametrize(
    "changes",
    [
        {"observations": pa.FixedSizeListArray.from_arrays(OBSERVATIONS.ravel(), 2)},
        {"observations": pa.array(OBSERVATIONS.tolist(), pa.large_list(pa.float64()))},
        {"observations": pa.FixedShapeTensorArray.from_numpy_ndarray(OBSERVATIONS)},
        {"observations": None, **per_number("observations", OBSERVATIONS)},
        {"observations": None, **per_number("obs", OBSERVATIONS, first=1)},
        {"observations": None, **per_number("state", OBSERVATIONS)},
        {"observations": None, "obs[0]": OBSERVATIONS[:, 0], "obs[1]": OBSERVATIONS[:, 1]},
        {"observations": None, "obs": OBSERVATIONS.astype(int).tolist()},
        {"actions": ACTIONS[:, 0]},
        {"actions": pa.array([f"{value:.1f}" for value in ACTIONS[:, 0]]).cast(pa.decimal128(5, 1))},
        {"rewards": [[reward] for reward in REWARDS]},
        {"rewards": pa.array(REWARDS).dictionary_encode()},
        {"terminated": None, "terminals": TERMINATED, "truncated": None, "timeouts": TRUNCATED},
        {"terminated": [0, 0, 0, 0, 1], "truncated": [0.0, 0.0, 1.0, 0.0, 0.0]},
        {"terminated": None, "dones": [False, False, True, False, True]},
        {"truncated": None, "done": [False, False, True, False, True]},
        {"truncated": None, "episode_id": [7, 7, 7, 3, 3]},
        {"truncated": None, "episode_id": ["b", "b", "b", "a", "a"]},
        {"truncated": None, "episode_id": pa.array(["b", "b", "b", "a", "a"]).dictionary_encode()},
        {"truncated": None, "step": [0, 1, 2, 0, 1]},
        {"t": [0.0, 0.1, 0.2, 0.1, 0.3]},  # times, not step numbers
    ],
)
def test_ways_to_write_a_row(tmp_path: Path, changes: dict[str, Any]) -> None:
    write(tmp_path / "a.parquet", columns(**changes))
    assert_same(open_dataset(tmp_path / "a.parquet"))


def test_names_can_be_chosen(tmp_path: Path) -> None:
    table = {
        **{"x": OBSERVATIONS[:, 0], "speed": OBSERVATIONS[:, 1], "u": lists(ACTIONS), "r": REWARDS},
        **{"over": TERMINATED, "late": TRUNCATED, "x2": NEXT[:, 0], "speed2": NEXT[:, 1]},
    }
    names = {
        **{"observations": ["x", "speed"], "actions": "u", "rewards": "r", "terminated": "over"},
        **{"truncated": "late", "next_observations": ["x2", "speed2"]},
    }
    write(tmp_path / "a.parquet", table)
    assert_same(open_dataset(tmp_path, columns=names))


def test_struct_observations_and_discrete_actions(tmp_path: Path) -> None:
    struct = pa.array([{"goal": [9.0], "at": list(map(float, row))} for row in OBSERVATIONS])
    write(
        tmp_path / "a.parquet",
        columns(observations=struct, next_observations=None, actions=[0, 2, 1, 2, 0], truncated=None),
    )
    (rows,) = open_source(tmp_path).chunks()
    assert isinstance(rows.observations, dict)
    np.testing.assert_array_equal(rows.observations["at"], OBSERVATIONS)
    np.testing.assert_array_equal(rows.observations["goal"], np.full((5, 1), 9.0))
    assert isinstance(rows.actions, np.ndarray)
    assert rows.actions.dtype == np.int64
    assert rows.actions.tolist() == [0, 2, 1, 2, 0]


@pytest.mark.parametrize("kind", ["bytes", "fixed", "flat", "nested", "tensor", "transposed"])
def test_images(tmp_path: Path, kind: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 3, 3), dtype=np.uint8)
    flat = images.reshape(5, -1)
    column = {
        "bytes": pa.array([image.tobytes() for image in images]),
        "fixed": pa.array([image.tobytes() for image in images], pa.binary(36)),
        "flat": pa.array(flat.tolist(), pa.list_(pa.uint8())),
        "nested": pa.array(images.tolist(), pa.list_(pa.list_(pa.list_(pa.uint8())))),
        "tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(images),
        "transposed": pa.FixedShapeTensorArray.from_numpy_ndarray(
            np.ascontiguousarray(images.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
        ),
    }[kind]
    write(tmp_path / "a.parquet", columns(observations=column, next_observations=None))
    options = {"shapes": {"observations": (4, 3, 3)}} if kind in ("bytes", "fixed", "flat") else {}
    (rows,) = open_source(tmp_path, **options).chunks()
    assert isinstance(rows.observations, np.ndarray)
    assert rows.observations.dtype == np.uint8
    np.testing.assert_array_equal(rows.observations, images)


def test_rows_alone_tell_ends_by_id_to_the_last(tmp_path: Path) -> None:
    """Without flags the last episode too ends with its last row; without next observations that row goes."""
    write(
        tmp_path / "a.parquet",
        columns(terminated=None, truncated=None, next_observations=None, episode_id=[0, 0, 0, 1, 1]),
    )
    with pytest.warns(match="2 of 5 rows are truncated"):
        data = open_dataset(tmp_path)
    np.testing.assert_array_equal(data.observations, OBSERVATIONS[[0, 1, 3]])
    np.testing.assert_array_equal(data.truncated, [False, True, True])
    np.testing.assert_array_equal(data.final_observations, OBSERVATIONS[[2, 4]])


# ---- an episode per row


def per_episode(**changes: Any) -> dict[str, Any]:
    """The two episodes as rows of lists."""
    table = {
        "observations": [[*OBSERVATIONS[:3].tolist(), [3, 13]], [*OBSERVATIONS[3:].tolist(), [7, 17]]],
        "actions": [ACTIONS[:3].tolist(), ACTIONS[3:].tolist()],
        "rewards": [REWARDS[:3], REWARDS[3:]],
        "terminated": [False, True],
        **changes,
    }
    return {name: column for name, column in table.items() if column is not None}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"terminated": None, "dones": [[False, False, False], [False, True]]},
        {"truncated": [True, False], "episode_id": [0, 0], "seed": [1, 2]},
        {
            "observations": [OBSERVATIONS[:3].tolist(), OBSERVATIONS[3:].tolist()],
            "next_observations": [NEXT[:3].tolist(), NEXT[3:].tolist()],
        },
        {
            "observations": None,
            "obs_0": [[0.0, 1.0, 2.0, 3.0], [5.0, 6.0, 7.0]],
            "obs_1": [[10.0, 11.0, 12.0, 13.0], [15.0, 16.0, 17.0]],
        },
    ],
)
def test_an_episode_per_row(tmp_path: Path, changes: dict[str, Any]) -> None:
    table = pa.table(per_episode(**changes))
    pq.write_table(table, tmp_path / "all.parquet")
    assert_same(open_dataset(tmp_path / "all.parquet"))
    for row in range(2):  # one file per episode
        pq.write_table(table.slice(row, 1), tmp_path / f"one-{row}.parquet")
    assert_same(open_dataset(f"{tmp_path}/one-*.parquet"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": [[1.0, 2.0, 3.0], None]}, "a.parquet: column 'rewards', row 1 is null"),
        ({"terminated": [True, None]}, "a.parquet: column 'terminated', row 1 is null"),
        ({"terminated": [float("nan"), 1.0]}, "a.parquet: column 'terminated', row 0 is null"),
        (
            {"rewards": [[1.0, 2.0, 3.0], [4.0]]},
            "'observations', row 1 has 3 steps, the rewards 1 and observations",
        ),
        ({"actions": [[[0.1]] * 3, [[0.1]] * 3]}, "column 'actions', row 1 has 3 steps, the rewards 2"),
        ({"observations": [[[1.0, 2.0]], [[1.0, 2.0]]]}, "'observations', row 0 has 1 steps, the rewards 3"),
    ],
)
def test_episodes_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write(tmp_path / "a.parquet", per_episode(**changes))
    with pytest.raises(DatasetError, match=message):
        open_dataset(tmp_path)


# ---- many files


def test_files_in_natural_order_and_episodes_across_them(tmp_path: Path) -> None:
    observations = np.arange(24, dtype=np.float32).reshape(12, 2)
    for row in range(12):  # one row per file; part-2 comes before part-10
        folder = tmp_path / ("early" if row < 6 else "late")
        write(
            folder / f"part-{row}.parquet",
            {
                "obs": observations[row : row + 1].tolist(),
                "action": [[float(row)]],
                "reward": [float(row)],
                "next_obs": (observations[row : row + 1] + 2).tolist(),
                "episode_id": [row // 4],
                "terminated": [row == 11],
            },
        )
    (tmp_path / "early" / "_metadata").write_bytes(b"nonsense")
    (tmp_path / "early" / ".part-3.parquet.crc").write_bytes(b"nonsense")
    (tmp_path / "notes.txt").write_text("not data")
    data = open_dataset(tmp_path)
    np.testing.assert_array_equal(data.rewards, np.arange(12))
    np.testing.assert_array_equal(data.episode_ends, [3, 7, 11])
    np.testing.assert_array_equal(data.truncated[[3, 7, 11]], [True, True, False])
    assert open_source(tmp_path).metadata.num_rows == 12
    assert len(open_dataset(f"{tmp_path}/late/part-*.parquet")) == 6


def test_ids_counted_anew_in_each_file(tmp_path: Path) -> None:
    for worker in range(2):
        write(
            tmp_path / f"worker-{worker}.parquet",
            columns(terminated=None, truncated=None, episode_id=[0, 0, 0, 1, 1]),
        )
    np.testing.assert_array_equal(open_dataset(tmp_path).episode_ends, [2, 4, 7, 9])


def test_empty_parts_are_passed_over(tmp_path: Path) -> None:
    pq.write_table(pa.table(columns()).slice(0, 0), tmp_path / "a.parquet")
    write(tmp_path / "b.parquet", columns())
    assert_same(open_dataset(tmp_path))


def test_large_files_come_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rllib_calql.data.rows.CHUNK_BYTES", 100 * 40)
    rows = 1000
    table = {
        "obs": np.arange(rows * 4, dtype=np.float32).reshape(rows, 4).tolist(),
        "actions": np.zeros((rows, 1)).tolist(),
        "rewards": np.arange(rows, dtype=np.float64),
        "step": np.arange(rows) % 50,
    }
    write(tmp_path / "a.parquet", table)
    pa.feather.write_feather(pa.table(table), tmp_path / "b.feather", compression="uncompressed")
    for name in ("a.parquet", "b.feather"):
        chunks = list(open_source(tmp_path / name).chunks())
        assert max(map(len, chunks)) < 150
        np.testing.assert_array_equal(np.concatenate([chunk.rewards for chunk in chunks]), table["rewards"])
        np.testing.assert_array_equal(
            np.flatnonzero(np.concatenate([chunk.truncated for chunk in chunks])), np.arange(49, rows, 50)
        )
