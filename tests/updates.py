"""Small updates and batches for the tests of updates."""

from __future__ import annotations

from typing import Any

import numpy as np

from rllib_calql.core import CalQLUpdate, UpdateConfig
from rllib_calql.core.calql import ActorValues, CriticValues
from rllib_calql.core.update import Batch

O_DIM, A_DIM = 3, 2
SMALL: dict[str, Any] = {
    "actor_hiddens": (8, 8),
    "critic_hiddens": (8, 8),
    "num_actions": 3,
    "num_target_actions": 4,
    "precision": "float64",
}


def make_update(seed: int | None = 0, **settings: Any) -> CalQLUpdate:
    return CalQLUpdate(O_DIM, A_DIM, UpdateConfig(**(SMALL | settings)), seed=seed)


def arrays(size: int = 5, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    batch = {
        "observations": rng.normal(size=(size, O_DIM)),
        "actions": rng.uniform(-0.9, 0.9, (size, A_DIM)),
        "rewards": rng.normal(size=size),
        "next_observations": rng.normal(size=(size, O_DIM)),
        "dones": (rng.random(size) < 0.3).astype(float),
        "mc_returns": 0.1 * rng.normal(size=size),
    }
    return {name: array.astype(np.float32) for name, array in batch.items()}


def step(update: CalQLUpdate, seed: int = 0, size: int = 5) -> dict[str, float]:
    metrics = update.step(update.to_tensors(arrays(size, seed)))
    return {name: float(value) for name, value in metrics.items()}


def gradients(update: CalQLUpdate, batch: Batch, noise: Any) -> tuple[ActorValues, CriticValues]:
    """Of an update that moves the actor."""
    actor, critic = update.gradients(batch, noise)
    assert actor is not None
    return actor, critic


def moved(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> set[str]:
    """Which of actor, critics, target_critics, log_alpha, ... have changed."""
    return {name.split(".")[0] for name in before if not np.array_equal(before[name], after[name])}
