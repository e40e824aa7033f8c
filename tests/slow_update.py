"""A slow Cal-QL written from the golden README alone: an oracle for the update, and a maker of golden files.

One row, one action and one network at a time, torch.autograd, an Adam per group; no line of the package.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

BATCH, NUM_ACTIONS, OBS_DIM, ACT_DIM = 4, 3, 3, 2
UPDATES = 2
Scalars = dict[str, Tensor]


def mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()


def linears(net: nn.Sequential) -> list[nn.Linear]:
    return [layer for layer in net if isinstance(layer, nn.Linear)]


class SlowUpdate:
    """Golden README, sections 1 and 2, word by word."""

    def __init__(self, meta: dict[str, Any], seed: int) -> None:
        self.meta, self.config = meta, meta["config"]
        self.limits = float(self.config["cql_clip_diff_min"]), float(self.config["cql_clip_diff_max"])
        self.row_clipped: list[bool] = []  # per row, critic and update
        torch.manual_seed(seed)
        obs_dim, act_dim = meta["obs_dim"], meta["act_dim"]

        def net(sizes: list[int]) -> nn.Sequential:
            layers: list[nn.Module] = []
            for fan_in, fan_out in pairwise(sizes):
                layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
            return nn.Sequential(*layers[:-1]).double()

        self.policy = net([obs_dim, 6, 5, 2 * act_dim])
        self.nets = {"policy": self.policy}
        for name in ("qf1", "qf2", "target_qf1", "target_qf2"):  # targets differ from the critics here
            self.nets[name] = net([obs_dim + act_dim, 7, 6, 1])
        self.multiplier = torch.tensor(0.75, dtype=torch.float64, requires_grad=True)
        self.offset = torch.tensor(-0.5, dtype=torch.float64, requires_grad=True)
        self.log_alpha = torch.tensor(0.25, dtype=torch.float64, requires_grad=True)
        self.log_alpha_prime = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        policy_lr, qf_lr = self.config["policy_lr"], self.config["qf_lr"]
        self.groups: dict[str, tuple[list[Tensor], torch.optim.Optimizer]] = {}
        groups: list[tuple[str, list[Tensor], float]] = [
            ("policy", [*self.policy.parameters(), self.multiplier, self.offset], policy_lr),
            ("qf1", list(self.nets["qf1"].parameters()), qf_lr),
            ("qf2", list(self.nets["qf2"].parameters()), qf_lr),
            ("log_alpha", [self.log_alpha], policy_lr),
            ("log_alpha_prime", [self.log_alpha_prime], qf_lr),
        ]
        for name, parameters, lr in groups:
            self.groups[name] = (parameters, torch.optim.Adam(parameters, lr=lr, foreach=False))

    @property
    def learns_alpha(self) -> bool:
        return bool(self.config["use_automatic_entropy_tuning"])

    @property
    def has_multiplier(self) -> bool:
        return bool(self.config["cql_lagrange"] and self.meta["use_cql"])

    def tensors(self, gradients: bool = False) -> Iterator[tuple[str, np.ndarray]]:
        """All parameters in the golden files' names and layout, or the gradients of what is trained."""

        def pick(tensor: Tensor) -> np.ndarray:
            chosen = tensor.grad if gradients else tensor
            assert chosen is not None
            return chosen.detach().numpy().copy()

        for name, net in self.nets.items():
            if not (gradients and name.startswith("target")):
                for index, layer in enumerate(linears(net)):
                    yield f"{name}/{index}.kernel", pick(layer.weight).T
                    yield f"{name}/{index}.bias", pick(layer.bias)
        yield "policy/log_std_multiplier", pick(self.multiplier)
        yield "policy/log_std_offset", pick(self.offset)
        if self.learns_alpha:
            yield "log_alpha", pick(self.log_alpha)
        if self.has_multiplier:
            yield "log_alpha_prime", pick(self.log_alpha_prime)

    def alpha(self) -> Tensor:
        exponent = self.log_alpha.detach().exp() if self.learns_alpha else torch.ones((), dtype=torch.float64)
        return exponent * self.config["alpha_multiplier"]

    def gaussian(self, state: Tensor) -> tuple[Tensor, Tensor]:
        mu, raw = self.policy(state).chunk(2)
        return mu, torch.exp(torch.clip(self.multiplier * raw + self.offset, -20.0, 2.0))

    def log_prob(self, mu: Tensor, std: Tensor, u: Tensor) -> Tensor:
        density = torch.exp(-((u - mu) ** 2) / (2 * std**2)) / (std * math.sqrt(2 * math.pi))
        return torch.log(density * torch.cosh(u) ** 2).sum()

    def act(self, state: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        mu, std = self.gaussian(state)
        u = mu + std * eps
        return torch.tanh(u), self.log_prob(mu, std, u)

    def q(self, net: str, state: Tensor, action: Tensor) -> Tensor:
        return self.nets[net](torch.cat([state, action])).squeeze()

    def gradients(self, batch: dict[str, Tensor], noise: dict[str, Tensor]) -> Scalars:
        """Fills `.grad` of everything that is trained; returns every scalar of the golden files."""
        config = self.config
        alpha = self.alpha()
        policy_losses, log_probs = [], []
        for s, eps in zip(batch["observations"], noise["eps_new"], strict=True):
            action, log_prob = self.act(s, eps)
            value = torch.minimum(self.q("qf1", s, action), self.q("qf2", s, action))
            policy_losses.append(alpha * log_prob - value)
            log_probs.append(log_prob)
        losses = {"policy": mean(policy_losses)}
        log_pi = torch.stack(log_probs).detach()
        target_entropy = config["target_entropy"] if config["target_entropy"] < 0 else -self.meta["act_dim"]
        found = {"log_pi_mean": log_pi.mean(), "policy_loss": losses["policy"], "alpha": alpha}
        if self.learns_alpha:
            losses["log_alpha"] = -self.log_alpha * (log_pi.mean() + target_entropy)
            found["alpha_loss"] = losses["log_alpha"]

        with torch.no_grad():
            pairs = zip(batch["next_observations"], noise["eps_next"], strict=True)
            values = torch.stack([self.next_value(s, eps) for s, eps in pairs])
            target = batch["rewards"] + (1 - batch["dones"]) * config["discount"] * values
            rows = list(zip(batch["observations"], batch["actions"], strict=True))
            data_log_probs = [self.log_prob(*self.gaussian(s), torch.atanh(a)) for s, a in rows]
        found |= {
            "td_target_mean": target.mean(),
            "td_target_std": target.std(correction=0),
            "td_target_min": target.min(),
            "td_target_max": target.max(),
            "target_q_values_mean": values.mean(),
            "log_pi_data_mean": mean(data_log_probs),
        }
        gaps = []
        for i in (1, 2):
            predictions = [self.q(f"qf{i}", s, a) for s, a in rows]
            bellman = mean([(q - y) ** 2 for q, y in zip(predictions, target, strict=True)])
            losses[f"qf{i}"] = bellman
            if self.meta["use_cql"]:
                penalty, gap = self.conservative(i, batch, noise, predictions, found)
                losses[f"qf{i}"] = bellman + penalty
                gaps.append(gap)
            found |= {
                f"qf{i}_loss": losses[f"qf{i}"],
                f"qf{i}_bellman_loss": bellman,
                f"q{i}_pred_mean": mean(predictions),
            }
        found["alpha_prime"] = torch.zeros(())
        if self.has_multiplier:
            alpha_prime = torch.clip(self.log_alpha_prime.exp(), 0.0, 1e6)
            w, gap = self.meta["cql_min_q_weight"], config["cql_target_action_gap"]
            losses["log_alpha_prime"] = -mean([alpha_prime * w * (g.detach() - gap) for g in gaps])
            found |= {"alpha_prime": alpha_prime, "alpha_prime_loss": losses["log_alpha_prime"]}
        for name, loss in losses.items():
            parameters, _ = self.groups[name]
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.grad = gradient
        for name in ("policy", "qf1", "qf2"):
            squares = [p.grad.square().sum() for p in self.groups[name][0] if p.grad is not None]
            found[f"{name}_grad_norm"] = torch.stack(squares).sum().sqrt()
        return {name: value.detach() for name, value in found.items()}

    def next_value(self, state: Tensor, noise: Tensor) -> Tensor:
        best, log_prob_of_best = torch.tensor(-math.inf), torch.zeros(())
        for eps in noise.reshape(-1, self.meta["act_dim"]):
            action, log_prob = self.act(state, eps)
            value = torch.minimum(self.q("target_qf1", state, action), self.q("target_qf2", state, action))
            if value > best:
                best, log_prob_of_best = value, log_prob
        return best - self.alpha() * log_prob_of_best if self.config["backup_entropy"] else best

    def conservative(
        self,
        i: int,
        batch: dict[str, Tensor],
        noise: dict[str, Tensor],
        predictions: list[Tensor],
        found: Scalars,
    ) -> tuple[Tensor, Tensor]:
        """The penalty of critic i, and its clipped, averaged difference; adds its scalars to `found`."""
        config, act_dim, net = self.config, self.meta["act_dim"], f"qf{i}"
        sampling, temperature = config["cql_importance_sample"], config["cql_temp"]
        differences, soft_maxima, spreads, random_values = [], [], [], []
        below: dict[str, list[float]] = {"current": [], "next": []}
        for b, (s, s_next) in enumerate(zip(batch["observations"], batch["next_observations"], strict=True)):
            bounded, terms = [predictions[b]], [] if sampling else [predictions[b]]
            for action in noise["random_actions"][b]:
                value = self.q(net, s, action)
                random_values.append(value)
                bounded.append(value)
                terms.append(value + act_dim * math.log(2.0) if sampling else value)
            for group, state in (("current", s), ("next", s_next)):
                for eps in noise[f"eps_cql_{group}"][b]:
                    with torch.no_grad():
                        action, log_prob = self.act(state, eps)
                    value = self.q(net, s, action)  # the actions of the next state too are valued at s
                    reference = batch["mc_returns"][b]
                    below[group].append(float(value < reference))
                    if self.meta["enable_calql"] and value < reference:
                        value = reference
                    bounded.append(value)
                    terms.append(value - log_prob if sampling else value)
            top = max(v.item() for v in terms)
            exponentials = torch.stack([torch.exp((v - top) / temperature) for v in terms]).sum()
            soft_maximum = top + temperature * torch.log(exponentials)
            soft_maxima.append(soft_maximum)
            difference = soft_maximum - predictions[b]
            differences.append(torch.clip(difference, *self.limits))
            self.row_clipped.append(differences[-1].item() != difference.item())
            spreads.append(torch.stack(bounded).std(correction=0))
        gap = mean(differences)
        penalty = self.meta["cql_min_q_weight"] * gap
        if config["cql_lagrange"]:
            alpha_prime = torch.clip(self.log_alpha_prime.detach().exp(), 0.0, 1e6)
            penalty = alpha_prime * self.meta["cql_min_q_weight"] * (gap - config["cql_target_action_gap"])
        found |= {
            f"cql_qf{i}_diff": gap,
            f"cql_min_qf{i}_loss": penalty,
            f"cql_qf{i}_ood_mean": mean(soft_maxima),
            f"cql_std_q{i}_mean": mean(spreads),
            f"cql_q{i}_rand_mean": mean(random_values),
            f"bound_rate_q{i}_current": torch.tensor(np.mean(below["current"])),
            f"bound_rate_q{i}_next": torch.tensor(np.mean(below["next"])),
        }
        return penalty, gap

    def apply(self) -> None:
        for parameters, optimizer in self.groups.values():
            if parameters[0].grad is not None:
                optimizer.step()
        rate = self.config["soft_target_update_rate"]
        with torch.no_grad():
            for i in (1, 2):
                critic, target = self.nets[f"qf{i}"].parameters(), self.nets[f"target_qf{i}"].parameters()
                for new, old in zip(critic, target, strict=True):
                    old.copy_(rate * new + (1 - rate) * old)


DEFAULTS: dict[str, Any] = {
    "discount": 0.9,
    "alpha_multiplier": 1.0,
    "use_automatic_entropy_tuning": True,
    "backup_entropy": False,
    "target_entropy": -1.5,
    "policy_lr": 1e-3,
    "qf_lr": 3e-3,
    "soft_target_update_rate": 0.05,
    "cql_n_actions": NUM_ACTIONS,
    "cql_importance_sample": True,
    "cql_lagrange": False,
    "cql_target_action_gap": 0.8,
    "cql_temp": 1.0,
    "cql_max_target_backup": True,
    "cql_clip_diff_min": "-inf",
    "cql_clip_diff_max": "inf",
}


def make_golden(
    path: Path,
    seed: int = 0,
    batch_size: int = BATCH,
    change: Callable[[dict[str, np.ndarray]], None] | None = None,
    stride: int = 1,
    dtype: Any = np.float32,
    **settings: Any,
) -> Path:
    """Writes a file in the golden format, computed by the slow implementation.

    Settings are those of `DEFAULTS`, `use_cql`, `enable_calql` and `cql_min_q_weight`; `change` may alter the
    batches in place.
    """
    meta = {
        "obs_dim": OBS_DIM,
        "act_dim": ACT_DIM,
        "batch_size": batch_size,
        "n_updates": UPDATES,
        "use_cql": settings.pop("use_cql", True),
        "enable_calql": settings.pop("enable_calql", True),
        "cql_min_q_weight": settings.pop("cql_min_q_weight", 5.0),
        "config": DEFAULTS | settings,
    }
    assert meta["config"].keys() == DEFAULTS.keys(), "a setting is misspelt"
    rng = np.random.default_rng(seed)
    shape = (UPDATES, batch_size)
    batch = {
        "observations": rng.normal(size=(*shape, OBS_DIM)),
        "actions": rng.uniform(-0.99, 0.99, (*shape, ACT_DIM)),
        "rewards": rng.normal(size=shape),
        "next_observations": rng.normal(size=(*shape, OBS_DIM)),
        "dones": (rng.random(shape) < 0.3).astype(float),
        "mc_returns": 0.3 * rng.normal(size=shape),
    }
    if change is not None:
        change(batch)
    noise = {"eps_new": rng.normal(size=(*shape, ACT_DIM))}
    several = (NUM_ACTIONS,) if meta["config"]["cql_max_target_backup"] else ()
    noise["eps_next"] = rng.normal(size=(*shape, *several, ACT_DIM))
    if meta["use_cql"]:
        noise["eps_cql_current"] = rng.normal(size=(*shape, NUM_ACTIONS, ACT_DIM))
        noise["eps_cql_next"] = rng.normal(size=(*shape, NUM_ACTIONS, ACT_DIM))
        noise["random_actions"] = rng.uniform(-1, 1, (*shape, NUM_ACTIONS, ACT_DIM))
    batch = {key: array.astype(dtype) for key, array in batch.items()}
    noise = {key: array.astype(dtype) for key, array in noise.items()}

    slow = SlowUpdate(meta, seed)
    arrays = {f"init/{name}": array for name, array in slow.tensors()}
    arrays |= {f"batch/{key}": array for key, array in batch.items()}
    arrays |= {f"noise/{key}": array for key, array in noise.items()}

    def store(group: str, tensors: Iterator[tuple[str, np.ndarray]]) -> None:
        for name, array in tensors:
            if stride > 1 and array.size > 20:
                arrays[f"{group}/{name}@{stride}"] = array.reshape(-1)[::stride]
            else:
                arrays[f"{group}/{name}"] = array

    scalars: list[Scalars] = []
    for t in range(UPDATES):
        scalars.append(
            slow.gradients(
                {key: torch.tensor(array[t].astype(np.float64)) for key, array in batch.items()},
                {key: torch.tensor(array[t].astype(np.float64)) for key, array in noise.items()},
            )
        )
        if t == 0:
            store("grad", slow.tensors(gradients=True))
        slow.apply()
        store(f"after{t + 1}", slow.tensors())
    for name in scalars[0]:
        arrays[f"scalar/{name}"] = np.array([float(step[name]) for step in scalars])
    arrays["vec/row_clipped"] = np.array(slow.row_clipped)
    np.savez(path, meta=json.dumps(meta), **arrays)  # type: ignore[arg-type]
    return path
