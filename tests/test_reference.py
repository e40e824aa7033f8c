"""The learned reference value: against values known in closed form, its early stop, and inside training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rllib_calql import CalQL, CalQLConfig
from rllib_calql.core.reference import ReferenceConfig, ReferenceValue, fit_reference
from rllib_calql.data import DatasetError, Mixture, Preparation, Transitions, return_to_go
from tests.test_resume import BOTH_STACKS, deterministic, small_config

GAMMA, SLIP, LENGTH = 0.9, 0.3, 5
SMALL = ReferenceConfig(fcnet_hiddens=(32,), max_updates=2000, batch_size=128, lr=3e-3, patience=4)


def chain(num_episodes: int, cut_after: int | None = None, seed: int = 0) -> Transitions:
    """A walk along one-hot states 0 to 4 with reward -1 a step, which stays where it is with probability `SLIP`;
    leaving state 4 ends the task. With `cut_after`, episodes start anywhere and are cut after so many steps."""
    rng = np.random.default_rng(seed)
    eye = np.eye(LENGTH + 1, LENGTH, dtype=np.float32)  # what follows the end is all zeros
    episodes = []
    for _ in range(num_episodes):
        states = [0 if cut_after is None else int(rng.integers(LENGTH))]
        while states[-1] < LENGTH and len(states) - 1 != cut_after:
            states.append(states[-1] + int(rng.random() > SLIP))
        steps = len(states) - 1
        episodes.append(
            Transitions.from_episode(eye[states], np.zeros((steps, 1)), -np.ones(steps), states[-1] == LENGTH)
        )
    return Transitions.concatenate(episodes)


def true_values() -> np.ndarray:
    """(5,): V(s) = -1 + gamma (slip V(s) + (1 - slip) V(s+1)), from the end backwards."""
    values = np.zeros(LENGTH + 1)
    for state in reversed(range(LENGTH)):
        values[state] = (-1.0 + GAMMA * (1.0 - SLIP) * values[state + 1]) / (1.0 - GAMMA * SLIP)
    return values[:LENGTH]


def prepared(data: Transitions) -> Transitions:
    return Preparation(gamma=GAMMA)(data)


def test_regression_on_returns_gives_the_values_of_a_chain() -> None:
    value = fit_reference(prepared(chain(1500)), SMALL, gamma=GAMMA, seed=0)
    np.testing.assert_allclose(value(np.eye(LENGTH)), true_values(), atol=0.12)
    # what is left is the returns' own spread: V(s) is their mean, not each of them
    assert 0.5 < value.figures["reference_rmse"] < 1.2
    assert 0.6 < value.figures["reference_correlation"] < 1.0
    assert 0.3 < value.figures["reference_above_return"] < 0.7


def test_cut_episodes_are_bootstrapped_to_the_same_values() -> None:
    data = prepared(chain(800, cut_after=2))
    value = fit_reference(data, SMALL, gamma=GAMMA, bootstrap=True, seed=0)
    np.testing.assert_allclose(value(np.eye(LENGTH)), true_values(), atol=0.25)
    stopped = fit_reference(data, SMALL, gamma=GAMMA, seed=0)(np.eye(LENGTH))
    assert stopped[0] > true_values()[0] + 1.0  # without what follows the cut


def test_a_high_expectile_values_the_better_returns() -> None:
    data = prepared(chain(400))
    mean, high = (
        fit_reference(data, ReferenceConfig(**{**vars(SMALL), "expectile": e}), gamma=GAMMA, seed=0)
        for e in (0.5, 0.95)
    )
    assert (high(np.eye(LENGTH)) > mean(np.eye(LENGTH)) + 0.2).all()
    assert high.figures["reference_above_return"] > mean.figures["reference_above_return"] + 0.05


def test_whole_episodes_are_held_out_and_the_best_network_is_kept() -> None:
    """Every episode has a feature of its own that gives its return away: only held-out ones tell that apart."""
    rng = np.random.default_rng(0)
    episodes = []
    for number in range(40):
        features = np.repeat(np.eye(40, dtype=np.float32)[number][None], 11, axis=0)
        rewards = np.zeros(10)
        rewards[-1] = rng.normal()
        episodes.append(Transitions.from_episode(features, np.zeros((10, 1)), rewards, True))
    data = Preparation(gamma=1.0)(Transitions.concatenate(episodes))
    config = ReferenceConfig(**{**vars(SMALL), "validation_share": 0.25})
    value = fit_reference(data, config, gamma=1.0, seed=0)
    assert value.figures["reference_updates"] <= 400  # it only got worse from there
    assert value.figures["reference_rmse"] > 0.5
    assert abs(value.figures.get("reference_correlation", 0.0)) < 0.9


def test_returns_of_episodes_that_fail_for_ever_are_not_bootstrapped() -> None:
    data = Preparation(gamma=0.5, sparse_failure_reward=-1.0)(chain(30, cut_after=2))
    value = fit_reference(data, SMALL, gamma=0.5, bootstrap=True, failure_reward=-1.0, seed=0)
    np.testing.assert_allclose(value(np.eye(LENGTH)), -2.0, atol=0.01)


def test_a_mixture_is_fitted_in_proportion_to_its_weights() -> None:
    state, action = np.ones((2, 1), np.float32), np.zeros((1, 1))
    low, high = (
        prepared(Transitions.concatenate([Transitions.from_episode(state, action, np.array([r]), True)] * 20))
        for r in (0.0, 1.0)
    )
    value = fit_reference(Mixture((low, high), (1.0, 3.0)), SMALL, gamma=GAMMA, seed=0)
    assert value(np.ones((1, 1))) == pytest.approx([0.75], abs=0.06)


def test_preparation_uses_the_value_by_mode_and_after_cut_ends() -> None:
    data = Transitions.from_episode(np.arange(4.0)[:, None], np.zeros((3, 1)), np.array([1.0, 0.0, 1.0]), False)

    def value(observations: np.ndarray) -> np.ndarray:
        return (observations[:, 0] * 10.0 - 5.0).astype(np.float32)

    def found(**settings: Any) -> list[float]:
        rows = Preparation(gamma=0.5, value=value, **settings)(data)
        assert rows.mc_returns is not None
        again = Preparation(gamma=0.5, value=value, **settings).with_reference_values(rows).mc_returns
        assert again is not None
        np.testing.assert_allclose(again, rows.mc_returns)
        return rows.mc_returns.tolist()

    assert found() == [1.25, 0.5, 1.0]
    assert found(reference="learned") == [-5.0, 5.0, 15.0]
    assert found(reference="max") == [1.25, 5.0, 15.0]
    assert found(truncation="bootstrap") == [1.25 + 25.0 / 8, 0.5 + 25.0 / 4, 1.0 + 25.0 / 2]
    assert found(truncation="bootstrap", reference="max") == [1.25 + 25.0 / 8, 0.5 + 25.0 / 4, 15.0]
    assert found(truncation="drop", reference="max") == [-5.0, 5.0, 15.0]


def test_a_state_gives_the_same_value_again(tmp_path: Path) -> None:
    value = fit_reference(prepared(chain(30)), SMALL, gamma=GAMMA, seed=0)
    np.savez(tmp_path / "value.npz", **value.get_state())  # type: ignore[arg-type]
    with np.load(tmp_path / "value.npz") as arrays:
        again = ReferenceValue.from_state(arrays)
    np.testing.assert_array_equal(again(np.eye(LENGTH)), value(np.eye(LENGTH)))
    assert again.figures == value.figures


def test_refused_data_and_settings() -> None:
    with pytest.raises(DatasetError, match="at least two episodes"):
        fit_reference(prepared(chain(1)), SMALL, gamma=GAMMA)
    unknown = Preparation(gamma=GAMMA, truncation="drop")(chain(30, cut_after=1))
    with pytest.raises(DatasetError, match="rows with a known return"):
        fit_reference(unknown.changed(mc_returns=np.full(len(unknown), -np.inf)), SMALL, gamma=GAMMA)
    images = Transitions.from_episode(np.zeros((3, 4, 4, 1), np.uint8), np.zeros((2, 1)), np.zeros(2), True)
    with pytest.raises(DatasetError, match="not vectors"):
        fit_reference(images, SMALL, gamma=GAMMA)
    for wrong, message in {"expectile": "inside", "validation_share": "inside", "lr": "above 0"}.items():
        with pytest.raises(ValueError, match=f"{wrong} must be {message}"):
            ReferenceConfig(**{wrong: 1.5})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reference_config has no 'epochs'"):
        CalQLConfig().training(reference_config={"epochs": 3})
    settings: list[dict[str, Any]] = [{"reference_value": "learned"}, {"truncation_mode": "bootstrap"}]
    for setting in settings:
        config = CalQLConfig().environment("Pendulum-v1").training(num_offline_updates=0, **setting)
        with pytest.raises(ValueError, match="learned from offline data"):
            config.validate()


LEARNED = {
    "reference_value": "max",
    "truncation_mode": "bootstrap",
    "reference_config": {"fcnet_hiddens": [16], "max_updates": 400},
}


@pytest.mark.usefixtures("ray_session")
@BOTH_STACKS
def test_training_with_a_learned_value_goes_on_bit_equal(
    pendulum_data: Transitions, tmp_path: Path, new_stack: bool
) -> None:
    config = small_config(pendulum_data, 0, new_stack, **LEARNED, num_offline_updates=10)
    whole = config.build_algo()
    blocks = [whole.train()["calql"] for _ in range(2)]
    value = whole.reference_value
    assert value is not None
    assert blocks[0]["reference_rmse"] == value.figures["reference_rmse"] > 0.0
    replay = whole.local_replay_buffer.replay
    for rows in (replay.offline, replay.online.rows):
        assert isinstance(rows, Transitions)
        ends = np.zeros(len(rows))
        ends[rows.episode_ends] = value(rows.final_observations)
        returns = return_to_go(
            rows.rewards, rows.terminated, rows.truncated, 0.99, truncation="bootstrap", bootstrap_values=ends
        )
        assert rows.mc_returns is not None
        np.testing.assert_allclose(
            rows.mc_returns, np.maximum(returns, value(rows.observations)), rtol=1e-5, atol=1e-4
        )
    whole.save(str(tmp_path))
    expected = whole.train()["calql"]
    whole.stop()

    restored = CalQL.from_checkpoint(str(tmp_path), input_=pendulum_data)
    found = restored.train()["calql"]
    restored.stop()
    assert deterministic(found) == deterministic(expected)
