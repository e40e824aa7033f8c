"""What the algorithm asks of RLlib's API stacks; everything else it does the same on both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from gymnasium.spaces import Box, Discrete

from rllib_calql.data import Transitions
from rllib_calql.data.transitions import Batch


class Episode(NamedTuple):
    """A finished online episode, with environment rewards and actions in [-1, 1]."""

    rows: Transitions
    success: float  # 0 or 1, or the share of the task that was solved


class Stack(Protocol):
    """One of RLlib's API stacks: where the update lives and how episodes are collected."""

    @property
    def spaces(self) -> tuple[Box, Box | Discrete]:
        """Observation and action space as the networks see them."""

    @property
    def env(self) -> Any:
        """An environment of this process, or None."""

    @property
    def num_updates(self) -> int:
        """Updates done so far, both phases."""

    def learn(self, sample: Callable[[], Batch], num_updates: int, online: bool) -> dict[str, float]:
        """`num_updates` updates under the phase's rules; the means of their figures."""

    def request(self, random_actions: bool = False) -> None:
        """Lets the remote runners collect whole episodes under the present weights, and does not wait."""

    @property
    def requested(self) -> bool:
        """Whether remote runners are collecting what the next `collect` gives."""

    def collect(self, random_actions: bool = False) -> list[Episode]:
        """Whole episodes, one per runner or more: those requested, else new ones under the present weights.

        With `random_actions` they are uniform, whatever the weights.
        """

    def training_results(self, figures: Mapping[str, float]) -> dict[str, Any] | None:
        """An iteration's learning figures as `training_step` returns them."""

    def weights(self) -> dict[str, np.ndarray]:
        """Every network, temperature and the normaliser, by name."""

    def save(self, folder: Path) -> None:
        """Writes RLlib's files of a checkpoint: config, networks, the whole state of the update."""

    def load(self, folder: Path) -> None:
        """Takes over what `save` wrote, on this runner and all others."""

    def load_update(self, state: Mapping[str, Any]) -> None:
        """Takes over an `Update`'s state that the other stack saved, on this runner and all others."""

    def act(self, observation: Any, explore: bool) -> np.ndarray:
        """The action for one observation of the environment, within its bounds, under the present weights."""

    def load_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Takes over all or some weights; names that are absent keep their values."""
