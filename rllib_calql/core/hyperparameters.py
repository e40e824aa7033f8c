"""The hyperparameters of the update."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

Precision = Literal["float32", "bfloat16", "float64"]
ActorQ = Literal["min", "mean"]
UpdateRule = Literal["sac", "awac", "iql"]
ActorUpdates = Literal["every_update", "every_step"]


@dataclass(frozen=True, kw_only=True)
class UpdateConfig:
    """Hyperparameters of the update; names and defaults as in `CalQLConfig`, which documents them."""

    update_rule: UpdateRule = "sac"
    gamma: float = 0.99
    tau: float = 0.005
    target_network_update_freq: int = 1
    actor_lr: float = 1e-4
    critic_lr: float = 3e-4
    alpha_lr: float = 1e-4
    lagrangian_lr: float = 3e-4
    actor_hiddens: tuple[int, ...] = (256, 256)
    actor_activation: str = "relu"
    critic_hiddens: tuple[int, ...] = (256, 256)
    critic_activation: str = "relu"
    critic_layer_norm: bool = False
    num_critics: int = 2
    num_target_critics: int | None = None
    actor_q: ActorQ = "min"
    online_actor_interval: int = 1  # updates per step of actor and temperature, in the online phase
    orthogonal_init: bool = True
    precision: Precision = "float32"
    # entropy temperature
    learn_alpha: bool = True
    initial_alpha: float = 1.0
    alpha_multiplier: float = 1.0
    target_entropy: float | None = None
    # TD target
    max_target_backup: bool = True
    num_target_actions: int = 10
    deterministic_backup: bool = True
    # conservative term
    min_q_weight: float = 5.0
    min_q_weight_online: float | None = None
    calibrate: bool = True
    calibrate_online: bool = True
    num_actions: int = 10
    temperature: float = 1.0
    importance_sampling: bool = True
    clip_diff_min: float = -math.inf
    clip_diff_max: float = math.inf
    lagrangian: bool = False
    lagrangian_thresh: float = 0.8
    initial_alpha_prime: float = math.e
    # advantage-weighted rules
    beta: float = 1.0
    beta_online: float | None = None
    expectile: float = 0.8
    # images
    conv_filters: tuple[tuple[int, ...], ...] = ((32, 3, 2), (32, 3, 1), (32, 3, 1), (32, 3, 1))
    feature_dim: int = 50
    image_augmentation: str | None = "random_shift"
    # behaviour-cloning start of the actor
    bc_iters: int = 0

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> UpdateConfig:
        """From a mapping with `CalQLConfig`'s names, such as its `vars()` or the dict a policy is given."""
        actor, critic = settings["policy_model_config"], settings["q_model_config"]
        encoder = settings["encoder_config"]
        entropy = settings["target_entropy"]
        every_step = settings.get("actor_updates") == "every_step"
        interval = max(1, round(settings["utd_ratio"])) if every_step else 1
        derived: dict[str, Any] = {
            "actor_hiddens": tuple(actor["fcnet_hiddens"]),
            "actor_activation": actor["fcnet_activation"],
            "critic_hiddens": tuple(critic["fcnet_hiddens"]),
            "critic_activation": critic["fcnet_activation"],
            "conv_filters": tuple(map(tuple, encoder["conv_filters"])),
            "feature_dim": encoder["feature_dim"],
            "online_actor_interval": interval,
            "target_entropy": None if entropy in (None, "auto") else float(entropy),
        }
        # A policy's checkpoint from before a setting existed does not have it: it was trained with the default.
        names = [field.name for field in fields(cls) if field.name not in derived and field.name in settings]
        return cls(**derived, **{name: settings[name] for name in names})
