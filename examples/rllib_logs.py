"""From RLlib's own logs to Cal-QL: PPO on Pendulum writes down what it does, and Cal-QL goes on from there.

python examples/rllib_logs.py
"""

from __future__ import annotations

import tempfile
import warnings

from ray.rllib.algorithms.ppo import PPOConfig

from rllib_calql import CalQLConfig, open_dataset
from rllib_calql.data import DatasetWarning


def write_logs(folder: str, iterations: int) -> None:
    """Any RLlib algorithm logs with `offline_data(output=...)`."""
    config = (
        PPOConfig()
        .environment("Pendulum-v1")
        .env_runners(num_env_runners=0, num_envs_per_env_runner=4)
        .training(train_batch_size_per_learner=800, minibatch_size=200, num_epochs=5, lr=1e-3)
        # One step per row, as plain numbers. RLlib's default, whole episodes, needs `pip install msgpack-numpy`.
        .offline_data(output=folder, output_write_episodes=False, output_compress_columns=[])
    )
    algo = config.build_algo()
    for _ in range(iterations):
        algo.train()
    algo.stop()


def main(iterations: int = 3, num_offline_updates: int = 500, num_online_env_steps: int = 400) -> None:
    folder = tempfile.mkdtemp(prefix="pendulum-logs-")
    write_logs(folder, iterations)
    # PPO's actions are not bounded; RLlib clips them when it acts, and so does Cal-QL, saying so.
    warnings.filterwarnings("ignore", "(?s).*actions outside the bounds", DatasetWarning)
    data = open_dataset(folder)
    mean_return = data.rewards.sum() / data.num_episodes
    print(f"{len(data)} steps in {data.num_episodes} episodes, mean return {mean_return:.0f}")
    config = (
        CalQLConfig()
        .environment("Pendulum-v1")
        .offline_data(input_=folder)
        .training(
            num_offline_updates=num_offline_updates,
            num_online_env_steps=num_online_env_steps,
            reward_scale=0.1,
            # Dense negative rewards and time-outs: 0 after the time-out would put the bound far too high.
            truncation_mode="drop",
            q_model_config={"fcnet_hiddens": [64, 64]},
            policy_model_config={"fcnet_hiddens": [64, 64]},
            actor_lr=1e-3,
            critic_lr=1e-3,
        )
        .evaluation(evaluation_interval=1, evaluation_duration=3)
        .debugging(seed=0)
    )
    algo = config.build_algo()
    done = False
    while not done:
        result = algo.train()
        done = result["done"]
        episode_return = result["evaluation"]["env_runners"]["episode_return_mean"]
        print(result["calql"]["phase"], result["calql"]["num_updates"], f"return {episode_return:.0f}")
    algo.stop()


if __name__ == "__main__":
    main()
