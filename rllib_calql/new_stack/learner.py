"""`CalQLTorchLearner`: the one update inside RLlib's Learner, alone or as one of several."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.policy.sample_batch import MultiAgentBatch
from ray.rllib.utils.metrics import (
    ALL_MODULES,
    MODULE_TRAIN_BATCH_SIZE_MEAN,
    NUM_ENV_STEPS_TRAINED,
    NUM_ENV_STEPS_TRAINED_LIFETIME,
    WEIGHTS_SEQ_NO,
)
from torch import Tensor, distributed

from rllib_calql.core.factory import make_update
from rllib_calql.core.hyperparameters import UpdateConfig
from rllib_calql.new_stack.rl_module import CalQLTorchRLModule
from rllib_calql.replay_buffer import from_sample_batch

UPDATE = "update"


class CalQLTorchLearner(TorchLearner):
    """A Learner whose networks, losses and optimiser are those of an `Update`.

    Nothing of RLlib's own loss machinery is used: the target networks move with every gradient step, and
    everything that learns is in the state. The RLModule is the update's actor.
    """

    def build(self) -> None:
        """Builds the module (RLlib) and the update, and makes them share the actor."""
        if self._is_built:
            return
        super().build()
        if self.config.num_learners > 0:
            # In a process of its own. Ray hands batches over in memory that is read-only, and a step only reads.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        module = self.module[DEFAULT_MODULE_ID]
        assert isinstance(module, CalQLTorchRLModule)
        settings = UpdateConfig.from_settings(vars(self.config))
        num_learners = max(1, self.config.num_learners)
        seed = self.config.seed
        if num_learners > 1:
            seed = first_learners(np.random.SeedSequence(seed).entropy)
        spaces = (module.observation_space, module.action_space)
        self.calql = make_update(*spaces, settings, self._device, seed)
        if num_learners > 1:
            # Each sees every n-th row of the same batches, under the noise of these rows: together they do what
            # one learner does with whole batches (but for AWAC's weights, whose mean is each learner's own), and
            # they stay bit-equal.
            self.calql.shard = (self._learner_index, num_learners)
            self.calql.reduce_gradients = average
        module.share(self.calql)

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """None of RLlib's: the update owns its optimiser."""

    def compute_loss_for_module(self, **kwargs: Any) -> Tensor:
        """Not used: the update computes the losses, each with its own gradients."""
        raise NotImplementedError("CalQL's losses are those of rllib_calql.core.Update: subclass that")

    def _make_modules_ddp_if_necessary(self) -> None:
        """No wrapper around the module: the update averages gradients itself."""

    def _log_trainable_parameters(self) -> None:
        """Not RLlib's figures: the module is only the actor."""

    def update(
        self,
        batch: MultiAgentBatch | None = None,
        *,
        training_data: TrainingData | None = None,
        timesteps: dict[str, Any] | None = None,
        minibatch_size: int | None = None,
        online: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """One update per minibatch; returns the means of their figures, as RLlib's `Stats`.

        Args:
            batch: rows with `obs`, `new_obs`, `actions` in [-1, 1], `rewards`, `terminateds`, `mc_returns`.
            training_data: the same, as RLlib's `LearnerGroup` hands it over.
            minibatch_size: rows of a minibatch, which must divide the batch; by default the batch is one.
            online: whether the online phase's rules hold.

        Raises:
            ValueError: anything but a batch, or one that minibatches do not divide.
        """
        self._check_is_built()
        self.before_gradient_based_update(timesteps=timesteps or {})
        training_data = training_data or TrainingData(batch=batch)
        training_data.solve_refs()
        if training_data.batch is None:
            raise ValueError("CalQL's learner takes update(batch=...): episodes go through the replay buffer")
        rows = training_data.batch.as_multi_agent()
        columns = from_sample_batch(rows[DEFAULT_MODULE_ID])
        size = minibatch_size or rows.count
        num_updates, rest = divmod(rows.count, size)
        if rest:
            raise ValueError(f"a batch of {rows.count} rows cannot be cut into minibatches of {size}")
        starts = iter(range(0, rows.count, size))

        def minibatch() -> dict[str, Any]:
            start = next(starts)
            return {name: column[start : start + size] for name, column in columns.items()}

        self._weights_seq_no += 1
        self.calql.online = online
        figures = self.calql.run(minibatch, num_updates)
        self._log_figures(figures, rows, size)
        self.after_gradient_based_update(timesteps=timesteps or {})
        return self.metrics.reduce()

    def _log_figures(self, figures: Mapping[str, float], rows: MultiAgentBatch, minibatch_size: int) -> None:
        self._log_metrics(batch=rows)
        self.metrics.delete(DEFAULT_MODULE_ID, key_error=False)  # what is no more shall be absent, not NaN
        for name, value in figures.items():
            self.metrics.log_value((DEFAULT_MODULE_ID, name), value, window=1)
        self.metrics.log_value((ALL_MODULES, MODULE_TRAIN_BATCH_SIZE_MEAN), minibatch_size, window=1)
        self.metrics.log_value((ALL_MODULES, NUM_ENV_STEPS_TRAINED), rows.count, reduce="sum")
        self.metrics.log_value(
            (ALL_MODULES, NUM_ENV_STEPS_TRAINED_LIFETIME), rows.count, reduce="lifetime_sum", with_throughput=True
        )

    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """RLlib's state, with the whole state of the update."""
        state = super().get_state(components, not_components=not_components, **kwargs)
        state[WEIGHTS_SEQ_NO] = 0  # runners always take the weights, also after a step back to an older checkpoint
        if self._check_component(UPDATE, components, not_components):
            state[UPDATE] = self.calql.get_state()
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes over a state made by `get_state`."""
        super().set_state(state)
        if UPDATE in state:
            self.calql.set_state(state[UPDATE])


def first_learners(number: Any) -> int:
    """The first learner's number, in all learners that call this."""
    numbers = [number]
    distributed.broadcast_object_list(numbers)
    return int(numbers[0])


def average(gradients: list[Tensor]) -> None:
    """Puts the learners' mean gradients in the place of each one's own."""
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    distributed.all_reduce(flat)
    flat.div_(distributed.get_world_size())
    parts = torch.split(flat, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))
