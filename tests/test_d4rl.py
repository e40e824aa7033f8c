"""D4RL files by path and by name."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from rllib_calql.data import DatasetError, DatasetWarning, Metadata, Preparation, open_dataset, open_source
from rllib_calql.data.reference_scores import reference_scores
from rllib_calql.data.rows import OneChunk
from rllib_calql.data.sources.d4rl import locate
from rllib_calql.data.sources.d4rl_tasks import BASE_URL, TASKS
from rllib_calql.data.writers import write_to
from tests.shared import shared_path


def write(path: Path, **columns: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            file[name.replace("__", "/")] = np.asarray(values)
    return path


def flags(*values: int) -> np.ndarray:
    return np.array(values, dtype=bool)


def small_columns(n: int = 6, **changes: Any) -> dict[str, Any]:
    columns = {
        "observations": np.arange(n, dtype=np.float64)[:, None],
        "actions": np.zeros((n, 2), dtype=np.float32),
        "rewards": np.arange(n) / 2,
        "terminals": np.arange(n) == n - 1,
        "timeouts": np.zeros(n, dtype=bool),
        "infos__qpos": np.zeros((n, 3)),
        "metadata__note": np.bytes_(b"nested things are not read"),
    }
    return {name: values for name, values in {**columns, **changes}.items() if values is not None}


# --- files by path ---


@pytest.mark.parametrize("name", ["data.hdf5", "data.h5", "DATA.HDF5"])
def test_open_dataset_by_path(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, **small_columns(3))
    for uri in (path, str(path)):
        data = open_dataset(uri)
        np.testing.assert_array_equal(data.observations, [[0], [1], [2]])
        np.testing.assert_array_equal(data.rewards, [0, 0.5, 1])
        np.testing.assert_array_equal(data.terminated, flags(0, 0, 1))
        assert data.observations.dtype == data.rewards.dtype == np.float32
        assert data.mc_returns is None


def test_next_observations_of_the_file_are_used(tmp_path: Path) -> None:
    following = np.array([[1], [2.5], [3], [4.5]])
    columns = small_columns(4, timeouts=flags(0, 1, 0, 1), terminals=flags(0, 0, 0, 0))
    data = open_dataset(write(tmp_path / "data.hdf5", **columns, next_observations=following))
    np.testing.assert_array_equal(data.next_observations(), following)
    np.testing.assert_array_equal(data.truncated, flags(0, 1, 0, 1))


def test_another_reward_column(tmp_path: Path) -> None:
    path = write(tmp_path / "data.hdf5", **small_columns(3, infos__rewards_binary=[-1, -1, 0]))
    np.testing.assert_array_equal(open_dataset(path, rewards="infos/rewards_binary").rewards, [-1, -1, 0])
    with pytest.raises(
        DatasetError, match=r"there is no column 'infos/sparse'; the file has: actions, infos/qpos, infos/r"
    ):
        open_dataset(path, rewards="infos/sparse")


@pytest.mark.parametrize("column", ["observations", "actions", "rewards", "terminals"])
def test_a_missing_column(tmp_path: Path, column: str) -> None:
    path = write(tmp_path / "data.hdf5", **small_columns(3, **{column: None}))
    with pytest.raises(
        DatasetError, match=rf"data.hdf5: there is no column '{column}'; the file has: .*infos/qpos"
    ):
        open_dataset(path)


def test_a_file_without_timeouts_is_cut_at_the_step_limit(tmp_path: Path) -> None:
    columns = small_columns(12, timeouts=None, terminals=[0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0])
    path = write(tmp_path / "data.hdf5", **columns)
    with pytest.warns(DatasetWarning, match="3 of 12 rows are truncated ends"):
        data = open_dataset(path, max_episode_steps=3)
    # rows 0-2 | 3 4T | 5-7 | 8T | 9-11, and the time-out rows 2, 7 and 11 become final observations
    np.testing.assert_array_equal(data.observations[:, 0], [0, 1, 3, 4, 5, 6, 8, 9, 10])
    np.testing.assert_array_equal(data.next_observations()[:, 0], [1, 2, 4, 4, 6, 7, 8, 10, 11])
    np.testing.assert_array_equal(data.terminated, flags(0, 0, 0, 1, 0, 0, 1, 0, 0))
    with pytest.warns(DatasetWarning, match="3 of 12 rows at the end"):  # terminals alone also split the rows
        assert open_dataset(path).num_episodes == 2
    with pytest.raises(DatasetError, match="max_episode_steps must be at least 1, not 0"):
        open_dataset(path, max_episode_steps=0)


def test_no_end_to_be_found(tmp_path: Path) -> None:
    path = write(tmp_path / "data.hdf5", **small_columns(4, timeouts=None, terminals=np.zeros(4)))
    with pytest.raises(DatasetError, match=r"no column `timeouts` and no terminal row.*as max_episode_steps"):
        open_dataset(path)
    with pytest.warns(DatasetWarning, match="2 of 4 rows are truncated ends"):
        assert open_dataset(path, max_episode_steps=2).num_episodes == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": np.zeros(5)}, "data.hdf5: columns have different numbers of rows"),
        (
            {"observations": np.full((6, 1), np.nan)},
            "data.hdf5: observations has NaN.* in rows 0, 1, 2, 3, 4 and 1",
        ),
        ({"actions": np.zeros(6)}, "data.hdf5: actions must be numbers of shape"),
        ({"timeouts": np.zeros(7)}, "data.hdf5: columns have different numbers of rows"),
        (small_columns(0), "data.hdf5: the dataset is empty"),
        ({**small_columns(0), "timeouts": None}, "data.hdf5: .*no terminal row"),
    ],
)
def test_unusable_files(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "data.hdf5", **small_columns(**changes))
    with pytest.raises(DatasetError, match=message):
        open_dataset(path)


def test_not_a_dataset(tmp_path: Path) -> None:
    path = tmp_path / "data.hdf5"
    with pytest.raises(DatasetError, match=r"there is no dataset file .*data.hdf5"):
        open_dataset(path)
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(DatasetError, match=r"data.hdf5 cannot be read as an HDF5 file"):
        open_dataset(path)
    for uri in ("s3://bucket/data.hdf5", "data.csv", "hopper-medium-v2", "", "https://host/data.hdf5"):
        with pytest.raises(
            DatasetError, match=r"(do not know how to open|there is nothing at) .*understood are d4rl://NAME"
        ):
            open_dataset(uri)


def test_unknown_options_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "data.hdf5", **small_columns(3))
    with pytest.raises(
        DatasetError, match=r"unknown option gamma, reward for .* it takes max_episode_steps, rewards"
    ):
        open_dataset(path, reward="rewards", gamma=0.9)
    with pytest.raises(DatasetError, match=r"unknown option download for .*data.hdf5"):
        open_dataset(path, download=False)
    with pytest.raises(DatasetError, match="unknown option rows for 'd4rl://pen-human-v1': it takes download"):
        open_dataset("d4rl://pen-human-v1", rows=3)


def test_success_reward_refuses_data_without_success(tmp_path: Path) -> None:
    path = write(tmp_path / "data.hdf5", **small_columns(3, rewards=-np.ones(3)))
    with pytest.raises(DatasetError, match="no row has the success_reward 0"):
        open_dataset(path, success_reward=0.0)


def test_a_terminal_on_the_files_last_row_is_kept(tmp_path: Path) -> None:
    """The reference drops a file's last row always."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = open_dataset(write(tmp_path / "data.hdf5", **small_columns(6)))
    assert len(data) == 6
    assert data.terminated[-1]


# --- D4RL's task names ---


@pytest.mark.parametrize(
    ("name", "file", "steps"),
    [  # one of each kind, from d4rl's infos.py and registrations
        (
            "antmaze-medium-diverse-v2",
            "ant_maze_v2/Ant_maze_big-maze_noisy_multistart_True_multigoal_True_sparse_fixed.hdf5",
            1000,
        ),
        (
            "antmaze-umaze-v2",
            "ant_maze_v2/Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse_fixed.hdf5",
            700,
        ),
        (
            "antmaze-umaze-diverse-v0",
            "ant_maze_new/Ant_maze_u-maze_noisy_multistart_True_multigoal_True_sparse.hdf5",
            700,
        ),
        (
            "antmaze-large-play-v0",
            "ant_maze_new/Ant_maze_hardest-maze_noisy_multistart_True_multigoal_False_sparse.hdf5",
            1000,
        ),
        (
            "antmaze-large-play-v1",
            "ant_maze_v1/Ant_maze_large_noisy_multistart_True_multigoal_False_sparse.hdf5",
            1000,
        ),
        ("pen-human-v0", "hand_dapg/pen-v0_demos_clipped.hdf5", 100),
        ("door-cloned-v0", "hand_dapg/door-demos-v0-bc-combined.hdf5", 200),
        ("hammer-expert-v0", "hand_dapg/hammer-v0_expert_clipped.hdf5", 200),
        ("relocate-cloned-v1", "hand_dapg_v1/relocate-cloned-v1.hdf5", 200),
        ("hammer-human-longhorizon-v1", "hand_dapg_v1/hammer-human-v1.hdf5", 600),
        ("kitchen-complete-v0", "kitchen/mini_kitchen_microwave_kettle_light_slider-v0.hdf5", 280),
        ("kitchen-partial-v0", "kitchen/kitchen_microwave_kettle_light_slider-v0.hdf5", 280),
        ("kitchen-mixed-v0", "kitchen/kitchen_microwave_kettle_bottomburner_light-v0.hdf5", 280),
        ("hopper-medium-replay-v0", "gym_mujoco/hopper_mixed.hdf5", 1000),
        ("walker2d-medium-replay-v0", "gym_mujoco/walker_mixed.hdf5", 1000),
        ("walker2d-medium-expert-v0", "gym_mujoco/walker2d_medium_expert.hdf5", 1000),
        ("halfcheetah-medium-expert-v1", "gym_mujoco_v1/halfcheetah_medium_expert-v1.hdf5", 1000),
        ("hopper-medium-replay-v2", "gym_mujoco_v2/hopper_medium_replay-v2.hdf5", 1000),
        ("maze2d-open-dense-v0", "maze2d/maze2d-open-dense.hdf5", 150),
        ("maze2d-medium-v0", "maze2d/maze2d-medium-sparse.hdf5", 250),
        ("maze2d-large-v1", "maze2d/maze2d-large-sparse-v1.hdf5", 800),
        ("maze2d-eval-umaze-dense-v1", "maze2d/maze2d-eval-umaze-dense-v1.hdf5", 300),
    ],
)
def test_the_table_of_tasks(name: str, file: str, steps: int) -> None:
    assert TASKS[name] == (file, steps)


def test_the_size_of_the_table() -> None:
    count = {
        family: sum(name.startswith(family) for name in TASKS)
        for family in ("antmaze", "pen", "hammer", "door", "relocate", "kitchen", "hopper", "ant-", "maze2d")
    }
    assert count == {
        "antmaze": 18,
        "pen": 8,
        "hammer": 8,
        "door": 8,
        "relocate": 8,
        "kitchen": 3,
        "hopper": 17,
        "ant-": 18,
        "maze2d": 20,
    }
    assert BASE_URL == "http://rail.eecs.berkeley.edu/datasets/offline_rl"


ANTMAZE_FILE = "Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse_fixed.hdf5"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    return tmp_path


def test_d4rls_cache_folder_is_looked_up(cache: Path) -> None:
    by_name = write(cache / "antmaze-umaze-v2.hdf5", **small_columns(3))
    assert locate("antmaze-umaze-v2") == by_name
    by_url = write(cache / ANTMAZE_FILE, **small_columns(4))
    assert locate("antmaze-umaze-v2") == by_url
    assert len(open_dataset("d4rl://antmaze-umaze-v2")) == 4


def test_without_the_variable_it_is_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("D4RL_DATASET_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".d4rl" / "datasets"
    folder.mkdir(parents=True)
    path = write(folder / "door-human-v1.hdf5", **small_columns(3))
    assert locate("door-human-v1") == path


@pytest.mark.filterwarnings("ignore:50 of 250 rows at the end")
def test_the_tasks_step_limit_is_known(cache: Path) -> None:
    write(cache / "pen-human-v1.hdf5", **small_columns(250, timeouts=None, terminals=np.zeros(250)))
    with pytest.warns(DatasetWarning, match="2 of 200 rows are truncated"):
        data = open_dataset("d4rl://pen-human-v1")
    np.testing.assert_array_equal(data.episode_ends, [98, 197])
    with pytest.warns(DatasetWarning, match="5 of 250 rows are truncated"):
        assert open_dataset("d4rl://pen-human-v1", max_episode_steps=50).num_episodes == 5


@pytest.mark.parametrize(
    ("name", "scores"),
    [
        ("antmaze-large-play-v2", (0.0, 1.0)),
        ("hopper-medium-replay-v2", (-20.272305, 3234.3)),
        ("ant-random-expert-v0", (-325.6, 3879.7)),
        ("pen-human-longhorizon-v1", (96.262799, 3076.8331017826877)),
        ("maze2d-eval-large-dense-v1", (56.95455, 326.09647655082637)),
        ("maze2d-umaze-v0", (0.94, 62.6)),
    ],
)
def test_reference_scores_come_with_the_name(cache: Path, name: str, scores: tuple[float, float]) -> None:
    path = write(cache / f"{name}.hdf5", **small_columns(3, infos__rewards_binary=[-1, -1, 0]))
    assert open_source(f"d4rl://{name}").metadata.score_range == scores
    assert open_dataset(f"d4rl://{name}").metadata.score_range == scores
    # They belong to the task's own rewards.
    for options in ({"rewards": "infos/rewards_binary"}, {"success_reward": 0.0}):
        assert open_source(f"d4rl://{name}", **options).metadata.score_range is None
    assert open_source(path).metadata.score_range is None
    (rows,) = open_source(path).chunks()
    write_to(cache / "mine.hdf5", OneChunk(rows, Metadata(score_range=(1.0, 3.0))))
    assert open_source("d4rl://mine").metadata.score_range == (1.0, 3.0)  # as by its path
    write(cache / "kitchen-mixed-v0.hdf5", **small_columns(3))  # has other rewards than its environment
    assert open_source("d4rl://kitchen-mixed-v0").metadata.score_range is None


def test_every_task_has_reference_scores() -> None:
    scores = {name: reference_scores(name) for name in TASKS}
    assert all(low < high for low, high in filter(None, scores.values()))
    assert None not in scores.values()
    assert reference_scores("door") == reference_scores("door-cloned-v1")
    assert reference_scores("flow-ring-random-v0") is None


def test_a_missing_file_without_download(cache: Path) -> None:
    expected = (
        r"the dataset of antmaze-umaze-v2 is missing and downloading is switched off. Download "
        rf"{BASE_URL}/ant_maze_v2/{ANTMAZE_FILE} yourself and put it at {cache}/{ANTMAZE_FILE}"
    )
    with pytest.raises(DatasetError, match=expected):
        open_dataset("d4rl://antmaze-umaze-v2", download=False)
    assert list(cache.iterdir()) == []


def test_an_unknown_task(cache: Path) -> None:
    message = (
        r"unknown D4RL task 'antmaze-umaze-v3' \(did you mean antmaze-umaze-v\d or .*\), and there is no file"
    )
    with pytest.raises(DatasetError, match=message):
        open_dataset("d4rl://antmaze-umaze-v3")
    with pytest.raises(DatasetError, match=r"unknown D4RL task 'xyz', and there is no file .*/xyz.hdf5"):
        open_dataset("d4rl://xyz")
    write(cache / "xyz.hdf5", **small_columns(3))
    assert len(open_dataset("d4rl://xyz")) == 3


# --- the real files ---


@pytest.mark.parametrize(
    ("file", "rows", "episodes", "success_rate"),
    [("antmaze-umaze", 200_152, 792, 0.957), ("antmaze-medium-narrow", 100_357, 257, 0.973)],
)
def test_antmaze_files(file: str, rows: int, episodes: int, success_rate: float) -> None:
    path = shared_path(f"data/{file}.hdf5")
    with h5py.File(path) as raw_file:
        terminals, timeouts = raw_file["terminals"][()], raw_file["timeouts"][()]
        observations = raw_file["observations"][()]
    with pytest.warns(DatasetWarning, match=f"{int(timeouts.sum())} of {rows} rows are truncated ends"):
        raw = open_dataset(path)
    assert len(raw) == rows - timeouts.sum()
    assert raw.num_episodes == episodes == terminals.sum() + timeouts.sum()
    assert raw.terminated.sum() / episodes == pytest.approx(success_rate, abs=5e-4)
    assert (raw.obs_dim, raw.act_dim) == (29, 8)
    np.testing.assert_array_equal(raw.rewards, raw.terminated)
    np.testing.assert_array_equal(raw.observations, observations[~timeouts])
    follows = np.roll(observations, -1, axis=0)[~timeouts]
    inside = ~raw.terminated
    np.testing.assert_array_equal(raw.next_observations()[inside], follows[inside])

    data = Preparation(reward_scale=10, reward_bias=-5, sparse_failure_reward=0.0)(raw)
    assert data.mc_returns is not None
    assert np.abs(data.scaled_actions()).max() == np.float32(0.99999)
    for episode in data.episodes():
        assert episode.mc_returns is not None
        if episode.terminated[-1]:
            steps = np.arange(len(episode), 0, -1)
            expected = -5 * (1 - 0.99 ** (steps - 1)) / 0.01 + 5 * 0.99 ** (steps - 1)
            np.testing.assert_allclose(episode.mc_returns, expected, rtol=1e-4, atol=1e-4)
        else:
            assert (episode.mc_returns == -500).all()


@pytest.mark.filterwarnings("ignore::rllib_calql.data.DatasetWarning")
@pytest.mark.parametrize(
    ("file", "rows", "successes"),
    [
        ("door-human", 6_729, 8),
        ("door-dapg", 10_000, 49),
        ("pen-dapg", 10_000, 41),
        ("relocate-dapg", 10_000, 50),
    ],
)
def test_adroit_files(file: str, rows: int, successes: int) -> None:
    """Each trajectory is kept from its start to its last success, and done at each success."""
    path = shared_path(f"data/adroit-{file}.hdf5")
    with h5py.File(path) as raw_file:
        rewards, observations = raw_file["infos/rewards_binary"][()], raw_file["observations"][()]
        ends = np.flatnonzero(raw_file["terminals"][()].astype(bool) | raw_file["timeouts"][()])
    assert len(rewards) == rows
    kept: list[int] = []
    successful = 0
    for start, end in zip([0, *(ends[:-1] + 1)], ends, strict=True):
        success_rows = start + np.flatnonzero(rewards[start : end + 1] == 0)
        if len(success_rows):
            successful += 1
            kept += range(start, success_rows[-1] + 1)
    assert successful == successes

    data = open_dataset(path, rewards="infos/rewards_binary", success_reward=0.0)
    np.testing.assert_array_equal(data.observations, observations[kept])
    np.testing.assert_array_equal(data.rewards, rewards[kept])
    np.testing.assert_array_equal(data.terminated, rewards[kept] == 0)
    assert not data.truncated.any()
