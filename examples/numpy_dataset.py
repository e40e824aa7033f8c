"""Your own logs as numpy arrays: Pendulum driven by a hand-written controller, then Cal-QL on what it logged.

python examples/numpy_dataset.py
"""

from __future__ import annotations

import gymnasium as gym
import numpy as np

from rllib_calql import CalQLConfig, Transitions


def log_episodes(num_episodes: int) -> Transitions:
    """Flat arrays as a logger writes them: a row per step, and which rows ended an episode, and how."""
    env = gym.make("Pendulum-v1")
    rng = np.random.default_rng(0)
    columns: dict[str, list] = {
        name: [] for name in ("observations", "actions", "rewards", "terminated", "truncated", "next_observations")
    }
    for episode in range(num_episodes):
        observation, _ = env.reset(seed=episode)
        done = False
        while not done:
            cosine, sine, speed = observation
            energy = 0.5 * speed**2 + 5.0 * (cosine - 1.0)
            action = -2.0 * np.sign(speed) * np.sign(energy) if cosine < 0.9 else -(10.0 * sine + 2.0 * speed)
            action = np.clip([action + rng.normal(0.0, 0.5)], -2.0, 2.0).astype(np.float32)
            following, reward, terminated, truncated, _ = env.step(action)
            row = (observation, action, reward, terminated, truncated, following)
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
            observation, done = following, terminated or truncated
    return Transitions.from_arrays(**{name: np.asarray(values) for name, values in columns.items()})


def main() -> None:
    data = log_episodes(50)
    print(f"{len(data)} rows in {data.num_episodes} episodes")
    config = (
        CalQLConfig()
        .environment("Pendulum-v1")
        .offline_data(input_=data)
        .training(
            num_offline_updates=3000,
            num_online_env_steps=1000,
            reward_scale=0.1,
            # Dense negative rewards and time-outs: 0 after the time-out would put the bound far too high.
            truncation_mode="drop",
            score_range=(-1600.0, -150.0),  # episode returns that count as 0 and 1
            q_model_config={"fcnet_hiddens": [64, 64]},
            policy_model_config={"fcnet_hiddens": [64, 64]},
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
        episode_return = result["evaluation"]["env_runners"]["episode_return_mean"]
        print(result["calql"]["phase"], result["calql"]["num_updates"], f"return {episode_return:.0f}")


if __name__ == "__main__":
    main()
