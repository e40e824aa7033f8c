"""Where the return-to-go that bounds Q is doubtful: in plain words, with the setting to change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from rllib_calql.data.findings import Finding
from rllib_calql.data.prepare import Preparation
from rllib_calql.data.returns import return_to_go
from rllib_calql.data.summary import Summary

MATTERS = 0.05  # share of rows from which on a doubtful bound matters
ONE_LENGTH = 0.9  # share of terminated episodes of the same length from which on they look like time-outs
LARGE_RETURN, SMALL_RETURN = 5e3, 0.05  # of returns-to-go as they train


def calibration_findings(summary: Summary, preparation: Preparation) -> Iterator[Finding]:
    """Where the return-to-go that bounds the Q-function is doubtful under these settings."""
    if not summary.num_episodes:
        return
    found = [
        finding
        for rule in (_failure_rule, _time_outs, _steps_towards_success, _scale, _terminations, _after_success)
        for finding in rule(summary, preparation)
    ]
    if not any(finding.kind == "warning" for finding in found):
        yield Finding("fine", "returns-to-go: nothing suspicious under these settings")
    yield from found


def _scaled(reward: Any, preparation: Preparation) -> Any:
    return reward * preparation.reward_scale + preparation.reward_bias


def _failure_rule(summary: Summary, preparation: Preparation) -> Iterator[Finding]:
    given, values = preparation.sparse_failure_reward, list(summary.reward_values)
    if given is None:
        failures = 0 if summary.successes is None else int((~summary.successes).sum())
        if failures and _scaled(values[0], preparation) != 0.0:
            yield Finding(
                "warning",
                f"{failures:,} of {summary.num_episodes:,} episodes only ever get the reward {values[0]:g}. Their "
                "return-to-go depends on when they were stopped: a short failure looks better than a long one, "
                "and better than it is",
                f"set sparse_failure_reward={values[0]:g} (the environment's reward, before scaling)",
            )
        return
    said = ", ".join(f"{value:g}" for value in values) if values else "dense"
    if not np.isclose(values or summary.best_rewards, given).any():
        yield Finding(
            "warning",
            f"sparse_failure_reward={given:g} is no reward of these data (rewards: {said}), so it does nothing",
            "give the environment's reward of a failed step, before reward_scale and reward_bias; None if dense",
        )
    elif len(values) > 1 and np.isclose(given, values[-1]):
        yield Finding(
            "warning",
            f"sparse_failure_reward={given:g} is the best reward there is, so successes count as failing for ever",
            f"set sparse_failure_reward={values[0]:g}",
        )


def _time_outs(summary: Summary, preparation: Preparation) -> Iterator[Finding]:
    """Dense negative rewards: what would follow a time-out is missing from the bound (see docs/data.md)."""
    mean = _scaled(float(summary.rewards.mean[0]), preparation)
    if preparation.truncation != "stop" or mean >= 0.0 or preparation.gamma == 1.0:
        return
    cut = ~summary.terminated
    if summary.successes is not None:  # failures of a sparse task are the failure rule's
        cut &= summary.successes
    elif preparation.sparse_failure_reward is not None:
        cut &= ~np.isclose(summary.best_rewards, preparation.sparse_failure_reward)
    horizon = 1.0 / (1.0 - preparation.gamma)
    share = float(np.minimum(summary.lengths[cut], horizon).sum()) / summary.num_rows
    if share >= MATTERS:
        yield Finding(
            "warning",
            f"{int(cut.sum()):,} of {summary.num_episodes:,} episodes are cut off while rewards are negative, "
            f"{mean:.3g} a step after scaling. For the {share:.0%} of rows within {horizon:.0f} steps of a "
            f"time-out the return-to-go leaves out what would follow, up to {mean * horizon:.3g}: the bound is "
            "too high there, and Q-values are kept up that should fall",
            "set truncation_mode='infinite' (the last reward goes on), 'bootstrap' (a value learned from the data "
            "goes on) or 'drop' (no bound for these episodes)",
        )


def _steps_towards_success(summary: Summary, preparation: Preparation) -> Iterator[Finding]:
    successes = summary.successes
    if successes is None or not (summary.terminated & successes).any() or preparation.gamma == 1.0:
        return
    low, high = (_scaled(value, preparation) for value in summary.reward_values)
    forever = low / (1.0 - preparation.gamma)
    if forever >= high:
        yield Finding(
            "warning",
            f"after scaling, a step without success gets {low:g}: never succeeding is worth {forever:.4g}, "
            f"success {high:g} and the end",
            "choose reward_scale and reward_bias so that failing steps get at most 0 (AntMaze: 10 and -5)",
        )


def _scale(summary: Summary, preparation: Preparation) -> Iterator[Finding]:
    rewards = _scaled(np.concatenate(summary.episode_sample), preparation)
    ends = np.zeros(len(rewards), bool)
    ends[np.cumsum([len(episode) for episode in summary.episode_sample]) - 1] = True
    to_go = return_to_go(rewards, ends, np.zeros_like(ends), preparation.gamma)
    largest = float(np.abs(to_go).max())
    if largest > LARGE_RETURN:
        yield Finding(
            "warning",
            f"returns-to-go reach {largest:.4g}. Critics start at 0 and move slowly: they need long to get there",
            f"set reward_scale to about {preparation.reward_scale * 500.0 / largest:.1g}",
        )
    elif 0.0 < largest < SMALL_RETURN:
        yield Finding(
            "warning",
            f"returns-to-go stay below {largest:.2g}, less than the critics' own noise and the entropy bonus",
            f"set reward_scale to about {preparation.reward_scale * 10.0 / largest:.1g}",
        )


def _terminations(summary: Summary, preparation: Preparation) -> Iterator[Finding]:
    lengths = summary.lengths[summary.terminated]
    longest = int(summary.lengths.max())
    if len(lengths) >= 5 and longest > 1 and np.mean(lengths == longest) >= ONE_LENGTH:
        yield Finding(
            "warning",
            f"{int((lengths == longest).sum()):,} episodes are flagged as terminated after exactly {longest} "
            "steps: that looks like time-outs, and a termination ends the value where a time-out does not",
            "flag them as truncated (`timeouts` in a D4RL file)",
        )


def _after_success(summary: Summary, preparation: Preparation) -> Iterator[Finding]:
    successes = summary.successes
    if successes is None:
        return
    best, rows = list(summary.reward_values.items())[-1]
    if rows > 1.5 * successes.sum():
        yield Finding(
            "note",
            f"the reward {best:g} comes on {rows:,} rows of {int(successes.sum()):,} episodes: they go on",
            f"if success is to end the task, set input_config={{'success_reward': {best:g}}} (D4RL files)",
        )
