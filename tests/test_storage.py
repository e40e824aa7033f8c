"""Dataset folders: what is written is what is opened, memory-mapped; nothing half-written, nothing damaged."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tree
from gymnasium import spaces

from rllib_calql.data import (
    DatasetError,
    DatasetWarning,
    Metadata,
    Preparation,
    Transitions,
    open_dataset,
    open_source,
    write_dataset,
)
from rllib_calql.data.mapped import MappedColumn
from rllib_calql.data.rows import OneChunk, Rows
from rllib_calql.data.spaces import space_from_json, space_to_json
from tests.test_assemble import cut, logged
from tests.test_layouts import GOALS, IMAGES, source


def columns(data: Transitions) -> list[np.ndarray]:
    names = ("observations", "actions", "rewards", "terminated", "truncated", "final_observations")
    return [leaf for name in names for leaf in tree.flatten(getattr(data, name))]


def same(one: Transitions, other: Transitions) -> bool:
    return all(
        a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(columns(one), columns(other), strict=True)
    )


def small(num_rows: int = 12) -> Transitions:
    return Transitions.from_arrays(**logged([(row % 3 == 2, False, False) for row in range(num_rows)], True))


@pytest.mark.parametrize(
    ("made", "options"),
    [
        (source(spaces.Box(-1, 1, (3,))), {}),
        (source(GOALS), {}),
        (source(GOALS), {"observations": "keep"}),
        (source(IMAGES), {}),
        (source(spaces.Box(-1, 1, (3,)), actions=np.array([0, 1, 2, 0, 1, 2])), {}),
    ],
    ids=["vectors", "flattened", "kept", "images", "discrete"],
)
def test_what_is_written_is_what_is_opened(tmp_path: Path, made: OneChunk, options: Any) -> None:
    expected = open_dataset(made, **options)
    written = write_dataset(made, tmp_path / "data", **options)
    opened = open_dataset(tmp_path / "data")
    for data in (written, opened, open_source(str(tmp_path / "data"))):
        assert isinstance(data, Transitions)
        assert same(data, expected)
        assert tree.map_structure(lambda leaf: None, data.observations) == tree.map_structure(
            lambda leaf: None, expected.observations
        )
        assert data.metadata == expected.metadata
        assert data.fingerprint == expected.fingerprint
    assert all(not column.flags.writeable for column in tree.flatten(opened.observations))
    rows = np.array([5, 0, 2])
    batches = [tree.flatten(Preparation()(data).take(rows)) for data in (opened, expected)]
    for one, other in zip(*batches, strict=True):
        np.testing.assert_array_equal(one, other)


def test_metadata_go_along(tmp_path: Path) -> None:
    metadata = Metadata(
        observation_space=spaces.Box(np.array([-1, 0], np.float32), np.array([1, np.inf], np.float32)),
        action_space=spaces.Box(-2, 2, (1,)),
        environment='{"id": "Pendulum-v1"}',
        score_range=(-3.5, 200.0),
        actions_normalized=True,
        source="somewhere",
    )
    data = write_dataset(OneChunk(Rows(**logged([(True, False, False)] * 4, True)), metadata), tmp_path / "data")
    assert data.metadata == Metadata(**{**vars(metadata), "num_rows": 4})


@pytest.mark.parametrize(
    "space",
    [
        GOALS,
        IMAGES,
        spaces.Discrete(3, start=-1),
        spaces.Box(-np.inf, np.inf, ()),
        spaces.Box(0, 2**40, (2,), np.int64),
        spaces.Dict([("b", spaces.Discrete(2)), ("a", spaces.Tuple([spaces.Box(0, 1, (0,))]))]),
        None,
    ],
)
def test_spaces_as_json(space: Any) -> None:
    again = space_from_json(json.loads(json.dumps(space_to_json(space))))
    assert again == space
    if isinstance(space, spaces.Dict):
        assert isinstance(again, spaces.Dict)
        assert list(again.spaces) == list(space.spaces)
    assert space_to_json(spaces.Dict({"a": spaces.MultiBinary(3)})) is None


@pytest.mark.filterwarnings("ignore:18 of 100 rows are truncated")
def test_a_stream_is_written_in_pieces(tmp_path: Path) -> None:
    """Chunks of all sizes, episodes across their borders, and a tail that is dropped after it was written."""
    flags = [(row % 7 == 6, row % 5 == 4, False) for row in range(100)] + [(False, False, False)] * 9
    for with_next in (False, True):
        stream = cut(logged(flags, with_next), [1, 10, 11, 50, 104])
        seen: list[int] = []
        with pytest.warns(DatasetWarning, match="of 109 rows at the end"):
            data = write_dataset(stream, tmp_path / f"data{with_next}", progress=seen.append)
        with pytest.warns(DatasetWarning, match="of 109 rows at the end"):
            expected = Transitions.from_source(stream)
        assert same(data, expected)
        assert seen == sorted(seen)
        assert len(seen) == 6
        assert expected.fingerprint == data.fingerprint


def test_the_files_are_plain_arrow_files_of_little_size(tmp_path: Path) -> None:
    data = write_dataset(small(3000), tmp_path / "data")
    with pa.ipc.open_file(pa.memory_map(str(tmp_path / "data" / "observations.arrow"))) as reader:
        table = reader.read_all()
    table.validate(full=True)
    np.testing.assert_array_equal(table["observations"].combine_chunks().to_numpy_ndarray(), data.observations)
    size = sum(file.stat().st_size for file in (tmp_path / "data").iterdir())
    per_episode = 1000 * (2 * 4 + 8 + 1)
    assert size < 3000 * 16 + per_episode + 10_000


def test_the_rows_are_not_read_into_memory(tmp_path: Path) -> None:
    data = Preparation(reward_scale=2.0, action_low=-2 * np.ones(1), action_high=2 * np.ones(1))(
        write_dataset(small(), tmp_path / "data")
    )
    mapped = open_dataset(tmp_path / "data")
    assert data.mapped is not None
    assert mapped.mapped is not None
    base: Any = data.observations
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(base, pa.Buffer) or isinstance(getattr(base, "obj", None), pa.Buffer)
    assert copy.deepcopy(data) is data
    # raw rows travel as their folder's name, prepared ones as arrays
    assert len(pickle.dumps(mapped)) < 500
    for one in (mapped, data):
        again = pickle.loads(pickle.dumps(one))
        assert same(again, one)
        assert (again.mapped is None) == (one is data)
    np.testing.assert_array_equal(again.take(np.arange(4))["actions"], data.take(np.arange(4))["actions"])


@pytest.mark.filterwarnings("ignore:.*actions outside the bounds")
def test_files_larger_than_memory_are_read_by_single_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How the system reads changes no batch, at the edges of the files neither."""
    data = Preparation()(write_dataset(small(3000), tmp_path / "data"))
    rows = np.array([0, 2999, 1500, 2998, 1500])
    expected = data.take(rows)
    assert data.mapped is not None
    monkeypatch.setattr("rllib_calql.data.mapped._memory", lambda: 1)
    data.mapped.expect_random_reads()
    asked: list[int] = []
    monkeypatch.setattr(MappedColumn, "will_need", lambda self, rows: asked.append(len(rows)))
    data.take(rows)
    assert asked == [5, 5]  # observations and actions
    monkeypatch.undo()
    for name, values in data.take(rows).items():
        np.testing.assert_array_equal(values, dict(expected)[name])
    with data.mapped.reading_through():
        assert data.observations.sum() == 0  # numbers and their negatives


# --- what is there already, what is damaged ---


def test_what_is_there_is_not_replaced_unasked(tmp_path: Path) -> None:
    path = tmp_path / "data"
    first = write_dataset(small(), path)
    with pytest.raises(DatasetError, match=r"there is a dataset at .*data already: overwrite it \(overwrite=True"):
        write_dataset(small(30), path)
    assert same(open_dataset(path), first)
    assert len(write_dataset(small(30), path, overwrite=True)) == len(open_dataset(path)) == 30
    assert len(write_dataset(open_dataset(path), path, overwrite=True)) == 30  # onto itself
    other = tmp_path / "notes"
    other.mkdir()
    write_dataset(small(), other / "sub" / "data")
    for occupied in (other, other / "sub" / "data" / "dataset.json"):
        with pytest.raises(DatasetError, match="there is something else at"):
            write_dataset(small(), occupied, overwrite=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["data", "notes"]


def test_unusable_rows_leave_nothing(tmp_path: Path) -> None:
    bad = logged([(False, False, False)] * 20 + [(True, False, False)], True)
    bad["rewards"][17] = np.nan
    with pytest.raises(DatasetError, match=r"rewards has NaN.* in row 17"):
        write_dataset(cut(bad, [5, 10]), tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="do not know how to open"):
        open_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(DatasetError, match=r"dataset.json is damaged: KeyError\('format'\)"):
        open_dataset(tmp_path)


def describe(path: Path, **changes: Any) -> None:
    file = path / "dataset.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


HOSTILE: dict[str, Any] = {
    "format": 7,
    "num_rows": 10**18,
    "num_episodes": -1,
    "observations": {"a": 0, "b": "../../etc/passwd"},
    "metadata": {"observation_space": {"type": "Box"}},
    "fingerprint": "0",
}


@pytest.mark.parametrize("key", HOSTILE)
def test_descriptions_that_do_not_match(tmp_path: Path, key: str) -> None:
    path = tmp_path / "data"
    write_dataset(small(), path)
    describe(path, **{key: HOSTILE[key]})
    with pytest.raises(DatasetError, match=r"was written in format 7|is damaged|is missing"):
        open_dataset(path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '"x"', "[" * 100_000, '{"format": 1}', "\x00", '{"format": 1, "num_rows": "x"}']
)
def test_descriptions_that_are_no_description(tmp_path: Path, text: str) -> None:
    path = tmp_path / "data"
    write_dataset(small(), path)
    (path / "dataset.json").write_text(text)
    with pytest.raises(DatasetError, match="damaged"):
        open_dataset(path)


FILES = ["observations", "actions", "rewards", "ends", "terminated", "final_observations"]


@pytest.mark.parametrize("name", FILES)
def test_damaged_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / "data"
    write_dataset(small(300), path)
    file = path / f"{name}.arrow"
    whole = file.read_bytes()
    half, extra = whole[: len(whole) // 2], whole + b"x" * 64
    for damaged in (b"", b"PAR1" + whole[4:], half, whole[:-1], whole[:100], extra):
        file.write_bytes(damaged)
        with pytest.raises(DatasetError, match=f"{name}.arrow is no column of a dataset"):
            open_dataset(path)
    file.unlink()
    with pytest.raises(DatasetError, match=f"{name}.arrow is missing"):
        open_dataset(path)
    outside = tmp_path / "outside.arrow"
    outside.write_bytes(whole)
    file.symlink_to(outside)
    with pytest.raises(DatasetError, match=f"{name}.arrow is missing, or no file of the dataset's folder"):
        open_dataset(path)


def test_flipped_bytes_never_crash(tmp_path: Path) -> None:
    """Every header and footer byte of a file, one at a time, and of the episodes' ends."""
    path = tmp_path / "data"
    expected = write_dataset(small(30), path)
    for name in ("observations", "ends"):
        file = path / f"{name}.arrow"
        whole = bytearray(file.read_bytes())
        for position in range(0, len(whole), 1 if name == "ends" else 3):
            changed = bytearray(whole)
            changed[position] ^= 0xFF
            file.write_bytes(changed)
            try:
                data = open_dataset(path)
            except DatasetError:
                continue
            assert same(data, expected)  # a byte without meaning
        file.write_bytes(whole)


def test_columns_of_other_datasets(tmp_path: Path) -> None:
    write_dataset(small(12), tmp_path / "one")
    write_dataset(small(30), tmp_path / "other")
    for name in FILES:
        file = tmp_path / "one" / f"{name}.arrow"
        whole = file.read_bytes()
        file.write_bytes((tmp_path / "other" / f"{name}.arrow").read_bytes())
        with pytest.raises(DatasetError, match=r"tells of (12|4) rows, the files have|does not cut|is damaged"):
            open_dataset(tmp_path / "one")
        file.write_bytes(whole)
    assert len(open_dataset(tmp_path / "one")) == 12


def test_rows_that_were_changed_are_pickled_and_not_their_folder(tmp_path: Path) -> None:
    opened = write_dataset(small(), tmp_path / "data")
    doubled = opened.changed(rewards=opened.rewards * 2.0)
    for changed in (doubled, replace(opened, rewards=opened.rewards * 2.0)):
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(changed)).rewards, doubled.rewards)
    assert len(pickle.dumps(opened)) < 500  # the path
