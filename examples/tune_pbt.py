"""Population based training: trials that do badly go on from a good one's checkpoint, with changed settings.

python examples/tune_pbt.py --num-samples 4

Learning rates, weights and the like hold from the next update on; what shapes networks or data cannot be mutated.
`calql sweep FOLDER` draws the curves.
"""

from __future__ import annotations

import argparse

from ray import tune
from ray.tune.schedulers import PopulationBasedTraining

from rllib_calql import CalQLConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-samples", type=int, default=4)
    parser.add_argument("--num-offline-updates", type=int, default=4000)
    parser.add_argument("--num-online-env-steps", type=int, default=2000)
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
    )
    population = PopulationBasedTraining(
        time_attr="training_iteration",
        perturbation_interval=3,
        hyperparam_mutations={
            "actor_lr": tune.loguniform(1e-4, 3e-3),
            "critic_lr": tune.loguniform(1e-4, 3e-3),
            "min_q_weight": [1.0, 5.0],
        },
    )
    tuner = tune.Tuner(
        "CalQL",
        param_space=config,
        tune_config=tune.TuneConfig(
            metric="calql/normalized_score", mode="max", num_samples=options.num_samples, scheduler=population
        ),
        run_config=tune.RunConfig(name="calql-pbt"),
    )
    results = tuner.fit()
    best = results.get_best_result()
    assert best.metrics is not None
    assert best.config is not None
    print(f"best score {best.metrics['calql']['normalized_score']:.2f}, at last with")
    for name in ("actor_lr", "critic_lr", "min_q_weight"):
        print(f"  {name} = {best.config[name]:g}")
    print(f"calql sweep {results.experiment_path}")


if __name__ == "__main__":
    main()
