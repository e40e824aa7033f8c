"""The `calql` block of every training result: phase, counters, learning figures, evaluation scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ray.rllib.utils.metrics import NUM_EPISODES

from rllib_calql.data.reference_scores import reference_scores

# The first evaluations of the online phase in which a dip at the switch would show.
SWITCH_WINDOW = 5
# What the new API stack's runners count, beside RLlib's number of episodes.
EPISODE_RETURN_SUM, NUM_SUCCESSES = "episode_return_sum", "num_successes"


def evaluation_scores(
    env_runner_results: Mapping[str, Any], score_range: tuple[float, float] | None
) -> dict[str, float]:
    """Success rate and normalised score of an evaluation.

    Args:
        env_runner_results: RLlib's `evaluation/env_runners` results.
        score_range: episode returns that count as 0 and 1 (D4RL's random and expert reference scores); without
            it the score is the success rate.

    Returns:
        `success_rate`, where an episode may also succeed in part, and `normalized_score`, where they exist.
    """
    scores = {}
    success, episode_return = _episode_means(env_runner_results)
    if success is not None and math.isfinite(success):
        scores["success_rate"] = scores["normalized_score"] = float(success)
    if score_range is not None and episode_return is not None and math.isfinite(episode_return):
        scores["normalized_score"] = normalized_score(episode_return, score_range)
    return scores


def score_range(setting: Any) -> tuple[float, float] | None:
    """The config's `score_range` as numbers: a D4RL task's name stands for its reference scores."""
    return reference_scores(setting) if isinstance(setting, str) else setting and tuple(setting)


def _episode_means(env_runner_results: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Mean success and mean return over episodes, from either API stack's results."""
    if NUM_SUCCESSES in env_runner_results:
        count = env_runner_results[NUM_EPISODES]
        if not count:
            return None, None
        return env_runner_results[NUM_SUCCESSES] / count, env_runner_results[EPISODE_RETURN_SUM] / count
    success = env_runner_results.get("custom_metrics", {}).get("success_mean")
    return success, env_runner_results.get("episode_return_mean")


def normalized_score(episode_return: float, score_range: tuple[float, float]) -> float:
    """(return - low) / (high - low)."""
    low, high = score_range
    return (episode_return - low) / (high - low)


class WeightedMeans:
    """Means of figures that come in portions of different weight; a figure may be absent from some."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._weights: dict[str, float] = {}

    def add(self, figures: Mapping[str, float], weight: float) -> None:
        """Counts a portion's means with its weight."""
        for name, value in figures.items():
            self._sums[name] = self._sums.get(name, 0.0) + weight * value
            self._weights[name] = self._weights.get(name, 0.0) + weight

    def result(self) -> dict[str, float]:
        """The mean of every figure that came at all."""
        return {name: total / self._weights[name] for name, total in self._sums.items()}


@dataclass
class RunSummary:
    """What a run has to remember across its phases; plain numbers, all in the checkpoint."""

    switched: bool = False  # the online phase has begun
    num_online_env_steps: int = 0
    num_online_episodes: int = 0
    score_sum: float = 0.0  # normalised training scores of the online episodes
    score_at_switch: float | None = None
    scores_after_switch: list[float] = field(default_factory=list)
    num_online_updates: int = 0
    # The settings by which online steps earn updates; and the steps that had counted and the updates that had been
    # earned when these came into force.
    utd_ratio: float = 0.0
    warmup_env_steps: int = 0
    num_steps_before: int = 0
    num_updates_before: int = 0

    def earn_by(self, utd_ratio: float, warmup_env_steps: int) -> None:
        """Steps from now on earn updates by these settings; what others have earned stays earned."""
        if (utd_ratio, warmup_env_steps) == (self.utd_ratio, self.warmup_env_steps):
            return
        self.num_updates_before = self._num_updates_earned
        self.utd_ratio, self.warmup_env_steps = utd_ratio, warmup_env_steps
        self.num_steps_before = self._num_steps_counted

    @property
    def _num_steps_counted(self) -> int:
        return max(0, self.num_online_env_steps - self.warmup_env_steps)

    @property
    def _num_updates_earned(self) -> int:
        steps = self._num_steps_counted - self.num_steps_before
        return self.num_updates_before + math.floor(steps * self.utd_ratio)

    @property
    def num_updates_due(self) -> int:
        """Online updates that the steps so far have earned, and that are still to be done."""
        return self._num_updates_earned - self.num_online_updates

    def add_episode(self, length: int, score: float) -> None:
        """Counts a finished online episode and its normalised score."""
        self.num_online_env_steps += length
        self.num_online_episodes += 1
        self.score_sum += score

    def add_evaluation(self, score: float, online: bool) -> None:
        """Remembers a normalised evaluation score; the last one before online data is the switch's."""
        if not online:
            self.score_at_switch = score
        elif len(self.scores_after_switch) < SWITCH_WINDOW:
            self.scores_after_switch.append(score)

    @property
    def cumulative_regret(self) -> float | None:
        """Mean of 1 - normalised training score, over the online episodes (cf. the paper's table 2)."""
        if self.num_online_episodes == 0:
            return None
        return 1.0 - self.score_sum / self.num_online_episodes

    @property
    def switch_drop(self) -> float | None:
        """Score at the switch minus the lowest of the first five online evaluations, at least 0."""
        if self.score_at_switch is None or not self.scores_after_switch:
            return None
        return max(0.0, self.score_at_switch - min(self.scores_after_switch))

    def figures(self) -> dict[str, float]:
        """What exists so far, under the result's names."""
        found = {
            "num_online_env_steps": self.num_online_env_steps,
            "num_online_episodes": self.num_online_episodes,
            "cumulative_regret": self.cumulative_regret,
            "switch_drop": self.switch_drop,
        }
        return {name: value for name, value in found.items() if value is not None}

    def get_state(self) -> dict[str, Any]:
        """All fields as plain numbers."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> RunSummary:
        """A summary from `get_state`'s fields."""
        return cls(**state)
