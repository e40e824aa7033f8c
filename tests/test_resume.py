"""A run that is stopped and restored goes on exactly as one that was not; remote runners act as it has learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rllib_calql import CalQL, CalQLConfig
from rllib_calql.data import Transitions

pytestmark = pytest.mark.usefixtures("ray_session")

SMALL = {"fcnet_hiddens": [16, 16]}


BOTH_STACKS = pytest.mark.parametrize("new_stack", [False, True], ids=["policy_stack", "new_stack"])


def small_config(
    data: Transitions | Path | str, num_env_runners: int, new_stack: Any = False, **training: Any
) -> CalQLConfig:
    settings = {
        "num_offline_updates": 20,
        "num_online_env_steps": 10_000,
        "min_train_updates_per_iteration": 10,
        "train_batch_size": 32,
        "utd_ratio": 0.2,
        "policy_model_config": SMALL,
        "q_model_config": SMALL,
        "lagrangian": True,
        **training,
    }
    return (
        CalQLConfig()
        .api_stack(enable_rl_module_and_learner=new_stack, enable_env_runner_and_connector_v2=new_stack)
        .environment("Pendulum-v1", env_config={"max_episode_steps": 50})
        .offline_data(input_=data)
        .training(**settings)
        .env_runners(num_env_runners=num_env_runners)
        .evaluation(evaluation_interval=1, evaluation_duration=1)
        .debugging(seed=5)
    )


def deterministic(block: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in block.items() if not key.endswith("per_second")}


@BOTH_STACKS
@pytest.mark.parametrize(
    ("num_env_runners", "stop_after"),
    [(0, 1), (0, 2), (0, 4), (1, 4)],
    ids=["offline", "at_switch", "online", "online_remote"],
)
def test_restored_run_goes_on_bit_equal(
    pendulum_data: Transitions, tmp_path: Path, num_env_runners: int, stop_after: int, new_stack: bool
) -> None:
    config = small_config(pendulum_data, num_env_runners, new_stack)
    whole = config.build_algo()
    for _ in range(stop_after):
        whole.train()
    whole.save(str(tmp_path))
    expected = [whole.train() for _ in range(2)]
    learned = whole.stack.weights()
    expected.append(whole.train())
    expected_weights = whole.stack.weights()
    if num_env_runners:
        (acting,) = whole.env_runner_group.foreach_env_runner(
            lambda runner: runner.module.get_state() if new_stack else runner.get_weights()["default_policy"],
            local_env_runner=False,
        )
        actor = [name for name in acting if name.startswith("actor.")]
        assert actor
        for name in actor:
            np.testing.assert_array_equal(acting[name], learned[name], err_msg=name)
    whole.stop()

    restored = CalQL.from_checkpoint(str(tmp_path), input_=pendulum_data)
    found = [restored.train() for _ in range(3)]
    weights = restored.stack.weights()
    restored.stop()

    for ours, theirs in zip(found, expected, strict=True):
        assert deterministic(ours["calql"]) == deterministic(theirs["calql"])
        assert ours["training_iteration"] == theirs["training_iteration"]
        for name in ("episode_return_mean",):
            assert ours["evaluation"]["env_runners"][name] == theirs["evaluation"]["env_runners"][name]
    for name, array in expected_weights.items():
        np.testing.assert_array_equal(weights[name], array, err_msg=name)
