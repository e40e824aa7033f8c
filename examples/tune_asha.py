"""A hyperparameter search with Ray Tune's ASHA: poor trials stop early.

python examples/tune_asha.py --num-samples 8
"""

from __future__ import annotations

import argparse

from ray import tune
from ray.tune.schedulers import ASHAScheduler

from rllib_calql import CalQLConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-samples", type=int, default=4)
    parser.add_argument("--num-offline-updates", type=int, default=2000)
    parser.add_argument("--num-online-env-steps", type=int, default=1000)
    options = parser.parse_args()

    config = (
        CalQLConfig()
        .environment("rllib_calql/PointMaze-UMaze-v3")
        .offline_data(input_="pointmaze://umaze-expert")
        .training(
            num_offline_updates=options.num_offline_updates,
            num_online_env_steps=options.num_online_env_steps,
            min_train_updates_per_iteration=500,
            min_env_steps_per_iteration=500,
            reward_scale=10.0,
            reward_bias=-5.0,
            sparse_failure_reward=0.0,
            q_model_config={"fcnet_hiddens": [64, 64]},
            policy_model_config={"fcnet_hiddens": [64, 64]},
            actor_lr=tune.loguniform(1e-4, 3e-3),
            critic_lr=tune.loguniform(1e-4, 3e-3),
            min_q_weight=tune.choice([1.0, 5.0]),
        )
        .evaluation(evaluation_interval=1, evaluation_duration=5)
        .debugging(seed=0)
    )
    tuner = tune.Tuner(
        "CalQL",
        param_space=config,
        tune_config=tune.TuneConfig(
            metric="calql/normalized_score",
            mode="max",
            num_samples=options.num_samples,
            scheduler=ASHAScheduler(max_t=20, grace_period=3),
        ),
    )
    best = tuner.fit().get_best_result()
    assert best.metrics is not None
    assert best.config is not None
    print(f"best score {best.metrics['calql']['normalized_score']:.2f} with")
    for name in ("actor_lr", "critic_lr", "min_q_weight"):
        print(f"  {name} = {best.config[name]:g}")


if __name__ == "__main__":
    main()
