"""The figures of `calql report`: mean and standard error over seeds, a panel per task, a colour per method."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import cycle, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from rllib_calql.cli.report_groups import SCORE, Groups, Member, method_order
from rllib_calql.cli.runs import Row, Run

# Okabe and Ito's colours, which the colour-blind tell apart; solid lines first, then dashed ones.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = [{"color": colour, "linestyle": line} for line, colour in product(("-", "--"), COLOURS)]
# What the data, the policy and the truth are worth, as in the paper's figure 3.
VALUES = {
    "q_data_mean": ("Q of the data's actions", {"color": "#0072B2"}),
    "q_policy_mean": ("Q of the policy's actions", {"color": "#D55E00", "linestyle": "--"}),
    "mc_return_mean": ("return of the data", {"color": "#555555", "linestyle": ":"}),
}
COLUMNS = 3  # panels side by side
PANEL = (4.2, 3.1)  # inches
WIDTH = 40  # letters that fit over a panel
FONTS = {"font.size": 11, "axes.titlesize": 11, "axes.spines.top": False, "axes.spines.right": False}


class Band(NamedTuple):
    """A mean curve and its standard error, zero for a single run."""

    x: np.ndarray
    mean: np.ndarray
    error: np.ndarray


def position(run: Run, row: Row) -> int:
    """Where an iteration lies: updates before the switch as negative numbers, environment steps after it."""
    if row["phase"] == "offline":
        return int(row["num_updates"]) - run.updates_at_switch
    return int(row["num_online_env_steps"])


def band(runs: Sequence[Run], metric: str) -> Band | None:
    """Mean over runs of a metric wherever one of them has it and all have begun and none has ended.

    Between a run's own points it is interpolated: online, seeds are not evaluated at the same steps.
    """
    curves = []
    for run in runs:
        points = {position(run, row): row[metric] for row in run.curve if math.isfinite(row.get(metric, math.nan))}
        if points:
            curves.append((np.array(sorted(points)), np.array([points[x] for x in sorted(points)])))
    if not curves:
        return None
    x = np.unique(np.concatenate([x for x, _ in curves]))
    x = x[(x >= max(own[0] for own, _ in curves)) & (x <= min(own[-1] for own, _ in curves))]
    values = np.stack([np.interp(x, *curve) for curve in curves])
    errors = values.std(0, ddof=1) / math.sqrt(len(curves)) if len(curves) > 1 else np.zeros(len(x))
    return Band(x, values.mean(0), errors)


def draw_all(groups: Groups, out: Path, formats: Sequence[str]) -> list[Path]:
    """Writes every figure for which there are numbers, in every format."""
    figures = {
        "learning-curves": partial(by_task, groups, SCORE, "normalised score", scale=100.0),
        "q-values": partial(values, groups),
        "bound-rate": partial(by_task, groups, "bound_rate", "bound rate"),
    }
    written = []
    with rc_context(FONTS):
        for name, draw in figures.items():
            if (figure := draw()) is not None:
                written += [out / f"{name}.{format}" for format in formats]
                for path in written[-len(formats) :]:
                    figure.savefig(path, dpi=150)
    return written


def by_task(groups: Groups, metric: str, label: str, scale: float = 1.0) -> Figure | None:
    """A panel per task, a colour per method."""
    styles = dict(zip(method_order(groups), cycle(STYLES), strict=False))
    bands = {
        task: {
            method: found
            for method, members in methods.items()
            if (found := band(_runs(members), metric)) is not None
        }
        for task, methods in groups.items()
    }
    bands = {task: methods for task, methods in bands.items() if methods}
    if not bands:
        return None
    columns = min(COLUMNS, len(bands))
    figure, axes = _panels(math.ceil(len(bands) / columns), columns)
    for (task, methods), panel in zip(bands.items(), axes.flat, strict=False):
        for method, found in methods.items():
            _line(panel, found, scale, styles[method])
        panel.set_title(textwrap.fill(task, WIDTH))
        heights = [scale * value for found in methods.values() for value in found.mean]
        panel.set_ylim(min([-0.03 * scale, *heights]), max([1.03 * scale, *heights]))
        _switch(panel, groups[task])
    for empty in axes.flat[len(bands) :]:
        empty.set_visible(False)
    for panel in axes[:, 0]:
        panel.set_ylabel(label)
    shown = {method: styles[method] for method in styles if any(method in methods for methods in bands.values())}
    _finish(figure, groups, shown)
    return figure


def values(groups: Groups) -> Figure | None:
    """A row per task and a panel per method: Q-values beside the return of the data, on one scale per task."""
    methods = method_order(groups)
    bands = {
        (task, method): found
        for task, members in groups.items()
        for method in members
        if (found := {name: band(_runs(members[method]), name) for name in VALUES})["q_data_mean"] is not None
    }
    if not bands:
        return None
    rows = {task: [method for method in methods if (task, method) in bands] for task in groups}
    rows = {task: shown for task, shown in rows.items() if shown}
    figure, axes = _panels(len(rows), max(map(len, rows.values())), sharey="row", sharex="row")
    for (task, shown), panels in zip(rows.items(), axes, strict=True):
        for method, panel in zip(shown, panels, strict=False):
            for name, curve in bands[task, method].items():
                if curve is not None:
                    _line(panel, curve, 1.0, VALUES[name][1])
            panel.set_title(f"{textwrap.fill(task, WIDTH)}\n{method}")
            _switch(panel, {method: groups[task][method]})
        for empty in panels[len(shown) :]:
            empty.set_visible(False)
        panels[0].set_ylabel("mean over the batches")
    _finish(figure, groups, dict(VALUES.values()))
    return figure


def _runs(members: Sequence[Member]) -> list[Run]:
    return [member.run for member in members]


def _panels(rows: int, columns: int, **shared: Any) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(PANEL[0] * max(columns, 1.6), PANEL[1] * rows + 0.8), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def _line(panel: Axes, found: Band, scale: float, style: Mapping[str, Any]) -> None:
    marker = "." if len(found.x) <= 40 else ""
    panel.plot(found.x, scale * found.mean, linewidth=1.8, marker=marker, **style)
    low, high = found.mean - found.error, found.mean + found.error
    panel.fill_between(found.x, scale * low, scale * high, color=style["color"], alpha=0.18, linewidth=0)


def _switch(panel: Axes, methods: Mapping[str, Sequence[Member]]) -> None:
    """Marks the switch where a run has both phases, and writes 20k for 20,000."""
    runs = [member.run for members in methods.values() for member in members]
    if any(run.offline and run.online for run in runs):
        panel.axvline(0, color="#555555", linestyle=(0, (4, 3)), linewidth=1, zorder=0)
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    panel.xaxis.set_major_locator(MaxNLocator(6))
    panel.grid(alpha=0.25)


def _finish(figure: Figure, groups: Groups, legend: Mapping[str, Mapping[str, Any]]) -> None:
    runs = [member.run for methods in groups.values() for members in methods.values() for member in members]
    before, after = any(run.offline for run in runs), any(run.online for run in runs)
    if before and after:
        label = "updates before the switch (dashed)  |  environment steps after it"
    else:
        label = "environment steps" if after else "updates before the switch"
    figure.supxlabel(label, fontsize=11)
    handles = [Line2D([], [], linewidth=2.2, label=name, **style) for name, style in legend.items()]
    columns = max(1, min(len(handles), int(figure.get_figwidth() / 2.2)))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, frameon=False)
