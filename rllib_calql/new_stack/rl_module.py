"""`CalQLTorchRLModule`: the actor as RLlib's new API stack expects a policy to be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Discrete
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchCategorical, TorchSquashedGaussian
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from ray.rllib.utils.spaces.space_utils import unsquash_action
from torch import Tensor

from rllib_calql.core.acting import random_actions, sampled_actions
from rllib_calql.core.discrete import Categorical
from rllib_calql.core.encoders import PixelEncoder
from rllib_calql.core.factory import make_actor
from rllib_calql.core.networks import CriticEnsemble, TanhGaussian
from rllib_calql.core.update import Update
from rllib_calql.data.frames import frame_layout, frames_space, has_images
from rllib_calql.data.prepare import require_trainable


class CalQLTorchRLModule(TorchRLModule):
    """Actor and observation normaliser: all that acting needs, and all that runners are sent.

    Critics (but where they choose what to explore) and temperatures are the learner's. Actions come out in
    [-1, 1], and RLlib's connectors map them to the environment's bounds; Discrete ones come out as the environment
    takes them. Every row of a batch explores with its own sequence of noise, which `begin_episode` starts anew: an
    episode is a function of its seed.

    `model_config` holds settings of `CalQLConfig` (its `_model_config_auto_includes`).
    """

    def setup(self) -> None:
        """Builds the networks; the learner puts those of its update in their place (`share`)."""
        space: Any = self.observation_space
        if has_images(space):
            self.observation_space: Any = frames_space(space, self.model_config["frame_stack"])
        require_trainable(self.observation_space, self.action_space)
        obs_dim = self.observation_space.shape[0]
        self.discrete = isinstance(self.action_space, Discrete)
        self.noise_width = int(self.action_space.n) if self.discrete else self.action_space.shape[0]
        self.encoder: PixelEncoder | None = None
        actor = self.model_config["policy_model_config"]
        self.dtype = torch.float64 if self.model_config["precision"] == "float64" else torch.float32
        if layout := frame_layout(self.observation_space):
            self.encoder = PixelEncoder(layout, **self.model_config["encoder_config"]).to(dtype=self.dtype)
            obs_dim = self.encoder.obs_dim
        self.actor = make_actor(
            obs_dim,
            self.action_space,
            actor["fcnet_hiddens"],
            actor["fcnet_activation"],
            self.model_config["orthogonal_init"],
        ).to(dtype=self.dtype)
        self._num_explored = self.model_config["num_exploration_actions"]
        if self._num_explored > 1:  # the critics choose
            critic = self.model_config["q_model_config"]
            self.critics = CriticEnsemble(
                obs_dim,
                self.noise_width,
                critic["fcnet_hiddens"],
                self.model_config["num_critics"],
                critic["fcnet_activation"],
                self.model_config["orthogonal_init"],
                self.model_config["critic_layer_norm"],
            ).to(dtype=self.dtype)
        self.register_buffer("obs_mean", torch.zeros(obs_dim, dtype=self.dtype))
        self.register_buffer("obs_std", torch.ones(obs_dim, dtype=self.dtype))
        self.action_dist_cls = TorchCategorical if self.discrete else SquashedGaussian
        self.random_actions = False  # explore without regard to the observations
        self._noise: dict[int, torch.Generator] = {}

    def share(self, update: Update) -> None:
        """From now on this module is the update's encoder, actor and normaliser; nothing is copied."""
        self.encoder = update.encoder
        self.actor, self.obs_mean, self.obs_std = update.actor, update.obs_mean, update.obs_std
        if self._num_explored > 1:
            self.critics = update.critics

    def begin_episode(self, row: int, seed: int) -> None:
        """Starts the exploration noise of a row of the batches to come anew."""
        self._noise[row] = torch.Generator().manual_seed(seed)

    def policy(self, observations: Tensor) -> TanhGaussian | Categorical:
        """The policy's distribution at raw observations (B, obs_dim), or frames (B, k, P)."""
        return self.actor(self.features(observations))

    def features(self, observations: Tensor) -> Tensor:
        """What the networks see of raw observations, as `Update.features`."""
        encoded = observations.to(self.dtype) if self.encoder is None else self.encoder(observations)
        return (encoded - self.obs_mean) / self.obs_std

    def act(self, observation: np.ndarray, explore: bool = False) -> np.ndarray:
        """The action for one observation, (act_dim,) within the environment's bounds, or () where Discrete.

        Args:
            observation: (obs_dim,); Dict and Tuple observations as `gymnasium.spaces.flatten` lays them out;
                those with images as frames (k, P).
            explore: a sample of the policy instead of its best action.
        """
        batch = {Columns.OBS: torch.as_tensor(observation, device=self.obs_mean.device)[None]}
        forward = self.forward_exploration if explore else self.forward_inference
        action = forward(batch)[Columns.ACTIONS][0].cpu().numpy()
        if not self.discrete:
            action = unsquash_action(action, self.action_space)
        return action.astype(self.action_space.dtype)

    def _forward(self, batch: Mapping[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Mean and log-std of the squashed Gaussian, (B, 2 * act_dim), or log-probabilities, (B, n)."""
        return {Columns.ACTION_DIST_INPUTS: self.policy(batch[Columns.OBS]).inputs}

    def _forward_inference(self, batch: Mapping[str, Any], **kwargs: Any) -> dict[str, Any]:
        """The mode of the distribution."""
        return self._act(batch[Columns.OBS], None)

    def _forward_exploration(self, batch: Mapping[str, Any], **kwargs: Any) -> dict[str, Any]:
        """A sample of the distribution."""
        observations = batch[Columns.OBS]
        for row in range(len(self._noise), len(observations)):  # rows that no episode was begun for
            self.begin_episode(row, int(torch.randint(2**31, ())))
        shape = (*([self._num_explored] if self._num_explored > 1 else []), self.noise_width)
        noise = [torch.randn(shape, generator=self._noise[row]) for row in range(len(observations))]
        return self._act(observations, torch.stack(noise).to(observations.device, self.dtype))

    @torch.no_grad()
    def _act(self, observations: Tensor, noise: Tensor | None) -> dict[str, Any]:
        features = self.features(observations)
        policy = self.actor(features)
        if noise is None:
            actions, log_probs = policy.best()
        elif self.random_actions:
            actions, log_probs = random_actions(noise, self.discrete)
        else:
            actions, log_probs = sampled_actions(policy, noise, lambda actions: self.critics(features, actions))
        return {
            Columns.ACTIONS: actions + int(self.action_space.start) if self.discrete else actions,
            Columns.ACTION_LOGP: log_probs,
            Columns.ACTION_DIST_INPUTS: policy.inputs,
        }


class SquashedGaussian(TorchSquashedGaussian):
    """RLlib's squashed Gaussian; its deterministic action is squashed too (RLlib's is the raw mean)."""

    def to_deterministic(self) -> Any:
        """A distribution that always gives tanh(mean)."""
        deterministic = super().to_deterministic()
        deterministic.loc = self._squash(self.loc)
        return deterministic
