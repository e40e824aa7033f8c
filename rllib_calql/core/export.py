"""The learned policy as one file that needs neither this package nor Ray to be loaded."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from rllib_calql.core.discrete import CategoricalActor
from rllib_calql.core.networks import TanhGaussianActor

ExportFormat = Literal["torchscript", "onnx", "torch"]
FORMATS: tuple[str, ...] = get_args(ExportFormat)
# Largest accepted difference between the file's actions and the live policy's, as a share of the action range.
TOLERANCE = 1e-5
METADATA = "metadata.json"


class ExportError(ValueError):
    """The policy cannot be written in this format, or the file does not act as the policy does."""


class _Exported(nn.Module):
    """An actor with its normaliser and the bounds of its actions, on CPU in float32."""

    obs_mean: Tensor
    obs_std: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, actor: nn.Module, **tensors: Any) -> None:
        super().__init__()
        self.actor = copy.deepcopy(actor).to("cpu", torch.float32)
        for name, values in tensors.items():
            values = torch.as_tensor(values).detach().to("cpu", torch.float32).reshape(-1)
            self.register_buffer(name, values.clone())
        self.eval().requires_grad_(False)


class DeterministicPolicy(_Exported):
    """Observations as the environment gives them to the actor's best actions, within the environment's bounds.

    Args:
        actor: copied, to CPU and float32.
        obs_mean, obs_std: (obs_dim,), the normaliser.
        low, high: (act_dim,), the bounds of the environment's actions.
    """

    def __init__(
        self, actor: TanhGaussianActor, obs_mean: Tensor, obs_std: Tensor, low: np.ndarray, high: np.ndarray
    ) -> None:
        super().__init__(actor, obs_mean=obs_mean, obs_std=obs_std, low=low, high=high)

    def forward(self, observations: Tensor) -> Tensor:
        """Observations (B, obs_dim) float32 -> actions (B, act_dim) float32."""
        policy = self.actor((observations - self.obs_mean) / self.obs_std)
        actions = self.low + (policy.mode + 1.0) * (self.high - self.low) / 2.0
        # Rounding must not leave the bounds.
        return torch.maximum(torch.minimum(actions, self.high), self.low)


class DiscretePolicy(_Exported):
    """Observations as the environment gives them to the likeliest of its Discrete actions.

    Args:
        actor: copied, to CPU and float32.
        obs_mean, obs_std: (obs_dim,), the normaliser.
        start: the first action.
        num_actions: how many there are.
    """

    def __init__(
        self, actor: CategoricalActor, obs_mean: Tensor, obs_std: Tensor, start: int, num_actions: int
    ) -> None:
        bounds = {"low": [start], "high": [start + num_actions - 1]}
        super().__init__(actor, obs_mean=obs_mean, obs_std=obs_std, **bounds)
        self.start = start

    def forward(self, observations: Tensor) -> Tensor:
        """Observations (B, obs_dim) float32 -> actions (B, 1) int64."""
        policy = self.actor((observations - self.obs_mean) / self.obs_std)
        return policy.log_probs.argmax(-1, keepdim=True) + self.start


ExportedPolicy = DeterministicPolicy | DiscretePolicy


def export_policy(
    policy: ExportedPolicy,
    file: Path,
    format: ExportFormat,
    metadata: Mapping[str, Any],
    observations: np.ndarray,
    expected: np.ndarray,
) -> float:
    """Writes the policy, reads it back, and keeps the file only if it acts as expected.

    Args:
        policy: what is written.
        file: where; an older file is replaced, and kept where this one fails.
        format: "torchscript" (`torch.jit.load`), "torch" (`torch.export.load`) or "onnx" (onnxruntime).
        metadata: stored in the file, as JSON; `read_policy` returns it.
        observations: (n, obs_dim) float32.
        expected: (n, act_dim), the live policy's actions at these.

    Returns:
        The worst difference, as a share of the action range.

    Raises:
        ExportError: a package is missing, or the file's actions differ by more than `TOLERANCE` of the range.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    # The suffix matters: torch.export warns of any other than .pt2.
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=f".{file.name}.") as folder:
        unchecked = Path(folder) / f"policy{'.pt2' if format == 'torch' else file.suffix}"
        with _quiet():
            _WRITERS[format](policy, unchecked, json.dumps(metadata))
            act, _ = read_policy(unchecked, format)
            found = act(observations.astype(np.float32))
        worst = float(np.max(np.abs(found - expected) / (policy.high - policy.low).numpy()))
        if not worst <= TOLERANCE:  # so written, NaN fails too
            raise ExportError(
                f"not written: on {len(observations)} observations the {format} file's actions differ from the "
                f"policy's by up to {worst:.1e} of the action range ({TOLERANCE:.0e} is allowed)"
            )
        os.replace(unchecked, file)
    return worst


def read_policy(file: Path, format: ExportFormat) -> tuple[Callable[[np.ndarray], np.ndarray], dict[str, Any]]:
    """The function of an exported file, and its metadata; (n, obs_dim) float32 to (n, act_dim), Discrete int64."""
    if format == "onnx":
        session = _package("onnxruntime").InferenceSession(str(file), providers=["CPUExecutionProvider"])
        metadata = session.get_modelmeta().custom_metadata_map[METADATA]
        return lambda observations: session.run(None, {"observations": observations})[0], json.loads(metadata)
    extra: dict[str, Any] = {METADATA: ""}
    if format == "torchscript":
        module = torch.jit.load(str(file), _extra_files=extra)  # type: ignore[no-untyped-call]
    else:
        module = torch.export.load(file, extra_files=extra).module()
    return lambda observations: module(torch.as_tensor(observations)).numpy(), json.loads(extra[METADATA])


def _write_torchscript(policy: ExportedPolicy, file: Path, metadata: str) -> None:
    traced = torch.jit.trace(policy, _example(policy))  # type: ignore[no-untyped-call]
    torch.jit.save(traced, str(file), _extra_files={METADATA: metadata})


def _write_torch(policy: ExportedPolicy, file: Path, metadata: str) -> None:
    program = torch.export.export(policy, (_example(policy),), dynamic_shapes=_any_batch("AUTO"))
    torch.export.save(program, file, extra_files={METADATA: metadata})


def _write_onnx(policy: ExportedPolicy, file: Path, metadata: str) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        _package(package)
    program = torch.onnx.export(
        policy,
        (_example(policy),),
        input_names=["observations"],
        output_names=["actions"],
        dynamic_shapes=_any_batch("batch"),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props[METADATA] = metadata
    program.save(str(file), external_data=False)


_WRITERS: dict[str, Callable[[ExportedPolicy, Path, str], None]] = {
    "torchscript": _write_torchscript,
    "onnx": _write_onnx,
    "torch": _write_torch,
}


def _example(policy: ExportedPolicy) -> Tensor:
    """Two rows: tracing would take a single one for a constant."""
    return policy.obs_mean.expand(2, -1).clone()


def _any_batch(name: str) -> dict[str, Any]:
    dimension = torch.export.Dim.AUTO if name == "AUTO" else torch.export.Dim(name)
    return {"observations": {0: dimension}}


def _package(name: str) -> Any:
    try:
        return __import__(name)
    except ImportError as error:
        raise ExportError(f"format onnx needs {name}: pip install 'rllib_calql[export]'") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' notes on operators of other packages and on their own future."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
