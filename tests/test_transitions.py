"""The columnar layout: building from logged rows, derived next observations, what is refused."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_calql.data import DatasetError, DatasetWarning, Transitions


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)[:, None]


def flags(*values: int) -> np.ndarray:
    return np.array(values, dtype=bool)


def rows(terminated: Any, truncated: Any, next_observations: Any = None, **changes: Any) -> Transitions:
    """Rows with observations 0, 1, 2, ... and rewards 0, 10, 20, ..."""
    n = len(terminated)
    arrays: dict[str, Any] = {
        "observations": column(*range(n)),
        "actions": column(*range(n)) / 10,
        "rewards": np.arange(n) * 10.0,
        "terminated": terminated,
        "truncated": truncated,
        "next_observations": next_observations,
    }
    return Transitions.from_arrays(**{**arrays, **changes})


def quiet_rows(*arguments: Any, **changes: Any) -> Transitions:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return rows(*arguments, **changes)


def test_terminated_episodes_without_next_observations() -> None:
    data = quiet_rows(flags(0, 0, 1, 0, 1), flags(0, 0, 0, 0, 0))
    assert (len(data), data.num_episodes, data.obs_dim, data.act_dim) == (5, 2, 1, 1)
    np.testing.assert_array_equal(data.episode_ends, [2, 4])
    np.testing.assert_array_equal(data.final_observations, column(2, 4))
    np.testing.assert_array_equal(data.next_observations(), column(1, 2, 2, 4, 4))


def test_a_truncated_row_becomes_the_final_observation() -> None:
    with pytest.warns(DatasetWarning, match="2 of 6 rows are truncated ends without a next observation"):
        data = rows(flags(0, 0, 0, 1, 0, 0), flags(0, 0, 1, 0, 0, 1))
    np.testing.assert_array_equal(data.observations, column(0, 1, 3, 4))
    np.testing.assert_array_equal(data.terminated, flags(0, 0, 1, 0))
    np.testing.assert_array_equal(data.truncated, flags(0, 1, 0, 1))
    np.testing.assert_array_equal(data.final_observations, column(2, 3, 5))
    np.testing.assert_array_equal(data.next_observations(), column(1, 2, 3, 5))


def test_a_truncated_episode_of_one_row_vanishes() -> None:
    with pytest.warns(DatasetWarning, match=r"2 of 4 rows .* \(2 episodes had no other row\)"):
        data = rows(flags(0, 1, 0, 1), flags(1, 0, 1, 0))
    np.testing.assert_array_equal(data.observations, column(1, 3))
    np.testing.assert_array_equal(data.terminated, flags(1, 1))


def test_next_observations_keep_every_row() -> None:
    data = quiet_rows(flags(0, 0, 1, 0), flags(0, 1, 0, 1), column(1, 1.5, 2.5, 3.5))
    assert len(data) == 4
    np.testing.assert_array_equal(data.truncated, flags(0, 1, 0, 1))
    np.testing.assert_array_equal(data.final_observations, column(1.5, 2.5, 3.5))
    np.testing.assert_array_equal(data.next_observations(), column(1, 1.5, 2.5, 3.5))


def test_terminated_wins_over_truncated() -> None:
    data = quiet_rows(flags(0, 1), flags(0, 1))
    np.testing.assert_array_equal(data.terminated, flags(0, 1))
    np.testing.assert_array_equal(data.truncated, flags(0, 0))


def test_a_tail_without_an_end_is_dropped_and_counted() -> None:
    with pytest.warns(DatasetWarning, match="2 of 5 rows at the end of the data belong to an episode without"):
        data = rows(flags(0, 0, 1, 0, 0), flags(0, 0, 0, 0, 0))
    assert len(data) == 3
    with pytest.warns(DatasetWarning, match="3 of 5 rows at the end"):
        assert len(rows(flags(0, 1, 0, 0, 0), flags(0, 0, 0, 0, 0), column(1, 2, 3, 4, 5))) == 2


@pytest.mark.filterwarnings("ignore::rllib_calql.data.DatasetWarning")
@pytest.mark.parametrize("truncated", [flags(0, 0, 0), flags(1, 1, 1)])
def test_refused_only_if_nothing_remains(truncated: np.ndarray) -> None:
    with pytest.raises(DatasetError, match="no complete episode remains: flag the last row of each episode"):
        rows(flags(0, 0, 0), truncated)


def test_a_gap_cuts_the_episode() -> None:
    n = 40
    following = column(*range(1, n + 1))
    following[9] = 99.0
    with pytest.warns(DatasetWarning, match=r"1 rows inside an episode are not followed .* \(row 9\)"):
        data = rows(np.arange(n) == n - 1, np.zeros(n), following)
    np.testing.assert_array_equal(data.episode_ends, [9, n - 1])
    np.testing.assert_array_equal(data.truncated, np.arange(n) == 9)
    np.testing.assert_array_equal(data.next_observations(), following)


def test_rows_out_of_order_are_refused() -> None:
    with pytest.raises(DatasetError, match=r"4 of 5 rows .* \(rows 0, 1, 2, 3\): rows must be in time order"):
        rows(flags(0, 0, 0, 0, 1), flags(0, 0, 0, 0, 0), column(7, 7, 7, 7, 7))


def test_other_types_and_column_vectors_are_converted() -> None:
    data = Transitions.from_arrays(
        observations=np.arange(4, dtype=np.int64).reshape(2, 2),
        actions=np.array([[0.5], [0.25]], dtype=np.float16),
        rewards=np.array([[1.0], [2.0]]),
        terminated=np.array([[0.0], [1.0]]),
        truncated=[0, 0],  # type: ignore[arg-type]
    )
    for name in ("observations", "actions", "rewards", "final_observations"):
        assert getattr(data, name).dtype == np.float32
    assert data.rewards.shape == (2,)
    assert data.terminated.dtype == data.truncated.dtype == bool
    np.testing.assert_array_equal(data.terminated, flags(0, 1))


ENDS = flags(0, 0, 0, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions": column(0, 1)}, r"different numbers of rows: \{'observations': 4, 'actions': 2"),
        ({"observations": np.zeros(4)}, r"observations must be numbers of shape \(rows, numbers per row\)"),
        ({"observations": np.zeros((4, 0))}, r"observations must be numbers .* not float64 \(4, 0\)"),
        ({"rewards": np.zeros((4, 2))}, r"rewards must be numbers of shape \(rows,\), not float64 \(4, 2\)"),
        ({"actions": np.array([["a"]] * 4)}, "actions must be numbers"),
        ({"rewards": np.array([0, np.nan, 0, np.inf])}, "rewards has NaN, infinite .* in rows 1, 3"),
        (
            {"observations": np.array([[0, 1], [0, np.nan], [0, 0], [1, 1]])},
            "observations has NaN.* in row 1:",
        ),
        ({"actions": np.full((4, 1), 1e300)}, "too large values for float32 in rows 0, 1, 2, 3"),
        ({"ends": np.array([0, np.nan, 0, 1])}, "terminated has NaN.* in row 1"),
        (
            {"next_observations": np.zeros((3, 1))},
            r"next_observations has shape \(3, 1\), observations \(4, 1\)",
        ),
        ({"next_observations": column(1, np.inf, 3, 4)}, "next_observations has NaN.* in row 1"),
    ],
)
def test_unusable_columns(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        rows(changes.pop("ends", ENDS), np.zeros(4), **changes)


def test_many_bad_rows_are_counted() -> None:
    with pytest.raises(DatasetError, match="in rows 0, 1, 2, 3, 4 and 15 more"):
        rows(np.arange(20) == 19, np.zeros(20), rewards=np.full(20, np.nan))


def test_empty() -> None:
    with pytest.raises(DatasetError, match="the dataset is empty"):
        rows(flags(), flags(), observations=np.zeros((0, 3)), actions=np.zeros((0, 1)))


def direct(**changes: Any) -> Transitions:
    columns: dict[str, Any] = {
        "observations": column(0, 1, 2),
        "actions": column(0, 0, 0),
        "rewards": np.zeros(3),
        "terminated": flags(0, 1, 0),
        "truncated": flags(0, 0, 1),
        "final_observations": column(8, 9),
    }
    return Transitions(**{**columns, **changes})


def test_the_constructor_takes_whole_episodes_only() -> None:
    assert direct().num_episodes == 2
    with pytest.raises(DatasetError, match=r"the last row \(2\) must end its episode"):
        direct(truncated=flags(0, 0, 0), final_observations=column(8))
    with pytest.raises(DatasetError, match=r"final_observations has shape \(1, 1\), but 2 episodes end"):
        direct(final_observations=column(8))
    with pytest.raises(DatasetError, match=r"mc_returns has shape \(2,\) for 3 rows"):
        direct(mc_returns=np.zeros(2))
    with pytest.raises(DatasetError, match=r"mc_returns are not finite \(nor -inf\) in rows 0, 2"):
        direct(mc_returns=np.array([np.nan, -np.inf, np.inf]))


def test_from_episode() -> None:
    observations = column(0, 1, 2)
    for terminated in (True, False):
        episode = Transitions.from_episode(observations, column(5, 6), np.array([1.0, 2.0]), terminated)
        np.testing.assert_array_equal(episode.next_observations(), column(1, 2))
        np.testing.assert_array_equal(episode.terminated, [False, terminated])
        np.testing.assert_array_equal(episode.truncated, [False, not terminated])
    with pytest.raises(DatasetError, match=r"an episode of 3 rewards needs 4 observations .* not 3"):
        Transitions.from_episode(observations, column(5, 6), np.zeros(3), True)
    with pytest.raises(DatasetError, match="the dataset is empty"):
        Transitions.from_episode(observations[:1], column(), np.zeros(0), True)


def with_returns(data: Transitions) -> Transitions:
    return Transitions(**{**vars_of(data), "mc_returns": np.arange(len(data)) / 8})


def vars_of(data: Transitions) -> dict[str, Any]:
    names = ("observations", "actions", "rewards", "terminated", "truncated", "final_observations")
    return {name: getattr(data, name) for name in names}


def test_take() -> None:
    data = with_returns(direct(rewards=np.array([1.0, 2.0, 3.0])))
    batch = data.take(np.array([2, 0, 1, 1]))
    expected = {
        "observations": column(2, 0, 1, 1),
        "actions": column(0, 0, 0, 0),
        "rewards": [3, 1, 2, 2],
        "next_observations": column(9, 1, 8, 8),
        "dones": [0, 0, 1, 1],
        "mc_returns": [0.25, 0, 0.125, 0.125],
    }
    assert list(batch) == list(expected)
    for name, values in batch.items():
        assert isinstance(values, np.ndarray)
        assert values.dtype == np.float32
        assert values.flags.c_contiguous
        np.testing.assert_array_equal(values, expected[name])
    with pytest.raises(ValueError, match="no mc_returns yet: pass them through a Preparation first"):
        direct().take(np.array([0]))


def test_concatenate_and_episodes_are_inverse() -> None:
    data = with_returns(direct())
    parts = list(data.episodes())
    assert [len(part) for part in parts] == [2, 1]
    assert all(np.shares_memory(part.observations, data.observations) for part in parts)
    joined = Transitions.concatenate(parts)
    np.testing.assert_array_equal(joined.next_observations(), data.next_observations())
    for name, values in {**vars_of(data), "mc_returns": data.mc_returns}.items():
        np.testing.assert_array_equal(getattr(joined, name), values)
    with pytest.raises(DatasetError, match="some parts have mc_returns and some do not"):
        Transitions.concatenate([data, direct()])
    with pytest.raises(DatasetError, match="nothing to concatenate"):
        Transitions.concatenate([])
    wide = direct(observations=np.zeros((3, 2)), final_observations=np.zeros((2, 2)))
    with pytest.raises(DatasetError, match=r"different .* dimensions: \[\(\(1,\), \(1,\)\), \(\(2,\), \(1,\)\)\]"):
        Transitions.concatenate([direct(), wide])


def slow_from_arrays(
    terminated: np.ndarray, truncated: np.ndarray, following: np.ndarray | None
) -> list[tuple[float, float, bool, bool]]:
    """(observation, next observation, terminated, truncated) of the kept rows; observations are 0, 1, ..."""
    kept: list[tuple[float, float, bool, bool]] = []
    episode: list[tuple[float, float, bool, bool]] = []
    for t in range(len(terminated)):
        if terminated[t]:
            episode.append((t, t if following is None else following[t, 0], True, False))
        elif truncated[t] and following is not None:
            episode.append((t, following[t, 0], False, True))
        elif truncated[t]:
            if episode:
                episode[-1] = (*episode[-1][:3], True)
        else:
            episode.append((t, t + 1, False, False))
            continue
        kept += episode
        episode = []
    return kept


@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_from_arrays_equals_the_slow_loop(flag_pairs: list[tuple[bool, bool]], has_following: bool) -> None:
    terminated, truncated = np.array(flag_pairs, dtype=bool).T
    ended = terminated | truncated
    following = column(*range(1, len(ended) + 1))
    following[ended] += 0.25
    expected = slow_from_arrays(terminated, truncated, following if has_following else None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DatasetWarning)
        if not expected:
            with pytest.raises(DatasetError, match="no complete episode remains"):
                rows(terminated, truncated, following if has_following else None)
            return
        data = rows(terminated, truncated, following if has_following else None)
    result = np.stack(
        [data.observations[:, 0], data.next_observations()[:, 0], data.terminated, data.truncated], axis=1
    )
    np.testing.assert_array_equal(result, np.array(expected))
    picked = np.arange(len(data))[::-2]
    np.testing.assert_array_equal(data.next_observations(picked), data.next_observations()[picked])
    np.testing.assert_array_equal(data.next_observations(slice(1, None)), data.next_observations()[1:])
