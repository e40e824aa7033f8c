"""Rows on the device, and steps that are recorded and repeated (here without a GPU: done again)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rllib_calql import CalQL
from rllib_calql.core import CalQLUpdate, UpdateConfig, graphs
from rllib_calql.core.graphs import DeviceSteps
from rllib_calql.data.replay import MixedReplay
from rllib_calql.data.resident import ResidentReplay
from rllib_calql.data.transitions import Transitions
from tests.test_resume import deterministic, small_config

OBS, ACT, BATCH = 2, 1, 8


def mirrored(number: np.ndarray) -> np.ndarray:
    return np.stack([number, -number], axis=1)


def numbered(first: int, lengths: list[int]) -> Transitions:
    """Episodes whose rows carry their number in every column; returns are known."""
    rows = sum(lengths)
    number = first + np.arange(rows, dtype=np.float32)
    ends = np.zeros(rows, bool)
    ends[np.cumsum(lengths) - 1] = True
    transitions = Transitions.from_arrays(
        observations=mirrored(number),
        actions=number[:, None] / 1000,
        rewards=number,
        terminated=ends,
        truncated=np.zeros(rows, bool),
        next_observations=mirrored(number + 1),
    )
    return transitions.changed(mc_returns=number)


def replay_of(offline: int | None, ratio: Any = 0.5, capacity: int = 10) -> MixedReplay:
    rows = None if offline is None else numbered(0, [offline])
    return MixedReplay(rows, capacity, ratio, 0, OBS, ACT)


def drawn(resident: ResidentReplay, times: int = 200) -> list[list[int]]:
    """Row numbers of batches, all columns of which are checked to be of one row."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(times):
        batch = resident.draw(generator)
        number = batch["rewards"]
        torch.testing.assert_close(batch["observations"], torch.stack([number, -number], dim=1))
        torch.testing.assert_close(batch["actions"][:, 0], number / 1000)
        assert torch.equal(batch["mc_returns"], number)
        torch.testing.assert_close(batch["next_observations"], torch.stack([number + 1, -number - 1], dim=1))
        batches.append([int(n) for n in number])
    return batches


def test_offline_batches_hit_every_row_alike() -> None:
    resident = ResidentReplay(replay_of(20), BATCH, "cpu")
    resident.refresh(online=False)
    counts = np.bincount(np.concatenate(drawn(resident, 500)), minlength=20)
    assert len(counts) == 20
    assert counts.min() > 140  # 200 expected, standard deviation 14
    assert counts.max() < 260


def test_online_batches_hold_the_ratio_and_the_live_rows() -> None:
    replay = replay_of(20, ratio=0.3)
    resident = ResidentReplay(replay, BATCH, "cpu")
    resident.refresh(online=True)
    assert {n for batch in drawn(resident) for n in batch} == set(range(20))  # no online rows yet
    start = 1000
    for lengths in ([3], [4], [5, 2], [6], [1], [10]):  # a ring of 10, wrapped and emptied
        replay.add(numbered(start, lengths))
        start += sum(lengths)
        resident.refresh(online=True)
        live = {int(n) for n in replay.online.rows.rewards} if replay.online.rows else set()
        batches = drawn(resident)
        assert {n for batch in batches for n in batch[2:]} == live
        assert all(n < 20 for batch in batches for n in batch[:2])  # floor(0.3 * 8)
    resident.refresh(online=False)
    assert all(n < 20 for batch in drawn(resident) for n in batch)


def test_online_rows_alone_and_a_store_that_is_filled_anew() -> None:
    replay = replay_of(None)
    resident = ResidentReplay(replay, BATCH, "cpu")
    with pytest.raises(ValueError, match="nothing to sample from"):
        resident.refresh(online=True)
    replay.add(numbered(1000, [7]))
    resident.refresh(online=True)
    replay.online.clear()
    replay.add(numbered(2000, [7]))  # as many rows added as before, but others
    resident.refresh(online=True)
    assert {n for batch in drawn(resident) for n in batch} == set(range(2000, 2007))


def test_bytes_needed() -> None:
    replay = replay_of(20)
    for dtype in (torch.float32, torch.float64):
        columns = ResidentReplay(replay, BATCH, "cpu", dtype).columns.values()
        assert ResidentReplay.bytes_needed(replay, dtype) == sum(c.numel() * c.element_size() for c in columns)


@pytest.mark.parametrize(
    "settings", [{}, {"bc_iters": 7}, {"target_network_update_freq": 3}, {"online_actor_interval": 6}]
)
def test_recorded_steps_are_plain_steps(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "STEPS_PER_LAUNCH", 4)
    config = UpdateConfig(actor_hiddens=(8,), critic_hiddens=(8,), num_actions=2, lagrangian=True, **settings)
    resident = ResidentReplay(replay_of(50), BATCH, "cpu")
    resident.refresh(online=False)
    plain, recorded = (CalQLUpdate(OBS, ACT, config, seed=0) for _ in range(2))
    plain.online = recorded.online = "online_actor_interval" in settings
    steps = DeviceSteps(recorded, resident)
    for count in (1, 5, 14):
        found: dict[str, list[float]] = {}
        for _ in range(count):
            for name, value in plain.step(resident.draw(plain.generator)).items():
                found.setdefault(name, []).append(float(value))
        figures = steps.run(count)
        assert recorded.num_updates == plain.num_updates
        assert figures == pytest.approx({name: np.mean(values) for name, values in found.items()}, rel=1e-5)
        for name, array in plain.weights().items():
            np.testing.assert_array_equal(array, recorded.weights()[name])


@pytest.mark.usefixtures("ray_session")
def test_a_run_whose_batches_are_drawn_on_the_device(pendulum_data: Transitions, tmp_path: Path) -> None:
    config = small_config(pendulum_data, 0, replay_device="update", num_online_env_steps=100)
    algo = config.evaluation(evaluation_interval=None).build_algo()
    blocks = [algo.train()["calql"] for _ in range(3)]
    assert [block["num_updates"] for block in blocks] == [10, 20, 30]
    algo.save(str(tmp_path / "checkpoint"))
    last = algo.train()["calql"]
    assert algo.complete
    algo.stop()
    restored = CalQL.from_checkpoint(tmp_path / "checkpoint", input_=pendulum_data)
    found = restored.train()["calql"]
    restored.stop()
    assert deterministic(found) == deterministic(last)
    with pytest.raises(ValueError, match=r'replay_device="update" needs the Policy stack'):
        small_config(pendulum_data, 0, new_stack=True, replay_device="update").validate()
