"""`calql data info`: figures of a dataset, gathered chunk by chunk, and how they are shown."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from gymnasium.spaces import Box
from typer.testing import CliRunner, Result

from rllib_calql.cli.calql import app
from rllib_calql.data import DatasetError
from rllib_calql.data import summary as summary_module
from rllib_calql.data.rows import Metadata, Rows
from rllib_calql.data.summary import Summary, summarise
from tests.chunks import Chunks, flags
from tests.shared import shared_path


def calql(*args: str | Path) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


# Three episodes (rows 0-2 reach the goal, 3 fails, 4-6 reach it), then two rows without an end.
REWARDS = np.array([0, 0, 1, 0, 0, 0, 1, 0, 0], np.float32)
ROWS = Rows(
    observations=np.arange(27, dtype=np.float32).reshape(9, 3),
    actions=np.array([[1.0, -1.0], [0.5, 0.0], [-0.9995, 0.9], *[[0.0, 0.0]] * 6], np.float32),
    rewards=REWARDS,
    terminated=flags(9, 2, 6),
    truncated=flags(9, 3),
)


def check_rows(found: Summary) -> None:
    assert (found.num_rows, found.num_episodes, found.unfinished_rows) == (9, 3, 2)
    np.testing.assert_array_equal(found.lengths, [3, 1, 3])
    np.testing.assert_array_equal(found.returns, [1, 0, 1])
    np.testing.assert_array_equal(found.terminated, [True, False, True])
    assert found.successes is not None
    np.testing.assert_array_equal(found.successes, [True, False, True])
    assert found.reward_values == {0.0: 7, 1.0: 2}
    assert found.saturation == 3 / 18
    observations, actions = found.columns
    assert (observations.name, observations.shape, actions.shape) == ("observations", (3,), (2,))
    np.testing.assert_allclose(observations.mean, [12, 13, 14])
    np.testing.assert_allclose(observations.std, [np.sqrt(60.0)] * 3)
    np.testing.assert_array_equal(observations.low, [0, 1, 2])
    np.testing.assert_array_equal(observations.high, [24, 25, 26])
    assert found.bytes_in_memory == 9 * (4 * (3 + 2 + 1 + 1) + 2)
    np.testing.assert_array_equal(found.row_sample, np.arange(27).reshape(9, 3)[:, :2])
    assert [rewards.tolist() for rewards in found.episode_sample] == [[0, 0, 1], [0], [0, 0, 1]]


@pytest.mark.parametrize("cuts", [[], [3, 7], [1, 2, 2, 5], list(range(1, 9))], ids=str)
def test_figures_do_not_depend_on_where_chunks_end(cuts: list[int]) -> None:
    check_rows(summarise(Chunks(ROWS, cuts)))


def test_missing_values_are_counted_and_left_out() -> None:
    observations = np.array([[1.0, np.nan], [3.0, np.inf], [5.0, -np.inf], [np.nan, 2.0]])
    rewards = np.array([np.nan, 2.0, 0.5, 0.25])
    rows = Rows(
        observations={"image": np.zeros((4, 2, 2), np.uint8), "state": observations},
        actions=np.array([2, 0, 1, 1]),
        rewards=rewards,
        terminated=flags(4, 3),
        truncated=flags(4),
    )
    found = summarise(Chunks(rows, [1]))
    image, state, actions = found.columns
    assert (image.name, image.shape, state.name) == ("observations/image", (2, 2), "observations/state")
    assert (state.nan, state.infinite, found.rewards.nan, found.missing) == (2, 2, 1, 5)
    np.testing.assert_array_equal(state.mean, [3.0, 2.0])
    np.testing.assert_array_equal(state.high, [5.0, 2.0])
    np.testing.assert_array_equal(found.returns, [2.75])
    assert (actions.shape, actions.high.tolist()) == ((), [2.0])
    assert found.saturation is None
    assert found.row_sample is None
    assert found.successes is None
    assert found.bytes_in_memory == 4 * (4 * 1 + 2 * 4 + 8 + 4 + 4 + 2)


def test_bounds_come_from_the_action_space() -> None:
    def saturation(actions: list[float], space: Box | None) -> float | None:
        column = np.array(actions, np.float32)[:, None]
        rows = Rows(
            observations=column, actions=column, rewards=column[:, 0], terminated=flags(4), truncated=flags(4, 3)
        )
        return summarise(Chunks(rows, [], Metadata(action_space=space))).saturation

    wide = [2.0, -2.0, 1.0, 0.0]
    assert saturation(wide, Box(-2.0, 2.0, (1,))) == 0.5
    assert saturation(wide, None) is None
    assert saturation(wide, Box(-np.inf, np.inf, (1,))) is None
    assert saturation([1.0, -0.5, 0.9995, 0.0], None) == 0.5


def test_samples_stay_small_and_evenly_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary_module, "SAMPLE", 10)
    monkeypatch.setattr(summary_module, "MAX_REWARD_VALUES", 10)
    number = np.arange(1000, dtype=np.float32)
    rows = Rows(
        observations=np.stack([number, -number], axis=1),
        actions=np.zeros((1000, 1)),
        rewards=number,
        terminated=number % 5 == 4,
        truncated=flags(1000),
    )
    found = summarise(Chunks(rows, [3, 250, 251, 900]))
    assert found.row_sample is not None
    assert 10 <= len(found.row_sample) <= 20
    distances = set(np.diff(found.row_sample[:, 0]).tolist())
    assert len(distances) == 1
    assert distances <= {2.0**power for power in range(12)}
    assert found.reward_values == {}
    assert 10 <= len(found.episode_sample) <= 20
    assert len({rewards[0] % 5 for rewards in found.episode_sample}) == 1
    assert found.num_episodes == 200


def test_no_rows_is_an_error() -> None:
    with pytest.raises(DatasetError, match="no rows"):
        summarise(Chunks(_nothing(), []))


def _nothing() -> Rows:
    none = np.zeros((0, 1))
    return Rows(observations=none, actions=none, rewards=none[:, 0], terminated=flags(0), truncated=flags(0))


# ---- the command -------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.hdf5"
    with h5py.File(path, "w") as columns:
        for name, column in vars(ROWS).items():
            if column is not None:
                columns[{"terminated": "terminals", "truncated": "timeouts"}.get(name, name)] = column
    return path


def test_table(file: Path) -> None:
    result = calql("data", "info", file)
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "rows 9" in lines
    assert "episodes 3, 2 more rows without an end" in lines
    assert "ends 2 terminated, 1 truncated" in lines
    assert "lengths min 1, median 3, mean 2.33333, max 3" in lines
    assert "success 2 episodes (66.7 %) meet the reward 1" in lines
    assert "actions at a bound 16.7% of numbers" in lines
    assert "observations 3 float32 0 26 0" in lines


def test_json(file: Path) -> None:
    result = calql("data", "info", file, "--json")
    said = json.loads(result.stdout)
    assert (said["rows"], said["episodes"], said["unfinished_rows"], said["successes"]) == (9, 3, 2, 2)
    assert said["rewards"]["values"] == {"0": 7, "1": 2}
    assert said["columns"]["actions"] == {
        "shape": [2],
        "dtype": "float32",
        "nan": 0,
        "infinite": 0,
        "low": [pytest.approx(-0.9995), -1.0],
        "high": [1.0, pytest.approx(0.9)],
        "mean": pytest.approx([0.0556111, -0.0111111], rel=1e-4),
        "std": pytest.approx([0.496786, 0.448316], rel=1e-4),
    }


def test_plot(file: Path, tmp_path: Path) -> None:
    picture = tmp_path / "look.png"
    assert calql("data", "info", file, "--plot", picture).exit_code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "must end in .png" in calql("data", "info", file, "--plot", tmp_path / "look.pdf").stderr


def test_errors_are_one_line(tmp_path: Path, file: Path) -> None:
    cases: list[tuple[list[str | Path], int, str]] = [
        ([tmp_path / "none.hdf5"], 1, "there is no dataset file"),
        (["what://ever"], 1, "do not know how to open"),
        ([file, "--input-config", "{nope: 1}"], 1, "unknown option nope"),
        ([file, "--input-config", "[1"], 2, "not valid YAML"),
    ]
    for args, code, message in cases:
        result = calql("data", "info", *args)
        assert result.exit_code == code
        assert result.stderr.startswith("Error: ")
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_shared_antmaze() -> None:
    said = json.loads(calql("data", "info", shared_path("data/antmaze-umaze.hdf5"), "--json").stdout)
    assert (said["rows"], said["episodes"], said["successes"]) == (200_152, 792, 758)
