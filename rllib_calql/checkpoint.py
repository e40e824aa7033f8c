"""What is read from a checkpoint without building the algorithm that wrote it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ray.rllib.policy.policy import Policy
from ray.rllib.policy.sample_batch import DEFAULT_POLICY_ID


def checkpoint_weights(path: str) -> dict[str, np.ndarray]:
    """Networks, temperatures and normaliser of a CalQL checkpoint (networks know no other normaliser)."""
    folder = Path(path).expanduser().resolve()
    if not folder.is_dir():
        raise ValueError(f"load_weights_from={path!r} is not the folder of a checkpoint")
    policies = Policy.from_checkpoint(str(folder), policy_ids=[DEFAULT_POLICY_ID])
    policy = policies[DEFAULT_POLICY_ID] if isinstance(policies, dict) else policies
    return policy.get_weights()
