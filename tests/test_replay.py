"""Online episodes and the exact mixture of offline and online rows."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_calql.data import EpisodeStore, MixedReplay, Preparation, Transitions, check_mixing_ratio
from tests.shared import shared_path


def episode(number: int, length: int, terminated: bool = True) -> Transitions:
    """Observations `number + step / 1000`, returns-to-go `number`."""
    observations = number + np.arange(length + 1)[:, None] / 1000
    raw = Transitions.from_episode(observations, np.zeros((length, 1)), np.full(length, number), terminated)
    return Transitions(**{**vars(raw), "mc_returns": np.full(length, number)})


def offline_rows(length: int) -> Transitions:
    """Rows with return-to-go -1."""
    return Transitions.concatenate([episode(-1, 1) for _ in range(length)])


def assert_same(result: Transitions | None, expected: Transitions) -> None:
    assert result is not None
    for name in (
        "observations",
        "actions",
        "rewards",
        "terminated",
        "truncated",
        "final_observations",
        "mc_returns",
    ):
        np.testing.assert_array_equal(getattr(result, name), getattr(expected, name), err_msg=name)
    np.testing.assert_array_equal(result.next_observations(), expected.next_observations())


# --- the store of online episodes ---


@given(st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=60), st.integers(12, 40))
@settings(max_examples=150, deadline=None)
def test_the_store_is_first_in_first_out_by_whole_episodes(lengths: list[tuple[int, bool]], capacity: int) -> None:
    store = EpisodeStore(capacity, obs_dim=1, act_dim=1)
    kept: list[Transitions] = []
    added = 0
    for number, (length, terminated) in enumerate(lengths):
        new = episode(number, length, terminated)
        store.append(new)
        kept.append(new)
        added += length
        while sum(len(old) for old in kept) > capacity:
            kept.pop(0)
        assert_same(store.rows, Transitions.concatenate(kept))
        assert len(store) == sum(len(old) for old in kept) <= capacity
        assert (store.num_rows_added, store.num_episodes_added) == (added, number + 1)


def test_the_window_moves_to_the_front_when_it_reaches_the_end() -> None:
    store = EpisodeStore(8, obs_dim=1, act_dim=1)  # ten rows of room
    addresses = []
    for number, length in enumerate([2, 2, 4, 2, 2, 5]):
        store.append(episode(number, length))
        assert store.rows is not None
        addresses.append(store.rows.rewards.__array_interface__["data"][0])
    assert [(address - addresses[0]) // 4 for address in addresses] == [0, 0, 0, 2, 0, 0]
    assert store.rows is not None
    np.testing.assert_array_equal(store.rows.rewards, [4, 4, 5, 5, 5, 5, 5])


def test_rows_are_a_view() -> None:
    assert EpisodeStore(10, obs_dim=1, act_dim=1).rows is None
    store = EpisodeStore(10, obs_dim=1, act_dim=1)
    store.append(episode(0, 3))
    first = store.rows
    store.append(episode(1, 3))
    assert first is not None
    assert store.rows is not None
    assert np.shares_memory(first.observations, store.rows.observations)


def test_several_episodes_at_once() -> None:
    together = EpisodeStore(5, obs_dim=1, act_dim=1)
    together.append(Transitions.concatenate([episode(0, 2), episode(1, 3)]))
    together.append(episode(2, 1))
    assert_same(together.rows, Transitions.concatenate([episode(1, 3), episode(2, 1)]))
    assert together.num_episodes_added == 3


def test_what_the_store_refuses() -> None:
    store = EpisodeStore(4, obs_dim=1, act_dim=1)
    with pytest.raises(ValueError, match="episode of 5 rows does not fit a replay capacity of 4"):
        store.append(episode(0, 5))
    raw = Transitions.from_episode(np.zeros((2, 1)), np.zeros((1, 1)), np.zeros(1), True)
    with pytest.raises(ValueError, match="needs mc_returns"):
        store.append(raw)
    wide = Transitions.from_episode(np.zeros((2, 3)), np.zeros((1, 2)), np.zeros(1), True)
    with pytest.raises(ValueError, match="3 observation and 2 action numbers, the replay 1 and 1"):
        store.append(Preparation()(wide))
    with pytest.raises(ValueError, match="at least 1 row"):
        EpisodeStore(0, 1, 1)
    assert len(store) == 0


# --- the mixture ---


def replay(ratio: Any, offline: int = 50, online: tuple[int, ...] = (7, 5), capacity: int = 1000) -> MixedReplay:
    result = MixedReplay(offline_rows(offline) if offline else None, capacity, ratio, seed=0, obs_dim=1, act_dim=1)
    for number, length in enumerate(online):
        result.add(episode(number, length))
    return result


def count_offline(mixed: MixedReplay, batch_size: int, online: bool = True) -> int:
    """Checks that offline rows come first and returns their number."""
    batch = mixed.sample(batch_size, online=online)
    is_offline = batch["mc_returns"] == -1
    count = int(is_offline.sum())
    np.testing.assert_array_equal(is_offline, np.arange(batch_size) < count)
    for values in batch.values():
        assert isinstance(values, np.ndarray)
        assert len(values) == batch_size
        assert values.dtype == np.float32
        assert values.flags.c_contiguous
    return count


@pytest.mark.parametrize("batch_size", [1, 2, 7, 16, 100, 256])
@pytest.mark.parametrize("ratio", [0, 0.0, 0.1, 0.29, 1 / 3, 0.5, 0.75, 0.999, 1, 1.0, np.float32(0.5)])
def test_exactly_floor_of_ratio_times_batch(ratio: float, batch_size: int) -> None:
    mixed = replay(ratio)
    for _ in range(3):
        assert count_offline(mixed, batch_size) == math.floor(ratio * batch_size)
    assert count_offline(mixed, batch_size, online=False) == batch_size


def test_proportional_to_what_was_collected() -> None:
    """The batches of the reference implementation's main loop (50 offline rows, batches of 16)."""
    mixed = replay(-1, online=(), capacity=10)
    assert mixed.offline_share() == 1.0
    collected, expected = 0, []
    for length in (7, 5, 7, 3, 7, 6):
        mixed.add(episode(0, length))
        collected += length
        assert mixed.offline_share() == pytest.approx(50 / (50 + collected))  # evicted rows count too
        expected.append(count_offline(mixed, 16))
    assert expected == [14, 12, 11, 11, 10, 9]


def test_a_schedule_is_linear_in_the_rows_ever_added() -> None:
    mixed = replay([[10, 1.0], [30, 0.5], [40, 0.0]], online=(), capacity=12)
    shares = []
    for _ in range(5):
        shares.append(mixed.offline_share())
        mixed.add(episode(0, 10))
    assert shares == [1.0, 1.0, 0.75, 0.5, 0.0]
    assert mixed.offline_share() == 0.0


def test_the_other_side_fills_in_for_an_empty_one() -> None:
    assert count_offline(replay(0.25, online=()), 8) == 8
    assert count_offline(replay(0.75, offline=0), 8) == 0
    assert count_offline(replay(0.75, offline=0), 8, online=False) == 0
    assert replay(-1, offline=0).offline_share() == 0.0
    with pytest.raises(ValueError, match="nothing to sample from"):
        replay(0.5, offline=0, online=()).sample(4, online=True)
    with pytest.raises(ValueError, match="at least 1 row, not 0"):
        replay(0.5).sample(0, online=True)


def test_every_row_is_drawn_with_the_same_probability() -> None:
    mixed = replay(0.5, offline=1, online=(3, 2))
    draws = np.concatenate([mixed.sample(100, online=True)["observations"][50:, 0] for _ in range(400)])
    values, counts = np.unique(draws, return_counts=True)
    np.testing.assert_allclose(values, [0, 0.001, 0.002, 1, 1.001], rtol=1e-6)
    np.testing.assert_allclose(counts / counts.sum(), 0.2, atol=0.01)


def test_the_batchs_rows_belong_together() -> None:
    mixed = replay(0.0, online=(3, 4))
    batch = mixed.sample(200, online=True)
    number = batch["mc_returns"]
    step = np.rint((batch["observations"][:, 0] - number) * 1000)
    np.testing.assert_array_equal(batch["rewards"], number)
    np.testing.assert_allclose(batch["next_observations"][:, 0], number + (step + 1) / 1000, atol=1e-6)
    np.testing.assert_array_equal(batch["dones"], step == np.where(number == 0, 2, 3))


def test_state_gives_the_same_next_samples() -> None:
    mixed = replay([[0, 1.0], [40, 0.0]], capacity=14)
    for _ in range(3):
        mixed.sample(16, online=True)
    state = json.loads(json.dumps(mixed.get_state()))

    restored = MixedReplay(mixed.offline, 14, mixed.mixing_ratio, seed=7, obs_dim=1, act_dim=1)
    for number, length in enumerate((7, 5)):
        restored.add(episode(number, length))
    restored.set_state(state)
    for number in range(5, 9):
        assert restored.offline_share() == mixed.offline_share()
        for online in (False, True):
            first, second = (side.sample(16, online=online) for side in (mixed, restored))
            for name, values in first.items():
                np.testing.assert_array_equal(values, second[name])  # type: ignore[literal-required]
        mixed.add(episode(number, 3))
        restored.add(episode(number, 3))


def test_seeds() -> None:
    def draw(seed: int | None) -> np.ndarray:
        mixed = MixedReplay(offline_rows(1), 100, 0.0, seed, obs_dim=1, act_dim=1)
        mixed.add(episode(0, 100))
        return mixed.sample(64, online=True)["observations"]

    np.testing.assert_array_equal(draw(3), draw(3))
    assert not np.array_equal(draw(3), draw(4))
    assert not np.array_equal(draw(None), draw(None))


def test_offline_rows_stay_untouched() -> None:
    offline = offline_rows(20)
    before = copy.deepcopy(vars(offline))
    mixed = MixedReplay(offline, 6, 0.5, seed=0, obs_dim=1, act_dim=1)
    for number in range(20):
        mixed.add(episode(number, 4))
        batch = mixed.sample(8, online=True)
        for values in batch.values():
            values[...] = 99.0  # type: ignore[index]
    assert mixed.offline is offline
    for name, values in before.items():
        np.testing.assert_array_equal(getattr(offline, name), values)
    assert set(mixed.sample(100, online=False)["mc_returns"]) == {-1.0}


@pytest.mark.parametrize(
    ("ratio", "message"),
    [
        (1.01, r"mixing_ratio must be in \[0, 1\], -1 .* or a schedule, not 1.01"),
        (-0.5, "mixing_ratio must be in"),
        (float("nan"), "mixing_ratio must be in"),
        (True, r"schedule is \[\[env_steps, ratio\], ...\], not True"),
        ("half", "schedule is"),
        (None, "schedule is"),
        ([], "schedule is"),
        ([0, 0.5], "schedule is"),
        ([[0, 0.5, 1]], "schedule is"),
        ([[0, 0.5], [1]], "schedule is"),
        ([[10, 0.5], [10, 0.4]], r"must increase from 0 or more, not \[10.0, 10.0\]"),
        ([[-1, 0.5]], "must increase from 0 or more"),
        ([[0, 0.5], [10, 1.5]], r"ratios .* must be in \[0, 1\], not \[0.5, 1.5\]"),
        ([[0, float("nan")]], "ratios .* must be in"),
    ],
)
def test_mixing_ratios_that_are_refused(ratio: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replay(ratio)
    with pytest.raises(ValueError, match=message):
        check_mixing_ratio(ratio)


def test_offline_rows_that_are_refused() -> None:
    raw = Transitions.from_episode(np.zeros((2, 1)), np.zeros((1, 1)), np.zeros(1), True)
    with pytest.raises(ValueError, match="offline rows need mc_returns"):
        MixedReplay(raw, 10, 0.5, 0, obs_dim=1, act_dim=1)
    with pytest.raises(ValueError, match="1 observation and 1 action numbers, not 29 and 8"):
        MixedReplay(offline_rows(2), 10, 0.5, 0, obs_dim=29, act_dim=8)


def test_online_buffer_of_the_reference_implementation() -> None:
    """Golden `online_sampler`: the time limit truncates, the goal terminates, the buffer is the same."""
    (case,) = json.loads(shared_path("golden/mc_and_pipeline.json").read_text())["online_sampler"]
    prepare = Preparation(
        gamma=case["gamma"],
        reward_scale=case["reward_scale"],
        reward_bias=case["reward_bias"],
        sparse_failure_reward=0.0,
    )
    mixed = MixedReplay(None, 100, -1, seed=0, obs_dim=2, act_dim=1)
    for number, (rewards, dones) in enumerate(zip(case["env_rewards"], case["env_dones"], strict=True)):
        length = min(len(rewards), case["max_episode_steps"])
        assert length == case["traj_lengths"][number]
        observations = np.array([[number, step] for step in range(length + 1)])
        terminated = bool(dones[length - 1])
        raw = Transitions.from_episode(observations, np.zeros((length, 1)), np.array(rewards[:length]), terminated)
        mixed.add(prepare(raw))
    rows = mixed.online.rows
    assert rows is not None
    assert len(rows) == case["total_steps"]
    batch = rows.take(np.arange(len(rows)))
    for name, expected in case["buffer"].items():
        np.testing.assert_allclose(batch[name], expected, rtol=1e-6, err_msg=name)  # type: ignore[literal-required]
