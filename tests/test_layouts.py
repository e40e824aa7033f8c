"""Observations and actions that are not plain vectors: flattened as gymnasium does, or kept."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from rllib_calql.data import DatasetError, Metadata, Preparation, Rows, Transitions, check_fits, open_dataset
from rllib_calql.data.rows import OneChunk

N = 6
ENDS = {"terminated": np.arange(N) == 2, "truncated": np.arange(N) == N - 1}
GOALS = spaces.Dict(
    {
        "position": spaces.Box(-1, 1, (2,)),
        "achieved": spaces.Dict({"z": spaces.Box(-1, 1, (3, 2)), "a": spaces.Box(-1, 1, ())}),
        "pair": spaces.Tuple((spaces.Box(-1, 1, (1,)), spaces.Box(-1, 1, (2,)))),
    }
)
IMAGES = spaces.Box(0, 255, (4, 5, 3), np.uint8)


def samples(space: gym.Space, count: int = N + 1) -> list[Any]:
    space.seed(3)
    return [space.sample() for _ in range(count)]


def stacked(space: gym.Space, values: list[Any]) -> Any:
    if isinstance(space, spaces.Dict):
        # in an order of its own: a source's dict says nothing about the order
        return {key: stacked(space[key], [value[key] for value in values]) for key in reversed(list(space))}
    if isinstance(space, spaces.Tuple):
        return tuple(stacked(inner, [v[i] for v in values]) for i, inner in enumerate(space.spaces))
    return np.stack(values)


def source(space: gym.Space, *, known: bool = True, **changes: Any) -> OneChunk:
    values = samples(space)
    rows = {
        "observations": stacked(space, values[:-1]),
        "next_observations": stacked(space, values[1:]),
        "actions": np.zeros((N, 2)),
        "rewards": np.arange(N),
        **ENDS,
    }
    metadata = Metadata(observation_space=space if known else None)
    return OneChunk(Rows(**{**rows, **changes}), metadata)


def test_dicts_are_flattened_in_gymnasiums_order() -> None:
    data = open_dataset(source(GOALS))
    expected = np.stack([spaces.flatten(GOALS, value) for value in samples(GOALS)])
    np.testing.assert_array_equal(data.observations, expected[:-1])
    np.testing.assert_array_equal(data.next_observations(), expected[1:])
    assert data.obs_dim == spaces.flatdim(GOALS) == 12
    assert data.metadata.observation_space == GOALS
    # without the space, keys are sorted, as gymnasium sorts those of a plain dict
    np.testing.assert_array_equal(open_dataset(source(GOALS, known=False)).observations, expected[:-1])


def test_the_order_of_an_ordered_space_counts() -> None:
    space = spaces.Dict([("b", spaces.Box(-1, 1, (1,))), ("a", spaces.Box(-1, 1, (2,)))])
    expected = np.stack([spaces.flatten(space, value) for value in samples(space)[:-1]])
    np.testing.assert_array_equal(open_dataset(source(space)).observations, expected)


def test_dicts_are_kept_on_request() -> None:
    data = open_dataset(source(GOALS), observations="keep")
    values = samples(GOALS)
    assert data.observations["achieved"]["z"].shape == (N, 6)
    assert data.observations["achieved"]["a"].shape == (N, 1)
    rows = np.array([5, 0, 2])
    following = data.next_observations(rows)
    np.testing.assert_array_equal(following["pair"][1], [values[row + 1]["pair"][1] for row in rows])
    batch: Any = Preparation()(data).take(rows)
    np.testing.assert_array_equal(batch["observations"]["position"], [values[row]["position"] for row in rows])
    with pytest.raises(DatasetError, match="observations are not vectors but"):
        _ = data.obs_dim

    parts = list(data.episodes())
    assert [len(part) for part in parts] == [3, 3]
    joined = Transitions.concatenate(parts)
    np.testing.assert_array_equal(
        joined.next_observations()["achieved"]["z"], data.next_observations()["achieved"]["z"]
    )
    # and flattened later
    flat = open_dataset(data, observations="flatten")
    np.testing.assert_array_equal(flat.observations, open_dataset(source(GOALS)).observations)
    np.testing.assert_array_equal(flat.next_observations(), open_dataset(source(GOALS)).next_observations())
    assert open_dataset(data) is data


def test_images_stay_bytes() -> None:
    data = open_dataset(source(IMAGES))
    values = np.stack(samples(IMAGES))
    assert data.observations.dtype == data.next_observations().dtype == np.uint8
    np.testing.assert_array_equal(data.observations, values[:-1])
    np.testing.assert_array_equal(data.next_observations(np.array([2, 1, 5])), values[[3, 2, 6]])
    mixed = spaces.Dict({"image": IMAGES, "velocity": spaces.Box(-1, 1, (2,))})
    with pytest.raises(DatasetError, match=r"observations.image are images.*with observations='keep'"):
        open_dataset(source(mixed))
    kept = open_dataset(source(mixed), observations="keep")
    assert kept.observations["image"].dtype == np.uint8
    assert kept.observations["velocity"].dtype == np.float32


def test_discrete_actions_stay_integers() -> None:
    box = spaces.Box(-1, 1, (2,))
    actions = np.array([0, 2, 1, 1, 0, 2])
    data = open_dataset(source(box, actions=actions.astype(np.int32)))
    np.testing.assert_array_equal(data.actions, actions)
    assert data.actions.dtype == np.int64
    np.testing.assert_array_equal(Preparation()(data).take(np.array([1, 2]))["actions"], [2, 1])
    column = source(box, actions=actions[:, None])
    known = OneChunk(column.rows, Metadata(action_space=spaces.Discrete(3)))
    np.testing.assert_array_equal(open_dataset(known).actions, actions)
    with pytest.raises(DatasetError, match=r"actions are not in Discrete\(2\) in rows 1, 5"):
        open_dataset(OneChunk(column.rows, Metadata(action_space=spaces.Discrete(2))))
    with pytest.raises(DatasetError, match=r"belong to the space MultiDiscrete.*only Box and Discrete"):
        open_dataset(OneChunk(column.rows, Metadata(action_space=spaces.MultiDiscrete([3]))))
    assert data.act_dim == 1


def test_what_the_space_contradicts() -> None:
    wide = spaces.Box(-1, 1, (5,))
    with pytest.raises(DatasetError, match=r"observations have 2 numbers per row, .* the space Box"):
        open_dataset(OneChunk(source(spaces.Box(-1, 1, (2,))).rows, Metadata(observation_space=wide)))
    other = spaces.Dict({"position": spaces.Box(-1, 1, (2,))})
    with pytest.raises(DatasetError, match=r"observations have entries \['achieved', 'pair', 'position'\]"):
        open_dataset(OneChunk(source(GOALS).rows, Metadata(observation_space=other)))
    mixed = spaces.Dict({"kind": spaces.Discrete(4), "x": spaces.Box(-1, 1, (2,))})
    with pytest.raises(DatasetError, match=r"observations.kind have 1 numbers per row.*Discrete\(4\)"):
        open_dataset(source(mixed))
    with pytest.raises(DatasetError, match="observations must be 'flatten' or 'keep', not 'both'"):
        open_dataset(source(GOALS), **{"observations": "both"})  # type: ignore[call-overload]


def test_entries_of_different_lengths() -> None:
    bad = {"a": np.zeros((N, 1)), "b": np.zeros((N - 1, 1))}
    with pytest.raises(DatasetError, match="different numbers of rows"):
        Transitions.from_arrays(bad, np.zeros((N, 1)), np.zeros(N), **ENDS)
    with pytest.raises(DatasetError, match=r"different numbers of rows: \{'observations': \[5, 6\]"):
        open_dataset(
            OneChunk(Rows(observations=bad, actions=np.zeros((N, 1)), rewards=np.zeros(N), **ENDS)),
            observations="keep",
        )


def test_training_says_what_it_cannot_train_on() -> None:
    box = spaces.Box(-1, 1, (2,))
    kept = open_dataset(source(GOALS), observations="keep")
    for data, message in (
        (kept, "were kept as they are.*observations='flatten'"),
        (open_dataset(source(IMAGES)), r"images of shape \(4, 5, 3\), the environment.s are no uint8 images"),
        (
            open_dataset(source(box, actions=np.zeros(N, dtype=int))),
            "discrete actions, and the environment's are Box",
        ),
    ):
        with pytest.raises(DatasetError, match=message):
            check_fits(data, box, box)


def test_fingerprints() -> None:
    one, same = open_dataset(source(GOALS)), open_dataset(source(GOALS))
    assert one.fingerprint == same.fingerprint
    assert Preparation(reward_scale=3.0)(one).fingerprint == one.fingerprint
    assert open_dataset(source(GOALS), observations="keep").fingerprint != one.fingerprint
    for name, values in {
        "rewards": np.ones(N),
        "actions": np.ones((N, 2)),
        "terminated": np.arange(N) == 1,
    }.items():
        assert open_dataset(source(GOALS, **{name: values})).fingerprint != one.fingerprint
