"""The online rows in the folders of successive checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_calql.data import EpisodeStore, MixedReplay, Transitions
from rllib_calql.data import replay_files as module
from rllib_calql.data.replay_files import ReplayFiles
from tests.test_replay import assert_same, episode, offline_rows

ROW = 18  # bytes of a row of one observation and one action number


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is full with 10 rows."""
    monkeypatch.setattr(module, "FULL", 10 * ROW)


def filled(lengths: list[int], capacity: int = 100) -> EpisodeStore:
    store = EpisodeStore(capacity, obs_dim=1, act_dim=1)
    for number, length in enumerate(lengths):
        store.append(episode(number, length, terminated=number % 2 == 0))
    return store


def restored(folder: Path, capacity: int = 100) -> EpisodeStore:
    store = EpisodeStore(capacity, obs_dim=1, act_dim=1)
    store.append(episode(99, 3))  # gone after the restore
    ReplayFiles(store).restore(folder)
    return store


def assert_equal(store: EpisodeStore, other: EpisodeStore) -> None:
    if store.rows is None:
        assert other.rows is None
    else:
        assert_same(other.rows, store.rows)
    assert (store.num_rows_added, store.num_episodes_added) == (other.num_rows_added, other.num_episodes_added)


def files(folder: Path) -> dict[str, int]:
    """Names and inodes."""
    return {file.name: file.stat().st_ino for file in folder.glob("*.npz")}


def test_a_checkpoint_links_full_files_and_writes_only_what_is_new(tmp_path: Path) -> None:
    store = filled([7, 7, 7, 7])
    keeper = ReplayFiles(store)
    keeper.save(tmp_path / "1")
    first = files(tmp_path / "1")
    # whole episodes, at least 10 rows each: 0 to 14, 14 to 28
    assert sorted(name.rsplit("-", 1)[0] for name in first) == ["rows-0-14", "rows-14-28"]

    store.append(episode(4, 5))
    keeper.save(tmp_path / "2")
    second = files(tmp_path / "2")
    assert first.items() < second.items()
    assert {name.rsplit("-", 1)[0] for name in second.keys() - first.keys()} == {"rows-28-33"}

    store.append(episode(5, 2))
    keeper.save(tmp_path / "3")
    third = files(tmp_path / "3")
    assert first.items() < third.items()  # the file that was not full has been written again, with the new rows
    assert {name.rsplit("-", 1)[0] for name in third.keys() - first.keys()} == {"rows-28-35"}
    keeper.save(tmp_path / "4")
    assert files(tmp_path / "4") == third

    assert_equal(store, restored(tmp_path / "4"))
    assert_equal(filled([7, 7, 7, 7]), restored(tmp_path / "1"))


def test_evicted_rows_leave_with_their_file_and_never_come_back(tmp_path: Path) -> None:
    store = filled([6, 6, 6, 6], capacity=30)
    keeper = ReplayFiles(store)
    keeper.save(tmp_path / "1")
    store.append(episode(4, 12))  # rows 0 to 6 go; the file of rows 0 to 12 stays
    keeper.save(tmp_path / "2")
    assert len(files(tmp_path / "1").items() & files(tmp_path / "2").items()) == 2
    assert_equal(store, restored(tmp_path / "2", 30))
    store.append(episode(5, 12))  # rows 6 to 18 go, and with them the last of the first file
    keeper.save(tmp_path / "3")
    names = sorted(name.rsplit("-", 1)[0] for name in files(tmp_path / "3"))
    assert names == ["rows-12-24", "rows-24-36", "rows-36-48"]
    assert_equal(store, restored(tmp_path / "3", 30))


def test_a_lost_earlier_checkpoint_costs_only_writing_again(tmp_path: Path) -> None:
    store = filled([6, 6, 6, 6], capacity=30)
    keeper = ReplayFiles(store)
    keeper.save(tmp_path / "1")
    shutil.rmtree(tmp_path / "1")
    store.append(episode(4, 12))
    keeper.save(tmp_path / "2")
    assert_equal(store, restored(tmp_path / "2", 30))


def test_another_runs_files_at_the_same_place_are_not_taken(tmp_path: Path) -> None:
    mine, other = filled([12, 12]), filled([4, 8, 12])
    keeper = ReplayFiles(mine)
    keeper.save(tmp_path / "1")
    shutil.rmtree(tmp_path / "1")
    ReplayFiles(other).save(tmp_path / "1")
    keeper.save(tmp_path / "2")
    assert_equal(mine, restored(tmp_path / "2"))


def test_an_empty_store(tmp_path: Path) -> None:
    store = EpisodeStore(10, obs_dim=1, act_dim=1)
    ReplayFiles(store).save(tmp_path / "1")
    assert_equal(store, restored(tmp_path / "1"))


def test_a_smaller_store_is_refused(tmp_path: Path) -> None:
    ReplayFiles(filled([7, 7])).save(tmp_path / "1")
    with pytest.raises(ValueError, match="14 online rows, more than online_capacity=13: enlarge it"):
        restored(tmp_path / "1", 13)
    with pytest.raises(ValueError, match="1 observation and 1 action numbers, the replay 2 and 1"):
        ReplayFiles(EpisodeStore(100, obs_dim=2, act_dim=1)).restore(tmp_path / "1")


@given(
    lengths=st.lists(st.integers(1, 15), min_size=1, max_size=25),
    saves=st.sets(st.integers(0, 24)),
    restores=st.sets(st.integers(0, 24)),
    losses=st.sets(st.integers(0, 24)),
)
@settings(max_examples=60, deadline=None)
def test_every_checkpoint_of_a_run_restores_exactly(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    saves: set[int],
    restores: set[int],
    losses: set[int],
) -> None:
    """Runs of appends, saves, restarts from the last save and lost folders, against the live store."""
    root = tmp_path_factory.mktemp("run")
    live = MixedReplay(offline_rows(3), 40, 0.5, seed=1, obs_dim=1, act_dim=1)
    keeper = ReplayFiles(live.online)
    for number, length in enumerate(lengths):
        live.add(episode(number, length))
        if number in saves:
            folder = root / str(number)
            keeper.save(folder)
            again = restored(folder, 40)
            assert_equal(live.online, again)
            written = sum(np.load(file)["rewards"].size for file in folder.glob("*.npz"))
            assert written < len(live.online) + 25  # at most one full file more
            if number in restores:  # the process was restarted here
                keeper = ReplayFiles(live.online)
                keeper.restore(folder)
            if number in losses:
                shutil.rmtree(folder)


def test_files_hold_raw_columns_only(tmp_path: Path) -> None:
    """Bytes per row: observations, action, reward, return, two flags; a final observation per episode."""
    store = EpisodeStore(5000, obs_dim=29, act_dim=8)
    rng = np.random.default_rng(0)
    raw = Transitions.from_episode(
        rng.normal(size=(5001, 29)), rng.uniform(-1, 1, (5000, 8)), rng.normal(size=5000), False
    )
    store.append(Transitions(**{**vars(raw), "mc_returns": np.zeros(5000)}))
    ReplayFiles(store).save(tmp_path / "1")
    size = sum(file.stat().st_size for file in (tmp_path / "1").iterdir())
    assert 0 < size - 5000 * 4 * (29 + 8 + 2) - 5000 * 2 < 4000
