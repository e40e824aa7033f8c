"""Cal-QL from Python: pre-train on a dataset, go on in the environment, save, restore.

python examples/python_use.py
"""

from __future__ import annotations

import tempfile

from rllib_calql import CalQL, CalQLConfig


def main() -> None:
    config = (
        CalQLConfig()
        .environment("rllib_calql/PointMaze-UMaze-v3")
        .offline_data(input_="pointmaze://umaze-expert")  # or d4rl://antmaze-umaze-v2, or a file's path
        .training(
            num_offline_updates=2000,
            num_online_env_steps=1000,
            reward_scale=10.0,
            reward_bias=-5.0,
            sparse_failure_reward=0.0,  # a failed step's reward: failures count as failing for ever
            q_model_config={"fcnet_hiddens": [128, 128]},
            policy_model_config={"fcnet_hiddens": [128, 128]},
            actor_lr=1e-3,
            critic_lr=1e-3,
        )
        .evaluation(evaluation_interval=1, evaluation_duration=5)
        .debugging(seed=0)
    )
    algo = config.build_algo()
    done = False
    while not done:
        result = algo.train()
        done = result["done"]
        block = result["calql"]
        print(block["phase"], block["num_updates"], f"success {block['success_rate']:.0%}")

    with tempfile.TemporaryDirectory() as folder:
        algo.save(folder)
        restored = CalQL.from_checkpoint(folder)
        observation, _ = restored.eval_env_runner.env.reset()
        print("action at the start:", restored.compute_single_action(observation, explore=False))


if __name__ == "__main__":
    main()
