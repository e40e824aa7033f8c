"""Checkpoints: what they hold, how the algorithm writes them and goes on from them.

A checkpoint is a folder of RLlib's own files (config, networks, optimiser; where depends on the API stack) with
`calql/run.json` (counters, scores, seeds, the dataset's name), `calql/replay/` (the online rows),
`calql/reference.npz` (the reference value, where one is learned) and a manifest of all files, written last. The
offline dataset is referenced, never copied.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray.cloudpickle
from pyarrow.fs import FileSystem, LocalFileSystem, copy_files
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_LEARNER_GROUP
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.policy.sample_batch import DEFAULT_POLICY_ID
from ray.tune import Checkpoint

from rllib_calql.core.reference import ReferenceValue
from rllib_calql.data import DatasetError, Transitions
from rllib_calql.data.replay_files import ReplayFiles, share
from rllib_calql.data.whole import CheckpointError, check_whole, recover, whole_folder
from rllib_calql.dataset import check_same_data
from rllib_calql.envs.creation import RECORDED
from rllib_calql.metrics import RunSummary

if TYPE_CHECKING:
    from rllib_calql.algorithm import CalQL
    from rllib_calql.config import CalQLConfig

RUN = "calql/run.json"
REPLAY = "calql/replay"
REFERENCE = "calql/reference.npz"
_POLICY_STACK_CONFIG = "algorithm_state.pkl"


@contextmanager
def local_checkpoint(path: str | Path | Checkpoint, filesystem: FileSystem | None = None) -> Iterator[Path]:
    """The local folder of a checkpoint, every file of it checked; downloaded where it is elsewhere.

    Raises:
        CheckpointError: there is none, or it is not whole.
    """
    if isinstance(path, Checkpoint):
        path, filesystem = path.path, path.filesystem
    filesystem, location = resolve(path, filesystem)
    if isinstance(filesystem, LocalFileSystem):
        folder = recover(location)
        check_whole(folder)
        yield folder
    else:
        with tempfile.TemporaryDirectory() as copy:
            copy_files(location, copy, source_filesystem=filesystem)
            check_whole(copy)
            yield Path(copy)


def resolve(path: str | Path, filesystem: FileSystem | None = None) -> tuple[FileSystem, str]:
    """The file system of a path or URI, and the path in it."""
    if filesystem is not None:
        return filesystem, str(path)
    if "://" in str(path):
        return FileSystem.from_uri(str(path))
    return LocalFileSystem(), str(Path(path).expanduser().absolute())


def saved_on_policy_stack(folder: Path) -> bool:
    """Whether the checkpoint was written on RLlib's Policy stack."""
    return not (folder / COMPONENT_LEARNER_GROUP).exists()


def saved_config(folder: Path) -> tuple[type[CalQL], CalQLConfig]:
    """The class and the config of the run that a (whole, local) checkpoint is of."""
    if saved_on_policy_stack(folder):
        state = _unpickled(folder / _POLICY_STACK_CONFIG)
        algorithm_class, config = state["algorithm_class"], state["config"]
    else:
        state = _unpickled(folder / "class_and_ctor_args.pkl")
        algorithm_class, config = state["class"], state["ctor_args_and_kwargs"][0][0]
    return algorithm_class, algorithm_class.get_default_config().from_state(config)


def saved_update(folder: Path) -> dict[str, Any]:
    """The state of the update (`Update.get_state`) in a (whole, local) checkpoint of either API stack."""
    if not saved_on_policy_stack(folder):
        return _unpickled(folder / COMPONENT_LEARNER_GROUP / COMPONENT_LEARNER / "state.pkl")["update"]
    state = _unpickled(folder / "policies" / DEFAULT_POLICY_ID / "policy_state.pkl")
    return {**state["update"], "weights": state["weights"]}


def checkpoint_weights(path: str, own: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Networks, temperatures and normaliser of a CalQL checkpoint (networks know no other normaliser).

    Raises:
        CheckpointError: there is no whole checkpoint. ValueError: it is of other networks than `own`.
    """
    try:
        with local_checkpoint(path) as folder:
            weights: dict[str, np.ndarray] = saved_update(folder)["weights"]
    except CheckpointError as error:
        raise CheckpointError(f"load_weights_from={path!r}: {error}") from error
    if others := weights.keys() ^ own.keys():
        raise ValueError(
            f"load_weights_from={path!r}: that run has other networks than this one "
            f"({', '.join(sorted(others))}): another update_rule, architecture or kind of observations"
        )
    return weights


def _set_episodes(states: dict[int, dict[str, Any]], others: int | None, runner: Any) -> None:
    """Lets a runner go on with its episodes; one without a counterpart begins others than any had, or its own."""
    if runner.worker_index in states:
        runner.set_episode_state(states[runner.worker_index])
    elif others is not None:
        runner.begin_other_episodes(others)


def _unpickled(file: Path) -> Any:
    with file.open("rb") as stream:
        return ray.cloudpickle.load(stream)


class Checkpoints(Algorithm):
    """The part of the algorithm that saves and restores; RLlib's methods of these names, both API stacks."""

    config: CalQLConfig
    dataset: dict[str, str] | None  # name and fingerprint
    reward_factor: float
    score_range: tuple[float, float] | None
    summary: RunSummary
    reference_value: ReferenceValue | None
    use_reference: Callable[[ReferenceValue], None]
    stack: Any
    _replay_files: ReplayFiles
    _checkpoint: Path | None = None  # the last one saved or restored; the next one links its files
    _weights_to_load: str | None
    _storage: Any  # Tune's

    def save(self, checkpoint_dir: str | None = None) -> Any:
        """Saves a checkpoint into `checkpoint_dir`; without one where Tune, which runs this, keeps them."""
        earlier, storage = self._checkpoint, self._storage
        if checkpoint_dir is not None:
            # Tune counts its checkpoints elsewhere: one that it does not know of would be overwritten by another.
            self._storage = None
        try:
            result = super().save(checkpoint_dir)
        finally:
            self._storage = storage
        folder = Path(result.checkpoint.path)
        if isinstance(result.checkpoint.filesystem, LocalFileSystem) and folder != self._checkpoint:
            if earlier is not None:  # Tune has copied the folder, and with it what two checkpoints shared
                share(folder / REPLAY, earlier / REPLAY)
            self._lies_in(folder)
        return result

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Writes everything that a restored run needs; the folder is whole or, if that fails, as it was before.

        Raises:
            CheckpointError: there are other files in the folder. OSError: no room.
        """
        self.take_in_requested()
        self.load_initial_weights()
        with whole_folder(checkpoint_dir, linked=self._checkpoint) as folder:
            self.stack.save(folder)
            self._replay_files.save(folder / REPLAY)
            (folder / RUN).write_text(json.dumps(self._run_state(), indent=1))
            if self.reference_value is not None:
                np.savez(folder / REFERENCE, **self.reference_value.get_state())  # type: ignore[arg-type]
        self._lies_in(Path(checkpoint_dir).absolute())

    def save_to_path(
        self,
        path: str | Path | None = None,
        *,
        state: Any = None,
        filesystem: FileSystem | None = None,
        **kwargs: Any,
    ) -> str:
        """RLlib's other name for `save`; it also takes URIs and file systems.

        Raises:
            ValueError: a part of the state alone is to be saved.
        """
        if state is not None:
            raise ValueError("a CalQL checkpoint is always of the whole run: leave out `state`")
        filesystem, location = resolve(path or tempfile.mkdtemp(), filesystem)
        if isinstance(filesystem, LocalFileSystem):
            self.save_checkpoint(location)
        else:
            with tempfile.TemporaryDirectory() as folder:
                self.save_checkpoint(folder)
                copy_files(folder, location, destination_filesystem=filesystem)
        return str(path or location)

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Takes over a checkpoint (what `restore` does)."""
        self.restore_from_path(checkpoint_dir)
        make_callback(
            "on_checkpoint_loaded",
            callbacks_objects=self.callbacks,
            callbacks_functions=self.config.callbacks_on_checkpoint_loaded,
            kwargs={"algorithm": self},
        )

    def restore_from_path(
        self,
        path: str | Path,
        *,
        component: str | None = None,
        filesystem: FileSystem | None = None,
        **kwargs: Any,
    ) -> None:
        """Goes on where a checkpoint was saved, by either API stack, with these runners and this dataset.

        Raises:
            CheckpointError: the checkpoint is not whole. DatasetError: it is of a run on other data.
        """
        if component is not None:
            super().restore_from_path(path, component=component, filesystem=filesystem, **kwargs)
            return
        with local_checkpoint(path, filesystem) as folder:
            self._load(folder)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path | Checkpoint,
        filesystem: FileSystem | None = None,
        *,
        input_: str | Path | Transitions | Callable[[], Transitions] | None = None,
        input_config: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Builds the run that a checkpoint is of, and goes on where it was saved.

        Args:
            path: folder or URI, or Tune's `Checkpoint`.
            filesystem: of `path`, where it is not given by a URI.
            input_: the dataset, where it has been moved or was given in memory; data other than the run's are
                taken with a warning.
            input_config: options of its reader. By default the run's; where `input_` is no name or path, those
                of them that are not the reader's.
            **kwargs: refused: to change the config, build it and `restore`.

        Raises:
            CheckpointError: there is no whole checkpoint. DatasetError: the data are not the run's, or gone.
        """
        if kwargs:
            raise ValueError(
                f"from_checkpoint does not take {sorted(kwargs)}: to go on under another config, build that one "
                "and call restore(path)"
            )
        if input_config is not None and input_ is None:
            raise ValueError("input_config goes with input_: without it the run's own data and options are used")
        with local_checkpoint(path, filesystem) as folder:
            algorithm_class, config = saved_config(folder)
            if input_ is not None:
                recorded = {name: value for name, value in config.env_config.items() if name == RECORDED}
                options = config.input_config if input_config is None else input_config
                if input_config is None and not isinstance(input_, (str, Path, list, tuple)):
                    options = {name: value for name, value in options.items() if name == "actions_normalized"}
                config.offline_data(input_=input_, input_config=options)
                config.env_config |= recorded  # the run's environment, whatever these data tell of theirs
                # Rewards keep the scale that the critics have learned, whatever these data's returns are.
                factor = json.loads((folder / RUN).read_text())["reward_factor"]
                config.training(reward_scale=config.reward_scale * factor, normalize_reward=False)
            try:
                algorithm = algorithm_class(config)
            except DatasetError as error:
                if input_ is not None:
                    raise
                raise DatasetError(
                    f"{error} (data that have moved or were in memory: from_checkpoint(path, input_=...))"
                ) from error
            algorithm._load(folder, other_data=input_ is not None)
        return algorithm

    def _load(self, folder: Path, other_data: bool = False) -> None:
        run = json.loads((folder / RUN).read_text())
        check_same_data(run["dataset"], self.dataset, other_data)
        if other_data and self.score_range is None and run["score_range"] is not None:
            self.score_range = tuple(run["score_range"])  # these data may not tell what the run's did
        if self.stack.requested:
            self.stack.collect()  # under other weights, for another run
        if saved_on_policy_stack(folder) == (not self.config.enable_rl_module_and_learner):
            self.stack.load(folder)
        else:
            self.stack.load_update(saved_update(folder))
            self._iteration = run["training_iteration"]
        self._weights_to_load = None
        if self.config.learns_reference and (folder / REFERENCE).exists():
            with np.load(folder / REFERENCE) as arrays:
                self.use_reference(ReferenceValue.from_state(arrays))
        self._replay_files.restore(folder / REPLAY)
        self.local_replay_buffer.set_state(run["replay"])
        self.summary = RunSummary.from_state(run["summary"])
        self.summary.earn_by(self.config.utd_ratio, self.config.warmup_env_steps)
        for name, group in self._runner_groups():
            states = {int(index): state for index, state in run["runners"].get(name, {}).items()}
            others = self.summary.num_online_env_steps if name == "training" else None
            group.foreach_env_runner(partial(_set_episodes, states, others))
        self._lies_in(folder)

    def _runner_groups(self) -> Iterator[tuple[str, EnvRunnerGroup]]:
        """Runners whose episodes go on with a checkpoint: those of evaluations do if the config has no seed."""
        yield "training", self.env_runner_group
        if self.eval_env_runner_group is not None and self.evaluation_config.seed is None:
            yield "evaluation", self.eval_env_runner_group

    def _lies_in(self, folder: Path) -> None:
        """Tells where the last checkpoint is: the next one links its files."""
        self._checkpoint, self._replay_files.folder = folder, folder / REPLAY

    def _run_state(self) -> dict[str, Any]:
        runners = {
            name: dict(group.foreach_env_runner(lambda runner: (runner.worker_index, runner.episode_state())))
            for name, group in self._runner_groups()
        }
        return {
            "training_iteration": self.training_iteration,
            "dataset": self.dataset,
            "reward_factor": self.reward_factor,
            "score_range": self.score_range,
            "summary": self.summary.get_state(),
            "replay": self.local_replay_buffer.get_state(),
            "runners": runners,
        }
