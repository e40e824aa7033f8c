"""Tables of what `CalQLConfig` takes: ranges, choices, and RLlib's settings that Cal-QL refuses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ray.tune.search.sample import Domain

from rllib_calql.core.reference import ReferenceConfig
from rllib_calql.data.prepare import REFERENCE_MODES
from rllib_calql.data.returns import TRUNCATION_MODES

# RLlib's settings that Cal-QL replaces or has no use for: changing them is refused, with what to use instead.
SUPERSEDED = {
    "lr": "actor_lr, critic_lr, alpha_lr and lagrangian_lr",
    "optimization": "actor_lr, critic_lr, alpha_lr and lagrangian_lr",
    "twin_q": "num_critics",
    "n_step": "nothing: Cal-QL's TD target is one-step",
    "grad_clip": "nothing: the algorithm has no gradient clipping",
    "training_intensity": "utd_ratio",
    "num_steps_sampled_before_learning_starts": "nothing: online updates begin after the first episode",
    "replay_buffer_config": "online_capacity and mixing_ratio",
    "min_time_s_per_iteration": "min_train_updates_per_iteration and min_env_steps_per_iteration",
    "min_train_timesteps_per_iteration": "min_train_updates_per_iteration",
    "min_sample_timesteps_per_iteration": "min_env_steps_per_iteration",
    "actions_in_input_normalized": "input_config={'actions_normalized': True}",
    "normalize_actions": "nothing: actions are always normalised to [-1, 1] inside",
    "observation_filter": "normalize_observations",
    "exploration_config": "nothing: exploration is sampling from the policy",
    "env_runner_cls": "nothing: CalQL has its own",
    "batch_mode": "nothing: online data enter as complete episodes",
    "model": "policy_model_config and q_model_config",
    "shuffle_buffer_size": "nothing: batches are drawn uniformly from the whole dataset",
    "store_buffer_in_checkpoints": "nothing: checkpoints always hold the online rows, in files of their own",
    "remote_worker_envs": "gym_env_vectorize_mode='async' on the new API stack",
    "clip_rewards": "reward_scale and reward_bias",
    "clip_actions": "nothing: actions never leave the environment's bounds",
    "compress_observations": "nothing: online data stay in memory",
    "keep_per_episode_custom_metrics": "nothing: success_rate needs the mean",
    "optimizer": "actor_lr, critic_lr, alpha_lr and lagrangian_lr",
    "shuffle_batch_per_epoch": "nothing: batches are drawn uniformly",
    "buffer_size": "online_capacity",
    "learning_starts": "nothing: online updates begin after the first episode",
    "min_iter_time_s": "min_train_updates_per_iteration and min_env_steps_per_iteration",
    "postprocess_inputs": "nothing: returns and rewards are prepared by the settings of training()",
    "offline_sampling": "nothing: batches are always sampled",
    "off_policy_estimation_methods": "nothing: evaluate in the environment",
    "offline_evaluation_interval": "evaluation_interval: policies are evaluated in the environment",
    "num_offline_eval_runners": "evaluation_num_env_runners: policies are evaluated in the environment",
    "num_epochs": "utd_ratio",
    "minibatch_size": "train_batch_size",
    "grad_clip_by": "nothing: the algorithm has no gradient clipping",
    "use_state_preprocessor": "nothing",
    **dict.fromkeys(
        (
            "input_read_method",
            "input_read_method_kwargs",
            "input_read_schema",
            "input_read_episodes",
            "input_read_sample_batches",
            "input_read_batch_size",
            "input_filesystem",
            "input_filesystem_kwargs",
            "input_compress_columns",
            "input_spaces_jsonable",
            "materialize_data",
            "materialize_mapped_data",
            "map_batches_kwargs",
            "iter_batches_kwargs",
            "ignore_final_observation",
            "prelearner_class",
            "prelearner_buffer_class",
            "prelearner_buffer_kwargs",
            "prelearner_module_synch_period",
            "prelearner_use_recorded_module_states",
            "dataset_num_iters_per_learner",
        ),
        "input_ and input_config: datasets are opened by this package's own readers",
    ),
    **dict.fromkeys(
        (
            "output",
            "output_config",
            "output_compress_columns",
            "output_max_file_size",
            "output_max_rows_per_file",
            "output_write_method",
            "output_write_method_kwargs",
            "output_write_episodes",
            "output_write_remaining_data",
            "output_filesystem",
            "output_filesystem_kwargs",
        ),
        "`calql data collect`: training does not record its episodes",
    ),
    "rollout_fragment_length": "nothing: online data enter as complete episodes",
    "sample_timeout_s": "nothing: episodes are waited for",
    "sample_collector": "nothing: CalQL's runners have their own way with episodes",
    "learner_config_dict": "training(...)",
    "algorithm_config_overrides_per_module": "training(...): there is one module",
    "_deterministic_loss": "nothing",
    "_use_beta_distribution": "nothing",
}
# The same on one of RLlib's API stacks only.
_NEW = "the new API stack: api_stack(enable_rl_module_and_learner=True, enable_env_runner_and_connector_v2=True)"
POLICY_STACK_REFUSES = {
    "num_learners": f"num_gpus, as the update runs in the algorithm's own process, or {_NEW}",
    "num_gpus_per_learner": f"num_gpus, or {_NEW}",
    "num_cpus_per_learner": f"num_cpus_for_main_process, or {_NEW}",
    "custom_resources_per_learner": f"custom_resources_for_main_process, or {_NEW}",
    "_train_batch_size_per_learner": f"train_batch_size, or {_NEW}",
    "gym_env_vectorize_mode": _NEW,
    "_learner_class": _NEW,
    "_rl_module_spec": _NEW,
    "_model_config": "policy_model_config and q_model_config",
}
NEW_STACK_REFUSES = {
    "num_gpus": "num_gpus_per_learner",
    "_model_config": "policy_model_config and q_model_config",
    **dict.fromkeys(
        (
            "_env_to_module_connector",
            "_module_to_env_connector",
            "_learner_connector",
            "add_default_connectors_to_env_to_module_pipeline",
            "add_default_connectors_to_module_to_env_pipeline",
            "add_default_connectors_to_learner_pipeline",
        ),
        "an environment wrapper: what a connector changes would not reach the replay",
    ),
    **dict.fromkeys(
        (
            "num_aggregator_actors_per_learner",
            "torch_compile_learner",
            "torch_ddp_kwargs",
            "torch_skip_nan_gradients",
            "_torch_grad_scaler_class",
            "_torch_lr_scheduler_classes",
        ),
        "nothing: the update has no use for it",
    ),
}
# What the other update rules do without.
_NO_SAC = {
    "min_q_weight": 0.0,
    "min_q_weight_online": None,
    "calibrate": False,
    "lagrangian": False,
    "learn_alpha": False,
    "deterministic_backup": True,
    "actor_q": "min",
    "actor_updates": "every_update",
    "bc_iters": 0,
}
RULES_NEED: dict[str, dict[str, Any]] = {
    "sac": {"beta": 1.0, "beta_online": None, "expectile": 0.8},
    "awac": _NO_SAC | {"expectile": 0.8},
    "iql": _NO_SAC | {"max_target_backup": False, "num_target_critics": None},
}
MODEL_KEYS = ("fcnet_hiddens", "fcnet_activation")


def is_search_space(value: Any) -> bool:
    """Whether Tune has yet to choose this setting's value."""
    return isinstance(value, Domain) or (isinstance(value, Mapping) and "grid_search" in value)


def is_interval(value: Any) -> bool:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return False
    return all(isinstance(bound, (int, float)) for bound in value) and bool(value[0] < value[1])


# Settings that are dicts, and their keys: what is given is merged into what is there.
MODEL_SETTINGS = {
    "policy_model_config": MODEL_KEYS,
    "q_model_config": MODEL_KEYS,
    "reference_config": tuple(field.name for field in fields(ReferenceConfig)),
    "encoder_config": ("conv_filters", "feature_dim"),
}
_TINY = 1e-12
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(
        (
            "num_offline_updates",
            "num_online_env_steps",
            "warmup_env_steps",
            "bc_iters",
            "min_q_weight",
            "min_q_weight_online",
        ),
        (0, math.inf),
    ),
    **dict.fromkeys(
        (
            "min_train_updates_per_iteration",
            "min_env_steps_per_iteration",
            "online_capacity",
            "num_critics",
            "num_target_critics",
            "target_network_update_freq",
            "train_batch_size",
            "num_exploration_actions",
            "frame_stack",
            "num_actions",
            "num_target_actions",
        ),
        (1, math.inf),
    ),
    **dict.fromkeys(("actor_lr", "critic_lr", "alpha_lr", "lagrangian_lr"), (0.0, 1.0)),
    **dict.fromkeys(
        ("utd_ratio", "beta", "beta_online", "temperature", "initial_alpha", "initial_alpha_prime"),
        (_TINY, math.inf),
    ),
    "alpha_multiplier": (0.0, math.inf),
    "gamma": (0.0, 1.0),
    "expectile": (_TINY, 1.0 - _TINY),
    "tau": (_TINY, 1.0),
}
CHOICES: dict[str, tuple[str | None, ...]] = {
    "update_rule": ("sac", "awac", "iql"),
    "actor_q": ("min", "mean"),
    "actor_updates": ("every_update", "every_step"),
    "warmup_actions": ("policy", "random"),
    "precision": ("float32", "bfloat16", "float64"),
    "image_augmentation": ("random_shift", None),
    "replay_device": ("auto", "host", "update"),
    "reference_value": REFERENCE_MODES,
    "truncation_mode": TRUNCATION_MODES,
}
# Keys of dicts that RLlib translates.
ALIASES = {
    "input",
    "num_workers",
    "evaluation_num_workers",
    "framework",
    "callbacks",
    "lambda",
    "multiagent",
    "create_env_on_driver",
    "train_batch_size_per_learner",
    "custom_eval_function",
    "class",
}
