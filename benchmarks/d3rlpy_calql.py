"""Contestant: d3rlpy's CalQL at the same sizes. Runs in d3rlpy's own environment; imports nothing of this package.

Made equal: network widths, number of critics and of sampled actions, minimum over critics and maximum over sampled
actions in the target (without the entropy), Lagrange multiplier, learning rates.
"""

from __future__ import annotations

import torch

from benchmarks.contestant import serve, settings


def main() -> None:
    import d3rlpy  # type: ignore[import-not-found, unused-ignore]
    from d3rlpy.models.encoders import VectorEncoderFactory  # type: ignore[import-not-found, unused-ignore]
    from d3rlpy.torch_utility import TorchMiniBatch  # type: ignore[import-not-found, unused-ignore]

    config = settings()
    torch.set_num_threads(config["threads"])
    torch.set_float32_matmul_precision("high" if config["tf32"] else "highest")
    if config["precision"] != "float32":
        raise SystemExit("d3rlpy has float32 only")
    algo = d3rlpy.algos.CalQLConfig(
        batch_size=config["batch_size"],
        actor_encoder_factory=VectorEncoderFactory(config["actor"]),
        critic_encoder_factory=VectorEncoderFactory(config["critic"]),
        n_critics=config["num_critics"],
        n_action_samples=config["num_actions"],
        max_q_backup=True,
        critic_learning_rate=3e-4,
        alpha_learning_rate=3e-4,
        alpha_threshold=0.8,
        compile_graph=config["device"] == "cuda",
    ).create(device="cuda:0" if config["device"] == "cuda" else False)
    algo.create_impl((config["obs_dim"],), config["act_dim"])
    size = config["batch_size"]

    def actions() -> torch.Tensor:
        return torch.rand(size, config["act_dim"]) * 1.8 - 0.9

    batch = TorchMiniBatch(
        observations=torch.randn(size, config["obs_dim"]),
        actions=actions(),
        rewards=torch.randn(size, 1),
        next_observations=torch.randn(size, config["obs_dim"]),
        next_actions=actions(),
        returns_to_go=torch.randn(size, 1),
        terminals=(torch.rand(size, 1) < 0.01).float(),
        intervals=torch.ones(size, 1),
        device=config["device"],
    )

    def run(steps: int) -> None:
        for step in range(steps):
            algo.impl.update(batch, step)
        if config["device"] == "cuda":
            torch.cuda.synchronize()

    serve(run)


if __name__ == "__main__":
    main()
