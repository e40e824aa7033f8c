"""Checks the update against golden numbers of the reference implementation.

    python tests/golden_check.py DIR [--float32]

Runs every `.npz` of DIR and the `return_to_go` cases of its `mc_and_pipeline.json`. A line per file: the worst
relative error of scalars, gradients and parameter changes after one update and after all; then a summary line.
Exits non-zero on a miss.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rllib_calql.core import UpdateConfig, losses
from rllib_calql.core.calql import ActorValues, CalQLUpdate, CriticValues, Noise
from rllib_calql.core.networks import TanhGaussian
from rllib_calql.data import return_to_go
from tests.updates import gradients

Arrays = Mapping[str, np.ndarray]
# Limits on the worst relative error of scalars, gradients and parameter changes.
LIMITS = {"float64": (1e-6, 1e-6, 1e-6), "float32": (1e-4, 1e-3, math.inf)}
RETURNS_LIMIT = 1e-6


class Outcome(NamedTuple):
    line: str
    status: str  # PASS, FAIL or SKIP


def update_config(meta: Mapping[str, Any], arrays: Arrays, precision: str) -> UpdateConfig:
    """The file's settings in our names."""
    config = meta["config"]
    learned = config["use_automatic_entropy_tuning"]
    target_entropy = config["target_entropy"]
    return UpdateConfig(
        gamma=config["discount"],
        tau=config["soft_target_update_rate"],
        actor_lr=config["policy_lr"],
        alpha_lr=config["policy_lr"],
        critic_lr=config["qf_lr"],
        lagrangian_lr=config["qf_lr"],
        actor_hiddens=hidden_sizes(arrays, "policy"),
        critic_hiddens=hidden_sizes(arrays, "qf1"),
        precision="float32" if precision == "float32" else "float64",
        learn_alpha=learned,
        initial_alpha=math.exp(float(arrays["init/log_alpha"])) if learned else 1.0,
        alpha_multiplier=config["alpha_multiplier"],
        target_entropy=target_entropy if target_entropy < 0 else -float(meta["act_dim"]),
        max_target_backup=config["cql_max_target_backup"],
        num_target_actions=config["cql_n_actions"],
        deterministic_backup=not config["backup_entropy"],
        min_q_weight=meta["cql_min_q_weight"] if meta["use_cql"] else 0.0,
        calibrate=meta["enable_calql"],
        num_actions=config["cql_n_actions"],
        temperature=config["cql_temp"],
        importance_sampling=config["cql_importance_sample"],
        clip_diff_min=float(config["cql_clip_diff_min"]),
        clip_diff_max=float(config["cql_clip_diff_max"]),
        lagrangian=config["cql_lagrange"] and meta["use_cql"],
        lagrangian_thresh=config["cql_target_action_gap"],
    )


def hidden_sizes(arrays: Arrays, net: str) -> tuple[int, ...]:
    """Widths of a network's hidden layers, from its stored biases."""
    widths: list[int] = []
    while (key := f"init/{net}/{len(widths)}.bias") in arrays:
        widths.append(int(arrays[key].size))
    return tuple(widths[:-1])


def reference_tensors(update: CalQLUpdate) -> Iterator[tuple[str, Any, int | None, bool]]:
    """Every parameter in the reference's naming: (name, our tensor, ensemble member, transposed)."""
    for index, layer in enumerate(update.actor.layers):
        yield f"policy/{index}.kernel", layer.weight, None, True
        yield f"policy/{index}.bias", layer.bias, None, False
    yield "policy/log_std_multiplier", update.actor.log_std_multiplier, None, False
    yield "policy/log_std_offset", update.actor.log_std_offset, None, False
    for prefix, critics in (("qf", update.critics), ("target_qf", update.target_critics)):
        for member in range(critics.num_critics):
            for index, (weight, bias) in enumerate(zip(critics.weights, critics.biases, strict=True)):
                yield f"{prefix}{member + 1}/{index}.kernel", weight, member, False
                yield f"{prefix}{member + 1}/{index}.bias", bias, member, False
    if update.config.learn_alpha:
        yield "log_alpha", update.log_alpha, None, False
    if update.config.lagrangian:
        yield "log_alpha_prime", update.log_alpha_prime, None, False


def as_reference(tensor: Tensor, member: int | None, transposed: bool, shape: tuple[int, ...]) -> np.ndarray:
    view = tensor if member is None else tensor[member]
    view = view.T if transposed else view
    return view.detach().double().numpy().reshape(shape).copy()


def snapshot(update: CalQLUpdate, arrays: Arrays, gradients: bool = False) -> dict[str, np.ndarray]:
    """Parameters (or their gradients) as the reference lays them out."""
    found = {}
    for name, tensor, member, transposed in reference_tensors(update):
        source = tensor.grad if gradients else tensor
        if source is not None and (not gradients or not name.startswith("target_")):
            found[name] = as_reference(source, member, transposed, arrays[f"init/{name}"].shape)
    return found


@torch.no_grad()
def load_initial(update: CalQLUpdate, arrays: Arrays) -> None:
    for name, tensor, member, transposed in reference_tensors(update):
        value = torch.as_tensor(arrays[f"init/{name}"], dtype=update.dtype)
        view = tensor if member is None else tensor[member]
        view.copy_((value.T if transposed else value).reshape(view.shape))


def scalars(
    update: CalQLUpdate, batch: Mapping[str, Tensor], actor: ActorValues, critic: CriticValues
) -> dict[str, Tensor]:
    """Every scalar the reference reports, at the parameters of these values."""
    lagrangian = update.config.lagrangian
    with torch.no_grad():
        policy = TanhGaussian(*update.actor(batch["observations"]))
        found = {
            "policy_loss": actor.actor_loss,
            "alpha": update.alpha(),
            "alpha_prime": update.alpha_prime() if lagrangian else torch.zeros(()),
            "td_target_mean": critic.target.mean(),
            "td_target_std": critic.target.std(correction=0),
            "td_target_min": critic.target.min(),
            "td_target_max": critic.target.max(),
            "target_q_values_mean": critic.next_value.mean(),
            "log_pi_mean": actor.log_probs.mean(),
            "log_pi_data_mean": policy.log_prob(batch["actions"]).mean(),
            "policy_grad_norm": grad_norm(update.actor.parameters()),
        }
        if actor.temperature_loss is not None:
            found["alpha_loss"] = actor.temperature_loss
        for i in range(update.critics.num_critics):
            grads = [p.grad[i] for p in update.critics.parameters() if p.grad is not None]
            found[f"qf{i + 1}_loss"] = critic.critic_losses[i]
            found[f"qf{i + 1}_bellman_loss"] = critic.bellman_losses[i]
            found[f"q{i + 1}_pred_mean"] = critic.q[i, :, 0].mean()
            found[f"qf{i + 1}_grad_norm"] = torch.linalg.vector_norm(torch.cat([g.flatten() for g in grads]))
        if critic.gaps is not None:
            found |= conservative_scalars(update, batch, critic)
            found["alpha_prime_loss"] = update.lagrange_loss(critic.gaps) if lagrangian else torch.zeros(())
    return found


def conservative_scalars(
    update: CalQLUpdate, batch: Mapping[str, Tensor], critic: CriticValues
) -> dict[str, Tensor]:
    assert critic.gaps is not None
    assert critic.offsets is not None
    found: dict[str, Tensor] = {}
    returns, n = batch["mc_returns"], update.config.num_actions
    _, q_random, q_current, q_next = torch.split(critic.q, [1, n, n, n], dim=-1)
    bounds = losses.reference_bounds(returns, n)
    if not update.calibrated:
        bounds = torch.full_like(bounds, -math.inf)
    difference = losses.conservative_difference(critic.q, critic.offsets, bounds, update.config.temperature)
    soft_maximum = difference + critic.q[..., 0]
    spread = torch.maximum(critic.q, bounds).std(dim=-1, correction=0)
    for i in range(update.critics.num_critics):
        for group, q_values in (("current", q_current), ("next", q_next)):
            found[f"bound_rate_q{i + 1}_{group}"] = (q_values[i] < returns[:, None]).double().mean()
        found[f"cql_std_q{i + 1}_mean"] = spread[i].mean()
        found[f"cql_q{i + 1}_rand_mean"] = q_random[i].mean()
        found[f"cql_qf{i + 1}_diff"] = critic.gaps[i]
        found[f"cql_min_qf{i + 1}_loss"] = critic.critic_losses[i] - critic.bellman_losses[i]
        found[f"cql_qf{i + 1}_ood_mean"] = soft_maximum[i].mean()
    return found


def grad_norm(parameters: Iterator[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]))


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """max|a - b| / max|b|; absolute where the reference is zero."""
    scale = float(np.max(np.abs(expected)))
    error = float(np.max(np.abs(np.asarray(found, np.float64) - expected)))
    return error / scale if scale > 0 else error


def stored(arrays: Arrays, group: str) -> Iterator[tuple[str, np.ndarray, int]]:
    """(tensor name, stored values, stride): large tensors are stored as every s-th element, `NAME@s`."""
    for key in arrays:
        if key.startswith(f"{group}/"):
            name, _, stride = key.removeprefix(f"{group}/").partition("@")
            yield name, np.asarray(arrays[key], np.float64), int(stride or 1)


def worst(errors: Mapping[str, float]) -> tuple[float, str]:
    name = max(errors, key=lambda k: math.inf if math.isnan(errors[k]) else errors[k])
    return errors[name], name


def compare(arrays: Arrays, group: str, found: Mapping[str, np.ndarray], change: bool = False) -> dict[str, float]:
    """Errors of every stored tensor of a group; with `change`, of its difference to the initial value."""
    errors = {}
    for name, expected, stride in stored(arrays, group):
        start = np.asarray(arrays[f"init/{name}"], np.float64) if change else np.zeros(found[name].shape)
        ours = (found[name] - start).reshape(-1)[::stride]
        reference = expected.reshape(-1) - start.reshape(-1)[::stride]
        errors[name] = relative_error(ours, reference)
    return errors


def recorded_step(arrays: Arrays, t: int, update: CalQLUpdate) -> tuple[dict[str, Tensor], Noise]:
    """The batch and the noise of update number `t`."""

    def tensor(key: str) -> Tensor:
        return torch.as_tensor(np.asarray(arrays[key][t]), dtype=update.dtype)

    batch = {key.removeprefix("batch/"): tensor(key) for key in arrays if key.startswith("batch/")}
    target_noise = tensor("noise/eps_next")
    no_noise = torch.zeros(len(batch["rewards"]), update.config.num_actions, update.act_dim, dtype=update.dtype)

    def sampled(name: str) -> Tensor:
        return tensor(f"noise/{name}") if f"noise/{name}" in arrays else no_noise

    noise = Noise(
        actor=tensor("noise/eps_new"),
        target=target_noise if target_noise.dim() == 3 else target_noise.unsqueeze(1),
        current=sampled("eps_cql_current"),
        next=sampled("eps_cql_next"),
        random=sampled("random_actions"),
    )
    return batch, noise


def check_file(path: Path, precision: str) -> Outcome:
    """Runs the file's updates with its noise and compares everything it stores."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    meta = json.loads(str(arrays["meta"]))
    if "heads" in meta:
        return Outcome(f"{path.name:32} SKIP  one draw per loss; our losses share one draw per step", "SKIP")
    update = CalQLUpdate(meta["obs_dim"], meta["act_dim"], update_config(meta, arrays, precision))
    load_initial(update, arrays)
    scalar_errors: dict[str, float] = {}
    change_errors: dict[str, float] = {}
    grad_errors: dict[str, float] = {}
    history: dict[str, list[float]] = {}
    for t in range(meta["n_updates"]):
        batch, noise = recorded_step(arrays, t, update)
        actor, critic = gradients(update, batch, noise)
        for name, value in scalars(update, batch, actor, critic).items():
            history.setdefault(name, []).append(float(value.detach()))
        if t == 0:
            grad_errors = compare(arrays, "grad", snapshot(update, arrays, gradients=True))
        update.optimizer.step()
        update.update_targets(update.config.tau)
        for name, error in compare(arrays, f"after{t + 1}", snapshot(update, arrays), change=True).items():
            change_errors[f"{name} after {t + 1}"] = error
    missing = []
    for name, expected, _ in stored(arrays, "scalar"):
        if name in history:
            limit = 1.0 / arrays["noise/random_actions"][0, ..., 0].size if name.startswith("bound_rate") else 0.0
            error = relative_error(np.array(history[name]), expected)
            # In float32 a value at the bound may fall on either side of it.
            if precision == "float32" and np.max(np.abs(np.array(history[name]) - expected)) <= limit + 1e-12:
                error = 0.0
            scalar_errors[name] = error
        elif np.any(expected != 0.0):
            missing.append(name)
    results = [worst(errors) for errors in (scalar_errors, grad_errors, change_errors)]
    good = all(error <= limit for (error, _), limit in zip(results, LIMITS[precision], strict=True))
    status = "PASS" if good and not missing else "FAIL"
    parts = "  ".join(
        f"{label} {error:.1e} ({name})"
        for label, (error, name) in zip(("scalars", "gradients", "changes"), results, strict=True)
    )
    note = f"  not computed: {', '.join(missing)}" if missing else ""
    return Outcome(f"{path.name:32} {status}  {parts}{note}", status)


def check_returns(path: Path) -> list[Outcome]:
    """The `return_to_go` cases of a pipeline file."""
    outcomes = []
    for case in json.loads(path.read_text()).get("return_to_go", []):
        rewards = np.array(case["scaled_rewards"], np.float32)
        terminated = np.array(case["terminals"], bool)
        ends = np.zeros(len(rewards), bool)
        ends[-1] = True
        failure = {"sparse01": 0.0, "binary": -1.0}.get(case["kind"], 0.0)
        found = return_to_go(
            rewards,
            terminated,
            ends & ~terminated,
            case["gamma"],
            sparse_failure_reward=(
                failure * case["reward_scale"] + case["reward_bias"] if case["sparse"] else None
            ),
            trajectory_ends=ends,
        )
        error = relative_error(found, np.array(case["mc_returns_float32"], np.float64))
        status = "PASS" if error <= RETURNS_LIMIT else "FAIL"
        outcomes.append(Outcome(f"{path.name}:{case['name']:40} {status}  returns {error:.1e}", status))
    return outcomes


def check_folder(folder: Path, precision: str) -> list[Outcome]:
    """All outcomes of a folder, files in name order."""
    outcomes = [check_file(path, precision) for path in sorted(folder.glob("*.npz"))]
    for path in sorted(folder.glob("mc_and_pipeline*.json")):
        outcomes += check_returns(path)
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--float32", action="store_true", help="compute in float32 (default float64)")
    options = parser.parse_args()
    if not options.folder.is_dir():
        print(f"{options.folder} is not a folder")
        return 2
    outcomes = check_folder(options.folder, "float32" if options.float32 else "float64")
    for outcome in outcomes:
        print(outcome.line)
    count = {status: sum(o.status == status for o in outcomes) for status in ("PASS", "FAIL", "SKIP")}
    print(f"{count['PASS']} passed, {count['FAIL']} failed, {count['SKIP']} skipped")
    return 1 if count["FAIL"] or not count["PASS"] else 0


if __name__ == "__main__":
    sys.exit(main())
