"""Several datasets as one: how many rows each gives, what is refused, and what a mixture says of itself."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_calql.data import (
    DatasetError,
    MixedReplay,
    Mixture,
    Preparation,
    Transitions,
    open_dataset,
    write_dataset,
)
from rllib_calql.data.mixture import entries_of
from rllib_calql.data.resident import ResidentReplay


def numbered(number: float, num_rows: int) -> Transitions:
    """Prepared rows whose observation is `number`, and whose action is the row's own number / 1000."""
    ends = np.arange(num_rows) % 5 == 4
    ends[-1] = True
    return Preparation(reward_scale=2.0)(
        Transitions(
            observations=np.full((num_rows, 1), number),
            actions=np.arange(num_rows)[:, None] / 1000,
            rewards=np.ones(num_rows),
            terminated=ends,
            truncated=np.zeros(num_rows),
            final_observations=np.full((int(ends.sum()), 1), number),
        )
    )


def counts(batch: Any, num_parts: int) -> np.ndarray:
    return np.array([int((batch["observations"] == number).sum()) for number in range(num_parts)])


@given(st.lists(st.floats(0.01, 100.0), min_size=1, max_size=6), st.integers(1, 300), st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_each_dataset_gives_its_share_rounded_up_or_down(weights: list[float], size: int, seed: int) -> None:
    parts = tuple(numbered(number, 5 + number) for number in range(len(weights)))
    mixture = Mixture(parts, tuple(weights))
    batch = mixture.draw(np.random.default_rng(seed), size)
    shares = size * np.array(weights) / sum(weights)
    given_rows = counts(batch, len(weights))
    assert given_rows.sum() == size == len(batch["rewards"])
    assert (given_rows >= np.floor(shares - 1e-9)).all()
    assert (given_rows <= np.ceil(shares + 1e-9)).all()


def test_the_shares_are_exact_on_average() -> None:
    mixture = Mixture((numbered(0, 10), numbered(1, 10), numbered(2, 500)), (2.0, 0.5, 1.0))
    generator = np.random.default_rng(0)
    total = sum(counts(mixture.draw(generator, 16), 3) for _ in range(2000))
    np.testing.assert_allclose(total / 32_000, [4 / 7, 1 / 7, 2 / 7], atol=0.004)


def test_without_weights_every_row_is_as_likely() -> None:
    mixture = Mixture((numbered(0, 30), numbered(1, 70)))
    np.testing.assert_allclose(mixture.shares, [0.3, 0.7])
    batch = mixture.draw(np.random.default_rng(0), 100)
    np.testing.assert_array_equal(counts(batch, 2), [30, 70])
    draws: list[np.ndarray] = [mixture.draw(np.random.default_rng(seed), 500)["actions"] for seed in range(60)]
    _, frequency = np.unique(np.concatenate(draws), return_counts=True)
    # the first 30 actions are in both datasets, twice as frequent
    expected = np.where(np.arange(70) < 30, 600, 300)
    assert np.abs(frequency / expected - 1).max() < 0.25


def test_a_mixture_of_one_draws_as_the_dataset_does() -> None:
    data = numbered(0, 50)
    mixture = Mixture((data,), (3.0,))
    assert len(mixture.draw(np.random.default_rng(1), 64)["rewards"]) == 64
    assert (len(mixture), mixture.num_episodes, mixture.obs_dim, mixture.act_dim) == (50, 10, 1, 1)


def test_the_replay_draws_from_a_mixture() -> None:
    mixture = Mixture((numbered(0, 20), numbered(1, 20)), (3.0, 1.0))
    replay = MixedReplay(mixture, 100, 0.5, 0, 1, 1)
    np.testing.assert_array_equal(counts(replay.sample(64, online=False), 3), [48, 16, 0])
    replay.add(numbered(2, 10))
    np.testing.assert_array_equal(counts(replay.sample(64, online=True), 3), [24, 8, 32])
    # with -1 a mixture counts all its rows, whatever their weights
    by_size = MixedReplay(mixture, 100, -1, 0, 1, 1)
    by_size.add(numbered(2, 10))
    assert by_size.offline_share() == 40 / 50
    np.testing.assert_array_equal(counts(by_size.sample(100, online=True), 3), [60, 20, 20])
    raw = Mixture((numbered(0, 5).changed(mc_returns=None), numbered(1, 5)))
    with pytest.raises(ValueError, match="the offline rows need mc_returns"):
        MixedReplay(raw, 100, 0.5, 0, 1, 1)


def test_opening_several(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("one", "other")]
    for path, rows in zip(paths, (10, 30), strict=True):
        write_dataset(numbered(0, rows), path)
    mixture = open_dataset(paths)
    assert [len(part) for part in mixture.parts] == [10, 30]
    assert len(mixture) == mixture.metadata.num_rows == 40
    weighted = open_dataset([{"input": paths[0], "weight": 3}, {"input": numbered(1, 5), "weight": 0.5}])
    assert [len(part) for part in weighted.parts] == [10, 5]
    assert list(weighted.weights or ()) == [3, 0.5]
    assert copy.deepcopy(weighted.parts[1]) is weighted.parts[1]
    called = open_dataset([lambda: numbered(1, 5)])
    assert len(called) == 5
    assert open_dataset(mixture) is mixture  # which a function may have given
    with pytest.raises(DatasetError, match="options rewards are for datasets opened by name"):
        open_dataset(mixture, rewards="r")
    with pytest.raises(DatasetError, match="unknown kind of dataset: a int; understood are d4rl://NAME"):
        open_dataset(3)  # type: ignore[call-overload]


def test_options_of_all_and_of_one(tmp_path: Path) -> None:
    from tests.test_d4rl import small_columns, write

    path = write(tmp_path / "data.hdf5", **small_columns(4, infos__a=np.ones(4), infos__b=np.zeros(4)))
    given_rows = numbered(0, 3).changed(actions=np.zeros((3, 2), np.float32))
    entries = [str(path), {"input": str(path), "rewards": "infos/b"}, {"input": given_rows}]
    mixture = open_dataset(entries, rewards="infos/a")
    assert [part.rewards[0] for part in mixture.parts] == [1, 0, 2]


def test_fingerprints_of_mixtures() -> None:
    parts = numbered(0, 10), numbered(1, 10)
    mixture = Mixture(parts, (1.0, 2.0))
    assert mixture.fingerprint == Mixture(parts, (1.0, 2.0)).fingerprint
    others = (
        Mixture(parts),
        Mixture(parts, (2.0, 1.0)),
        Mixture(parts[::-1], (1.0, 2.0)),
        Mixture(parts[:1], (1.0,)),
    )
    assert mixture.fingerprint not in {other.fingerprint for other in others}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ([], "the list of datasets is empty"),
        (["a", {"input": "b", "weight": 1.0}], "some datasets have a weight and some do not"),
        ([{"input": "a", "weight": 0}], "must be a number above 0, not 0"),
        ([{"input": "a", "weight": "2"}], "must be a number above 0, not '2'"),
        ([{"input": "a", "weight": float("nan")}], "must be a number above 0, not nan"),
        ([{"input": "a", "weight": True}], "must be a number above 0, not True"),
        ([["a", 2.0]], r"is one dataset, or a dict \{'input': dataset, 'weight': number\}.*not \['a', 2.0\]"),
    ],
)
def test_what_is_no_list_of_datasets(written: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        entries_of(written)


def test_datasets_that_do_not_belong_together() -> None:
    wide = numbered(0, 5).changed(actions=np.zeros((5, 2), np.float32))
    with pytest.raises(DatasetError, match=r"different \(observation, action\) dimensions: .*\(1,\).*\(2,\)"):
        Mixture((numbered(0, 5), wide))
    with pytest.raises(DatasetError, match="2 weights for 1 datasets"):
        Mixture((wide,), (1.0, 2.0))
    with pytest.raises(DatasetError, match="at least one dataset"):
        Mixture(())


def test_rows_on_a_device_follow_the_same_rule() -> None:
    mixture = Mixture((numbered(0, 10), numbered(1, 40), numbered(2, 5)), (2.0, 1.0, 0.3))
    replay = MixedReplay(mixture, 100, 0.5, 0, 1, 1)
    resident = ResidentReplay(replay, 64, "cpu")
    generator = torch.Generator().manual_seed(0)
    for online, rows in ((False, 64), (True, 32)):
        resident.refresh(online=online)
        batches = [resident.draw(generator) for _ in range(400)]
        found = np.array([counts(batch, 4) for batch in batches])
        shares = rows * mixture.shares
        assert (found[:, :3] >= np.floor(shares)).all()
        assert (found[:, :3] <= np.ceil(shares)).all()
        assert (found.sum(axis=1) == 64).all()
        np.testing.assert_allclose(found[:, :3].mean(axis=0), shares, atol=0.1)
        drawn = {(int(o), round(1000 * float(a))) for batch in batches for o, a in zip(*two(batch), strict=True)}
        assert {row for row in drawn if row[0] < 3} == {
            (k, i) for k, n in enumerate((10, 40, 5)) for i in range(n)
        }
        replay.add(numbered(3, 10))


def two(batch: Any) -> tuple[Any, Any]:
    return batch["observations"][:, 0], batch["actions"][:, 0]
