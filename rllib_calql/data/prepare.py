"""What is done to logged rows before they train: the same for offline data and online episodes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from gymnasium.spaces import Box, Discrete

from rllib_calql.data.errors import DatasetError, DatasetWarning
from rllib_calql.data.frames import check_frames, frame_layout
from rllib_calql.data.mixture import Mixture
from rllib_calql.data.returns import Truncation, check_return_settings, return_to_go
from rllib_calql.data.transitions import Transitions

ReferenceMode = Literal["return_to_go", "learned", "max"]
REFERENCE_MODES: tuple[str, ...] = get_args(ReferenceMode)
# With `return_factor` the best and the worst episode differ by so much: the steps of D4RL's locomotion tasks, so
# that rewards are about 1 a step.
RETURN_RANGE = 1000.0
# Actions are looked through so many rows at a time.
_BLOCK_ROWS = 1 << 16


@dataclass(frozen=True, eq=False)
class ActionScaling:
    """Logged actions (n, act_dim) -> float32 inside +-`clip`; from bounds `low` and `high` where given."""

    clip: float
    low: np.ndarray | None = None
    high: np.ndarray | None = None

    def __call__(self, actions: np.ndarray) -> np.ndarray:
        """Normalised and clipped."""
        return np.clip(self.normalised(actions), -self.clip, self.clip).astype(np.float32)

    def normalised(self, actions: np.ndarray) -> np.ndarray:
        """Not yet clipped; float64 where bounds are given."""
        if self.low is None or self.high is None:
            return actions
        return 2.0 * (actions - self.low) / (self.high - self.low) - 1.0


@dataclass(frozen=True, eq=False)
class ActionNumbers:
    """Logged Discrete actions (n,) -> their numbers from 0 on, (n, 1) float32 (exact up to 2^24 actions)."""

    start: int

    def __call__(self, actions: np.ndarray) -> np.ndarray:
        """The numbers."""
        return (actions - self.start).astype(np.float32)[:, None]


@dataclass(frozen=True, eq=False)
class Preparation:
    """Scales rewards, normalises and clips actions, adds returns-to-go.

    `rewards <- rewards * reward_scale + reward_bias`; actions are mapped from `[action_low, action_high]` to
    [-1, 1] and clipped to +-`clip_action` (tanh never reaches 1, and atanh(1) is infinite). Observations and
    actions are not copied: `Transitions.take` maps the actions of each batch. Discrete actions stay as they
    are, or with `action_start` become their numbers from 0 on, (n, 1).

    `mc_returns`, which bound Q from below, are by `reference` the return-to-go; or `value` of each row's
    observation, a fitted V^mu ("learned"); or the greater of both ("max"). `truncation="bootstrap"` continues the
    return-to-go of cut episodes with `value`.

    Raises:
        ValueError: settings out of range or that do not fit each other.
    """

    gamma: float = 0.99
    reward_scale: float = 1.0
    reward_bias: float = 0.0
    sparse_failure_reward: float | None = (
        None  # environment's reward of a failed step (AntMaze 0, Adroit binary -1)
    )
    truncation: Truncation = "stop"
    clip_action: float = 0.99999
    action_low: np.ndarray | None = None  # (act_dim,) bounds of the environment's Box;
    action_high: np.ndarray | None = None  # without them actions are already in [-1, 1]
    action_start: int | None = None  # the first of the environment's Discrete actions
    reference: ReferenceMode = "return_to_go"
    value: Callable[[Any], np.ndarray] | None = None  # observations (n, obs_dim) -> (n,), in rewards as they train

    def __post_init__(self) -> None:
        check_return_settings(self.gamma, self.truncation, self.sparse_failure_reward)
        if self.reference not in REFERENCE_MODES:
            raise ValueError(f"reference must be one of {', '.join(REFERENCE_MODES)}, not {self.reference!r}")
        if self.value is None and (self.truncation == "bootstrap" or self.reference != "return_to_go"):
            raise ValueError(
                "truncation='bootstrap' and references other than 'return_to_go' need a fitted value: give "
                "`value`, train with CalQLConfig, which fits one, or use 'stop', 'infinite' or 'drop'"
            )
        if not 0.0 < self.clip_action < 1.0:
            raise ValueError(f"clip_action must be inside (0, 1), not {self.clip_action}")
        if not np.isfinite([self.reward_scale, self.reward_bias]).all():
            raise ValueError(f"reward_scale {self.reward_scale} and reward_bias {self.reward_bias} must be finite")
        if (self.action_low is None) != (self.action_high is None):
            raise ValueError("give both action_low and action_high, or neither")
        if self.action_low is not None and self.action_high is not None:
            low, high = np.asarray(self.action_low), np.asarray(self.action_high)
            if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
                raise ValueError(f"action bounds must be finite, low below high, not {low} and {high}")

    def __call__(self, raw: Transitions) -> Transitions:
        """Raw rows in the environment's units -> rows that train.

        Raises:
            DatasetError: actions and bounds have different dimensions.

        Warns:
            DatasetWarning: counts actions outside the bounds (by more than 1e-6 of half the range); they are
                clipped.
        """
        rewards = self._scaled(raw.rewards)
        prepared = raw.changed(
            rewards=rewards.astype(np.float32),
            action_scaling=self._action_scaling(raw.actions),
            mc_returns=self._reference_values(raw, rewards),
        )
        prepared.__dict__.update(episode_ends=raw.episode_ends, fingerprint=raw.fingerprint)
        return prepared

    def with_reference_values(self, prepared: Transitions) -> Transitions:
        """Rows that are prepared already, with `mc_returns` by this preparation instead."""
        changed = prepared.changed(mc_returns=self._reference_values(prepared, prepared.rewards))
        changed.__dict__.update(episode_ends=prepared.episode_ends, fingerprint=prepared.fingerprint)
        return changed

    @property
    def failure_reward(self) -> float | None:
        """`sparse_failure_reward` as it trains."""
        return None if self.sparse_failure_reward is None else float(self._scaled(self.sparse_failure_reward))

    def _reference_values(self, rows: Transitions, rewards: np.ndarray) -> np.ndarray:
        """(N,) float32 from scaled rewards (N,)."""
        if self.reference == "learned":
            return self._values(rows)
        ends = None
        if self.truncation == "bootstrap":
            assert self.value is not None
            ends = np.zeros(len(rows), np.float32)
            ends[rows.episode_ends] = self.value(rows.final_observations)
        returns = return_to_go(
            rewards,
            rows.terminated,
            rows.truncated,
            self.gamma,
            truncation=self.truncation,
            sparse_failure_reward=self.failure_reward,
            bootstrap_values=ends,
        )
        return np.maximum(returns, self._values(rows)) if self.reference == "max" else returns

    def _values(self, rows: Transitions) -> np.ndarray:
        assert self.value is not None
        with rows.reading_through():
            return self.value(rows.observations)

    def _scaled(self, rewards: np.ndarray | float) -> np.ndarray:
        return np.asarray(rewards, dtype=np.float64) * self.reward_scale + self.reward_bias

    def _action_scaling(self, actions: np.ndarray) -> ActionScaling | ActionNumbers | None:
        if actions.ndim == 1:  # Discrete
            return None if self.action_start is None else ActionNumbers(self.action_start)
        scaling = ActionScaling(self.clip_action)
        if self.action_low is not None and self.action_high is not None:
            low = np.asarray(self.action_low, dtype=np.float64)
            high = np.asarray(self.action_high, dtype=np.float64)
            if low.shape != actions.shape[1:] or high.shape != actions.shape[1:]:
                raise DatasetError(
                    f"actions have {actions.shape[1]} numbers, the bounds {low.shape} and {high.shape}"
                )
            scaling = ActionScaling(self.clip_action, low, high)
        _warn_of_actions_outside(actions, scaling)
        return scaling


def episode_returns(data: Transitions) -> np.ndarray:
    """(E,) float64: the sum of each episode's rewards."""
    starts = np.append(0, data.episode_ends[:-1] + 1)
    return np.add.reduceat(data.rewards, starts, dtype=np.float64)


def return_factor(returns: np.ndarray) -> float:
    """What rewards are multiplied by so that episode returns (E,) range over `RETURN_RANGE`.

    The rule of CORL's `normalize_reward` (corl-team/CORL, `modify_reward`), of TD3+BC's and IQL's code before it.

    Raises:
        DatasetError: all episodes have the same return.
    """
    low, high = float(np.min(returns)), float(np.max(returns))
    if low == high:
        raise DatasetError(
            f"every episode of the data has the return {low:g}, so rewards cannot be normalised by its range: "
            "set normalize_reward=False"
        )
    return RETURN_RANGE / (high - low)


def _warn_of_actions_outside(actions: np.ndarray, scaling: ActionScaling) -> None:
    count, worst, worst_at = 0, 1.0, (0, 0)
    for start in range(0, len(actions), _BLOCK_ROWS):
        distance = np.abs(scaling.normalised(actions[start : start + _BLOCK_ROWS]))
        if (most := float(distance.max())) > 1.0 + 1e-6:
            count += int((distance > 1.0 + 1e-6).any(axis=1).sum())
            if most > worst:
                row, column = np.unravel_index(distance.argmax(), distance.shape)
                worst, worst_at = most, (start + int(row), int(column))
    if count:
        row, column = worst_at
        warnings.warn(
            f"{count} of {len(actions)} rows have actions outside the bounds, the worst being "
            f"{actions[row, column]:g} (row {row}, action number {column}); they were clipped to the bounds",
            DatasetWarning,
            stacklevel=4,
        )


def bounds_of(action_space: Any) -> dict[str, Any]:
    """The fields of `Preparation` that say what the environment's actions are."""
    if isinstance(action_space, Discrete):
        return {"action_start": int(action_space.start)}
    return {"action_low": action_space.low, "action_high": action_space.high}


def action_width(action_space: Any) -> int:
    """Numbers of an action as it trains: those of a flat Box, or 1 (see `ActionNumbers`)."""
    return 1 if isinstance(action_space, Discrete) else int(action_space.shape[0])


def require_trainable(observation_space: Any, action_space: Any) -> None:
    """Refuses (DatasetError) observations other than a one-axis Box or frames, and actions other than a bounded
    one-axis Box or Discrete."""
    flat = isinstance(observation_space, Box) and len(observation_space.shape) == 1
    if not flat and frame_layout(observation_space) is None:
        raise DatasetError(
            f"the environment's observation space must be a flat Box (one axis), not {observation_space}; images "
            "are uint8"
        )
    if isinstance(action_space, Discrete):
        return
    if not isinstance(action_space, Box) or len(action_space.shape) != 1:
        raise DatasetError(
            f"the environment's action space must be a flat Box (one axis) or Discrete, not {action_space}"
        )
    if not action_space.is_bounded():
        raise DatasetError(f"the environment's action space must have finite bounds, not {action_space}")
    if action_space.dtype not in (np.float32, np.float64):  # RLlib scales no others to the bounds
        raise DatasetError(f"the environment's actions must be float32 or float64, not {action_space.dtype}")


def check_fits(data: Transitions | Mixture, observation_space: Any, action_space: Any) -> None:
    """Checks that a dataset and an environment speak of the same things.

    Raises:
        DatasetError: the data or a space are of a kind that cannot be trained on, or do not fit each other.
    """
    for part in data.parts:
        _check_trainable(part, frame_layout(observation_space) is not None)
    require_trainable(observation_space, action_space)
    discrete = isinstance(action_space, Discrete)
    for part in data.parts:
        if discrete != (part.actions.ndim == 1):
            raise DatasetError(
                f"the dataset has {'continuous' if discrete else 'discrete'} actions, and the environment's are "
                f"{action_space}"
            )
        if discrete:
            _check_numbers(part.actions, action_space)
    dims = [("action", action_width(action_space), data.act_dim)]
    if frame_layout(observation_space) is None:
        dims.append(("observation", observation_space.shape[0], data.obs_dim))
    else:
        for part in data.parts:
            check_frames(part.observations, observation_space)
    for name, width, dim in dims:
        if width != dim:
            raise DatasetError(
                f"the dataset's {name}s have {dim} numbers, the environment's {width}: dataset and "
                "environment do not belong together"
            )


def _check_numbers(actions: np.ndarray, space: Discrete) -> None:
    low, high = int(actions.min()), int(actions.max())
    if low < space.start or high >= space.start + space.n:
        raise DatasetError(f"the dataset has actions from {low} to {high}, the environment's are {space}")


def _check_trainable(data: Transitions, images: bool) -> None:
    if not (images or isinstance(data.observations, np.ndarray)):
        raise DatasetError(
            "the dataset's observations were kept as they are, and the environment's are vectors: open it with "
            "observations='flatten'"
        )
    if not images and data.observations.ndim != 2:
        raise DatasetError(
            f"the dataset's observations are images of shape {data.observations.shape[1:]}, the environment's are "
            "no uint8 images: dataset and environment do not belong together"
        )
