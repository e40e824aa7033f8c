"""Cal-QL for Ray RLlib: calibrated offline pre-training for efficient online fine-tuning."""

from __future__ import annotations

from ray.rllib.algorithms import registry
from ray.tune.registry import register_input, register_trainable

from rllib_calql.algorithm import CalQL
from rllib_calql.config import CalQLConfig
from rllib_calql.data import Transitions, open_dataset, return_to_go
from rllib_calql.envs import register as register_environments
from rllib_calql.old_stack.input_reader import INPUT_NAME, CalQLInputReader, create_input_reader
from rllib_calql.old_stack.policy import CalQLTorchPolicy
from rllib_calql.old_stack.replay_buffer import CalQLReplayBuffer

__version__ = "0.1.0"
__all__ = [
    "CalQL",
    "CalQLConfig",
    "CalQLInputReader",
    "CalQLReplayBuffer",
    "CalQLTorchPolicy",
    "Transitions",
    "open_dataset",
    "return_to_go",
]

# Importing the package makes the names "CalQL" and "calql" known, here and in every worker that imports it.
register_trainable("CalQL", CalQL)
register_input(INPUT_NAME, create_input_reader)
registry.ALGORITHMS["CalQL"] = lambda: (CalQL, CalQL.get_default_config())
registry.ALGORITHMS_CLASS_TO_NAME["CalQL"] = "CalQL"
register_environments()
