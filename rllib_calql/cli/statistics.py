"""Means over seeds with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import bootstrap, trim_mean

RESAMPLES = 2000
CONFIDENCE = 0.95


class Mean(NamedTuple):
    """A mean, and its standard error where there are two values or more."""

    value: float
    error: float | None


class Interval(NamedTuple):
    """A figure and its bootstrap confidence interval; None where a task has a single run."""

    value: float
    low: float | None
    high: float | None


def mean(values: Sequence[float]) -> Mean | None:
    """Mean and standard error, s / sqrt(n) with s over n - 1; None without values."""
    if not values:
        return None
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None
    return Mean(float(np.mean(values)), error)


def interquartile_mean(tasks: Sequence[Sequence[float]]) -> Interval | None:
    """Mean of the middle half of all runs, with the percentile interval of a bootstrap stratified by task.

    As in Agarwal et al. 2021, "Deep RL at the edge of the statistical precipice": the lowest and the highest
    quarter of the runs, rounded down, are left out; each resample draws every task's runs anew, with replacement.

    Args:
        tasks: scores of the runs of each task.
    """
    samples = [np.asarray(scores, dtype=float) for scores in tasks if len(scores)]
    if not samples:
        return None
    value = float(_middle(*samples))
    if min(map(len, samples)) < 2:
        return Interval(value, None, None)
    found = bootstrap(
        samples,
        _middle,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        vectorized=True,
        method="percentile",
        rng=0,
    ).confidence_interval
    return Interval(value, float(found.low), float(found.high))


def _middle(*samples: np.ndarray, axis: int = -1) -> Any:
    return trim_mean(np.concatenate(samples, axis=axis), 0.25, axis=axis)
