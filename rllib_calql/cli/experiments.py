"""From a file or a command line to checked Tune experiments: `{name: {run, stop, config, ...}}`."""

from __future__ import annotations

import copy
import inspect
import runpy
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.registry import ALGORITHMS
from ray.tune import Experiment
from ray.tune.error import TuneError
from ray.tune.registry import get_trainable_cls
from ray.tune.search.variant_generator import generate_variants

from rllib_calql import CalQL
from rllib_calql.cli.common import UserError, parse_mapping, parse_yaml
from rllib_calql.cli.options import REFUSED, TrainAlgorithmOptions, TrainFileOptions, TrainOptions
from rllib_calql.cli.search import is_written_space, with_spaces

Spec = dict[str, Any]

_REFUSED_KEYS = {
    "checkpoint_freq": "write checkpoint_config: {checkpoint_frequency: N}",
    "checkpoint_at_end": "write checkpoint_config: {checkpoint_at_end: true}",
    "keep_checkpoints_num": "write checkpoint_config: {num_to_keep: N}",
    "checkpoint_score_attr": "write checkpoint_config: {checkpoint_score_attribute: NAME}",
    "local_dir": "write storage_path",
    "upload_dir": "write storage_path",
    "resources_per_trial": REFUSED["--resources-per-trial"],
}
# Not Tune's own: these count for the whole file, as `time_budget_s` does.
SCHEDULING = ("scheduler", "scheduler_config")
_ALLOWED_KEYS = (
    ({"env", *SCHEDULING} | set(inspect.signature(Experiment).parameters)) - set(_REFUSED_KEYS) - {"name"}
)


def merged(base: Any, change: Any) -> Any:
    """`change` laid over `base`: mappings key by key, anything else (and a search space) replaced whole."""
    if not (isinstance(base, dict) and isinstance(change, dict)):
        return change
    if is_written_space(base) or is_written_space(change):
        return change
    return base | {key: merged(base.get(key), value) for key, value in change.items()}


# ---- reading -----------------------------------------------------------------------------------------------


def load_file(source: str) -> dict[str, Spec]:
    """The experiments of a .yaml file, or of a .py file that defines `config` and optionally `stop`."""
    if source.startswith(("http://", "https://")):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / (source.split("?", 1)[0].rsplit("/", 1)[-1] or "config")
            try:
                with urllib.request.urlopen(source, timeout=60) as response:
                    path.write_bytes(response.read())
            except OSError as error:
                raise UserError(f"cannot download {source}: {error}") from error
            return _load_path(path)
    path = Path(source).expanduser()
    # The tuned configs of an installed package lie beside it; in a checkout they are simply there.
    installed = Path(sys.prefix) / "share" / "rllib_calql" / path
    if not path.is_file() and installed.is_file():
        path = installed
    if not path.is_file():
        raise UserError(f"there is no file {source}")
    return _load_path(path)


def _load_path(path: Path) -> dict[str, Spec]:
    if path.suffix in (".yaml", ".yml", ".json"):
        experiments = parse_mapping(path.read_text(), str(path))
        for name, spec in experiments.items():
            if not isinstance(spec, dict):
                raise UserError(f"{path}: experiment {name!r} must be a mapping with `run`, `env`, `config`, ...")
    elif path.suffix == ".py":
        experiments = {path.stem: _load_python(path)}
    else:
        raise UserError(f"{path} is neither a .yaml nor a .py file")
    for spec in experiments.values():
        spec["config"] = dict(spec.get("config") or {})
        _absolute_input(spec["config"], path.parent)
    return experiments


def _load_python(path: Path) -> Spec:
    # run_path leaves no module behind: what the file defines is then pickled whole for Ray's processes, which
    # could not import it by name.
    variables = runpy.run_path(str(path), run_name=path.stem)
    config = variables.get("config")
    if not isinstance(config, AlgorithmConfig):
        raise UserError(f"{path} must define `config`, an AlgorithmConfig; found {type(config).__name__}")
    return {"run": config.algo_class, "config": config.to_dict(), "stop": variables.get("stop")}


def _absolute_input(config: Spec, *folders: Path) -> None:
    """Data paths made absolute, since a trial runs in a folder of its own."""
    for key in {"input_", "input", "load_weights_from"} & config.keys():
        config[key] = _absolute(config[key], folders)


def _absolute(path: Any, folders: tuple[Path, ...]) -> Any:
    """The path in the first folder that has it, the present one before all; of several datasets, each one's."""
    if isinstance(path, list):
        return [_absolute(entry, folders) for entry in path]
    if isinstance(path, dict) and "input" in path:
        return {**path, "input": _absolute(path["input"], folders)}
    if isinstance(path, str):
        for folder in (Path.cwd(), *folders):
            found = folder / Path(path).expanduser()
            if found.exists():
                return str(found.resolve())
    return path


def from_file(options: TrainFileOptions) -> dict[str, Spec]:
    experiments = load_file(options.config_file)
    if not experiments:
        raise UserError(f"{options.config_file} holds no experiment")
    if options.experiment_name:
        if len(experiments) > 1:
            raise UserError(f"--experiment-name: {options.config_file} holds {len(experiments)} experiments")
        experiments = {options.experiment_name: next(iter(experiments.values()))}
    return {name: override(name, spec, options) for name, spec in experiments.items()}


def from_command_line(options: TrainAlgorithmOptions) -> dict[str, Spec]:
    if not options.algo:
        raise UserError("name an algorithm with --algo, or a file: `rllib train file CONFIG_FILE`")
    name = options.experiment_name or "default"
    return {name: override(name, {"run": options.algo, "config": {}}, options)}


# ---- changing ----------------------------------------------------------------------------------------------


def override(name: str, spec: Spec, options: TrainOptions) -> Spec:
    """The experiment with the command line's changes; keys that Tune would drop or choke on are refused."""
    for key in spec:
        if key in _REFUSED_KEYS:
            raise UserError(f"experiment {name!r}: {key} is refused: {_REFUSED_KEYS[key]}")
        if key not in _ALLOWED_KEYS:
            raise UserError(f"experiment {name!r}: unknown key {key!r}; known are {sorted(_ALLOWED_KEYS)}")
    spec = {key: value for key, value in spec.items() if value is not None}
    if "run" not in spec:
        raise UserError(f"experiment {name!r}: `run`, the name of the algorithm, is missing")
    config = spec["config"]
    if "env" in spec:
        config["env"] = spec.pop("env")
    config = merged(config, parse_mapping(options.config, "--config"))
    for setting in options.set_ or []:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise UserError(f"--set takes KEY=VALUE, not {setting!r}")
        value = parse_yaml(text, f"--set {key}")
        for part in reversed(key.split(".")):
            value = {part: value}
        config = merged(config, value)
    if options.env is not None:
        config["env"] = options.env
    if options.dataset is not None:
        config.pop("input", None)
        config["input_"] = options.dataset
    if options.download is not None:
        if not issubclass(algorithm_class(spec["run"]), CalQL):
            raise UserError(f"--download and --no-download are for CalQL; {spec['run']} does not download data")
        # Only d4rl:// downloads anything; elsewhere there is nothing to allow or forbid.
        if str(config.get("input_", config.get("input"))).startswith("d4rl://"):
            config = merged(config, {"input_config": {"download": options.download}})
    if options.framework is not None:
        if options.framework != "torch":
            raise UserError(f"--framework {options.framework}: only torch is supported")
        config["framework"] = "torch"
    if options.vv or options.v:
        config["log_level"] = "DEBUG" if options.vv else "INFO"
    _absolute_input(config)
    spec["config"] = with_spaces(config)
    if options.scheduler is not None:
        spec["scheduler"] = options.scheduler
    if options.scheduler_config is not None:
        spec["scheduler_config"] = parse_mapping(options.scheduler_config, "--scheduler-config")

    if options.stop is not None:
        spec["stop"] = parse_mapping(options.stop, "--stop")
    if options.num_samples is not None:
        spec["num_samples"] = options.num_samples
    if options.storage_path is not None:
        spec["storage_path"] = options.storage_path
    if options.restore is not None:
        spec["restore"] = options.restore
    if "storage_path" in spec and "://" not in spec["storage_path"]:
        spec["storage_path"] = str(Path(spec["storage_path"]).expanduser().resolve())
    if "restore" in spec and not Path(spec["restore"]).expanduser().is_dir():
        raise UserError(f"experiment {name!r}: there is no checkpoint folder {spec['restore']} to restore")
    spec["checkpoint_config"] = _checkpoint_config(spec.get("checkpoint_config") or {}, options)
    return spec


def _checkpoint_config(from_file: dict[str, Any], options: TrainOptions) -> dict[str, Any]:
    """The file's, with the command line's changes; a checkpoint at the end unless either says no."""
    attribute = options.checkpoint_score_attr
    given = {
        "checkpoint_frequency": options.checkpoint_freq,
        "checkpoint_at_end": options.checkpoint_at_end,
        "num_to_keep": options.keep_checkpoints_num,
        "checkpoint_score_attribute": attribute and attribute.removeprefix("min-"),
        "checkpoint_score_order": attribute and ("min" if attribute.startswith("min-") else "max"),
    }
    return {"checkpoint_at_end": True} | from_file | {key: v for key, v in given.items() if v is not None}


# ---- checking ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """One point of an experiment's search space, with its config as the algorithm itself reads it."""

    label: str
    algorithm: type[Algorithm]
    config: AlgorithmConfig
    unknown_keys: list[str]


def algorithm_class(run: Any) -> type[Algorithm]:
    """The RLlib algorithm of this registered name (or this class); UserError where there is none."""
    if isinstance(run, str):
        try:
            run = get_trainable_cls(run)
        except TuneError as error:
            raise UserError(f"there is no algorithm {run!r}; known are {sorted(ALGORITHMS)}") from error
    if not (isinstance(run, type) and issubclass(run, Algorithm)):
        raise UserError(f"{run!r} is not an RLlib algorithm")
    return run


def variants(name: str, spec: Spec) -> Iterator[Variant]:
    """Every grid point of the experiment (random settings sampled once), validated by its algorithm.

    Raises:
        UserError: there is no such algorithm.
        Exception: whatever the algorithm's config finds wrong.
    """
    algorithm = algorithm_class(spec["run"])
    for resolved, variant in generate_variants({"config": copy.deepcopy(spec["config"])}):
        label = ", ".join([name, *(f"{path[-1]}={value}" for path, value in resolved.items())])
        config = algorithm.get_default_config()
        known = config.to_dict().keys()
        config.update_from_dict(variant["config"])
        unknown = sorted(config.to_dict().keys() - known)
        config.validate()
        if not config.env and config.input_ == "sampler":
            raise ValueError("neither an environment (--env) nor data (--dataset) is given")
        yield Variant(label, algorithm, config, unknown)
