"""Contestant: this package's update."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.contestant import Settings, serve, settings
from rllib_calql.core import CalQLUpdate, UpdateConfig


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
    batch = random_batch(config)
    wait = torch.cuda.synchronize if config["device"] == "cuda" else lambda: None
    serve(lambda: update.step(update.to_tensors(batch)), wait)


if __name__ == "__main__":
    main()
