"""Ray Data as a source: order, episodes across blocks, the folder it is streamed to, few CPUs."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from ray.data import DataContext, Dataset

from rllib_calql import CalQL, ray_data
from rllib_calql.data import DatasetError, Transitions
from tests.test_resume import small_config

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    context = DataContext.get_current()
    before, context.enable_progress_bars = context.enable_progress_bars, False
    yield
    context.enable_progress_bars = before


def table_of(data: Transitions, rows: slice = slice(None)) -> pa.Table:
    numbers = np.arange(len(data))[rows]
    return pa.table(
        {
            "obs": list(data.observations[rows]),
            "action": list(data.actions[rows]),
            "reward": data.rewards[rows],
            "truncated": data.truncated[rows],
            "next_obs": list(data.next_observations(numbers)),
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pendulum_data: Transitions) -> Path:
    """Seven Parquet files, between which episodes go on; later ones are smaller and ready sooner."""
    path = tmp_path_factory.mktemp("parts")
    borders = [0, 390, 620, 777, 870, 940, 985, len(pendulum_data)]
    for number, (start, end) in enumerate(itertools.pairwise(borders)):
        pq.write_table(table_of(pendulum_data, slice(start, end)), path / f"part-{number}.parquet")
    return path


def test_rows_come_in_order_and_episodes_cross_blocks(
    folder: Path, tmp_path: Path, pendulum_data: Transitions
) -> None:
    dataset = ray.data.read_parquet(str(folder)).map_batches(lambda rows: {**rows, "reward": 2.0 * rows["reward"]})
    before = dataset.context.execution_options.preserve_order
    found = ray_data.stream(dataset, cache=tmp_path / "caches" / "pendulum")
    assert dataset.context.execution_options.preserve_order is before
    assert found.num_episodes == 20
    np.testing.assert_array_equal(found.observations, pendulum_data.observations)
    np.testing.assert_array_equal(found.final_observations, pendulum_data.final_observations)
    np.testing.assert_array_equal(found.rewards, 2.0 * pendulum_data.rewards)
    # what is in the cache is not streamed again
    nothing: Any = None
    assert ray_data.stream(nothing, cache=tmp_path / "caches" / "pendulum").fingerprint == found.fingerprint


def test_tensors_and_columns_of_other_names(pendulum_data: Transitions) -> None:
    columns = {
        "state": pendulum_data.observations.reshape(-1, 3, 1)[..., 0],
        "act": pendulum_data.actions,
        "r": pendulum_data.rewards,
        "episode": np.repeat(np.arange(20), 50),
        "after": pendulum_data.next_observations(),
    }
    parts = [{name: column[i : i + 130] for name, column in columns.items()} for i in range(0, 1000, 130)]
    dataset = ray.data.from_arrow([_tensor_table(part) for part in parts])
    names = {"observations": "state", "actions": "act", "rewards": "r", "next_observations": "after"}
    found = ray_data.stream(dataset, columns=names)
    np.testing.assert_array_equal(found.observations, pendulum_data.observations)
    np.testing.assert_array_equal(found.truncated, pendulum_data.truncated)
    with pytest.raises(DatasetError, match="the Ray Dataset has no column 'stat'"):
        ray_data.stream(dataset, columns={**names, "observations": "stat"})


def _tensor_table(columns: dict[str, np.ndarray]) -> pa.Table:
    return pa.table(
        {
            name: pa.array(column) if column.ndim == 1 else pa.FixedShapeTensorArray.from_numpy_ndarray(column)
            for name, column in columns.items()
        }
    )


def test_runs_train_on_datasets_and_functions_that_give_them(
    folder: Path, tmp_path: Path, pendulum_data: Transitions
) -> None:
    def read() -> Dataset:
        return ray.data.read_parquet(str(folder))

    in_memory = ray.data.from_arrow(table_of(pendulum_data))
    losses = []
    for given in (pendulum_data, in_memory, read):
        config = small_config(pendulum_data, 0, normalize_observations=True).offline_data(input_=given)
        algo = config.evaluation(evaluation_interval=None).build_algo()
        losses.append(algo.train()["calql"]["critic_loss"])
        if given is read:
            algo.save(str(tmp_path / "checkpoint"))
        algo.stop()
    assert losses[0] == losses[1] == losses[2]
    restored = CalQL.from_checkpoint(str(tmp_path / "checkpoint"))  # streams again; by fingerprint the same data
    assert restored.train()["calql"]["num_updates"] == 20
    restored.stop()
    config = small_config("", 0).offline_data(input_=in_memory, input_config={"colums": {}})
    with pytest.raises(DatasetError, match="unknown option colums for a Ray Dataset: it takes columns, shapes"):
        config.build_algo()


def test_observations_may_be_kept(tmp_path: Path) -> None:
    rows = [
        {
            "observation": {"goal": [float(i)], "image": [[[i]]]},
            "action": [0.0],
            "reward": 1.0,
            "terminated": i == 3,
        }
        for i in range(4)
    ]
    kept = ray_data.stream(ray.data.from_arrow(pa.Table.from_pylist(rows)), observations="keep")
    assert set(kept.observations) == {"goal", "image"}


def test_datasets_that_cannot_be_used(pendulum_data: Transitions) -> None:
    dataset = ray.data.from_arrow(table_of(pendulum_data))
    with pytest.raises(DatasetError, match="the Ray Dataset has no column for rewards"):
        ray_data.stream(dataset.drop_columns(["reward"]))
    with pytest.raises(DatasetError, match="the Ray Dataset has no column that says where episodes end"):
        ray_data.stream(dataset.drop_columns(["truncated"]))


# Arguments: the folder of Parquet files.
PROGRAM = """
import sys
import ray
from rllib_calql import ray_data
from rllib_calql.data import DatasetError
from tests.test_resume import small_config

ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False)
dataset = ray.data.read_parquet(sys.argv[1])
algo = small_config(dataset, 2, num_offline_updates=10).evaluation(evaluation_interval=None).build_algo()
for _ in range(2):
    print(algo.train()["calql"]["num_online_env_steps"])
try:  # the two runners have taken both CPUs
    ray_data.stream(dataset)
except DatasetError as error:
    print(error)
algo.stop()
"""


def test_two_cpus_are_enough_and_none_is_an_error(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)],
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second, message = done.stdout.splitlines()
    assert (int(first), int(second)) == (0, 100)
    assert message.startswith("Ray Data needs a free CPU to read with")
