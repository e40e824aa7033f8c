"""Pictures of datasets."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from rllib_calql.data.returns import return_to_go
from rllib_calql.data.summary import Summary

_BINS = 50
_CURVES = 50


def draw(summary: Summary, path: str | Path, title: str, gamma: float) -> None:
    """Writes a PNG: returns, lengths, state coverage in the first two dimensions, return-to-go against time."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    figure.suptitle(f"{title}: {summary.num_rows:,} rows, {summary.num_episodes:,} episodes")
    (returns, lengths), (coverage, to_go) = figure.subplots(2, 2)
    _histogram(returns, summary.returns, summary.terminated, "return (undiscounted)")
    _histogram(lengths, summary.lengths, summary.terminated, "episode length (steps)")
    lengths.legend()
    _coverage(coverage, summary.row_sample)
    _returns_to_go(to_go, summary.episode_sample, gamma)
    figure.savefig(path, dpi=100, format="png")


def _histogram(axes: Axes, values: np.ndarray, terminated: np.ndarray, name: str) -> None:
    bins = np.histogram_bin_edges(values, bins=_BINS).tolist()
    axes.hist([values[terminated], values[~terminated]], bins, stacked=True, label=["terminated", "truncated"])
    axes.set(xlabel=name, ylabel="episodes")


def _coverage(axes: Axes, sample: np.ndarray | None) -> None:
    axes.set(xlabel="observation[0]", ylabel="observation[1]")
    finite = None if sample is None else sample[np.isfinite(sample).all(axis=1)]
    if finite is None or not len(finite):
        axes.text(0.5, 0.5, "no two observation numbers", ha="center", transform=axes.transAxes)
        return
    *_, image = axes.hist2d(finite[:, 0], finite[:, 1], bins=2 * _BINS, norm=LogNorm(), cmap="viridis")
    axes.figure.colorbar(image, ax=axes, label=f"rows of {len(finite):,} at equal distances")


def _returns_to_go(axes: Axes, episodes: list[np.ndarray], gamma: float) -> None:
    """A few episodes' curves, and the mean over all that are looked at."""
    axes.set(xlabel="step of the episode", ylabel=f"return-to-go (gamma {gamma:g})")
    if not episodes:
        return
    none = np.zeros(max(map(len, episodes)), bool)
    curves = [return_to_go(rewards, none[: len(rewards)], none[: len(rewards)], gamma) for rewards in episodes]
    for curve in curves[:: math.ceil(len(curves) / _CURVES)]:
        axes.plot(curve, color="C0", alpha=0.3, linewidth=0.8)
    sums, counts = np.zeros(len(none)), np.zeros(len(none))
    for curve in curves:
        sums[: len(curve)] += curve
        counts[: len(curve)] += 1
    axes.plot(sums / counts, color="C1", label=f"mean of {len(curves):,} episodes")
    axes.legend()
