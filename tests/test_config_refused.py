"""Everything that `CalQLConfig` refuses, when it is set or when it is validated."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

from rllib_calql import CalQLConfig
from rllib_calql.checks import NEW_STACK_REFUSES, POLICY_STACK_REFUSES, SUPERSEDED
from rllib_calql.new_stack.env_runner import CalQLEnvRunner
from rllib_calql.old_stack.env_runner import CalQLRolloutWorker
from tests.test_config import online_config

# ---- what is refused when it is set

UNKNOWN = [
    ({"actr_lr": 1e-3}, "CalQL has no setting 'actr_lr'; did you mean 'actor_lr'?"),
    ({"min_q_wieght": 1}, "CalQL has no setting 'min_q_wieght'; did you mean 'min_q_weight'?"),
    ({"horizon": 100}, "CalQL has no setting 'horizon'"),
    ({"policy_lr": 1e-3}, "CalQL has no setting 'policy_lr'"),
]
WRONG_TYPES = [
    ({"critic_lr": "fast"}, "critic_lr must be a number, not 'fast'"),
    ({"gamma": True}, "gamma must be a number, not True"),
    ({"tau": [0.1]}, "tau must be a number, not [0.1]"),
    ({"critic_lr": math.nan}, "critic_lr must be a number, not nan"),
    ({"critic_lr": None}, "critic_lr must be a number, not None"),
    ({"num_critics": 2.5}, "num_critics must be a whole number, not 2.5"),
    ({"train_batch_size": "1e-1"}, "train_batch_size must be a whole number, not '1e-1'"),
    ({"num_offline_updates": math.inf}, "num_offline_updates must be a whole number, not inf"),
    ({"lagrangian": 1}, "lagrangian must be true or false, not 1"),
    ({"calibrate": "yes"}, "calibrate must be true or false, not 'yes'"),
    (
        {"q_model_config": [64, 64]},
        "q_model_config must be a dict with fcnet_hiddens, fcnet_activation, not [64, 64]",
    ),
    (
        {"q_model_config": {"fcnet_hidens": [8]}},
        "q_model_config has no 'fcnet_hidens': it takes fcnet_hiddens,",
    ),
    ({"policy_model_config": {"custom_model": "x"}}, "policy_model_config has no 'custom_model'"),
]


@pytest.mark.parametrize(("settings", "message"), UNKNOWN + WRONG_TYPES)
def test_unknown_keys_and_wrong_types_in_a_dict(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        CalQLConfig().update_from_dict(settings)


@pytest.mark.parametrize(("settings", "message"), WRONG_TYPES)
def test_wrong_types_in_python(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        CalQLConfig().training(**settings)


def test_unknown_keyword_in_python() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'actr_lr'"):
        CalQLConfig().training(actr_lr=1e-3)
    config = online_config()
    config.actr_lr = 1e-3
    with pytest.raises(ValueError, match="CalQL has no setting 'actr_lr'"):
        config.validate()


# ---- what is refused by validate()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"actor_lr": -1e-4}, r"actor_lr must be in \[0.0, 1.0\], not -0.0001"),
        ({"critic_lr": 3.0}, r"critic_lr must be in \[0.0, 1.0\], not 3.0"),
        ({"gamma": 1.5}, r"gamma must be in \[0.0, 1.0\], not 1.5"),
        ({"tau": 0.0}, r"tau must be in .*, not 0.0"),
        ({"train_batch_size": 0}, "train_batch_size must be finite and at least 1, not 0"),
        ({"num_actions": 0}, "num_actions must be finite and at least 1"),
        ({"num_target_actions": 0}, "num_target_actions must be finite and at least 1"),
        ({"num_critics": 0}, "num_critics must be finite and at least 1"),
        ({"num_offline_updates": -1}, "num_offline_updates must be finite and at least 0, not -1"),
        ({"num_online_env_steps": -1}, "num_online_env_steps must be finite and at least 0"),
        ({"utd_ratio": 0.0}, "utd_ratio must be finite and at least"),
        ({"utd_ratio": math.inf}, "utd_ratio must be finite and at least .*, not inf"),
        ({"temperature": 0.0}, "temperature must be finite and at least"),
        ({"min_q_weight": -5.0}, "min_q_weight must be finite and at least 0, not -5.0"),
        ({"min_q_weight_online": -1.0}, "min_q_weight_online must be finite and at least 0, not -1.0"),
        ({"initial_alpha": 0.0}, "initial_alpha must be finite and at least"),
        ({"target_network_update_freq": 0}, "target_network_update_freq must be finite and at least 1"),
        ({"clip_action": 1.0}, r"clip_action must be inside \(0, 1\), not 1.0"),
        ({"reward_scale": math.inf}, "reward_scale inf .* must be finite"),
        ({"precision": "float16"}, "precision must be one of float32, bfloat16, float64, not 'float16'"),
        (
            {"truncation_mode": "ignore"},
            "truncation_mode must be one of stop, infinite, bootstrap, drop, not 'ignore'",
        ),
        ({"q_model_config": {"fcnet_hiddens": []}}, r"q_model_config: fcnet_hiddens must be .*, not \[\]"),
        ({"q_model_config": {"fcnet_hiddens": 256}}, "q_model_config: fcnet_hiddens must be .*, not 256"),
        (
            {"q_model_config": {"fcnet_hiddens": "256x4"}},
            "q_model_config: fcnet_hiddens must be .*, not '256x4'",
        ),
        (
            {"policy_model_config": {"fcnet_hiddens": [64, 0]}},
            "policy_model_config: fcnet_hiddens must be positive",
        ),
        (
            {"policy_model_config": {"fcnet_activation": "swish"}},
            "policy_model_config: fcnet_activation must be one of relu, tanh, elu, silu, gelu",
        ),
        (
            {"q_model_config": {"fcnet_activation": ["relu"]}},
            "q_model_config: fcnet_activation must be one of relu",
        ),
        ({"num_target_critics": 3}, "num_target_critics=3 of num_critics=2"),
        ({"clip_diff_min": 2.0, "clip_diff_max": 1.0}, "clip_diff_min=2.0 is above clip_diff_max=1.0"),
        (
            {"lagrangian": True, "min_q_weight": 0.0},
            "lagrangian=True weighs a .* term that min_q_weight=0 switches",
        ),
        ({"score_range": [1.0, 1.0]}, r"score_range must be \[low, high\] with low < high, .*, not \[1.0, 1.0\]"),
        ({"score_range": [1.0]}, r"score_range must be \[low, high\]"),
        ({"score_range": 5}, r"score_range must be \[low, high\] .*, not 5"),
        ({"score_range": ["bad", "good"]}, r"score_range must be \[low, high\] .*, not \['bad', 'good'\]"),
        ({"mixing_ratio": 1.5}, r"mixing_ratio must be in \[0, 1\], -1 .*, not 1.5"),
        ({"mixing_ratio": -0.5}, r"mixing_ratio must be in \[0, 1\], -1 .*, not -0.5"),
        ({"mixing_ratio": [[0, 0.5], [0, 0.4]]}, "env_steps of a mixing_ratio schedule must increase"),
        ({"mixing_ratio": "half"}, r"mixing_ratio schedule is \[\[env_steps, ratio\], ...\], not 'half'"),
        (
            {"target_entropy": "low"},
            r"target_entropy must be 'auto' \(minus act_dim\) or a number, not 'low'",
        ),
        ({"truncation_mode": "infinite", "gamma": 1.0}, "gamma"),
        ({"sparse_failure_reward": 0.0, "gamma": 1.0}, "gamma"),
    ],
)
def test_values_and_combinations_that_do_not_work(settings: dict[str, Any], message: str) -> None:
    from_python = online_config().training(**settings)
    from_dict = online_config().update_from_dict(settings)
    for config in (from_python, from_dict):
        with pytest.raises(ValueError, match=message):
            config.validate()


@pytest.mark.parametrize(
    ("settings", "instead"),
    [
        ({"lr": 1e-3}, "actor_lr, critic_lr, alpha_lr and lagrangian_lr"),
        ({"optimization": {"actor_learning_rate": 1e-3}}, "actor_lr, critic_lr, alpha_lr and lagrangian_lr"),
        ({"twin_q": False}, "num_critics"),
        ({"n_step": 3}, "nothing: Cal-QL's TD target is one-step"),
        ({"grad_clip": 40.0}, "nothing: the algorithm has no gradient clipping"),
        ({"training_intensity": 2.0}, "utd_ratio"),
        ({"replay_buffer_config": {"capacity": 10}}, "online_capacity and mixing_ratio"),
        (
            {"num_steps_sampled_before_learning_starts": 100},
            "nothing: online updates begin after the first episode",
        ),
        ({"min_sample_timesteps_per_iteration": 5}, "min_env_steps_per_iteration"),
        ({"min_train_timesteps_per_iteration": 5}, "min_train_updates_per_iteration"),
        ({"observation_filter": "MeanStdFilter"}, "normalize_observations"),
        ({"batch_mode": "truncate_episodes"}, "nothing: online data enter as complete episodes"),
        ({"model": {"fcnet_hiddens": [8]}}, "policy_model_config and q_model_config"),
        ({"exploration_config": {"type": "Random"}}, "nothing: exploration is sampling from the policy"),
        ({"shuffle_buffer_size": 5}, "nothing: batches are drawn uniformly"),
        ({"output": "/tmp/out"}, "`calql data collect`: training does not record its episodes"),
        ({"input_filesystem": "gcs"}, "input_ and input_config"),
        ({"rollout_fragment_length": 50}, "nothing: online data enter as complete episodes"),
        ({"offline_evaluation_interval": 1}, "evaluation_interval: policies are evaluated in the environment"),
        ({"algorithm_config_overrides_per_module": {"default_policy": {"gamma": 0.9}}}, "training(...)"),
    ],
)
def test_other_spellings_of_the_same_thing_name_what_to_use(settings: dict[str, Any], instead: str) -> None:
    ((name, _),) = settings.items()
    with pytest.raises(ValueError, match=r"has no effect in CalQL and is refused") as caught:
        online_config().update_from_dict(settings).validate()
    assert str(caught.value).startswith(f"{name}=")
    assert f"use {instead}" in str(caught.value)


def test_evaluations_that_favour_short_episodes_are_refused() -> None:
    with pytest.raises(ValueError, match="evaluation_duration='auto' stops with the training step"):
        online_config().evaluation(evaluation_duration="auto", evaluation_parallel_to_training=True).validate()
    config = online_config().env_runners(num_envs_per_env_runner=8)
    evaluating = config.get_evaluation_config_object()
    assert evaluating is not None
    assert evaluating.num_envs_per_env_runner == 1
    config.evaluation(evaluation_interval=1, evaluation_config={"num_envs_per_env_runner": 2})
    with pytest.raises(ValueError, match="num_envs_per_env_runner=2 environments the episodes that end first"):
        config.validate()


def test_superseded_settings_exist_in_rllib() -> None:
    """A renamed setting of RLlib would make the refusal fail for everybody."""
    refused = SUPERSEDED.keys() | NEW_STACK_REFUSES.keys() | POLICY_STACK_REFUSES.keys()
    newer = {"custom_resources_per_learner"}  # than the oldest supported Ray
    assert refused - newer <= vars(CalQLConfig()).keys()


def test_phases_need_what_they_use() -> None:
    with pytest.raises(ValueError, match=r"the offline phase needs data: set offline_data\(input_=...\), .*"
                                         "or num_offline_updates=0 to skip it"):  # fmt: skip
        CalQLConfig().environment("Pendulum-v1").validate()
    with pytest.raises(ValueError, match=r"the online phase needs an environment: set environment\(...\), or "
                                         "num_online_env_steps=0 to end after pre-training"):  # fmt: skip
        CalQLConfig().offline_data(input_="rows.hdf5").validate()
    with pytest.raises(ValueError, match="normalize_observations takes its figures from the offline data"):
        online_config().training(normalize_observations=True).validate()
    CalQLConfig().offline_data(input_="rows.hdf5").training(num_online_env_steps=0).validate()
    online_config().validate()


@pytest.mark.parametrize("input_", [3, [["rows.hdf5"]], {"rows.hdf5": 1.0}])
def test_inputs_of_other_kinds(input_: Any) -> None:
    with pytest.raises(ValueError, match=r"input_ must be a path, a URI, Transitions|is one dataset, or a dict"):
        online_config().offline_data(input_=input_).validate()


@pytest.mark.parametrize("name", ["enable_rl_module_and_learner", "enable_env_runner_and_connector_v2"])
def test_either_api_stack_but_no_mixture(name: str) -> None:
    new, old = online_config().api_stack(True, True), online_config()
    new.validate()
    old.validate()
    assert (new.env_runner_cls, old.env_runner_cls) == (CalQLEnvRunner, CalQLRolloutWorker)
    assert new.api_stack(False, False).env_runner_cls is CalQLRolloutWorker
    from_dict = online_config().update_from_dict({name: True})  # one key means both
    from_dict.validate()
    assert from_dict.env_runner_cls is CalQLEnvRunner
    with pytest.raises(ValueError, match="RLlib has two API stacks and no mixture"):
        online_config().api_stack(**{name: True}).validate()


@pytest.mark.parametrize(
    ("new_stack", "settings", "instead"),
    [
        (
            False,
            {"num_learners": 2},
            "num_gpus, as the update runs in the algorithm's own process, or the new",
        ),
        (False, {"num_gpus_per_learner": 1}, "num_gpus, or the new API stack"),
        (False, {"_train_batch_size_per_learner": 8}, "train_batch_size, or the new API stack"),
        (False, {"gym_env_vectorize_mode": "async"}, "the new API stack"),
        (True, {"num_gpus": 1}, "num_gpus_per_learner"),
        (True, {"_env_to_module_connector": print}, "an environment wrapper"),
        (True, {"torch_compile_learner": True}, "nothing: the update has no use for it"),
        (True, {"env_runner_cls": SingleAgentEnvRunner}, "nothing: CalQL has its own"),
        (True, {"exploration_config": {"type": "Random"}}, "nothing: exploration is sampling from the policy"),
    ],
)
def test_settings_of_the_other_api_stack_are_refused(
    new_stack: bool, settings: dict[str, Any], instead: str
) -> None:
    ((name, _),) = settings.items()
    config = online_config().api_stack(new_stack, new_stack).update_from_dict(settings)
    with pytest.raises(ValueError, match=r"has no effect in CalQL and is refused") as caught:
        config.validate()
    assert str(caught.value).startswith(f"{name}=")
    assert f"use {instead}" in str(caught.value)


def test_batches_of_several_learners() -> None:
    config = online_config().api_stack(True, True).learners(num_learners=2)
    config.validate()
    assert (config.total_train_batch_size, config.train_batch_size_per_learner) == (256, 128)
    config.update_from_dict({"train_batch_size_per_learner": 256}).validate()
    assert config.total_train_batch_size == 512
    with pytest.raises(ValueError, match="train_batch_size=128 and train_batch_size_per_learner=256: set one"):
        config.training(train_batch_size=128).validate()
    with pytest.raises(ValueError, match="train_batch_size=255 cannot be divided among 2 learners"):
        config.training(train_batch_size=255, train_batch_size_per_learner=None).validate()


def test_other_frameworks_and_multi_agent_set_ups_are_refused() -> None:
    with pytest.raises(ValueError, match="CalQL needs framework 'torch', not 'tf2'"):
        online_config().framework("tf2").validate()
    config = online_config().multi_agent(policies={"a", "b"}, policy_mapping_fn=lambda *args, **kwargs: "a")
    with pytest.raises(ValueError, match="CalQL trains one policy"):
        config.validate()


def test_validate_may_be_called_again() -> None:
    config = online_config()
    config.validate()
    config.validate()
    config.copy().validate()
