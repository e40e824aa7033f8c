"""The package's face to Ray. Importing it tells RLlib and Tune the names "CalQL", "calql" and "from_dataset"."""

from __future__ import annotations

from ray.rllib.algorithms import registry
from ray.tune.registry import register_env, register_input, register_trainable

from rllib_calql.algorithm import CalQL
from rllib_calql.callbacks import CalQLCallback
from rllib_calql.config import CalQLConfig
from rllib_calql.envs import register as register_environments
from rllib_calql.envs.creation import FROM_DATASET, make_from_dataset
from rllib_calql.old_stack.input_reader import INPUT_NAME, CalQLInputReader, create_input_reader
from rllib_calql.old_stack.policy import CalQLTorchPolicy
from rllib_calql.replay_buffer import CalQLReplayBuffer

__all__ = ["CalQL", "CalQLCallback", "CalQLConfig", "CalQLInputReader", "CalQLReplayBuffer", "CalQLTorchPolicy"]

register_trainable("CalQL", CalQL)
register_input(INPUT_NAME, create_input_reader)
registry.ALGORITHMS["CalQL"] = lambda: (CalQL, CalQL.get_default_config())
registry.ALGORITHMS_CLASS_TO_NAME["CalQL"] = "CalQL"
register_environments()
register_env(FROM_DATASET, make_from_dataset)
