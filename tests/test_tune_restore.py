"""Tune: trials whose process is killed, experiments whose driver is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import pytest
from ray.tune import CheckpointConfig, FailureConfig, RunConfig, Tuner

from rllib_calql import CalQL
from rllib_calql.data import replay_files
from tests.conftest import collect_pendulum
from tests.test_resume import deterministic, small_config

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "pendulum.hdf5"
    data = collect_pendulum(20)
    with h5py.File(path, "w") as file:
        for name in ("observations", "actions", "rewards"):
            file[name] = getattr(data, name)
        file["terminals"], file["timeouts"] = data.terminated, data.truncated
        file["next_observations"] = data.next_observations()
    return str(path)


def tuner(trainable: Any, dataset: str, folder: Path, callbacks: Any = None) -> Tuner:
    """Six iterations, 2 offline and 4 online, with a checkpoint after each."""
    config = small_config(dataset, 0, num_online_env_steps=200)
    run_config = RunConfig(
        name="run",
        storage_path=str(folder),
        stop={"training_iteration": 6},
        checkpoint_config=CheckpointConfig(checkpoint_frequency=1),
        failure_config=FailureConfig(max_failures=1),
        callbacks=callbacks,
        verbose=0,
    )
    return Tuner(trainable, param_space=config, run_config=run_config)


def uninterrupted(dataset: str) -> dict[str, Any]:
    algo = small_config(dataset, 0, num_online_env_steps=200).build_algo()
    blocks = [deterministic(algo.train()["calql"]) for _ in range(6)]
    algo.stop()
    return blocks[-1]


def test_a_killed_trial_goes_on_from_its_last_checkpoint(dataset: str, tmp_path: Path) -> None:
    died = tmp_path / "died"

    class DiesOnce(CalQL):
        def training_step(self) -> Any:
            replay_files.FULL = 1000  # an episode fills a file
            if self.iteration == 4 and not died.exists():
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().training_step()

    (result,) = tuner(DiesOnce, dataset, tmp_path).fit()
    assert died.exists()
    assert result.error is None
    assert result.metrics is not None
    assert result.metrics["training_iteration"] == 6
    assert result.metrics_dataframe is not None
    assert list(result.metrics_dataframe["training_iteration"]) == [1, 2, 3, 4, 5, 6]
    expected = uninterrupted(dataset)
    assert deterministic(result.metrics["calql"]) == expected
    # Tune copies every checkpoint into its storage; what two of them have in common is there once
    folders = sorted(Path(result.path).glob("checkpoint_*"))
    assert len(folders) == 6
    last = (folders[-1] / "calql/replay").glob("rows-*")
    assert sorted(file.stat().st_nlink for file in last) == [1, 2, 3, 4]
    restored = CalQL.from_checkpoint(result.checkpoint)
    assert restored.training_iteration == 6
    restored.stop()


DRIVER = """
import os, signal, sys
from pathlib import Path
import ray
from ray import tune
from rllib_calql import CalQL
from tests.test_tune_restore import tuner

class Kill(tune.Callback):
    def on_checkpoint(self, iteration, trials, trial, checkpoint, **info):
        # the restored experiment has this callback too, in another process
        if trial.last_result["training_iteration"] == 4 and os.environ.get("TO_BE_KILLED"):
            os.kill(os.getpid(), signal.SIGKILL)

ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False)
tuner(CalQL, sys.argv[1], Path(sys.argv[2]), [Kill()]).fit()
"""


@pytest.mark.slow
def test_an_experiment_whose_driver_was_killed_is_restored(dataset: str, tmp_path: Path) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", DRIVER, dataset, str(tmp_path)],
        cwd=Path(__file__).resolve().parents[1],
        env={**os.environ, "TUNE_GLOBAL_CHECKPOINT_S": "0", "TO_BE_KILLED": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    restored = Tuner.restore(str(tmp_path / "run"), CalQL, resume_unfinished=True)
    (result,) = restored.fit()
    assert result.error is None
    assert result.metrics is not None
    assert deterministic(result.metrics["calql"]) == uninterrupted(dataset)
