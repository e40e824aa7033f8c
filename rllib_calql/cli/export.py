"""`calql export`: a checkpoint's policy as one file for programs without this package."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
import typer
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

import rllib_calql
from rllib_calql.cli.common import UserError
from rllib_calql.cli.policies import Trained, restored
from rllib_calql.core.export import (
    FORMATS,
    DeterministicPolicy,
    DiscretePolicy,
    ExportedPolicy,
    ExportError,
    ExportFormat,
    export_policy,
)
from rllib_calql.envs.creation import observation_space_of

NUM_CHECKED = 1000
_PACKAGES = {
    "torchscript": ("torch",),
    "torch": ("torch",),
    "onnx": ("torch", "onnx", "onnxscript", "onnxruntime"),
}


def run(checkpoint: str, format: str, out: str) -> None:
    """Writes `out`, checked against the checkpoint's policy, and says how close they are.

    Raises:
        UserError: no such format, or not a CalQL checkpoint.
        ExportError: the file would not act as the policy does, or a package is missing.
    """
    if format not in FORMATS:
        raise UserError(f"--format {format}: choose one of {', '.join(FORMATS)}")
    folder = Path(checkpoint).expanduser()
    trained = restored(folder, "CalQL")
    policy = deterministic_policy(trained)
    observations = probes(trained.observation_space, policy, NUM_CHECKED)
    expected = np.stack([live_action(trained, observation) for observation in observations])
    flat = np.stack([gym.spaces.flatten(trained.observation_space, one) for one in observations])
    worst = export_policy(
        policy,
        Path(out).expanduser(),
        cast(ExportFormat, format),
        describe(trained, policy, format),
        flat.astype(np.float32),
        expected,
    )
    typer.echo(
        f"{out}: {flat.shape[1]} observations to {expected.shape[1]} actions; on {NUM_CHECKED} observations at "
        f"most {worst:.1e} of the action range from the checkpoint's policy"
    )


def deterministic_policy(trained: Trained) -> ExportedPolicy:
    """The checkpoint's actor with its normaliser and the environment's action bounds."""
    networks, space = trained.calql, trained.action_space
    assert networks is not None
    if networks.encoder is not None:
        raise ExportError(
            "policies on images cannot be exported yet: load the checkpoint with CalQL.from_checkpoint(path) and "
            "call compute_single_action"
        )
    actor: Any = networks.actor
    if isinstance(space, gym.spaces.Discrete):
        return DiscretePolicy(actor, networks.obs_mean, networks.obs_std, int(space.start), int(space.n))
    return DeterministicPolicy(actor, networks.obs_mean, networks.obs_std, space.low, space.high)


def live_action(trained: Trained, observation: Any) -> np.ndarray:
    """The action that `rllib evaluate` would give to the environment at the start of an episode; (act_dim,)."""
    episode = SingleAgentEpisode(observation_space=trained.observation_space, action_space=trained.action_space)
    episode.add_env_reset(observation)
    action, _ = trained.act(episode, False)
    return np.asarray(action, np.float32).reshape(-1)


def probes(space: gym.Space, policy: ExportedPolicy, count: int) -> list[Any]:
    """Observations to compare at: around the normaliser's mean, from a tenth to ten standard deviations."""
    rng = np.random.default_rng(0)
    space.seed(0)
    flat = np.stack([gym.spaces.flatten(space, space.sample()) for _ in range(count)])
    mean, std = policy.obs_mean.numpy(), policy.obs_std.numpy()
    spread = mean + std * 10.0 ** rng.uniform(-1.0, 1.0, (count, 1)) * rng.standard_normal(flat.shape)
    limits = gym.spaces.flatten_space(space)
    spread = np.clip(spread, limits.low, limits.high)
    for _, part, offset in parts(space):
        if isinstance(part, gym.spaces.Box):  # others are one-hot, and stay as sampled
            columns = slice(offset, offset + gym.spaces.flatdim(part))
            flat[:, columns] = spread[:, columns]
    return [gym.spaces.unflatten(space, row) for row in flat]


def describe(trained: Trained, policy: ExportedPolicy, format: str) -> dict[str, Any]:
    """What a program needs to know to use the file; plain JSON."""
    return {
        "algorithm": "CalQL",
        "environment": str(trained.config["env"]),
        "observations": {
            "shape": ["batch", len(policy.obs_mean)],
            "dtype": "float32",
            "parts": [
                {"path": path, "space": str(part), "first": first, "size": gym.spaces.flatdim(part)}
                for path, part, first in parts(given_space(trained))
            ],
        },
        "actions": {
            "shape": ["batch", len(policy.low)],
            "dtype": "int64" if isinstance(policy, DiscretePolicy) else "float32",
            "low": policy.low.tolist(),
            "high": policy.high.tolist(),
        },
        "versions": {
            "rllib_calql": rllib_calql.__version__,
            "ray": version("ray"),
            **{name: version(name) for name in _PACKAGES[format]},
        },
    }


def given_space(trained: Trained) -> gym.Space:
    """What the environment observes; on the new API stack a checkpoint knows only the flat vector it becomes."""
    flat, config = trained.observation_space, trained.config
    if isinstance(flat, gym.spaces.Box) and config.get("env"):
        try:
            given = observation_space_of(config["env"], config.get("env_config") or {})
        except Exception as error:  # anything: it is another program's environment, and only describes the parts
            typer.echo(f"the parts of an observation are not described: {error}", err=True)
            return flat
        return given if gym.spaces.flatdim(given) == gym.spaces.flatdim(flat) else flat
    return flat


Part = tuple[list[str | int], gym.Space, int]


def parts(space: gym.Space, path: Sequence[str | int] = (), offset: int = 0) -> Iterator[Part]:
    """What a flat observation is made of, in order: path in the space, space, and first column."""
    if isinstance(space, gym.spaces.Dict | gym.spaces.Tuple):
        items = space.items() if isinstance(space, gym.spaces.Dict) else enumerate(space)
        for key, part in items:
            yield from parts(part, [*path, key], offset)
            offset += gym.spaces.flatdim(part)
    else:
        yield list(path), space, offset
