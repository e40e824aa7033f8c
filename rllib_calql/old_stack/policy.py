"""`CalQLTorchPolicy`: RLlib's face of the update and of the actor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.algorithms.cql.cql_torch_policy import CQLTorchPolicy
from ray.rllib.models.torch.torch_modelv2 import TorchModelV2
from ray.rllib.policy.sample_batch import SampleBatch
from ray.rllib.policy.torch_policy import TorchPolicy
from ray.rllib.utils.metrics.learner_info import LEARNER_STATS_KEY
from ray.rllib.utils.serialization import space_to_dict
from torch import Tensor, nn

from rllib_calql.core.acting import random_actions
from rllib_calql.core.discrete import CategoricalActor
from rllib_calql.core.factory import make_update
from rllib_calql.core.hyperparameters import UpdateConfig
from rllib_calql.core.networks import TanhGaussianActor
from rllib_calql.data.frames import frame_layout, frames_space, has_images
from rllib_calql.data.prepare import require_trainable
from rllib_calql.envs.success import EPISODE_SUCCESS
from rllib_calql.replay_buffer import from_sample_batch

INFERENCE_WEIGHTS = ("actor.", "encoder.", "obs_mean", "obs_std")


class ActorModel(TorchModelV2, nn.Module):
    """The actor as the model RLlib expects a policy to have; it shares the update's parameters."""

    actor: TanhGaussianActor | CategoricalActor
    features: Callable[[Tensor], Tensor]

    def __init__(self, obs_space: gym.Space, action_space: gym.Space, model_config: dict[str, Any]) -> None:
        nn.Module.__init__(self)
        discrete = isinstance(action_space, gym.spaces.Discrete)
        num_outputs = int(action_space.n) if discrete else 2 * int(np.prod(action_space.shape))
        TorchModelV2.__init__(self, obs_space, action_space, num_outputs, model_config, "calql_actor")

    def forward(
        self, input_dict: Mapping[str, Tensor], state: list[Tensor], seq_lens: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Mean and log-std of the squashed Gaussian, (B, 2 * act_dim), or log-probabilities, (B, n)."""
        return self.actor(self.features(input_dict["obs_flat"])).inputs, state


class CalQLTorchPolicy(CQLTorchPolicy):
    """A CQL policy whose networks, losses and optimisers are those of an `Update`.

    Nothing of CQL's own construction is used: its target networks start unsynchronised, its random actions
    ignore the action space, and it updates only when a batch happens to have `train_batch_size` rows.
    """

    def __init__(self, observation_space: gym.Space, action_space: gym.Space, config: Any) -> None:
        if has_images(observation_space):
            observation_space = frames_space(observation_space, config["frame_stack"])
        require_trainable(observation_space, action_space)
        # A dataset held in memory would go with the config into every policy checkpoint.
        config = {**config, "input": "sampler", "input_config": {}}
        TorchPolicy.__init__(
            self,
            observation_space,
            action_space,
            config,
            model=ActorModel(observation_space, action_space, config["model"]),
            action_sampler_fn=_sample_actions,
        )
        for name, requirement in self.view_requirements.items():
            requirement.used_for_compute_actions = name == SampleBatch.OBS
        settings, seed = UpdateConfig.from_settings(config), config["seed"]
        self.update = make_update(observation_space, action_space, settings, self.device, seed)
        self.model.actor, self.model.features = self.update.actor, self._features
        self.discrete = isinstance(action_space, gym.spaces.Discrete)
        self.random_actions = False  # explore without regard to the observations
        self._action_noise = torch.Generator()
        self.begin_episode(seed if seed is not None else int(np.random.SeedSequence().generate_state(1)[0]))

    # ---- acting

    def begin_episode(self, seed: int) -> None:
        """Starts an episode's exploration noise anew, so that an episode is a function of its seed."""
        self._action_noise.manual_seed(seed)

    def sample_actions(self, observations: Tensor, explore: bool) -> tuple[Tensor, Tensor]:
        """Actions, (B, act_dim) in [-1, 1] or (B,) of the Discrete space, and log-probabilities (B,)."""
        noise = None
        if explore:
            number = self.config["num_exploration_actions"]
            shape = (len(observations), *([number] if number > 1 else []), self.update.act_dim)
            noise = torch.randn(shape, generator=self._action_noise).to(self.device)
        if noise is not None and self.random_actions:
            actions, log_probs = random_actions(noise, self.discrete)
        else:
            actions, log_probs = self.update.act(self._observed(observations), noise)
        return actions + int(self.action_space.start) if self.discrete else actions, log_probs

    def _observed(self, observations: Tensor) -> Tensor:
        """(B, obs_dim) float32, or frames (B, k, P), of what RLlib made of observations on its way."""
        if self.update.encoder is not None:
            return observations.to(torch.uint8).reshape(len(observations), *self.observation_space.shape)
        return observations.reshape(len(observations), -1).float()

    def _features(self, observations: Tensor) -> Tensor:
        return self.update.features(self._observed(observations))

    def compute_log_likelihoods(
        self,
        actions: Tensor | np.ndarray,
        obs_batch: Tensor | np.ndarray,
        state_batches: Any = None,
        prev_action_batch: Any = None,
        prev_reward_batch: Any = None,
        actions_normalized: bool = True,
        **kwargs: Any,
    ) -> Tensor:
        """log pi(a|s) of given actions; (B,).

        Args:
            actions: (B, act_dim), in [-1, 1] or, with `actions_normalized=False`, in the environment's bounds;
                (B,) of a Discrete space.
            obs_batch: (B, obs_dim).
        """
        actions = torch.as_tensor(actions, dtype=torch.float32, device=self.device)
        if self.discrete:
            actions = actions - int(self.action_space.start)
        elif not actions_normalized:
            low = torch.as_tensor(self.action_space.low, device=self.device)
            high = torch.as_tensor(self.action_space.high, device=self.device)
            actions = 2.0 * (actions - low) / (high - low) - 1.0
        observations = torch.as_tensor(obs_batch, device=self.device)
        with torch.no_grad():
            return self.update.actor(self._features(observations)).log_prob(actions)

    def postprocess_trajectory(
        self, sample_batch: SampleBatch, other_agent_batches: Any = None, episode: Any = None
    ) -> SampleBatch:
        """Replaces the step infos, which training does not need, by one number: how far the episode succeeded."""
        if episode is not None:
            info = episode.last_info_for(episode.get_agents()[0]) or {}
            success = float(info.get(EPISODE_SUCCESS, 0.0))
            episode.custom_metrics["success"] = success
            sample_batch[EPISODE_SUCCESS] = np.full(len(sample_batch), success)
        sample_batch.pop(SampleBatch.INFOS, None)
        return sample_batch

    # ---- learning

    def compute_gradients(self, postprocessed_batch: SampleBatch) -> tuple[None, dict[str, Any]]:
        """One whole update, optimiser steps included (as RLlib's CQL does); `apply_gradients` adds nothing.

        The batch needs `obs`, `new_obs`, `actions` in [-1, 1], `rewards`, `terminateds` and `mc_returns`.
        """
        metrics = self.update.step(self.update.to_tensors(from_sample_batch(postprocessed_batch)))
        return None, {LEARNER_STATS_KEY: {name: float(value) for name, value in metrics.items()}}

    def optimizer(self) -> list[torch.optim.Optimizer]:
        """None of RLlib's: the update owns its optimiser."""
        return []

    def update_target(self, tau: float | None = None) -> None:
        """Moves the target critics by `tau` (default: the configured one); the update does so by itself."""
        self.update.update_targets(self.update.config.tau if tau is None else tau)

    # ---- state

    def get_weights(self) -> dict[str, np.ndarray]:
        """Every network, temperature and the normaliser, by name."""
        return self.update.weights()

    def inference_weights(self) -> dict[str, np.ndarray]:
        """Only what acting needs."""
        critics = ("critics.",) if self.config["num_exploration_actions"] > 1 else ()
        return self.update.weights(INFERENCE_WEIGHTS + critics)

    def set_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Takes over all or some weights; what is absent stays."""
        self.update.load_weights(weights)

    def get_state(self) -> dict[str, Any]:
        """RLlib's policy state, with the whole state of the update."""
        state = TorchPolicy.get_state(self)
        update = self.update.get_state()
        state["weights"] = update.pop("weights")
        state["update"] = update
        if frame_layout(self.observation_space):  # RLlib's own form of a space forgets what frames are of
            state["policy_spec"]["observation_space"] = space_to_dict(self.observation_space.frames_of)
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes over a state made by `get_state`."""
        config = vars(self)["config"]
        TorchPolicy.set_state(self, state)
        # RLlib also takes over the saving policy's config, with which evaluation runners would explore.
        self.config = config
        self.num_grad_updates = state["num_grad_updates"]
        self.update.set_state({**state["update"], "weights": state["weights"]})


def _sample_actions(
    policy: CalQLTorchPolicy,
    model: ActorModel,
    input_dict: Mapping[str, Tensor],
    state_batches: list[Tensor],
    explore: bool,
    timestep: int,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    actions, log_probs = policy.sample_actions(input_dict[SampleBatch.CUR_OBS], explore)
    return actions, log_probs, []
