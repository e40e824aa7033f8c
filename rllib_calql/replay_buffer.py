"""`CalQLReplayBuffer`: RLlib's face of the mixing replay, and the columns of its batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.replay_buffers import ReplayBuffer

from rllib_calql.data import MixedReplay, Mixture, Preparation, Transitions


class CalQLReplayBuffer(ReplayBuffer):
    """Offline rows that are never evicted, and whole online episodes, mixed in a fixed, proportional or
    scheduled ratio (`MixedReplay` has the rules).

    Args:
        obs_dim, act_dim: sizes of observations (bytes of a frame with `frame_stack`) and actions.
        offline: prepared offline rows, or None.
        preparation: what is done to online episodes when they enter; offline rows have been through it.
        capacity: online rows kept, first in first out by whole episodes.
        mixing_ratio: see `MixedReplay`.
        seed: of the sampling.
        frame_stack: observations are so many frames, (k, obs_dim) uint8; of each row only the last is kept.
    """

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        offline: Transitions | Mixture | None = None,
        preparation: Preparation | None = None,
        capacity: int = 1_000_000,
        mixing_ratio: float | Sequence[Sequence[float]] = 0.5,
        seed: int | None = None,
        frame_stack: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(capacity=capacity, storage_unit="episodes", **kwargs)
        self.replay = MixedReplay(offline, capacity, mixing_ratio, seed, obs_dim, act_dim, frame_stack)
        self.preparation = preparation or Preparation()

    def __len__(self) -> int:
        """Online rows stored."""
        return len(self.replay.online)

    def add(self, batch: SampleBatch | MultiAgentBatch, **kwargs: Any) -> None:
        """Adds finished episodes with environment rewards and actions in [-1, 1]; returns are added here.

        Raises:
            ValueError: an episode in the batch has no end.
        """
        for part in split_episodes(batch):
            self.add_episode(episode_of(part))

    def add_episode(self, episode: Transitions) -> None:
        """Adds one raw episode."""
        if (count := self.replay.online.frame_stack) is not None:
            last = {name: getattr(episode, name)[:, -1] for name in ("observations", "final_observations")}
            episode = episode.changed(**last, frame_stack=count)
        self.replay.add(self.preparation(episode))

    def prepare_with(self, preparation: Preparation) -> None:
        """Another preparation for the episodes to come; the offline rows get its reference values, too."""
        self.preparation, offline = preparation, self.replay.offline
        if offline is not None:
            self.replay.offline = offline.each(preparation.with_reference_values)

    def sample(self, num_items: int, *, online: bool = True, **kwargs: Any) -> SampleBatch:
        """`num_items` rows with replacement, `mc_returns` among their columns."""
        return to_sample_batch(self.replay.sample(num_items, online=online))

    def get_state(self) -> dict[str, Any]:
        """The sampling's random generator; the rows are kept by `ReplayFiles`."""
        return self.replay.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes over a state made by `get_state`."""
        self.replay.set_state(state)


def split_episodes(batch: SampleBatch | MultiAgentBatch) -> list[SampleBatch]:
    """The single policy's rows, an entry per episode."""
    if isinstance(batch, MultiAgentBatch):
        (batch,) = batch.policy_batches.values()
    return batch.split_by_episode()


def episode_of(part: SampleBatch) -> Transitions:
    """One episode's rows as raw `Transitions`; the last row must end it (ValueError)."""
    terminated = bool(part[SampleBatch.TERMINATEDS][-1])
    if not terminated and not bool(part[SampleBatch.TRUNCATEDS][-1]):
        raise ValueError(
            "only whole episodes enter the replay: this one has no end (use batch_mode='complete_episodes')"
        )
    return Transitions.from_episode(
        np.concatenate([part[SampleBatch.OBS], part[SampleBatch.NEXT_OBS][-1:]]),
        part[SampleBatch.ACTIONS],
        part[SampleBatch.REWARDS],
        terminated,
    )


def from_sample_batch(batch: SampleBatch) -> dict[str, np.ndarray]:
    """RLlib's column names to ours."""
    return {
        "observations": batch[SampleBatch.OBS],
        "actions": batch[SampleBatch.ACTIONS],
        "rewards": batch[SampleBatch.REWARDS],
        "next_observations": batch[SampleBatch.NEXT_OBS],
        "dones": batch[SampleBatch.TERMINATEDS],
        "mc_returns": batch["mc_returns"],
    }


def to_sample_batch(batch: Mapping[str, Any]) -> SampleBatch:
    """Our column names to RLlib's, with `mc_returns`."""
    terminated = batch["dones"] > 0.0
    return SampleBatch(
        {
            SampleBatch.OBS: batch["observations"],
            SampleBatch.ACTIONS: batch["actions"],
            SampleBatch.REWARDS: batch["rewards"],
            SampleBatch.NEXT_OBS: batch["next_observations"],
            SampleBatch.TERMINATEDS: terminated,
            SampleBatch.TRUNCATEDS: np.zeros_like(terminated),
            "mc_returns": batch["mc_returns"],
        }
    )
