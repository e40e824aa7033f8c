"""Tables that cannot be used: the error names file, column and row, and says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pytest

from rllib_calql.data import DatasetError, open_dataset
from tests.test_tables import NEXT, OBSERVATIONS, columns, lists, write


def with_null(column: list[Any], row: int) -> list[Any]:
    return [None if index == row else value for index, value in enumerate(column)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": None}, r"a.parquet has no column for rewards \(rewards, reward\); its columns are observ"),
        ({"terminated": None, "truncated": None}, "no column that says where episodes end"),
        ({"rewards": with_null([1.0] * 5, 2)}, r"a.parquet: column 'rewards', row 2 is null"),
        ({"observations": with_null(OBSERVATIONS.tolist(), 3)}, "column 'observations', row 3 is null"),
        (
            {"observations": [[1.0, 2.0], [1.0, None], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0]]},
            "column 'observations', row 1 holds a list in which a value is null",
        ),
        (
            {"observations": [[1.0, 2.0], [1.0, 2.0], [1.0], [1.0, 2.0], [1.0, 2.0]]},
            "column 'observations', row 2 has 1 numbers where the rows before have 2",
        ),
        ({"observations": [[]] * 5}, "column 'observations', row 0 has empty lists"),
        ({"observations": ["x"] * 5}, "column 'observations' has values of type string, not numbers"),
        ({"observations": [b"ab"] * 5}, r"holds bytes: .* shapes=\{'observations'"),
        ({"observations": pa.array([{"a": 1.0, "b": None}] * 5)}, "has an entry 'b' which is null"),
        ({"observations": pa.array([[{"a": 1.0}]] * 5)}, "lists of structs"),
        ({"rewards": [[1.0, 2.0]] * 4 + [[1.0, 2.0]]}, "column 'rewards' must be one number per row"),
        ({"terminated": [0.0, float("nan"), 0.0, 0.0, 1.0]}, "'terminated', row 1 is NaN, neither true nor false"),
        ({"terminated": ["no"] * 5}, "column 'terminated' has values of type string"),
        ({"episode_id": [1, 1, 2, 1, 1]}, "row 3 comes back to episode 1, .* sort the rows by episode and time"),
        ({"episode_id": with_null([1] * 5, 4)}, "column 'episode_id', row 4 is null"),
        ({"episode_id": [[1]] * 5}, "column 'episode_id' must be one id per row"),
        (
            {"observations": None, "obs_0": [0.0] * 5, "obs_1": [0.0] * 5, "obs_3": [0.0] * 5},
            "columns obs_0 to obs_3 without number 2",
        ),
        ({"next_observations": NEXT[:, :1].tolist()}, "next_observations"),
        ({"rewards": [1.0, float("inf"), 0.0, 0.0, 0.0]}, "rewards has NaN, infinite .* row 1"),
    ],
)
def test_wrong_columns(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write(tmp_path / "a.parquet", columns(**changes))
    with pytest.raises(DatasetError, match=message):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": {"obs": "x"}}, "columns has no 'obs': it takes observations, actions"),
        ({"columns": {"observations": "x"}}, r"has no column 'x' \(for observations\); its columns are"),
        ({"columns": {"observations": ["observations", "x"]}}, r"has no column 'x' \(for observations\)"),
        ({"columns": {"rewards": ["rewards"]}}, "rewards is one column"),
        ({"columns": {"observations": []}}, "columns for observations are empty"),
        ({"shapes": {"rewards": [1]}}, "shapes has no 'rewards'"),
        ({"shapes": {"observations": [3]}}, r"rows of shape \(2,\), which do not fill \(3,\)"),
        ({"max_rows": 3}, "unknown option max_rows .* it takes columns, shapes"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    write(tmp_path / "a.parquet", columns())
    with pytest.raises(DatasetError, match=message):
        open_dataset(tmp_path, **options)


def test_an_episode_that_comes_back_with_a_batch_of_its_own(tmp_path: Path) -> None:
    table = pa.table(columns(episode_id=[0, 1, 1, 0, 2]))
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as file:
        file.write_table(table, max_chunksize=3)
    with pytest.raises(DatasetError, match="row 3 comes back to episode 0"):
        open_dataset(tmp_path)


def test_rows_are_counted_within_their_file(tmp_path: Path) -> None:
    write(tmp_path / "part-1.parquet", columns())
    write(tmp_path / "part-2.parquet", columns(rewards=with_null([1.0] * 5, 1)), row_group_size=1)
    with pytest.raises(DatasetError, match=r"part-2.parquet: column 'rewards', row 1 is null"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": None}, "part-2.parquet has no column 'rewards', which .*part-1.parquet has"),
        (
            {"observations": lists(np.zeros((5, 3))), "next_observations": lists(np.zeros((5, 3)))},
            r"part-2.parquet, rows from 0: shapes per row are .*\(3,\)",
        ),
    ],
)
def test_files_that_do_not_go_together(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write(tmp_path / "part-1.parquet", columns())
    write(tmp_path / "part-2.parquet", columns(**changes))
    with pytest.raises(DatasetError, match=message):
        open_dataset(tmp_path)


@pytest.mark.parametrize("name", ["a.parquet", "a.feather", "a.arrow"])
@pytest.mark.parametrize("damage", ["empty", "cut", "other", "scrambled"])
def test_damaged_files(tmp_path: Path, name: str, damage: str) -> None:
    path = tmp_path / name
    rows = np.random.default_rng(0).normal(size=(400, 3))
    table = {
        "obs": rows.tolist(),
        "actions": rows[:, :1].tolist(),
        "rewards": rows[:, 0],
        "dones": np.arange(400) % 9 == 8,
    }
    if name == "a.parquet":
        write(path, table)
    else:
        pa.feather.write_feather(pa.table(table), path, compression="uncompressed")
    content = bytearray(path.read_bytes())
    if damage == "scrambled":
        content[len(content) // 4 : len(content) // 4 + 400] = b"\xff" * 400
    damaged = {"empty": b"", "cut": content[: len(content) // 2], "other": b"hello, this is a text"}
    path.write_bytes(bytes(damaged.get(damage, content)))
    with pytest.raises(DatasetError, match=f"{name}.*(empty|cannot be read|column|NaN|shapes|rows)"):
        open_dataset(path)


def test_old_feather(tmp_path: Path) -> None:
    (tmp_path / "a.feather").write_bytes(b"FEA1" + bytes(100))
    with pytest.raises(DatasetError, match=r"a.feather is in Feather's old format: write it again"):
        open_dataset(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    for path in (tmp_path / "a.parquet", f"{tmp_path}/*.parquet"):
        with pytest.raises(DatasetError, match="there is no dataset file"):
            open_dataset(path)


def test_folder_of_several_kinds(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", columns())
    pa.feather.write_feather(pa.table(columns()), tmp_path / "a.feather")
    with pytest.raises(DatasetError, match=r"several kinds \(.feather, .parquet\): name one kind with a glob"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("place", ["column", "entry", "id"])
def test_damaged_text(tmp_path: Path, place: str) -> None:
    """Names and ids that are no UTF-8."""
    entry = pa.StructArray.from_arrays([pa.array([[1.0]] * 4)], ["NAMEentry"])
    columns = {
        "observations": entry,
        "actions": pa.array([[0.5]] * 4),
        "rewards": pa.array([0.0] * 4),
        "episode_id": pa.array(["NAMEid"] * 4),
        "NAMEcolumn": pa.array([0] * 4),
    }
    path = tmp_path / "data.arrow"
    table = pa.table(columns)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    content = path.read_bytes()
    assert f"NAME{place}".encode() in content
    path.write_bytes(content.replace(f"NAME{place}".encode(), b"\xff" * 4 + place.encode()))
    with pytest.raises(DatasetError, match=r"data\.arrow"):
        open_dataset(path)
