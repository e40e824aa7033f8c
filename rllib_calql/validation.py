"""What `CalQLConfig.validate` refuses, with what to do instead."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.data import Dataset

from rllib_calql.checks import (
    ALIASES,
    CHOICES,
    MODEL_KEYS,
    NEW_STACK_REFUSES,
    POLICY_STACK_REFUSES,
    RANGES,
    RULES_NEED,
    SUPERSEDED,
    is_interval,
    is_search_space,
)
from rllib_calql.core.networks import ACTIVATIONS
from rllib_calql.core.reference import ReferenceConfig
from rllib_calql.data import Transitions, check_mixing_ratio
from rllib_calql.data.mixture import entries_of
from rllib_calql.data.reference_scores import reference_scores
from rllib_calql.data.sources.d4rl_tasks import TASKS

if TYPE_CHECKING:
    from rllib_calql.config import CalQLConfig


def check_rllib_settings(config: CalQLConfig) -> None:
    """Refuses (ValueError) RLlib's settings that have no effect here, and names that nothing knows."""
    if config.enable_rl_module_and_learner != config.enable_env_runner_and_connector_v2:
        raise ValueError(
            "RLlib has two API stacks and no mixture: set enable_rl_module_and_learner and "
            "enable_env_runner_and_connector_v2 of api_stack(...) both to True or both to False"
        )
    if config.framework_str != "torch":
        raise ValueError(f"CalQL needs framework 'torch', not {config.framework_str!r}")
    if config.evaluation_duration == "auto":
        raise ValueError(
            "evaluation_duration='auto' stops with the training step, and so leaves out long episodes: give a "
            "number of them"
        )
    evaluating = vars(config) if config.in_evaluation else config.evaluation_config
    if isinstance(evaluating, Mapping) and (count := evaluating.get("num_envs_per_env_runner", 1)) > 1:
        raise ValueError(
            f"evaluation_config: of num_envs_per_env_runner={count} environments the episodes that end first "
            "would count, the short ones: raise evaluation_num_env_runners instead"
        )
    if config.is_multi_agent:
        raise ValueError("CalQL trains one policy: multi-agent set-ups are not supported")
    new_stack = config.enable_rl_module_and_learner
    defaults = _defaults(new_stack)
    for name, instead in (SUPERSEDED | (NEW_STACK_REFUSES if new_stack else POLICY_STACK_REFUSES)).items():
        # (Not every Ray has each of them.)
        if name in defaults and getattr(config, name) != defaults[name] and not config.in_evaluation:
            raise ValueError(
                f"{name}={getattr(config, name)!r} has no effect in CalQL and is refused: use {instead}"
            )
    for name in vars(config).keys() - defaults.keys() - ALIASES:
        raise ValueError(f"CalQL has no setting {name!r}")


def check_ranges(config: CalQLConfig) -> None:
    """Refuses (ValueError) values out of range, of another kind, or in conflict."""
    for name, (low, high) in RANGES.items():
        value = getattr(config, name)
        if is_search_space(value):
            raise ValueError(f"{name} is still a search space: only a Tuner can choose its value")
        if value is not None and not (low <= value <= high and math.isfinite(value)):
            limits = f"finite and at least {low}" if high == math.inf else f"in [{low}, {high}]"
            raise ValueError(f"{name} must be {limits}, not {value!r}")
    for name, choices in CHOICES.items():
        if getattr(config, name) not in choices:
            raise ValueError(
                f"{name} must be one of {', '.join(map(str, choices))}, not {getattr(config, name)!r}"
            )
    ReferenceConfig(**config.reference_config)  # refuses values out of range
    for name in ("policy_model_config", "q_model_config"):
        hiddens, activation = (getattr(config, name)[key] for key in MODEL_KEYS)
        widths = hiddens if isinstance(hiddens, (list, tuple)) else ()
        if not widths or not all(isinstance(width, int) and width > 0 for width in widths):
            raise ValueError(f"{name}: fcnet_hiddens must be positive layer widths, not {hiddens!r}")
        if activation not in tuple(ACTIVATIONS):
            raise ValueError(f"{name}: fcnet_activation must be one of {', '.join(ACTIVATIONS)}")
    _check_encoder(config.encoder_config)
    _check_batch_size(config)
    if config.num_target_critics is not None and config.num_target_critics > config.num_critics:
        raise ValueError(f"num_target_critics={config.num_target_critics} of num_critics={config.num_critics}")
    if config.clip_diff_min > config.clip_diff_max:
        raise ValueError(f"clip_diff_min={config.clip_diff_min} is above clip_diff_max={config.clip_diff_max}")
    for name, needed in RULES_NEED[config.update_rule].items():
        if getattr(config, name) != needed:
            raise ValueError(
                f"update_rule={config.update_rule!r} has no use for {name}={getattr(config, name)!r}: set it to "
                f"{needed!r} (the presets do)"
            )
    if config.lagrangian and config.min_q_weight == 0.0:
        raise ValueError("lagrangian=True weighs a conservative term that min_q_weight=0 switches off")
    if config.calibrate and config.min_q_weight == 0.0 and not config.min_q_weight_online:
        raise ValueError(
            "calibrate=True bounds actions in a conservative term that min_q_weight=0 switches off: set "
            "calibrate=False too"
        )
    if config.warmup_actions != "policy" and config.warmup_env_steps == 0:
        raise ValueError(f"warmup_actions={config.warmup_actions!r} needs warmup_env_steps above 0")
    if 0 < config.num_online_env_steps <= config.warmup_env_steps:
        raise ValueError(
            f"warmup_env_steps={config.warmup_env_steps} leaves nothing of num_online_env_steps="
            f"{config.num_online_env_steps} to learn in"
        )
    scores = config.score_range
    known = scores in TASKS and reference_scores(scores) if isinstance(scores, str) else is_interval(scores)
    if scores is not None and not known:
        raise ValueError(
            f"score_range must be [low, high] with low < high, or a D4RL task that has scores, not {scores!r}"
        )
    entropy = config.target_entropy
    numeric = isinstance(entropy, (int, float)) and not isinstance(entropy, bool)
    if entropy not in (None, "auto") and not numeric:
        raise ValueError(
            f"target_entropy must be 'auto' (minus act_dim) or a number, not {config.target_entropy!r}"
        )
    check_mixing_ratio(config.mixing_ratio)


def _check_encoder(settings: Mapping[str, Any]) -> None:
    filters, features = settings["conv_filters"], settings["feature_dim"]

    def numbers(values: Any) -> bool:
        return all(isinstance(value, int) and not isinstance(value, bool) and value > 0 for value in values)

    if not isinstance(filters, (list, tuple)) or not filters or not numbers([features]):
        raise ValueError(f"encoder_config: needs conv_filters and a positive feature_dim, not {dict(settings)}")
    for layer in filters:
        if not (isinstance(layer, (list, tuple)) and len(layer) == 3 and numbers(layer)):
            raise ValueError(
                f"encoder_config: conv_filters are [[channels, kernel, stride], ...] of positive whole numbers, "
                f"not {layer!r}"
            )


def _check_batch_size(config: CalQLConfig) -> None:
    per_learner, total = config._train_batch_size_per_learner, config.train_batch_size
    if per_learner is None and total % (config.num_learners or 1):
        raise ValueError(f"train_batch_size={total} cannot be divided among {config.num_learners} learners")
    if per_learner is not None and total != _defaults(True)["train_batch_size"]:
        raise ValueError(
            f"train_batch_size={total} and train_batch_size_per_learner={per_learner}: set one of them"
        )


def check_data(config: CalQLConfig) -> None:
    """Refuses (ValueError) phases without what they need, and inputs of another kind; opens nothing."""
    config.preparation()  # refuses settings that do not fit each other
    has_data = config.input_ != "sampler"
    if config.num_offline_updates > 0 and not has_data:
        raise ValueError(
            "the offline phase needs data: set offline_data(input_=...), e.g. d4rl://antmaze-umaze-v2 or a "
            "path, or num_offline_updates=0 to skip it"
        )
    if config.num_online_env_steps > 0 and config.env is None and not config.in_evaluation:
        raise ValueError(
            "the online phase needs an environment: set environment(...), or num_online_env_steps=0 to end "
            "after pre-training"
        )
    if config.replay_device == "update" and config.enable_rl_module_and_learner:
        raise ValueError(
            'replay_device="update" needs the Policy stack: learners of the new API stack get their rows from '
            'the host; use "auto" or "host"'
        )
    if config.overlap_sampling and config.num_env_runners == 0 and not config.in_evaluation:
        raise ValueError("overlap_sampling=True needs remote env runners: set num_env_runners to 1 or more")
    path = config.load_weights_from
    if path is not None and not isinstance(path, (str, Path)):
        raise ValueError(f"load_weights_from must be the path of a checkpoint, not {path!r}")
    if config.learns_reference and not has_data:
        raise ValueError(
            "a reference value is learned from offline data, and there are none: set offline_data(input_=...), or "
            "reference_value='return_to_go' and another truncation_mode than 'bootstrap'"
        )
    for name in ("normalize_observations", "normalize_reward"):
        if not has_data and getattr(config, name):
            raise ValueError(f"{name} takes its figures from the offline data, and there are none")
    kinds: tuple[type, ...] = (str, Path, Transitions)
    inputs = [config.input_]
    if isinstance(config.input_, (list, tuple)):
        inputs = [entry.input for entry in entries_of(config.input_)]
    else:
        kinds += (Dataset,)
    for given in inputs:
        if not (isinstance(given, kinds) or callable(given)):
            raise ValueError(
                "input_ must be a path, a URI, Transitions (of a dict of arrays: open_dataset(arrays)), a Ray "
                "Dataset, a function that returns one of these, or a list of these (of Ray Datasets: "
                f"ray_data.stream(dataset)), not {type(given).__name__}"
            )


@cache
def _defaults(new_stack: bool) -> dict[str, Any]:
    """A fresh config's values on either API stack, made once."""
    from rllib_calql.config import CalQLConfig  # here, because that room imports this one

    return dict(vars(CalQLConfig().api_stack(new_stack, new_stack)))
