"""The serving example, over HTTP on this machine."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rllib_calql.core.export import DeterministicPolicy, export_policy
from rllib_calql.core.networks import TanhGaussianActor

pytest.importorskip("ray.serve")
from ray import serve

from examples.serve_policy import PolicyServer


def post(port: int, body: Any) -> Any:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/", data=json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


@pytest.mark.usefixtures("ray_session")
def test_policy_is_served(tmp_path: Path) -> None:
    policy = DeterministicPolicy(
        TanhGaussianActor(3, 2, (8,)), torch.ones(3), torch.full((3,), 2.0), -np.ones(2), np.array([1.0, 5.0])
    )
    observations = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    expected = policy(torch.as_tensor(observations)).numpy()
    export_policy(policy, tmp_path / "policy.pt2", "torch", {}, observations, expected)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(serve.deployment(PolicyServer).bind(str(tmp_path / "policy.pt2")))
        np.testing.assert_allclose(post(port, observations.tolist()), expected, atol=1e-6)
        np.testing.assert_allclose(post(port, observations[:1].tolist()), expected[:1], atol=1e-6)
        for wrong in ([[1.0, 2.0]], "hello"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                post(port, wrong)
            assert refused.value.code == 422
    finally:
        serve.shutdown()
