"""Both API stacks do the same: the same parameters, the golden numbers, RLlib's own checks."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.test_utils import (
    check_compute_single_action,
    check_train_results,
    check_train_results_new_api_stack,
)

from rllib_calql import CalQLConfig, CalQLTorchPolicy
from rllib_calql.core import CalQLUpdate
from rllib_calql.data import Transitions
from rllib_calql.replay_buffer import to_sample_batch
from tests.golden_check import LIMITS, compare, load_initial, recorded_step, snapshot, update_config
from tests.shared import SHARED, shared_path
from tests.test_resume import BOTH_STACKS, deterministic, small_config

GOLDEN_FILES = sorted(
    path.name for path in (SHARED / "golden").glob("*.npz") if not path.name.startswith("x_independent")
) or ["a_calql_is.npz"]


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("normalize_observations", [False, True])
def test_same_parameters_after_both_phases(pendulum_data: Transitions, normalize_observations: bool) -> None:
    """100 offline updates, two online rounds, evaluations: bit-equal parameters, temperatures and episodes."""
    blocks, weights, rows = [], [], []
    for new_stack in (False, True):
        algo = small_config(
            pendulum_data,
            0,
            new_stack,
            num_offline_updates=100,
            min_train_updates_per_iteration=100,
            normalize_observations=normalize_observations,
            score_range=(-400.0, 0.0),
        ).build_algo()
        blocks.append([deterministic(algo.train()["calql"]) for _ in range(3)])
        weights.append(algo.stack.weights())
        rows.append(algo.local_replay_buffer.replay.online.rows)
        algo.stop()
    assert blocks[0][-1]["num_updates"] == 120
    assert blocks[0][-1]["num_online_episodes"] == 2
    for policy_stack, new_stack in zip(*blocks, strict=True):
        assert policy_stack.pop("phase") == new_stack.pop("phase")
        assert policy_stack == pytest.approx(new_stack, rel=1e-6)
    assert weights[0].keys() == weights[1].keys()
    for name, array in weights[0].items():
        np.testing.assert_array_equal(weights[1][name], array, err_msg=name)
    for column in ("observations", "actions", "rewards", "mc_returns", "final_observations"):
        np.testing.assert_array_equal(getattr(rows[0], column), getattr(rows[1], column), err_msg=column)


# ---- golden numbers


def golden_config(meta: dict[str, Any], arrays: dict[str, np.ndarray], precision: str) -> CalQLConfig:
    settings = asdict(update_config(meta, arrays, precision))
    for model, network in (("policy_model_config", "actor"), ("q_model_config", "critic")):
        settings[model] = {
            "fcnet_hiddens": list(settings.pop(f"{network}_hiddens")),
            "fcnet_activation": settings.pop(f"{network}_activation"),
        }
    del settings["online_actor_interval"]  # of utd_ratio and actor_updates
    settings["encoder_config"] = {name: settings.pop(name) for name in ("conv_filters", "feature_dim")}
    return CalQLConfig().training(**settings)


def columns_of(batch: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: column.numpy() for name, column in batch.items()}


@BOTH_STACKS
@pytest.mark.parametrize("name", GOLDEN_FILES)
def test_goldens_through_the_stacks_own_entry_points(name: str, new_stack: bool) -> None:
    """`policy.compute_gradients` once per batch; `learner.update` once with all batches as its minibatches."""
    with np.load(shared_path(f"golden/{name}"), allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    meta = json.loads(str(arrays["meta"]))
    config = golden_config(meta, arrays, "float64")
    spaces = (Box(-np.inf, np.inf, (meta["obs_dim"],)), Box(-1.0, 1.0, (meta["act_dim"],)))
    if new_stack:
        learner = config.api_stack(True, True).build_learner(spaces={DEFAULT_MODULE_ID: spaces})
        update = learner.calql
        assert isinstance(update, CalQLUpdate)
    else:
        policy = CalQLTorchPolicy(*spaces, config.to_dict())
        update = policy.update
    load_initial(update, arrays)
    steps = [recorded_step(arrays, t, update) for t in range(meta["n_updates"])]
    noises = iter([noise for _, noise in steps])
    update.draw_noise = lambda batch_size: next(noises)
    batches = [columns_of(batch) for batch, _ in steps]
    if new_stack:
        joined = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
        learner.update(batch=to_sample_batch(joined).as_multi_agent(), minibatch_size=len(batches[0]["rewards"]))
    else:
        for batch in batches:
            policy.compute_gradients(to_sample_batch(batch))
    assert update.num_updates == meta["n_updates"]
    errors = compare(arrays, f"after{meta['n_updates']}", snapshot(update, arrays), change=True)
    assert max(errors.values()) <= LIMITS["float64"][2], errors


# ---- RLlib's own checks


@pytest.mark.usefixtures("ray_session")
def test_rllibs_checks_of_results_and_actions(pendulum_data: Transitions, tmp_path: Path) -> None:
    check = {False: check_train_results, True: check_train_results_new_api_stack}
    for new_stack in (False, True):
        algo = small_config(pendulum_data, 0, new_stack).build_algo()
        for _ in range(3):
            check[new_stack](algo.train())
        if not new_stack:
            check_compute_single_action(algo)
        algo.stop()


def test_the_module_acts_as_the_policy_does() -> None:
    """Deterministic and exploring actions, their likelihoods, and the distribution that RLlib is told of."""
    spaces = (Box(-np.inf, np.inf, (3,)), Box(-2.0, 2.0, (2,)))
    config = CalQLConfig().debugging(seed=3)
    policy = CalQLTorchPolicy(*spaces, config.to_dict())
    learner = config.api_stack(True, True).build_learner(spaces={DEFAULT_MODULE_ID: spaces})
    module = learner.module[DEFAULT_MODULE_ID]
    observations = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    batch = {"obs": torch.as_tensor(observations)}
    expected, _, extra = policy.compute_actions(observations, explore=False)
    found = module.forward_inference(batch)
    np.testing.assert_array_equal(found["actions"], expected)
    np.testing.assert_array_equal(found["action_logp"], extra["action_logp"])
    # RLlib's distribution of the same inputs: its mode, and the likelihood of an exploring action
    inputs = module.forward_train(batch)["action_dist_inputs"].detach()
    torch.testing.assert_close(inputs, found["action_dist_inputs"])
    distribution = module.get_inference_action_dist_cls().from_logits(inputs)
    torch.testing.assert_close(distribution.to_deterministic().sample(), found["actions"])
    explored = module.forward_exploration(batch)
    torch.testing.assert_close(
        distribution.logp(explored["actions"]), explored["action_logp"], rtol=1e-3, atol=1e-3
    )
    # one row of noise per environment, begun anew with each episode, as the policy's
    policy.begin_episode(7)
    module.begin_episode(0, 7)
    for _ in range(3):
        np.testing.assert_array_equal(
            module.forward_exploration({"obs": batch["obs"][:1]})["actions"],
            policy.compute_actions(observations[:1], explore=True)[0],
        )
