"""From a file or a command line to checked Tune experiments: `{name: {run, stop, config, ...}}`."""

from __future__ import annotations

import copy
import inspect
import runpy
import sys
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.registry import ALGORITHMS
from ray.tune import CheckpointConfig, Experiment
from ray.tune.error import TuneError
from ray.tune.registry import get_trainable_cls
from ray.tune.search.variant_generator import generate_variants

from rllib_calql import CalQL
from rllib_calql.cli.common import UserError, parse_mapping, parse_yaml
from rllib_calql.cli.options import REFUSED, TrainAlgorithmOptions, TrainFileOptions, TrainOptions
from rllib_calql.cli.search import is_written_space, with_spaces
from rllib_calql.presets import PRESET

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
# What a YAML file gives by these keys.
_WRITTEN = {
    **dict.fromkeys(("config", "stop", "checkpoint_config", "scheduler_config"), dict),
    **dict.fromkeys(("run", "env", "scheduler", "storage_path", "restore"), str),
}
# Datasets that are fetched where they are missing.
DOWNLOADED = ("d4rl://", "minari://")
_ALLOWED_KEYS = (
    ({"env", "extends", *SCHEDULING} | set(inspect.signature(Experiment).parameters))
    - set(_REFUSED_KEYS)
    - {"name"}
)


def merged(base: Any, change: Any) -> Any:
    """`change` laid over `base`: mappings key by key, anything else (and a search space) replaced whole."""
    if not (isinstance(base, dict) and isinstance(change, dict)):
        return change
    if is_written_space(base) or is_written_space(change):
        return change
    return base | {key: merged(base.get(key), value) for key, value in change.items()}


def laid_over(config: Spec, changes: Spec) -> Spec:
    """`merged` for settings, in the order in which they count (see `presets.with_preset`).

    A preset among the changes replaces one in `config`, and counts before the other changes and after `config`.
    """
    if PRESET not in changes:
        return merged(config, changes)
    kept = {key: value for key, value in config.items() if key != PRESET and key not in changes}
    changes = {key: merged(config.get(key), value) for key, value in changes.items()}
    return kept | {PRESET: changes.pop(PRESET)} | changes


# ---- reading -----------------------------------------------------------------------------------------------


def load_file(source: str) -> dict[str, Spec]:
    """The experiments of a .yaml file, or of a .py file that defines `config` and optionally `stop`.

    An experiment with `extends: FILE` is laid over the one experiment of that file (`merged`), which may itself
    extend another. FILE is looked for beside the file that names it, then as if given on the command line.
    """
    return _load(source, ())


def _load(source: str, extending: tuple[str, ...]) -> dict[str, Spec]:
    """`load_file` of a base file: `extending` are the files on the way to it."""
    if source.startswith(("http://", "https://")):
        place = source
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / (source.split("?", 1)[0].rsplit("/", 1)[-1] or "config")
            try:
                with urllib.request.urlopen(source, timeout=60) as response:
                    path.write_bytes(response.read())
            except OSError as error:
                raise UserError(f"cannot download {source}: {error}") from error
            experiments = _load_path(path)
    else:
        path = _found(source)
        place = str(path.resolve())
        experiments = _load_path(path)
    if place in extending:
        raise UserError(f"extends goes round in a circle: {' -> '.join([*extending, place])}")
    return {name: _extended(name, spec, place, extending) for name, spec in experiments.items()}


def _found(source: str) -> Path:
    """The file as given, or that of an installed package: its tuned configs lie in the environment's share."""
    path = Path(source).expanduser()
    for candidate in (path, Path(sys.prefix) / "share" / "rllib_calql" / path):
        if candidate.is_file():
            return candidate
    raise UserError(f"there is no file {source}")


def _extended(name: str, spec: Spec, place: str, extending: tuple[str, ...]) -> Spec:
    """The experiment laid over the one that it extends; `place` is its own file."""
    base = spec.pop("extends", None)
    if base is None:
        return spec
    if not isinstance(base, str):
        raise UserError(f"{place}: experiment {name!r}: extends takes the name of a file, not {base!r}")
    if place.startswith("http"):
        base = urllib.parse.urljoin(place, base)
    elif (beside := Path(place).parent / Path(base).expanduser()).is_file():
        base = str(beside)
    try:
        experiments = _load(base, (*extending, place))
    except UserError as error:
        raise UserError(f"{place}: experiment {name!r} extends {base}: {error}") from error
    if len(experiments) != 1:
        raise UserError(f"{place}: experiment {name!r} extends {base}, which holds {len(experiments)} experiments")
    (base_spec,) = experiments.values()
    return merged(base_spec, spec) | {"config": laid_over(base_spec["config"], spec["config"])}


def _load_path(path: Path) -> dict[str, Spec]:
    if path.suffix in (".yaml", ".yml", ".json"):
        experiments = parse_mapping(path.read_text(), str(path))
        for name, spec in experiments.items():
            if not isinstance(spec, dict):
                raise UserError(f"{path}: experiment {name!r} must be a mapping with `run`, `env`, `config`, ...")
            for key in spec.keys() & _WRITTEN:
                if not (spec[key] is None or isinstance(spec[key], _WRITTEN[key])):
                    kind = "a mapping" if _WRITTEN[key] is dict else "a text"
                    raise UserError(f"{path}: experiment {name!r}: {key} must be {kind}, not {spec[key]!r}")
    elif path.suffix == ".py":
        experiments = {path.stem: _load_python(path)}
    else:
        raise UserError(f"{path} is neither a .yaml nor a .py file")
    for spec in experiments.values():
        config = spec["config"] = laid_over({}, _one_name_each(spec.get("config") or {}))
        if "env" in spec:
            config["env"] = spec.pop("env")
        _absolute_input(config, path.parent)
    return experiments


def _load_python(path: Path) -> Spec:
    # run_path leaves no module behind: what the file defines is then pickled whole for Ray's processes, which
    # could not import it by name.
    variables = runpy.run_path(str(path), run_name=path.stem)
    config = variables.get("config")
    if not isinstance(config, AlgorithmConfig):
        raise UserError(f"{path} must define `config`, an AlgorithmConfig; found {type(config).__name__}")
    return {"run": config.algo_class, "config": config.to_dict(), "stop": variables.get("stop")}


def _one_name_each(config: Spec) -> Spec:
    """A copy with the dataset under one of its two names, so that what is laid over it replaces it."""
    return {"input_" if key == "input" else key: value for key, value in config.items()}


def _absolute_input(config: Spec, *folders: Path) -> None:
    """Data paths made absolute, since a trial runs in a folder of its own."""
    for key in {"input_", "load_weights_from"} & config.keys():
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
    changes = {PRESET: options.preset} if options.preset is not None else {}
    changes |= _one_name_each(parse_mapping(options.config, "--config"))
    for setting in options.set_ or []:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise UserError(f"--set takes KEY=VALUE, not {setting!r}")
        value = parse_yaml(text, f"--set {key}")
        for part in reversed(key.split(".")):
            value = {part: value}
        changes = merged(changes, _one_name_each(value))
    config = laid_over(spec["config"], changes)
    if options.env is not None:
        config["env"] = options.env
    if options.dataset is not None:
        config["input_"] = options.dataset
    if options.download is not None:
        if not issubclass(algorithm_class(spec["run"]), CalQL):
            raise UserError(f"--download and --no-download are for CalQL; {spec['run']} does not download data")
        config = _allowing(config, options.download)
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


def _allowing(config: Spec, download: bool) -> Spec:
    """The config with `download` for its datasets that can be downloaded; the others take no such option."""
    given = config.get("input_")
    if is_written_space(given):
        raise UserError(
            "--download and --no-download do not know which of several datasets are meant: search over lists, "
            "such as [{input: d4rl://NAME, download: false}]"
        )
    if not isinstance(given, list):
        downloads = str(given).startswith(DOWNLOADED)
        return merged(config, {"input_config": {"download": download}}) if downloads else config
    entries = [entry if isinstance(entry, dict) else {"input": entry} for entry in given]
    return config | {
        "input_": [
            {**entry, "download": download} if str(entry.get("input")).startswith(DOWNLOADED) else entry
            for entry in entries
        ]
    }


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
    changed = {"checkpoint_at_end": True} | from_file | {key: v for key, v in given.items() if v is not None}
    try:
        CheckpointConfig(**changed)
    except (TypeError, ValueError) as error:
        raise UserError(f"checkpoint_config: {error}") from error
    return changed


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
