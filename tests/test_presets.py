"""Named methods: how a preset meets other settings, and that each of them trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rllib_calql import CalQL, CalQLConfig, CalQLTorchPolicy
from rllib_calql.cli.common import UserError
from rllib_calql.cli.experiments import load_file, override, variants
from rllib_calql.cli.options import TrainOptions
from rllib_calql.data import Transitions
from rllib_calql.presets import PRESETS, preset_settings
from tests.test_policy import ACTIONS, OBSERVATIONS
from tests.test_resume import deterministic, small_config

TASK = {
    "run": "CalQL",
    "env": "Pendulum-v1",
    "config": {"input": "data.h5", "lagrangian": True, "mixing_ratio": 0.25},
}


# ---- what wins


def test_a_preset_is_a_config() -> None:
    config = CalQLConfig.preset("cql-sac")
    assert (config.calibrate, config.min_q_weight_online) == (False, 0.0)
    assert config.training(calibrate=True).calibrate
    untouched = {name: value for name, value in vars(config).items() if name not in PRESETS["cql-sac"]}
    assert untouched == {name: vars(CalQLConfig())[name] for name in untouched}


def test_unknown_presets_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no preset 'cql-sca'; did you mean 'cql-sac'\? known are .*cal-ql, "):
        CalQLConfig.preset("cql-sca")
    with pytest.raises(ValueError, match="no preset None; known are"):
        CalQLConfig().update_from_dict({"preset": None})


def test_settings_count_in_their_order() -> None:
    config = CalQLConfig().update_from_dict(
        {"mixing_ratio": 0.1, "lagrangian": True, "preset": "sac-offline-data", "min_q_weight": 2, "tau": 0.1}
    )
    assert (config.mixing_ratio, config.lagrangian, config.min_q_weight, config.tau) == (-1.0, False, 2.0, 0.1)


def test_a_preset_replaces_another_methods_settings() -> None:
    awac = CalQLConfig.preset("awac")
    awac.update_from_dict({"preset": "cql"})
    assert awac.update_rule == "sac"
    cloning = CalQLConfig().update_from_dict({"bc_iters": 20_000, "preset": "sac"})
    assert cloning.bc_iters == 0


def experiment(folder: Path, *settings: str, **config: Any) -> CalQLConfig:
    """The config of a task's file with `config` over it, as `rllib train file` reads it with --set SETTINGS."""
    (folder / "task.yaml").write_text(yaml.safe_dump({"task": TASK}))
    (folder / "change.yaml").write_text(yaml.safe_dump({"change": {"extends": "task.yaml", "config": config}}))
    ((name, spec),) = load_file(str(folder / "change.yaml")).items()
    spec = override(name, spec, TrainOptions(set_=list(settings)))
    (variant,) = variants(name, spec)
    assert isinstance(variant.config, CalQLConfig)
    return variant.config


def test_a_preset_is_laid_over_the_task_and_under_what_is_set_beside_it(tmp_path: Path) -> None:
    plain = experiment(tmp_path)
    assert (plain.lagrangian, plain.mixing_ratio, plain.min_q_weight) == (True, 0.25, 5.0)
    # over a base file, and under its own neighbours, wherever they stand
    config = experiment(tmp_path, mixing_ratio=0.75, preset="sac-offline-data")
    assert (config.lagrangian, config.mixing_ratio, config.min_q_weight) == (False, 0.75, 0.0)
    # over the whole file on the command line, and under its own neighbours
    config = experiment(tmp_path, "tau=0.1", "preset=sac-offline-data", mixing_ratio=0.75)
    assert (config.lagrangian, config.mixing_ratio, config.tau) == (False, -1.0, 0.1)
    config = experiment(tmp_path, "mixing_ratio=0.5", "preset=sac-offline-data")
    assert config.mixing_ratio == 0.5
    # one in the place of another
    config = experiment(tmp_path, "preset=cql", preset="cql-sac", min_q_weight=3)
    assert (config.calibrate, config.min_q_weight_online, config.min_q_weight) == (False, None, 3.0)
    with pytest.raises(ValueError, match="there is no preset 'cq'"):
        experiment(tmp_path, "preset=cq")


def test_the_command_lines_preset_counts_after_the_file_and_before_other_options() -> None:
    spec = {"run": "CalQL", "config": {"preset": "cql-sac", "calibrate": True}}
    options = TrainOptions(preset="cql", config="{mixing_ratio: 0.1}", set_=["tau=0.1"])
    config = override("x", spec, options)["config"]
    assert list(config.items()) == [("calibrate", True), ("preset", "cql"), ("mixing_ratio", 0.1), ("tau", 0.1)]


def test_presets_may_be_compared_in_one_experiment(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text(yaml.safe_dump({"task": TASK}))
    ((name, spec),) = load_file(str(tmp_path / "task.yaml")).items()
    spec = override(name, spec, TrainOptions(set_=["preset={grid_search: [cal-ql, sac]}", "tau=0.1"]))
    found = [(variant.label, variant.config) for variant in variants(name, spec)]
    assert [label for label, _ in found] == ["task, preset=cal-ql", "task, preset=sac"]
    assert [config.lagrangian for _, config in found] == [True, False]
    assert {config.tau for _, config in found} == {0.1}
    with pytest.raises(UserError, match="--set takes KEY=VALUE"):
        override(name, spec, TrainOptions(set_=["preset"]))


# ---- what they do

TINY: dict[str, Any] = {
    "num_offline_updates": 4,
    "min_train_updates_per_iteration": 4,
    "num_online_env_steps": 150,
    "num_actions": 2,
    "num_target_actions": 2,
    "lagrangian": False,
    "utd_ratio": 0.1,
}
# Where a preset trains at another pace: 5 and 5000 are too much for a test, 60 steps of 150 warm up.
PACE = {"utd_ratio": 0.1, "warmup_env_steps": 60}


def tiny(data: Transitions | None, name: str, new_stack: bool = False, **changes: Any) -> CalQLConfig:
    config = small_config(data if data is not None else "sampler", 0, new_stack, **TINY)
    pace = {key: value for key, value in PACE.items() if key in PRESETS[name]}
    return config.update_from_dict({"preset": name, **pace, **changes}).evaluation(evaluation_interval=None)


def run(config: CalQLConfig) -> tuple[CalQL, list[dict[str, Any]]]:
    """Both phases to their ends, and their blocks."""
    algo, blocks = config.build_algo(), []
    while not algo.complete:
        blocks.append(deterministic(algo.train()["calql"]))
    return algo, blocks


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_trains_in_its_phases(pendulum_data: Transitions, name: str) -> None:
    config = tiny(pendulum_data, name)
    algo, blocks = run(config)
    phases = [block["phase"] for block in blocks]
    assert phases == (["offline"] if config.num_offline_updates else []) + ["online"] * 3
    assert algo.local_replay_buffer.replay.mixing_ratio == config.mixing_ratio
    assert blocks[-1]["num_updates"] == config.num_offline_updates + (150 - config.warmup_env_steps) // 10
    online_weight = config.min_q_weight if config.min_q_weight_online is None else config.min_q_weight_online
    for block in blocks:
        conservative = config.min_q_weight if block["phase"] == "offline" else online_weight
        assert ("conservative_gap" in block) == bool(conservative and "critic_loss" in block)
        assert all(np.isfinite(value) for key, value in block.items() if key != "phase")
    algo.stop()


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("new_stack", [False, True])
def test_warm_up(pendulum_data: Transitions, new_stack: bool) -> None:
    """The frozen policy's episodes, or random ones, earn no updates; the first is ended after the 60th step."""
    for name, uniform in (("wsrl", False), ("rlpd", True)):
        algo = tiny(pendulum_data, name, new_stack).build_algo()
        before = algo.stack.weights()
        if not uniform:
            algo.train()
            before = algo.stack.weights()
        for updates in (0, 4, 9):
            block = algo.train()["calql"]
            assert block["num_updates"] == updates + (0 if uniform else 4)
            changed = any(not np.array_equal(array, algo.stack.weights()[key]) for key, array in before.items())
            assert changed == (updates > 0)
        online = algo.local_replay_buffer.replay.online.rows
        assert online is not None
        first, second, third = (episode.actions.ravel() for episode in online.episodes())
        explored = np.abs(np.concatenate([first, second]))
        # Uniform, or of a policy that is narrow around its mean: log std -1 at the start.
        assert (np.quantile(explored, 0.75) > 0.65) == uniform
        assert np.quantile(np.abs(third), 0.75) < 0.65
        algo.stop()


@pytest.mark.usefixtures("ray_session")
def test_sac_needs_no_dataset_and_trains_on_none(pendulum_data: Transitions) -> None:
    """Without one, every mixing ratio does the same."""
    found = []
    for data, name in ((pendulum_data, "sac"), (None, "sac"), (None, "sac-offline-data"), (None, "hybrid-rl")):
        algo, _ = run(tiny(data, name))
        found.append(algo.stack.weights())
        algo.stop()
    for weights in found[1:]:
        for name, array in weights.items():
            np.testing.assert_array_equal(array, found[0][name], err_msg=name)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("name", ["awac", "iql", "o3f"])
def test_both_api_stacks_do_the_same(pendulum_data: Transitions, name: str) -> None:
    """What the presets of their own code learn and explore."""
    runs = [run(tiny(pendulum_data, name, new_stack)) for new_stack in (False, True)]
    (policy_stack, blocks), (learner_stack, other_blocks) = runs
    for ours, theirs in zip(blocks, other_blocks, strict=True):
        assert ours.pop("phase") == theirs.pop("phase")
        assert ours == pytest.approx(theirs, rel=1e-5)
    for key, array in policy_stack.stack.weights().items():
        np.testing.assert_array_equal(learner_stack.stack.weights()[key], array, err_msg=key)
    rows = [algo.local_replay_buffer.replay.online.rows for algo, _ in runs]
    np.testing.assert_array_equal(rows[0].actions, rows[1].actions)  # type: ignore[union-attr]
    for algo, _ in runs:
        algo.stop()


@pytest.mark.usefixtures("ray_session")
def test_twenty_updates_per_step_with_ten_critics(pendulum_data: Transitions) -> None:
    """The paper's section 7.2, at its own pace, on both API stacks."""
    weights = []
    for new_stack in (False, True):
        config = tiny(pendulum_data, "cal-ql-utd20", new_stack, utd_ratio=20, num_online_env_steps=4)
        algo, blocks = run(config.environment("Pendulum-v1", env_config={"max_episode_steps": 2}))
        assert [block["num_updates"] for block in blocks] == [4, 4 + 2 * 20, 4 + 4 * 20]
        weights.append(algo.stack.weights())
        assert weights[-1]["critics.weights.0"].shape[0] == 10
        assert "critics.norm_scales.0" in weights[-1]
        algo.stop()
    for key, array in weights[0].items():
        np.testing.assert_array_equal(weights[1][key], array, err_msg=key)


@pytest.mark.usefixtures("ray_session")
def test_runners_are_sent_the_critics_that_choose(pendulum_data: Transitions) -> None:
    algo = tiny(pendulum_data, "o3f", new_stack=True).build_algo()
    for _ in range(2):
        algo.train()
    algo.stack.collect()
    weights, sent = algo.stack.weights(), algo.env_runner.module.get_state()
    assert sent.keys() == {name for name in weights if name.startswith(("actor.", "critics.", "obs_"))}
    for name, array in sent.items():
        np.testing.assert_array_equal(array, weights[name], err_msg=name)
    algo.stop()
    choosing: set[str] = {"critics"}
    for config, critics in ((CalQLConfig.preset("o3f"), choosing), (CalQLConfig(), set[str]())):
        policy = CalQLTorchPolicy(OBSERVATIONS, ACTIONS, config.to_dict())
        names = {name.split(".")[0] for name in policy.inference_weights()}
        assert names == {"actor", "obs_mean", "obs_std"} | critics


@pytest.mark.usefixtures("ray_session")
def test_iql_goes_on_bit_equal_from_a_checkpoint(pendulum_data: Transitions, tmp_path: Path) -> None:
    algo = tiny(pendulum_data, "iql").build_algo()
    for _ in range(2):
        algo.train()
    algo.save(str(tmp_path))
    expected = [deterministic(algo.train()["calql"]) for _ in range(2)]
    restored = tiny(pendulum_data, "iql").build_algo()
    restored.restore(str(tmp_path))
    assert [deterministic(restored.train()["calql"]) for _ in range(2)] == expected
    np.testing.assert_equal(restored.update.get_state(), algo.update.get_state())
    assert "value.layers.0.weight" in algo.stack.weights()
    for one in (algo, restored):
        one.stop()


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_over_a_file_of_another_rule(name: str) -> None:
    """What the other rule alone has a use for is taken back."""
    of_iql = {"update_rule": "iql", "beta": 10.0, "beta_online": 25.0, "expectile": 0.9}
    config = CalQLConfig().environment("Pendulum-v1").offline_data(input_="data.h5")
    config.update_from_dict(of_iql | preset_settings(name)).training(warmup_env_steps=0, warmup_actions="policy")
    config.validate()
    assert config.beta_online is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"preset": "iql", "lagrangian": True},
            "update_rule='iql' has no use for lagrangian=True: set it to False",
        ),
        ({"preset": "iql", "num_target_critics": 1}, "'iql' has no use for num_target_critics=1: set it to None"),
        ({"preset": "awac", "min_q_weight": 5.0}, "update_rule='awac' has no use for min_q_weight=5.0"),
        ({"preset": "awac", "learn_alpha": True}, "update_rule='awac' has no use for learn_alpha=True"),
        ({"preset": "iql", "actor_updates": "every_step"}, "'iql' has no use for actor_updates='every_step'"),
        ({"preset": "awac", "actor_updates": "every_step"}, "'awac' has no use for actor_updates='every_step'"),
        ({"actor_updates": "never"}, "actor_updates must be one of every_update, every_step, not 'never'"),
        ({"beta": 3.0}, "update_rule='sac' has no use for beta=3.0"),
        ({"beta_online": 3.0}, "update_rule='sac' has no use for beta_online=3.0"),
        ({"min_q_weight": 0.0}, "calibrate=True bounds actions in .* that min_q_weight=0 switches off"),
        ({"min_q_weight": 0.0, "calibrate": False, "lagrangian": True}, "lagrangian=True weighs a conservative"),
        ({"warmup_actions": "random"}, "warmup_actions='random' needs warmup_env_steps above 0"),
        (
            {"preset": "wsrl", "num_online_env_steps": 5000},
            "warmup_env_steps=5000 leaves nothing of num",
        ),
        ({"update_rule": "td3"}, "update_rule must be one of sac, awac, iql, not 'td3'"),
    ],
)
def test_conflicts_are_refused(settings: dict[str, Any], message: str) -> None:
    config = CalQLConfig().environment("Pendulum-v1").offline_data(input_="data.h5").update_from_dict(settings)
    with pytest.raises(ValueError, match=message):
        config.validate()
