"""Return-to-go: literal values, the published goldens, and a slow loop on random cases."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_calql.data import DatasetError, return_to_go
from rllib_calql.data.returns import Truncation
from tests.shared import shared_path


def flags(*values: int) -> np.ndarray:
    return np.array(values, dtype=bool)


def slow_return_to_go(
    rewards: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
    gamma: float,
    truncation: str,
    failure: float | None,
    values: np.ndarray,
    trajectory_ends: np.ndarray | None,
) -> np.ndarray:
    """The definition, row by row from the back."""
    n = len(rewards)
    result = np.zeros(n)
    dropped = False
    following = 0.0
    for t in reversed(range(n)):
        if terminated[t]:
            following, dropped = 0.0, False
        elif truncated[t] or t == n - 1:
            dropped = truncation == "drop"
            following = {
                "stop": 0.0,
                "drop": 0.0,
                "infinite": float(rewards[t]) / (1 - gamma) if gamma < 1 else 0.0,
                "bootstrap": float(values[t]),
            }[truncation]
        following = rewards[t] + gamma * following
        result[t] = -np.inf if dropped else following
    ends = terminated | truncated if trajectory_ends is None else trajectory_ends
    start = 0
    for t in range(n):
        if ends[t] or t == n - 1:
            if failure is not None and all(abs(r - failure) < 1e-6 for r in rewards[start : t + 1]):
                result[start : t + 1] = failure / (1 - gamma)
            start = t + 1
    return result


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_equals_the_slow_loop(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 40))
    reward = st.sampled_from([-1.0, 0.0]) | st.floats(-10, 10, width=32).filter(lambda r: r == 0 or abs(r) > 1e-3)
    rewards = np.array(data.draw(st.lists(reward, min_size=n, max_size=n)))
    flag_rows = st.lists(st.booleans(), min_size=n, max_size=n).map(lambda f: np.array(f, dtype=bool))
    terminated, truncated = data.draw(flag_rows), data.draw(flag_rows)
    trajectory_ends = data.draw(st.none() | flag_rows)
    truncation: Truncation = data.draw(st.sampled_from(["stop", "infinite", "bootstrap", "drop"]))
    failure = data.draw(st.none() | st.sampled_from([-1.0, 0.0]))
    highest = 1.0 if truncation != "infinite" and failure is None else 0.99
    gamma = data.draw(st.sampled_from([0.0, 0.5, 0.99, highest]))
    values = np.linspace(-20, 20, n)

    result = return_to_go(
        rewards,
        terminated,
        truncated,
        gamma,
        truncation=truncation,
        sparse_failure_reward=failure,
        bootstrap_values=values,
        trajectory_ends=trajectory_ends,
    )

    expected = slow_return_to_go(
        rewards, terminated, truncated, gamma, truncation, failure, values, trajectory_ends
    )
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-4)


REWARDS = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
TERMINATED = flags(0, 1, 0, 0, 0)
TRUNCATED = flags(0, 0, 0, 1, 1)


@pytest.mark.parametrize(
    ("truncation", "expected"),
    [
        ("stop", [2.0, 2.0, 8.0, 8.0, 16.0]),
        ("infinite", [2.0, 2.0, 12.0, 16.0, 32.0]),  # 8 / 0.5 and 16 / 0.5 at the ends
        ("bootstrap", [2.0, 2.0, 4 + 0.5 * (8 + 50), 8 + 0.5 * 100, 16 + 0.5 * -100]),
        ("drop", [2.0, 2.0, -np.inf, -np.inf, -np.inf]),
    ],
)
def test_truncation_modes(truncation: Truncation, expected: list[float]) -> None:
    values = np.array([np.nan, np.nan, np.nan, 100.0, -100.0])  # read at truncated ends only
    result = return_to_go(REWARDS, TERMINATED, TRUNCATED, 0.5, truncation=truncation, bootstrap_values=values)
    np.testing.assert_array_equal(result, np.array(expected, dtype=np.float32))


def test_gamma_zero_is_the_reward_and_gamma_one_the_sum() -> None:
    np.testing.assert_array_equal(return_to_go(REWARDS, TERMINATED, TRUNCATED, 0.0), REWARDS)
    np.testing.assert_array_equal(return_to_go(REWARDS, TERMINATED, TRUNCATED, 1.0), [3, 2, 12, 8, 16])


def test_single_row_episodes() -> None:
    result = return_to_go(REWARDS, flags(1, 0, 1, 0, 1), flags(0, 1, 0, 1, 0), 0.9)
    np.testing.assert_array_equal(result, REWARDS)


def test_a_row_that_is_both_is_terminated() -> None:
    result = return_to_go(np.ones(2), flags(0, 1), flags(0, 1), 0.5, truncation="infinite")
    np.testing.assert_array_equal(result, [1.5, 1.0])


def test_the_arrays_end_is_a_truncation() -> None:
    nothing = flags(0, 0)
    np.testing.assert_array_equal(return_to_go(np.ones(2), nothing, nothing, 0.5), [1.5, 1.0])
    result = return_to_go(np.ones(2), nothing, nothing, 0.5, truncation="infinite")
    np.testing.assert_array_equal(result, [2.0, 2.0])


def test_all_failure_rule_beats_flags_and_mode() -> None:
    rewards = np.array([-5.0, -5.0, -5.0, 5.0, -5.0 + 1e-6])
    result = return_to_go(
        rewards,
        flags(0, 0, 0, 1, 0),
        flags(0, 1, 0, 0, 1),
        0.9,
        truncation="drop",
        sparse_failure_reward=-5.0,
    )
    np.testing.assert_allclose(result, [-50.0, -50.0, -0.5, 5.0, -50.0], rtol=1e-6)


def test_a_failure_reward_of_zero() -> None:
    result = return_to_go(np.zeros(3), flags(0, 0, 0), flags(0, 0, 1), 0.99, sparse_failure_reward=0.0)
    np.testing.assert_array_equal(result, [0, 0, 0])


def test_an_enormous_neighbour_does_not_leak() -> None:
    rewards = np.array([1e-3, 1e6, 1e6])
    result = return_to_go(rewards, flags(1, 0, 1), flags(0, 0, 0), 0.99)
    np.testing.assert_allclose(result, [1e-3, 1.99e6, 1e6], rtol=1e-6)


def test_empty() -> None:
    result = return_to_go(np.zeros(0), flags(), flags(), 0.9)
    assert result.shape == (0,)
    assert result.dtype == np.float32


def test_a_million_rows() -> None:
    ends = np.arange(1, 1_000_001) % 1000 == 0
    result = return_to_go(np.full(1_000_000, -1.0), ends, np.zeros_like(ends), 0.99)
    steps_left = np.tile(np.arange(1000, 0, -1), 1000)
    np.testing.assert_allclose(result, -(1 - 0.99**steps_left) / 0.01, rtol=1e-6)


def golden_cases() -> list[Any]:
    return list(json.loads(shared_path("golden/mc_and_pipeline.json").read_text())["return_to_go"])


def test_goldens_of_the_reference_implementation() -> None:
    cases = golden_cases()
    assert len(cases) == 9
    for case in cases:
        scaled = np.array(case["raw_rewards"]) * case["reward_scale"] + case["reward_bias"]
        np.testing.assert_allclose(scaled, case["scaled_rewards"])
        failure = {"sparse01": 0.0, "binary": -1.0, "dense": None}[case["kind"]]
        if failure is not None:
            failure = failure * case["reward_scale"] + case["reward_bias"]
        result = return_to_go(
            scaled,
            np.array(case["terminals"]),
            np.zeros(len(scaled)),
            case["gamma"],
            sparse_failure_reward=failure,
            trajectory_ends=np.arange(len(scaled)) == len(scaled) - 1,
        )
        np.testing.assert_allclose(result, case["mc_returns_float32"], rtol=1e-6, err_msg=case["name"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gamma": 1.5}, r"gamma must be in \[0, 1\], not 1.5"),
        ({"gamma": float("nan")}, "gamma must be in"),
        ({"truncation": "ignore"}, "truncation must be one of stop, infinite, bootstrap, drop, not 'ignore'"),
        ({"truncation": "bootstrap"}, "needs bootstrap_values"),
        ({"truncation": "infinite", "gamma": 1.0}, "needs gamma < 1"),
        ({"sparse_failure_reward": 0.0, "gamma": 1.0}, "needs gamma < 1"),
    ],
)
def test_settings_that_do_not_fit(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        return_to_go(np.ones(2), flags(0, 0), flags(0, 1), **{"gamma": 0.9, **arguments})


def test_data_that_do_not_fit() -> None:
    with pytest.raises(DatasetError, match=r"one shape \(N,\), not \(2,\), \(3,\) and \(2,\)"):
        return_to_go(np.ones(2), flags(0, 0, 1), flags(0, 1), 0.9)
    with pytest.raises(DatasetError, match="rewards are not finite in rows 1, 2"):
        return_to_go(np.array([0, np.nan, np.inf]), flags(0, 0, 0), flags(0, 0, 1), 0.9)
    with pytest.raises(DatasetError, match=r"trajectory_ends has shape \(1,\), rewards \(2,\)"):
        return_to_go(np.ones(2), flags(0, 0), flags(0, 1), 0.9, sparse_failure_reward=0, trajectory_ends=flags(1))
    with pytest.raises(DatasetError, match="bootstrap_values are not finite"):
        return_to_go(
            np.ones(1), flags(0), flags(1), 0.9, truncation="bootstrap", bootstrap_values=np.array([np.nan])
        )
    with pytest.raises(DatasetError, match=r"bootstrap_values has shape \(2,\), rewards \(1,\)"):
        return_to_go(np.ones(1), flags(0), flags(1), 0.9, truncation="bootstrap", bootstrap_values=np.ones(2))
