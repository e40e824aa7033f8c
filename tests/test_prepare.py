"""Rewards scaled, actions clipped, returns added, spaces compared; the reference's whole pipeline."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, MultiDiscrete

from rllib_calql.data import DatasetError, DatasetWarning, Preparation, Transitions, check_fits, open_dataset
from rllib_calql.data.prepare import episode_returns, return_factor
from tests.shared import shared_path
from tests.test_d4rl import write

ALMOST_ONE = np.float32(0.99999)


def raw_rows(actions: Any = None, rewards: Any = (0, 0, 1, 0, 0)) -> Transitions:
    """Two episodes: three rows to a terminal, two rows to a time-out."""
    n = len(rewards)
    return Transitions(
        observations=np.arange(n)[:, None],
        actions=np.zeros((n, 2)) if actions is None else np.asarray(actions),
        rewards=np.array(rewards, dtype=np.float32),
        terminated=np.array([0, 0, 1, 0, 0]),
        truncated=np.array([0, 0, 0, 0, 1]),
        final_observations=np.array([[7.0], [8.0]]),
    )


def prepare(raw: Transitions, **settings: Any) -> Transitions:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return Preparation(**settings)(raw)


def test_rewards_and_returns_of_antmaze() -> None:
    raw = raw_rows()
    data = prepare(raw, gamma=0.5, reward_scale=10, reward_bias=-5, sparse_failure_reward=0.0)
    np.testing.assert_array_equal(data.rewards, [-5, -5, 5, -5, -5])
    np.testing.assert_array_equal(data.mc_returns, [-6.25, -2.5, 5, -10, -10])
    assert data.rewards.dtype == np.float32
    np.testing.assert_array_equal(raw.rewards, [0, 0, 1, 0, 0])
    assert raw.mc_returns is None


def test_the_failure_reward_is_given_in_raw_units() -> None:
    raw = raw_rows(rewards=(-1, -1, 0, -1, -1))
    data = prepare(raw, gamma=0.5, reward_scale=10, reward_bias=5, sparse_failure_reward=-1.0)
    np.testing.assert_array_equal(data.mc_returns, [-6.25, -2.5, 5, -10, -10])


@pytest.mark.parametrize(
    ("truncation", "expected"),
    [
        ("stop", [0.25, 0.5, 1, 3, 2]),
        ("infinite", [0.25, 0.5, 1, 4, 4]),
        ("drop", [0.25, 0.5, 1, -np.inf, -np.inf]),
    ],
)
def test_truncation_is_passed_on(truncation: str, expected: list[float]) -> None:
    data = prepare(raw_rows(rewards=(0, 0, 1, 2, 2)), gamma=0.5, truncation=truncation)
    np.testing.assert_array_equal(data.mc_returns, np.array(expected))


def test_an_episode_alone_gets_the_same_returns_as_among_others() -> None:
    raw = raw_rows(rewards=(1, 2, 3, 4, 5))
    together = prepare(raw, gamma=0.9)
    alone = Transitions.concatenate([prepare(episode, gamma=0.9) for episode in raw.episodes()])
    assert alone.mc_returns is not None
    assert together.mc_returns is not None
    np.testing.assert_allclose(alone.mc_returns, together.mc_returns, rtol=1e-6)


def test_actions_are_clipped_just_inside() -> None:
    actions = [[1, -1], [0.5, -0.25], [0.99999, -0.99999], [0.999995, 0], [0, 1 + 5e-7]]
    data = prepare(raw_rows(actions))
    assert data.scaled_actions().dtype == np.float32
    np.testing.assert_array_equal(
        data.scaled_actions(),
        np.array(
            [
                [ALMOST_ONE, -ALMOST_ONE],
                [0.5, -0.25],
                [ALMOST_ONE, -ALMOST_ONE],
                [ALMOST_ONE, 0],
                [0, ALMOST_ONE],
            ],
            dtype=np.float32,
        ),
    )
    assert np.isfinite(np.arctanh(data.scaled_actions())).all()
    np.testing.assert_array_equal(
        prepare(raw_rows(actions), clip_action=0.4).scaled_actions()[1], np.array([0.4, -0.25], dtype=np.float32)
    )


def test_actions_are_mapped_from_their_bounds() -> None:
    actions = [[0, 10], [2, 30], [1, 20], [0.5, 15], [1.5, 25]]
    data = prepare(raw_rows(actions), action_low=np.array([0, 10]), action_high=np.array([2, 30]))
    np.testing.assert_array_equal(
        data.scaled_actions(),
        np.array(
            [[-ALMOST_ONE, -ALMOST_ONE], [ALMOST_ONE, ALMOST_ONE], [0, 0], [-0.5, -0.5], [0.5, 0.5]],
            dtype=np.float32,
        ),
    )


def test_rounding_of_the_bounds_is_no_offence() -> None:
    bound = np.full(2, 0.4)
    data = prepare(raw_rows(np.full((5, 2), np.float32(0.4))), action_low=-bound, action_high=bound)
    np.testing.assert_array_equal(data.scaled_actions(), np.full((5, 2), ALMOST_ONE))


def test_actions_outside_are_counted_and_clipped() -> None:
    actions = np.zeros((5, 2))
    actions[1, 1], actions[3, 0], actions[3, 1] = 2.5, -3.25, 2.0
    message = r"2 of 5 rows have actions outside the bounds, the worst being -3.25 \(row 3, action number 0\)"
    with pytest.warns(DatasetWarning, match=message):
        data = Preparation(action_low=-2 * np.ones(2), action_high=2 * np.ones(2))(raw_rows(actions))
    np.testing.assert_array_equal(data.scaled_actions()[[1, 3]], [[0, ALMOST_ONE], [-ALMOST_ONE, ALMOST_ONE]])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": -0.1}, "gamma must be in"),
        ({"truncation": "never"}, "truncation must be one of"),
        ({"truncation": "bootstrap"}, "use 'stop', 'infinite' or 'drop'"),
        ({"gamma": 1.0, "sparse_failure_reward": 0.0}, "needs gamma < 1"),
        ({"clip_action": 1.0}, r"clip_action must be inside \(0, 1\), not 1.0"),
        ({"reward_scale": float("inf")}, "must be finite"),
        ({"action_low": np.zeros(2)}, "give both action_low and action_high"),
        ({"action_low": np.zeros(2), "action_high": np.array([1, np.inf])}, "action bounds must be finite"),
        ({"action_low": np.zeros(2), "action_high": np.array([1, 0])}, "low below high"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preparation(**settings)


def test_bounds_of_other_dimensions() -> None:
    with pytest.raises(DatasetError, match=r"actions have 2 numbers, the bounds \(3,\) and \(3,\)"):
        Preparation(action_low=-np.ones(3), action_high=np.ones(3))(raw_rows())


def box(n: int, high: float = 1.0) -> Box:
    return Box(-high, high, (n,))


def test_check_fits() -> None:
    data = raw_rows()
    check_fits(data, box(1, np.inf), box(2))
    check_fits(data, box(1), Box(np.array([0, -3], np.float32), np.array([2, 4], np.float32)))
    with pytest.raises(DatasetError, match="the dataset's observations have 1 numbers, the environment's 29"):
        check_fits(data, box(29), box(2))
    with pytest.raises(DatasetError, match="the dataset's actions have 2 numbers, the environment's 8"):
        check_fits(data, box(1), box(8))
    with pytest.raises(DatasetError, match=r"action space must be a flat Box .* or Discrete, not MultiDiscrete"):
        check_fits(data, box(1), MultiDiscrete([2]))
    with pytest.raises(DatasetError, match=r"observation space must be a flat Box .* not Dict"):
        check_fits(data, Dict({"observation": box(1)}), box(2))
    with pytest.raises(DatasetError, match="observation space must be a flat Box"):
        check_fits(data, Box(0, 1, (1, 1)), box(2))
    with pytest.raises(DatasetError, match="action space must have finite bounds"):
        check_fits(data, box(1), box(2, np.inf))


# --- the reference implementation's pipeline (golden README, section 4) ---


def pipeline_case(name: str) -> dict[str, Any]:
    cases = json.loads(shared_path("golden/mc_and_pipeline.json").read_text())["dataset_pipeline"]
    return next(case for case in cases if case["name"] == name)


def prepared(case: dict[str, Any], raw: Transitions, failure: float) -> dict[str, np.ndarray]:
    data = Preparation(
        gamma=case["gamma"],
        reward_scale=case["reward_scale"],
        reward_bias=case["reward_bias"],
        clip_action=case["clip_action"],
        sparse_failure_reward=failure,
    )(raw)
    return dict(data.take(np.arange(len(data))))  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::rllib_calql.data.DatasetWarning")
def test_pipeline_golden_with_timeouts_and_terminals(tmp_path: Path) -> None:
    case = pipeline_case("timeouts_and_terminals_no_next_obs")
    raw = open_dataset(write(tmp_path / "data.hdf5", **case["input"]), max_episode_steps=case["max_episode_steps"])
    result = prepared(case, raw, failure=0.0)
    expected = {name: np.array(values) for name, values in case["output"].items()}
    for name in ("observations", "actions", "rewards", "dones", "mc_returns"):
        np.testing.assert_allclose(result[name], expected[name], rtol=1e-6, err_msg=name)
    # The reference lets a terminal row be followed by the next episode's first observation; ours by its own.
    terminal = np.flatnonzero(expected["dones"])
    np.testing.assert_array_equal(terminal, [3, 8])
    np.testing.assert_array_equal(result["next_observations"][terminal], result["observations"][terminal])
    others = np.flatnonzero(expected["dones"] == 0)
    np.testing.assert_allclose(result["next_observations"][others], expected["next_observations"][others])


@pytest.mark.filterwarnings("ignore::rllib_calql.data.DatasetWarning")
def test_pipeline_golden_keeps_a_terminal_row_at_the_time_limit(tmp_path: Path) -> None:
    """The reference drops row 4, a success at the time limit, and takes its episode for a failure."""
    case = pipeline_case("terminal_and_timeout_same_step_and_len1")
    raw = open_dataset(write(tmp_path / "data.hdf5", **case["input"]), max_episode_steps=case["max_episode_steps"])
    result = prepared(case, raw, failure=0.0)
    expected = {name: np.array(values) for name, values in case["output"].items()}
    assert len(result["rewards"]) == len(expected["rewards"]) + 1

    success = 4
    np.testing.assert_allclose(result["observations"][success], case["input"]["observations"][success])
    assert (result["rewards"][success], result["dones"][success], result["mc_returns"][success]) == (5, 1, 5)
    rest = np.delete(np.arange(len(result["rewards"])), success)
    for name in ("observations", "actions", "rewards", "dones"):
        np.testing.assert_allclose(result[name][rest], expected[name], rtol=1e-6, err_msg=name)
    np.testing.assert_array_equal(expected["mc_returns"][:4], [-500] * 4)
    np.testing.assert_allclose(result["mc_returns"][:4], [-14.899015, -9.999005, -5.0495, -0.05], rtol=1e-6)
    np.testing.assert_array_equal(result["mc_returns"][5:], expected["mc_returns"][4:])
    # row 5 is a terminal: see the test above
    np.testing.assert_array_equal(result["next_observations"][5], result["observations"][5])
    same = [0, 1, 2, 3, 6, 7, 8]
    np.testing.assert_allclose(
        result["next_observations"][same], expected["next_observations"][[0, 1, 2, 3, 5, 6, 7]]
    )


@pytest.mark.filterwarnings("ignore::rllib_calql.data.DatasetWarning")
def test_pipeline_golden_of_adroit(tmp_path: Path) -> None:
    """Success rows end an episode, what leads to no success is dropped; expert episodes come first."""
    case = pipeline_case("adroit_open")
    parts = []
    for group in ("expert", "bc"):
        trajectories = case["input"][group]
        columns = {
            name: np.concatenate([trajectory[name] for trajectory in trajectories])
            for name in ("observations", "actions", "rewards")
        }
        lengths = [len(trajectory["rewards"]) for trajectory in trajectories]
        columns["timeouts"] = np.isin(np.arange(sum(lengths)), np.cumsum(lengths) - 1)
        columns["terminals"] = np.zeros(sum(lengths))
        path = write(tmp_path / f"{group}.hdf5", **columns)
        with pytest.warns(DatasetWarning, match="rows do not lead to a success"):
            parts.append(open_dataset(path, success_reward=0.0))
    result = prepared(case, Transitions.concatenate(parts), failure=-1.0)
    for name in ("observations", "actions", "rewards", "dones", "mc_returns"):
        np.testing.assert_allclose(result[name], case["output"][name], rtol=1e-6, err_msg=name)
    # The golden's next observations are made up and follow from no row; ours are the next row's, or at a
    # success (whose next observation counts for nothing) its own.
    np.testing.assert_allclose(result["next_observations"], result["observations"][[1, 2, 3, 3, 4, 6, 6]])


def test_return_factor_makes_returns_range_over_a_thousand() -> None:
    raw = raw_rows(rewards=(1, 2, 3, -4, 2))  # returns 6 and -2
    np.testing.assert_array_equal(episode_returns(raw), [6, -2])
    factor = return_factor(episode_returns(raw))
    assert factor == 125.0
    data = prepare(raw, reward_scale=2.0 * factor, reward_bias=1.0)
    np.testing.assert_array_equal(data.rewards, [251, 501, 751, -999, 501])
    with pytest.raises(DatasetError, match=r"every episode .* return 1, .* normalize_reward=False"):
        return_factor(np.ones(3))
