"""Something of one's own at the switch: keep the pre-trained checkpoint and what it scored.

python examples/switch_callback.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from rllib_calql import CalQL, CalQLCallback, CalQLConfig

FOLDER = Path(tempfile.mkdtemp()) / "pretrained"


class KeepThePretrained(CalQLCallback):
    """Saves the pre-trained run, once, before the first online step."""

    def on_switch_to_online(self, *, algorithm: CalQL, metrics_logger: Any = None, **kwargs: Any) -> None:
        algorithm.save(str(FOLDER))
        score = algorithm.summary.score_at_switch
        print(f"switch after {algorithm.stack.num_updates} updates with score {score}: kept {FOLDER}")


def main() -> None:
    config = (
        CalQLConfig()
        .environment("rllib_calql/PointMaze-UMaze-v3")
        .offline_data(input_="pointmaze://umaze-expert")
        .training(
            num_offline_updates=1000,
            num_online_env_steps=500,
            reward_scale=10.0,
            reward_bias=-5.0,
            sparse_failure_reward=0.0,
            q_model_config={"fcnet_hiddens": [64, 64]},
            policy_model_config={"fcnet_hiddens": [64, 64]},
        )
        .evaluation(evaluation_interval=1, evaluation_duration=5)
        .callbacks(KeepThePretrained)
        .debugging(seed=0)
    )
    algo = config.build_algo()
    done = False
    while not done:
        result = algo.train()
        done = result["done"]
        print(result["calql"]["phase"], result["calql"]["num_updates"], result["calql"]["normalized_score"])
    algo.stop()


if __name__ == "__main__":
    main()
