"""Monte-Carlo return-to-go: the reference value V^mu that bounds Cal-QL's Q-function from below."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from rllib_calql.data.errors import DatasetError, first_rows

Truncation = Literal["stop", "infinite", "bootstrap", "drop"]
TRUNCATION_MODES: tuple[str, ...] = get_args(Truncation)
# Rows worked on at a time, about: few enough for the processor's cache.
BLOCK_ROWS = 1 << 16


def return_to_go(
    rewards: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
    gamma: float,
    *,
    truncation: Truncation = "stop",
    sparse_failure_reward: float | None = None,
    bootstrap_values: np.ndarray | None = None,
    trajectory_ends: np.ndarray | None = None,
) -> np.ndarray:
    """Discounted sum of rewards from each row to the end of its episode.

    `G[t] = r[t] + gamma * G[t+1]` inside an episode; an episode ends at a row that is terminated or
    truncated, and at the array's last row (which counts as truncated). A row that is both is terminated. What
    follows a truncated end:

    - `stop`: nothing (0), as the reference implementation does.
    - `infinite`: the last reward goes on for ever, `G = r / (1 - gamma)` at the end.
    - `bootstrap`: a value estimate, `G = r + gamma * bootstrap_values[end]` at the end.
    - `drop`: no bound is known for these episodes, their rows get -inf (`max(Q, -inf) = Q`).

    With `sparse_failure_reward` a trajectory in which EVERY reward is the failure reward f gets `f / (1 -
    gamma)` in all its rows, whatever its flags and the truncation mode: it would go on failing for ever.
    (Reference code: Cal-QL, calc_return_to_go.)

    Args:
        rewards: (N,) rewards as they are trained on (scaled and shifted).
        terminated: (N,) the task ended after this row.
        truncated: (N,) the episode was cut off after this row.
        gamma: discount in [0, 1].
        truncation: what follows a truncated end, see above.
        sparse_failure_reward: reward of a failed step, in the same units as `rewards`.
        bootstrap_values: (N,) value of the state that follows each row; read at truncated ends only.
        trajectory_ends: (N,) last rows of the trajectories that the failure rule looks at, where they differ
            from `terminated | truncated` (the reference lets one trajectory hold several terminal rows).

    Returns:
        (N,) float32.

    Raises:
        DatasetError: lengths differ, or rewards are not finite.
        ValueError: settings that do not fit each other.
    """
    rewards = np.asarray(rewards, dtype=np.float64)
    terminated = np.asarray(terminated, dtype=bool)
    truncated = np.asarray(truncated, dtype=bool)
    _check(rewards, terminated, truncated, gamma, truncation, sparse_failure_reward)
    if len(rewards) == 0:
        return np.zeros(0, dtype=np.float32)
    ends = terminated | truncated
    ends[-1] = True
    last = np.flatnonzero(ends)
    cut = last[~terminated[last]]

    with_tails = rewards if truncation in ("stop", "drop") else rewards.copy()
    if truncation == "infinite":
        with_tails[cut] /= 1.0 - gamma
    elif truncation == "bootstrap":
        with_tails[cut] += gamma * _values_at(bootstrap_values, cut, len(rewards))

    result = np.empty(len(rewards), dtype=np.float32)
    start = episode = 0
    while episode < len(last):  # some whole episodes at a time: small temporary arrays
        next_episode = max(int(np.searchsorted(last, start + BLOCK_ROWS)), episode + 1)
        stop = int(last[next_episode - 1]) + 1
        result[start:stop] = _discounted_sums(with_tails[start:stop], last[episode:next_episode] - start, gamma)
        start, episode = stop, next_episode

    if truncation == "drop":
        result[np.repeat(~terminated[last], np.diff(last, prepend=-1))] = -np.inf
    if sparse_failure_reward is not None:
        failed = all_failure(rewards, sparse_failure_reward, ends if trajectory_ends is None else trajectory_ends)
        result[failed] = sparse_failure_reward / (1.0 - gamma)
    return result


def _discounted_sums(rewards: np.ndarray, last: np.ndarray, gamma: float) -> np.ndarray:
    """(n,) float64: the sum from each row to the end of its episode; episodes end at the rows `last` (E,)."""
    from scipy.signal import lfilter  # here, because it takes 0.7 s, in every worker that imports the package

    # One recursive filter runs through all episodes at once; what leaked into an episode is the filter's
    # value at the next episode's first row, discounted by the distance to it.
    leaky = np.append(lfilter([1.0], [1.0, -gamma], rewards[::-1])[::-1], 0.0)
    next_start = np.repeat(last + 1, np.diff(last, prepend=-1))
    return leaky[:-1] - gamma ** (next_start - np.arange(len(rewards))) * leaky[next_start]


def all_failure(rewards: np.ndarray, failure_reward: float, trajectory_ends: np.ndarray) -> np.ndarray:
    """(N,) bool: rows of trajectories in which every reward is the failure reward."""
    trajectory_ends = np.array(trajectory_ends, dtype=bool)
    if trajectory_ends.shape != rewards.shape:
        raise DatasetError(f"trajectory_ends has shape {trajectory_ends.shape}, rewards {rewards.shape}")
    trajectory_ends[-1] = True
    last = np.flatnonzero(trajectory_ends)
    starts = np.append(0, last[:-1] + 1)
    failed = np.logical_and.reduceat(np.isclose(rewards, failure_reward), starts)
    return np.repeat(failed, np.diff(last, prepend=-1))


def _values_at(values: np.ndarray | None, rows: np.ndarray, num_rows: int) -> np.ndarray:
    if values is None:
        raise ValueError(
            "truncation='bootstrap' needs bootstrap_values: the value of the state after each truncated end"
        )
    values = np.asarray(values, dtype=np.float64)
    if values.shape != (num_rows,):
        raise DatasetError(f"bootstrap_values has shape {values.shape}, rewards ({num_rows},)")
    if not np.isfinite(values[rows]).all():
        raise DatasetError("bootstrap_values are not finite at truncated ends")
    return values[rows]


def _check(
    rewards: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
    gamma: float,
    truncation: str,
    sparse_failure_reward: float | None,
) -> None:
    if rewards.ndim != 1 or not rewards.shape == terminated.shape == truncated.shape:
        raise DatasetError(
            "rewards, terminated and truncated must have one shape (N,), "
            f"not {rewards.shape}, {terminated.shape} and {truncated.shape}"
        )
    if not np.isfinite(rewards).all():
        raise DatasetError(f"rewards are not finite in {first_rows(~np.isfinite(rewards))}")
    check_return_settings(gamma, truncation, sparse_failure_reward)


def check_return_settings(gamma: float, truncation: str, sparse_failure_reward: float | None) -> None:
    """Refuses settings of `return_to_go` that do not fit each other (ValueError)."""
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"gamma must be in [0, 1], not {gamma}")
    if truncation not in TRUNCATION_MODES:
        raise ValueError(f"truncation must be one of {', '.join(TRUNCATION_MODES)}, not {truncation!r}")
    if gamma == 1.0 and truncation == "infinite":
        raise ValueError("truncation='infinite' needs gamma < 1: with gamma 1 the reward's sum has no end")
    if gamma == 1.0 and sparse_failure_reward is not None:
        raise ValueError("sparse_failure_reward needs gamma < 1: an endless failure is worth reward / (1 - gamma)")
