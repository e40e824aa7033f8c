"""The environment that a dataset was recorded in: made again, compared, and trained in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rllib_calql import CalQLConfig
from rllib_calql.cli.episodes import environment_of
from rllib_calql.data import DatasetError, DatasetWarning, Transitions, open_source
from rllib_calql.data.rows import Metadata
from rllib_calql.envs.creation import make_env
from rllib_calql.envs.recorded import differences, goes_on_after_success, make_recorded, with_kwargs
from tests.minari_sets import point_maze, record, towards_goal

NEAR_GOAL = {"reset_cell": np.array([1, 1]), "goal_cell": np.array([1, 2])}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`maze/plain-v0`, `maze/medium-v0` (evaluated in a larger maze) and `pendulum/long-v0`."""
    folder = tmp_path_factory.mktemp("minari")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder))
        record("maze/plain-v0", point_maze(), "hdf5", towards_goal, options=NEAR_GOAL)
        record("maze/medium-v0", point_maze(), "hdf5", max_steps=3, eval_env="PointMaze_Medium-v3")
        record("pendulum/long-v0", gym.make("Pendulum-v1", max_episode_steps=30, g=9.0), "hdf5")
        yield folder


def spec_of(env: gym.Env) -> str:
    assert env.spec is not None
    return env.spec.to_json()


def changed(environment: str, **changes: Any) -> str:
    return json.dumps({**json.loads(environment), **changes})


# --- made again ---


def test_arguments_and_time_limit_come_back(datasets: Path) -> None:
    environment = str(open_source("minari://pendulum/long-v0").metadata.environment)
    env = make_recorded(environment)
    assert env.spec is not None
    assert (env.spec.id, env.spec.max_episode_steps, env.unwrapped.g) == ("Pendulum-v1", 30, 9.0)
    assert make_recorded(environment, g=8.0).unwrapped.g == 8.0
    assert differences(Metadata(environment=environment), env) == []


def test_the_evaluation_environment_comes_first(datasets: Path) -> None:
    source = open_source("minari://maze/medium-v0", end_at_success=True)
    env = make_recorded(str(source.metadata.environment))
    assert env.spec is not None
    assert (env.spec.id, env.spec.kwargs["continuing_task"]) == ("PointMaze_Medium-v3", False)
    assert differences(source.metadata, env) == []


def test_wrappers_of_gymnasium_come_back() -> None:
    env = gym.wrappers.RescaleAction(gym.make("Pendulum-v1"), np.float32(-1), np.float32(1))
    wrapped = json.loads(spec_of(gym.wrappers.FlattenObservation(gym.make("Pendulum-v1"))))
    assert wrapped["additional_wrappers"][0]["name"] == "FlattenObservation"
    again = make_recorded(json.dumps(wrapped))
    assert isinstance(again, gym.wrappers.FlattenObservation)
    wrapped["additional_wrappers"][0]["entry_point"] = "somebody.wrappers:Own"
    with pytest.raises(
        DatasetError, match=r"through the wrapper somebody\.wrappers:Own, which is not gymnasium's own"
    ):
        make_recorded(json.dumps(wrapped))
    env.close()


def test_recorded_code_is_not_run(tmp_path: Path) -> None:
    spec = spec_of(gym.make("Pendulum-v1"))
    hostile = changed(spec, entry_point="os:system", kwargs={"command": f"touch {tmp_path}/x"})
    with pytest.raises(DatasetError, match="the recorded environment Pendulum-v1 cannot be made"):
        make_recorded(hostile)
    with pytest.raises(
        DatasetError, match=r"environment Own-v0 \(os:system\) is not registered.*import the package"
    ):
        make_recorded(changed(hostile, id="Own-v0"))
    assert not (tmp_path / "x").exists()
    assert make_recorded(changed(spec, entry_point="os:system")).spec.id == "Pendulum-v1"


@pytest.mark.parametrize(
    "environment",
    ["", "[]", "{}", "[" * 5000, '{"id": "X", "kwargs": 3}', '{"id": "X", "max_episode_steps": "many"}'],
)
def test_descriptions_that_are_none(environment: str) -> None:
    with pytest.raises(DatasetError, match="not the JSON of a gymnasium EnvSpec"):
        make_recorded(environment)


def test_old_descriptions_are_understood() -> None:
    """gymnasium before 1.0 wrote more fields."""
    spec = changed(spec_of(gym.make("Pendulum-v1")), autoreset=False, apply_api_compatibility=False)
    assert make_recorded(spec).spec.id == "Pendulum-v1"


def test_mazes_go_on_unless_told_otherwise() -> None:
    spec = spec_of(point_maze())
    assert goes_on_after_success(spec)
    assert not goes_on_after_success(with_kwargs(spec, continuing_task=False))
    assert not goes_on_after_success(spec_of(gym.make("Pendulum-v1")))


# --- compared ---


@pytest.mark.parametrize(
    ("kwargs", "found"),
    [
        ({}, []),
        ({"reward_type": "dense"}, ["reward_type: recorded sparse, configured dense"]),
        ({"maze_map": [[1, 1, 1, 1], [1, 0, 0, 1], [1, 1, 1, 1]]}, ["maze_map: another maze"]),
        ({"continuing_task": False}, ["continuing_task: recorded True, configured False"]),
        ({"continuing_task": True, "reset_target": False}, []),  # the defaults
        ({"max_episode_steps": 300}, ["max_episode_steps: recorded 60, configured 300"]),
        ({"render_mode": "rgb_array"}, []),
    ],
)
def test_what_differs_in_a_maze(datasets: Path, kwargs: dict[str, Any], found: list[str]) -> None:
    metadata = open_source("minari://maze/plain-v0", end_at_success=False).metadata
    assert differences(metadata, point_maze(**kwargs)) == found


def test_what_differs_elsewhere(datasets: Path) -> None:
    metadata = open_source("minari://maze/plain-v0", end_at_success=False).metadata
    found = differences(metadata, gym.make("Pendulum-v1", max_episode_steps=60))
    assert [line.partition(":")[0] for line in found] == ["observation space", "action space", "id"]
    assert found[2] == "id: recorded PointMaze_UMaze-v3, configured Pendulum-v1"
    # The same numbers in one vector are the same.
    assert differences(metadata, gym.wrappers.FlattenObservation(point_maze())) == []
    bounds = gym.wrappers.RescaleAction(point_maze(), np.full(2, -2, np.float32), np.full(2, 2, np.float32))
    assert [line.partition(":")[0] for line in differences(metadata, bounds)] == ["action space"]
    assert differences(Metadata(), gym.make("Pendulum-v1")) == []


# --- in RLlib ---


def config(**changes: Any) -> CalQLConfig:
    settings = {"num_offline_updates": 2, "num_online_env_steps": 1, "train_batch_size": 8}
    networks = {"fcnet_hiddens": [8], "fcnet_activation": "relu"}
    return CalQLConfig().training(
        **{**settings, "policy_model_config": networks, "q_model_config": networks, **changes}
    )


@pytest.mark.parametrize("new_stack", [False, True])
def test_from_dataset(datasets: Path, ray_session: None, new_stack: bool) -> None:
    """Trains offline and online in the recorded environment; the goal ends its episodes as it ends the data's."""
    made = (
        config().api_stack(new_stack, new_stack).environment("from_dataset", env_config={"reward_type": "sparse"})
    )
    made.offline_data(input_="minari://maze/plain-v0", input_config={"end_at_success": True})
    made.evaluation(evaluation_interval=1, evaluation_duration=1, evaluation_num_env_runners=int(not new_stack))
    plan = made.plan()
    assert plan["environment"]["time limit"] == 60
    algo = made.build_algo()
    env: Any = algo.stack.env.unwrapped
    assert (env.spec.id, env.continuing_task) == ("PointMaze_UMaze-v3", False)
    result = algo.train()
    while not result["done"]:
        result = algo.train()
    assert result["calql"]["num_online_episodes"] == 1
    algo.stop()


def test_from_dataset_follows_the_dataset(datasets: Path) -> None:
    made = config().environment("from_dataset").offline_data(input_="minari://pendulum/long-v0")
    made.validate()
    assert make_env(made.env, made.env_config).spec.id == "Pendulum-v1"
    made.offline_data(input_="minari://maze/medium-v0", input_config={"end_at_success": True})
    made.validate()
    assert make_env(made.env, made.env_config).spec.id == "PointMaze_Medium-v3"
    made.environment("Pendulum-v1").validate()
    assert made.env_config == {}
    # Observations are flattened by `open_dataset` and no concern of the reader.
    made.environment("from_dataset").offline_data(
        input_=[{"input": "minari://maze/plain-v0", "observations": "flatten"}],
        input_config={"end_at_success": True, "observations": "flatten"},
    )
    made.validate()
    for unknown in (lambda: None, [lambda: None]):
        with pytest.raises(ValueError, match=r"environment\('from_dataset'\) needs a dataset"):
            config().environment("from_dataset").offline_data(input_=unknown).validate()
    longer = config().environment("from_dataset", env_config={"max_episode_steps": 7})
    longer.offline_data(input_="minari://pendulum/long-v0").validate()
    assert make_env(longer.env, longer.env_config).spec.max_episode_steps == 7


def test_another_environment_on_the_command_line(datasets: Path) -> None:
    made = config().environment("from_dataset").offline_data(input_="minari://pendulum/long-v0")
    made.validate()
    saved = made.to_dict()
    assert environment_of(saved, {}, {}).spec == make_env(made.env, made.env_config).spec
    assert environment_of(saved, {"env": "MountainCarContinuous-v0"}, {}).spec.id == "MountainCarContinuous-v0"


def test_from_dataset_without_a_description(pendulum_data: Transitions) -> None:
    made = config().environment("from_dataset")
    with pytest.raises(ValueError, match=r"environment\('from_dataset'\) needs a dataset"):
        made.validate()
    made.offline_data(input_=pendulum_data)
    with pytest.raises(ValueError, match="does not say in which environment it was recorded"):
        made.validate()


def test_another_environment_than_recorded_is_named(datasets: Path, ray_session: None) -> None:
    made = config(num_online_env_steps=0).environment("Pendulum-v1", env_config={"g": 10.0})
    made.offline_data(input_="minari://pendulum/long-v0")
    expected = (
        r"another environment than the configured one: max_episode_steps: recorded 30, configured 200; g: rec"
    )
    with pytest.warns(DatasetWarning, match=expected):
        made.plan()
    with pytest.warns(DatasetWarning, match=expected):
        made.build_algo().stop()
