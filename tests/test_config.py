"""`CalQLConfig`: its defaults, what it merges and reads, and its copies."""

from __future__ import annotations

import copy
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray import tune
from ray.rllib.algorithms.cql import CQLConfig
from ray.tune.search.variant_generator import generate_variants

from rllib_calql import CalQL, CalQLConfig
from rllib_calql.checks import NEW_STACK_REFUSES, POLICY_STACK_REFUSES, SUPERSEDED
from rllib_calql.core import UpdateConfig
from rllib_calql.data import Transitions


def online_config() -> CalQLConfig:
    """The shortest config that validates: no data, and an environment that is not made."""
    return CalQLConfig().environment("Pendulum-v1").training(num_offline_updates=0)


def some_data() -> Transitions:
    return Transitions.from_episode(np.zeros((3, 3)), np.zeros((2, 1)), np.zeros(2), True)


# ---- defaults

DEFAULTS = {
    "actor_lr": 1e-4,
    "alpha_lr": 1e-4,
    "critic_lr": 3e-4,
    "lagrangian_lr": 3e-4,
    "gamma": 0.99,
    "tau": 0.005,
    "target_network_update_freq": 1,
    "train_batch_size": 256,
    "policy_model_config": {"fcnet_hiddens": [256, 256], "fcnet_activation": "relu"},
    "q_model_config": {"fcnet_hiddens": [256, 256], "fcnet_activation": "relu"},
    "num_critics": 2,
    "orthogonal_init": True,
    "initial_alpha": 1.0,
    "alpha_multiplier": 1.0,
    "target_entropy": "auto",
    "num_offline_updates": 1_000_000,
    "reward_scale": 1.0,
    "reward_bias": 0.0,
    "min_q_weight": 5.0,
    "min_q_weight_online": None,
    "lagrangian": False,
    "lagrangian_thresh": 0.8,
    "num_actions": 10,
    "num_target_actions": 10,
    "max_target_backup": True,
    "importance_sampling": True,
    "deterministic_backup": True,
    "temperature": 1.0,
    "bc_iters": 0,
    "mixing_ratio": 0.5,
    "utd_ratio": 1.0,
    "calibrate": True,
    "calibrate_online": True,
    "min_train_updates_per_iteration": 1000,
    "online_capacity": 1_000_000,
    "truncation_mode": "stop",
    "clip_action": 0.99999,
    "sparse_failure_reward": None,
    "normalize_observations": False,
    "num_env_runners": 0,
    "precision": "float32",
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_default(name: str) -> None:
    assert getattr(CalQLConfig(), name) == DEFAULTS[name]


def test_defaults_reach_the_update_unchanged() -> None:
    """The update's own defaults are the config's."""
    assert UpdateConfig.from_settings(vars(CalQLConfig())) == UpdateConfig()
    assert UpdateConfig.from_settings(CalQLConfig().to_dict()) == UpdateConfig()
    earlier = {**vars(CalQLConfig()), "tau": 0.1}
    for name in ("actor_updates", "beta_online"):  # not there yet when a policy's checkpoint was written
        del earlier[name]
    assert UpdateConfig.from_settings(earlier) == UpdateConfig(tau=0.1)


def test_every_setting_reaches_the_update() -> None:
    settings: dict[str, Any] = {
        "gamma": 0.9,
        "tau": 0.1,
        "target_network_update_freq": 3,
        "actor_lr": 0.1,
        "critic_lr": 0.2,
        "alpha_lr": 0.3,
        "lagrangian_lr": 0.4,
        "critic_layer_norm": True,
        "num_critics": 5,
        "num_target_critics": 3,
        "actor_q": "mean",
        "orthogonal_init": False,
        "precision": "float64",
        "learn_alpha": False,
        "initial_alpha": 0.5,
        "alpha_multiplier": 2.0,
        "target_entropy": -7.0,
        "max_target_backup": False,
        "num_target_actions": 4,
        "deterministic_backup": False,
        "min_q_weight": 2.0,
        "min_q_weight_online": 0.0,
        "calibrate": False,
        "calibrate_online": False,
        "num_actions": 6,
        "temperature": 2.0,
        "importance_sampling": False,
        "clip_diff_min": -3.0,
        "clip_diff_max": 4.0,
        "lagrangian": True,
        "lagrangian_thresh": 1.5,
        "initial_alpha_prime": 0.7,
        "image_augmentation": None,
        "bc_iters": 9,
    }
    config = online_config().training(
        policy_model_config={"fcnet_hiddens": [4, 5], "fcnet_activation": "tanh"},
        q_model_config={"fcnet_hiddens": [6], "fcnet_activation": "elu"},
        encoder_config={"conv_filters": [[4, 3, 2]], "feature_dim": 7},
        **settings,
    )
    config.validate()
    found = UpdateConfig.from_settings(config.to_dict())
    nets = {
        "actor_hiddens": (4, 5),
        "actor_activation": "tanh",
        "critic_hiddens": (6,),
        "critic_activation": "elu",
        "conv_filters": ((4, 3, 2),),
        "feature_dim": 7,
    }
    assert found == UpdateConfig(**settings, **nets)  # type: ignore[arg-type]
    other_rules = {"update_rule": "iql", "beta": 3.0, "beta_online": 4.0, "expectile": 0.7}
    known = {*settings, *nets, *other_rules, "online_actor_interval"}
    assert {field.name for field in fields(UpdateConfig)} == known
    cases: list[tuple[float, Any, int]] = [(20, "every_step", 20), (0.5, "every_step", 1), (20, "every_update", 1)]
    for utd_ratio, when, interval in cases:
        config = CalQLConfig().training(utd_ratio=utd_ratio, actor_updates=when)
        assert UpdateConfig.from_settings(vars(config)).online_actor_interval == interval
    iql = CalQLConfig.preset("iql").training(beta=3.0, beta_online=4.0, expectile=0.7)
    assert {name: getattr(UpdateConfig.from_settings(vars(iql)), name) for name in other_rules} == other_rules


def test_it_is_a_cql_config_that_builds_calql() -> None:
    config = CalQLConfig()
    assert isinstance(config, CQLConfig)
    assert config.algo_class is CalQL
    assert type(CalQL.get_default_config()) is CalQLConfig


# ---- setting values


def test_fluent_setters_return_the_config() -> None:
    config = CalQLConfig()
    assert config.training(utd_ratio=2, gamma=0.9) is config
    assert config.offline_data(input_="d4rl://antmaze-umaze-v2", input_config={"max_episode_steps": 5}) is config
    assert (config.utd_ratio, config.gamma) == (2.0, 0.9)
    assert config.input_ == "d4rl://antmaze-umaze-v2"
    assert config.input_config == {"max_episode_steps": 5}
    assert config.training().utd_ratio == 2.0  # what is not given stays


@pytest.mark.parametrize("input_", ["d4rl://antmaze-umaze-v2", "rows.hdf5", "/data/d4rl.h5"])
def test_inputs_are_taken_as_they_are(input_: str) -> None:
    from_method = online_config().offline_data(input_=input_)
    from_dict = online_config().update_from_dict({"input": input_})
    for config in (from_method, from_dict):
        config.validate()
        assert config.input_ == input_
    assert CalQLConfig().offline_data(input_=Path(input_)).input_ == str(Path(input_))


@pytest.mark.parametrize("input_", [some_data(), some_data])
def test_inputs_in_memory(input_: Any) -> None:
    config = online_config().offline_data(input_=input_).training(num_offline_updates=5)
    config.validate()
    assert config.input_ is input_


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("actor_lr", "3e-4", 3e-4),
        ("reward_bias", "-5e0", -5.0),
        ("num_offline_updates", "1e6", 1_000_000),
        ("train_batch_size", 256.0, 256),
        ("gamma", 1, 1.0),
        ("sparse_failure_reward", "-1", -1.0),
        ("min_q_weight_online", None, None),
        ("clip_diff_max", "inf", math.inf),
        ("seed", "7", 7),
        ("num_env_runners", "2", 2),
        ("evaluation_interval", "5", 5),
        ("mixing_ratio", "25e-2", 0.25),
        ("mixing_ratio", [[0, "9e-1"], ["1e5", 0.5]], [[0.0, 0.9], [100_000.0, 0.5]]),
        ("score_range", ["-1.2e3", "0"], [-1200.0, 0.0]),
        ("target_entropy", "-1e1", -10.0),
    ],
)
def test_numbers_written_as_text_are_numbers(name: str, text: Any, expected: Any) -> None:
    config = online_config().offline_data(input_="rows.hdf5").update_from_dict({name: text})
    found = getattr(config, name)
    assert found == expected
    assert type(found) is type(expected)
    config.validate()


def test_numbers_written_as_text_in_python() -> None:
    settings: dict[str, Any] = {
        "utd_ratio": "5e-1",
        "critic_lr": "3e-4",
        "mixing_ratio": "0.25",
        "num_actions": "4",
    }
    config = CalQLConfig().training(**settings)
    assert (config.utd_ratio, config.critic_lr, config.mixing_ratio, config.num_actions) == (0.5, 3e-4, 0.25, 4)


def test_model_settings_merge() -> None:
    """A YAML that names the widths alone keeps the activation (RLlib would fall back to tanh)."""
    for config in (
        CalQLConfig().training(q_model_config={"fcnet_hiddens": [64, 64, 64]}),
        CalQLConfig().update_from_dict({"q_model_config": {"fcnet_hiddens": [64, 64, 64]}}),
    ):
        assert config.q_model_config == {"fcnet_hiddens": [64, 64, 64], "fcnet_activation": "relu"}
        assert config.policy_model_config == {"fcnet_hiddens": [256, 256], "fcnet_activation": "relu"}
        config.training(q_model_config={"fcnet_activation": "tanh"})
        assert config.q_model_config == {"fcnet_hiddens": [64, 64, 64], "fcnet_activation": "tanh"}
    assert CalQLConfig().q_model_config == {"fcnet_hiddens": [256, 256], "fcnet_activation": "relu"}


# ---- copies, dicts and evaluation


def changed_config() -> CalQLConfig:
    return (
        online_config()
        .training(
            actor_lr=2e-4,
            lagrangian=True,
            mixing_ratio=[[0, 1.0], [100, 0.5]],
            q_model_config={"fcnet_hiddens": [8]},
            score_range=(0.0, 10.0),
            sparse_failure_reward=0.0,
        )
        .offline_data(input_="rows.hdf5", input_config={"max_episode_steps": 7})
        .evaluation(evaluation_interval=3, evaluation_config={"env_config": {"size": 3}})
        .debugging(seed=11)
    )


def test_an_algorithms_copy_keeps_settings_that_are_minus_one() -> None:
    settings = {"mixing_ratio": -1, "sparse_failure_reward": -1, "reward_bias": -1, "target_entropy": -1}
    config = CalQLConfig().update_from_dict(settings)
    copy = CalQLConfig.from_state(config.get_state())  # as Algorithm.__init__ makes its own
    assert {name: getattr(copy, name) for name in settings} == settings
    # a checkpoint's, which RLlib merges into a new config; its own deprecated settings are -1 too, and not taken
    assert CalQLConfig().update_from_dict(config.get_state()).mixing_ratio == -1


def test_dict_round_trip() -> None:
    config = changed_config()
    restored = CalQLConfig().update_from_dict(config.to_dict())
    assert restored.to_dict() == config.to_dict()
    restored.validate()
    assert restored.input_ == "rows.hdf5"
    assert UpdateConfig.from_settings(vars(restored)) == UpdateConfig.from_settings(vars(config))
    state = CalQLConfig.from_state(config.get_state())
    assert type(state) is CalQLConfig
    assert UpdateConfig.from_settings(vars(state)) == UpdateConfig.from_settings(vars(config))
    state.validate()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda config: config.copy(copy_frozen=False)])
def test_copies_are_independent(duplicate: Any) -> None:
    config = changed_config()
    other = duplicate(config)
    assert type(other) is CalQLConfig
    other.training(actor_lr=0.5, q_model_config={"fcnet_hiddens": [99]})
    other.evaluation_config["explore"] = True
    other.input_config["max_episode_steps"] = 1
    assert config.actor_lr == 2e-4
    assert config.q_model_config["fcnet_hiddens"] == [8]
    assert config.evaluation_config["explore"] is False
    assert config.input_config == {"max_episode_steps": 7}


def test_frozen_configs_stay() -> None:
    config = online_config()
    config.freeze()
    with pytest.raises(AttributeError, match="frozen"):
        config.training(reward_scale=2.0)
    with pytest.raises(AttributeError, match="frozen"):
        config.training(q_model_config={"fcnet_hiddens": [8]})
    assert config.copy(copy_frozen=False).training(reward_scale=2.0).reward_scale == 2.0
    config.validate()


@pytest.mark.parametrize(
    "evaluation_config", [None, {}, {"seed": 3}, {"env_config": {"size": 3}}, CalQLConfig.overrides(seed=3)]
)
@pytest.mark.parametrize("way", ["method", "dict"])
def test_evaluation_stays_deterministic_beside_other_settings(evaluation_config: Any, way: str) -> None:
    config = online_config()
    if evaluation_config is None:
        pass
    elif way == "method":
        config.evaluation(evaluation_config=evaluation_config)
    else:
        config.update_from_dict({"evaluation_config": evaluation_config, "evaluation_interval": 2})
    evaluating = config.get_evaluation_config_object()
    assert evaluating is not None
    assert evaluating.explore is False
    assert config.explore is True
    evaluating.validate()


def test_evaluation_may_explore_where_asked_and_refuses_unknown_settings() -> None:
    evaluating = online_config().evaluation(evaluation_config={"explore": True}).get_evaluation_config_object()
    assert evaluating is not None
    assert evaluating.explore is True
    with pytest.raises(ValueError, match="CalQL has no setting 'exploer'; did you mean 'explore'"):
        online_config().evaluation(evaluation_config={"exploer": True}).get_evaluation_config_object()


# ---- Tune and the documentation


@pytest.mark.parametrize("way", ["method", "dict"])
def test_search_spaces_pass_through_and_their_choices_are_checked(way: str) -> None:
    space: dict[str, Any] = {
        "actor_lr": tune.loguniform(1e-5, 1e-3),
        "gamma": tune.choice([0.9, 0.99]),
        "lagrangian": tune.choice([True]),
        "reward_scale": tune.sample_from(lambda *_: 10.0),
        "num_critics": tune.grid_search([2, 5]),
        "q_model_config": tune.grid_search([{"fcnet_hiddens": [8]}, {"fcnet_hiddens": [16, 16]}]),
        "policy_model_config": {"fcnet_hiddens": tune.choice([[32], [64]])},
        "mixing_ratio": tune.uniform(0.2, 0.8),
        "target_entropy": tune.choice([-1.0]),
        "score_range": tune.choice([[0.0, 1.0]]),
    }
    config = online_config().debugging(seed=tune.grid_search([0]))
    config = config.training(**space) if way == "method" else config.update_from_dict(space)
    found = set()
    for _, resolved in generate_variants(config.to_dict()):
        trial = CalQLConfig().update_from_dict(resolved)
        trial.validate()
        assert 1e-5 <= trial.actor_lr <= 1e-3
        assert trial.q_model_config["fcnet_activation"] == "relu"
        assert trial.policy_model_config["fcnet_hiddens"] in ([32], [64])
        assert isinstance(trial.mixing_ratio, float)
        assert 0.2 <= trial.mixing_ratio <= 0.8
        assert trial.reward_scale == 10.0
        assert trial.seed == 0
        found.add((trial.num_critics, *trial.q_model_config["fcnet_hiddens"]))
    assert found == {(2, 8), (2, 16, 16), (5, 8), (5, 16, 16)}


def test_wrong_choices_are_refused_once_tune_has_made_them() -> None:
    config = online_config().training(critic_lr=tune.grid_search(["slow"]))
    (resolved,) = [variant for _, variant in generate_variants(config.to_dict())]
    with pytest.raises(ValueError, match="critic_lr must be a number, not 'slow'"):
        CalQLConfig().update_from_dict(resolved)


def test_notes_of_tune_are_no_settings() -> None:
    config = online_config().update_from_dict({"__trial_info__": object(), "__stdout_file__": "out"})
    config.validate()
    assert not [name for name in vars(config) if name.startswith("__")]


def test_every_setting_and_every_refusal_is_documented() -> None:
    document = (Path(__file__).resolve().parents[1] / "docs" / "options.md").read_text()
    own = vars(CalQLConfig()).keys() - vars(CQLConfig()).keys()
    refused = SUPERSEDED.keys() | NEW_STACK_REFUSES.keys() | POLICY_STACK_REFUSES.keys()
    assert [name for name in sorted(own | refused) if f"`{name}`" not in document] == []
