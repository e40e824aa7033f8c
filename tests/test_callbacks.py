"""RLlib's callbacks fire as usual, and the switch has an event of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray import tune
from ray.rllib.callbacks.callbacks import RLlibCallback

from rllib_calql import CalQL, CalQLCallback, CalQLConfig, Transitions
from tests.test_resume import BOTH_STACKS, deterministic, small_config

pytestmark = pytest.mark.usefixtures("ray_session")


class Recorder(CalQLCallback):
    """Keeps what was called; those of the driver and those of its own local runners."""

    events: list[str]

    def __init__(self) -> None:
        super().__init__()
        self.events = []

    def on_algorithm_init(self, *, algorithm: Any, **kwargs: Any) -> None:
        algorithm.events = self.events
        self.events.append("init")

    def on_train_result(self, *, algorithm: Any, result: dict[str, Any], **kwargs: Any) -> None:
        result["events"] = len(self.events)
        self.events.append(f"result {result['training_iteration']} {result['calql']['phase']}")

    def on_evaluate_start(self, **kwargs: Any) -> None:
        self.events.append("evaluate")

    def on_evaluate_end(self, *, evaluation_metrics: dict[str, Any], **kwargs: Any) -> None:
        assert np.isfinite(evaluation_metrics["env_runners"]["episode_return_mean"])
        self.events.append("evaluated")

    def on_switch_to_online(self, *, algorithm: CalQL, metrics_logger: Any = None, **kwargs: Any) -> None:
        assert metrics_logger is algorithm.metrics
        counts = algorithm.update.num_updates, algorithm.summary.num_online_env_steps
        self.events.append("switch {} {}".format(*counts))

    def on_something_unheard_of(self) -> None:
        raise AssertionError


@BOTH_STACKS
def test_events_of_a_run_in_their_order(pendulum_data: Transitions, new_stack: bool) -> None:
    algo = small_config(pendulum_data, 0, new_stack, num_online_env_steps=100).callbacks(Recorder).build_algo()
    results = [algo.train() for _ in range(4)]
    evaluation = ["evaluate", "evaluated"]
    assert algo.events == [
        "init",
        *evaluation,
        "result 1 offline",
        *evaluation,
        "result 2 offline",
        "switch 20 0",
        *evaluation,
        "result 3 online",
        *evaluation,
        "result 4 online",
    ]
    assert [result["events"] for result in results] == [3, 6, 10, 13]  # what a callback adds is in the result
    algo.stop()


@BOTH_STACKS
def test_episode_events_come_from_the_runners(pendulum_data: Transitions, new_stack: bool) -> None:
    class CountSteps(RLlibCallback):
        steps = episodes = 0

        def on_episode_step(self, **kwargs: Any) -> None:
            type(self).steps += 1

        def on_episode_end(self, **kwargs: Any) -> None:
            type(self).episodes += 1

    config = small_config(pendulum_data, 0, new_stack, num_offline_updates=0).callbacks(CountSteps)
    algo = config.evaluation(evaluation_interval=None).build_algo()
    algo.train()
    algo.train()
    assert CountSteps.episodes == 2
    assert CountSteps.steps == 100
    algo.stop()


@BOTH_STACKS
def test_a_checkpoint_of_the_switch_goes_on_as_the_run_did(
    pendulum_data: Transitions, tmp_path: Path, new_stack: bool
) -> None:
    class KeepThePretrained(RLlibCallback):  # not a CalQLCallback: having the method is enough
        calls = 0

        def on_switch_to_online(self, *, algorithm: CalQL, **kwargs: Any) -> None:
            type(self).calls += 1
            algorithm.save(str(tmp_path))

    algo = small_config(pendulum_data, 0, new_stack).callbacks(KeepThePretrained).build_algo()
    expected = [algo.train() for _ in range(4)][-2:]
    weights = algo.update.weights()
    algo.stop()
    restored = CalQL.from_checkpoint(str(tmp_path), input_=pendulum_data)
    found = [restored.train() for _ in range(2)]
    assert KeepThePretrained.calls == 1
    for ours, theirs in zip(found, expected, strict=True):
        assert deterministic(ours["calql"]) == deterministic(theirs["calql"])
        assert ours["training_iteration"] == theirs["training_iteration"]
    np.testing.assert_equal(restored.update.weights(), weights)
    restored.stop()


def test_no_switch_without_an_online_phase(pendulum_data: Transitions) -> None:
    config: CalQLConfig = small_config(pendulum_data, 0, num_online_env_steps=0, num_offline_updates=10)
    algo = config.callbacks(Recorder).build_algo()
    assert algo.train()["done"]
    algo.train()
    assert not [event for event in algo.events if event.startswith("switch")]
    algo.stop()


def test_a_checkpoint_of_ones_own_does_not_meet_tunes(pendulum_data: Transitions, tmp_path: Path) -> None:
    class KeepThePretrained(CalQLCallback):
        def on_switch_to_online(self, *, algorithm: CalQL, **kwargs: Any) -> None:
            algorithm.save(str(tmp_path / "pretrained"))

    config = small_config(pendulum_data, 0, num_offline_updates=10, num_online_env_steps=100)
    run_config = tune.RunConfig(
        storage_path=str(tmp_path / "runs"),
        checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1),
        verbose=0,
    )
    (result,) = tune.Tuner("CalQL", param_space=config.callbacks(KeepThePretrained), run_config=run_config).fit()
    assert result.error is None
    found = sorted(path.name for path in Path(result.path).glob("checkpoint_*"))
    assert found == [f"checkpoint_00000{number}" for number in range(result.metrics["training_iteration"])]
    restored = CalQL.from_checkpoint(tmp_path / "pretrained", input_=pendulum_data)
    assert restored.stack.num_updates == 10
    restored.stop()
