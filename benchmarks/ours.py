"""Contestant: this package's update."""

from __future__ import annotations

import sys

import numpy as np
import torch

from benchmarks.contestant import Settings, serve, settings
from benchmarks.train_speed import random_rows
from rllib_calql.core import CalQLUpdate, UpdateConfig
from rllib_calql.core.graphs import DeviceSteps
from rllib_calql.data.prepare import Preparation
from rllib_calql.data.replay import MixedReplay
from rllib_calql.data.resident import ResidentReplay


def random_batch(config: Settings) -> dict[str, np.ndarray]:
    """A batch of float32 arrays with the update's names."""
    rng, size = np.random.default_rng(0), config["batch_size"]
    batch = {
        "observations": rng.normal(size=(size, config["obs_dim"])),
        "actions": rng.uniform(-0.9, 0.9, (size, config["act_dim"])),
        "rewards": rng.normal(size=size),
        "next_observations": rng.normal(size=(size, config["obs_dim"])),
        "dones": (rng.random(size) < 0.01).astype(float),
        "mc_returns": rng.normal(size=size),
    }
    return {name: array.astype(np.float32) for name, array in batch.items()}


def main() -> None:
    config = settings()
    torch.set_num_threads(config["threads"])
    form = UpdateConfig(
        critic_hiddens=tuple(config["critic"]),
        actor_hiddens=tuple(config["actor"]),
        num_critics=config["num_critics"],
        num_actions=config["num_actions"],
        num_target_actions=config["num_actions"],
        lagrangian=True,
        precision=config["precision"],  # type: ignore[arg-type]
    )
    update = CalQLUpdate(config["obs_dim"], config["act_dim"], form, config["device"], seed=0)
    if config["device"] == "cpu":
        batch = random_batch(config)
        serve(lambda steps: update.run(lambda: batch, steps))
        return
    # As in training there: rows on the device, batches drawn there; `eager` launches every kernel by itself.
    rows = Preparation()(random_rows(100_000, config["obs_dim"], config["act_dim"]))
    replay = MixedReplay(rows, 1000, 0.5, 0, config["obs_dim"], config["act_dim"])
    resident = ResidentReplay(replay, config["batch_size"], config["device"])
    resident.refresh(online=False)
    torch.set_float32_matmul_precision("high" if config["tf32"] else "highest")

    def eagerly(steps: int) -> None:
        for _ in range(steps):
            update.step(resident.draw(update.generator))
        torch.cuda.synchronize()

    serve(eagerly if "eager" in sys.argv[2:] else DeviceSteps(update, resident).run)


if __name__ == "__main__":
    main()
