"""Training from several datasets with weights: settings, statistics, a run with a checkpoint in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rllib_calql import CalQL, CalQLConfig
from rllib_calql.cli import experiments
from rllib_calql.data import DatasetError, Metadata, Mixture, Transitions, write_dataset
from rllib_calql.data.rows import OneChunk, Rows
from rllib_calql.dataset import IN_MEMORY, observation_statistics, open_offline_data, without_rows
from tests.conftest import collect_pendulum
from tests.test_config import online_config
from tests.test_resume import small_config


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """4 and 8 episodes of 50 steps."""
    root = tmp_path_factory.mktemp("datasets")
    paths = [str(root / name) for name in ("one", "other")]
    for path, episodes in zip(paths, (4, 8), strict=True):
        write_dataset(collect_pendulum(episodes, seed=episodes), path)
    return paths


def weighted(paths: list[str]) -> list[Any]:
    return [{"input": paths[0], "weight": 3.0}, {"input": paths[1], "weight": 1.0}]


def test_a_list_is_a_valid_input(folders: list[str]) -> None:
    for input_ in (folders, weighted(folders), [Path(folders[0]), collect_pendulum(1)]):
        config = online_config().offline_data(input_=input_)
        config.validate()
        assert online_config().update_from_dict({"input": input_}).input_ == input_
    for bad, message in (
        ([], "the list of datasets is empty"),
        ([3], r"or a list of these .*, not int"),
        ([{"input": "a", "weight": -1}], "must be a number above 0"),
        ([{"path": "a"}], r"or a list of these .*, not dict"),
    ):
        with pytest.raises(ValueError, match=message):
            online_config().offline_data(input_=bad).validate()


def test_copies_of_a_config_share_the_rows() -> None:
    data = collect_pendulum(1)
    config = online_config().offline_data(input_=[{"input": data, "weight": 1.0}])
    assert config.copy(copy_frozen=False).input_[0]["input"] is data
    assert without_rows(config).input_ == IN_MEMORY
    by_name = online_config().offline_data(input_=["a", "b"])
    assert without_rows(by_name) is by_name


def test_paths_beside_an_experiment_file_are_found(tmp_path: Path) -> None:
    for name in ("one.hdf5", "other.hdf5"):
        (tmp_path / name).touch()
    file = tmp_path / "experiment.yaml"
    file.write_text(
        "a: {run: CalQL, config: {input_: [{input: one.hdf5, weight: 2}, {input: other.hdf5, weight: 1.5}]}}"
    )
    spec = experiments.load_file(str(file))["a"]
    assert spec["config"]["input_"] == [
        {"input": str(tmp_path / "one.hdf5"), "weight": 2},
        {"input": str(tmp_path / "other.hdf5"), "weight": 1.5},
    ]


def test_the_normaliser_counts_each_dataset_with_its_share() -> None:
    one, other = collect_pendulum(2), collect_pendulum(6, seed=9)
    repeated = Transitions.concatenate([one] * 9 + [other])  # 900 and 300 rows: shares 3/4 and 1/4
    expected = observation_statistics(repeated)
    for name, values in observation_statistics(Mixture((one, other), (3.0, 1.0))).items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-6)
    expected = observation_statistics(Transitions.concatenate([one, other]))
    for name, values in observation_statistics(Mixture((one, other))).items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-6)


def test_each_dataset_knows_whether_its_actions_are_normalised() -> None:
    data = collect_pendulum(1)
    (rows,) = data.chunks()
    halved = Rows(**{**vars(rows), "actions": np.asarray(rows.actions) / 2})
    normalised = Transitions.from_source(OneChunk(halved, Metadata(actions_normalized=True)))
    config = CalQLConfig().environment("Pendulum-v1").offline_data(input_=[data, normalised])
    env = gym.make("Pendulum-v1")
    mixture = open_offline_data(config, env.observation_space, env.action_space).rows
    assert isinstance(mixture, Mixture)
    one, other = (part.scaled_actions() for part in mixture.parts)
    np.testing.assert_allclose(one, other, atol=1e-6)
    # rewards are normalised by the range of all returns
    parts = [data, collect_pendulum(5, seed=3)]
    config.training(normalize_reward=True).offline_data(input_=parts)
    factor = open_offline_data(config, env.observation_space, env.action_space).reward_factor
    returns = [float(episode.rewards.sum()) for part in parts for episode in part.episodes()]
    assert factor == pytest.approx(1000 / (max(returns) - min(returns)), rel=1e-5)


def test_datasets_that_do_not_fit(folders: list[str]) -> None:
    wide = Transitions.from_episode(np.zeros((3, 4)), np.zeros((2, 1)), np.zeros(2), True)
    config = online_config().offline_data(input_=[folders[0], wide])
    with pytest.raises(DatasetError, match="datasets of a mixture have different"):
        config.plan()


def test_the_plan_tells_of_the_mixture(folders: list[str]) -> None:
    data = online_config().offline_data(input_=weighted(folders)).plan()["data"]
    assert data["dataset"] == "2 datasets"
    assert data["transitions"] == 600
    assert data["episodes"] == 12
    assert data["shares of a batch"] == "0.75, 0.25"


def test_a_run_with_a_checkpoint(folders: list[str], ray_session: None, tmp_path: Path) -> None:
    config = small_config(folders[0], 0, num_offline_updates=6, num_online_env_steps=50)
    config.offline_data(input_=weighted(folders)).evaluation(evaluation_interval=None)
    algo = config.build_algo()
    assert algo.train()["calql"]["num_updates"] > 0
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    again = CalQL.from_checkpoint(path)
    for result in (algo.train(), again.train()):
        assert np.isfinite(result["calql"]["critic_loss"])
    one, other = (each.get_policy().get_weights() for each in (algo, again))
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
    algo.stop()
    again.stop()
