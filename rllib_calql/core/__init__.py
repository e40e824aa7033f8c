"""Cal-QL in plain PyTorch: networks, losses and the update step. Nothing here knows about Ray."""

from __future__ import annotations

from rllib_calql.core.calql import CalQLUpdate, Noise
from rllib_calql.core.factory import make_update
from rllib_calql.core.hyperparameters import UpdateConfig
from rllib_calql.core.networks import CriticEnsemble, TanhGaussianActor
from rllib_calql.core.update import Update

__all__ = ["CalQLUpdate", "CriticEnsemble", "Noise", "TanhGaussianActor", "Update", "UpdateConfig", "make_update"]
