"""`calql data info`: a dataset's figures as a table or as JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from rllib_calql.cli.common import UserError, counting
from rllib_calql.data import open_source
from rllib_calql.data.summary import Column, Summary, summarise


def run(uri: str, reader_options: dict[str, Any], *, as_json: bool, plot: str | None, gamma: float) -> None:
    """Reads the dataset once; prints its figures, draws its picture.

    Raises:
        UserError: the picture's name is of no known kind. DatasetError: the data cannot be read.
    """
    if plot is not None and not plot.endswith(".png"):
        raise UserError(f"--plot {plot}: the name must end in .png")
    source = open_source(uri, **reader_options)
    with counting("reading", source.metadata.num_rows) as read:
        summary = summarise(source, read)
    if as_json:
        typer.echo(json.dumps({"uri": uri, **figures(summary)}, indent=2))
    else:
        show(uri, summary)
    if plot is not None:
        from rllib_calql.data.pictures import draw

        draw(summary, plot, title=uri, gamma=gamma)
        typer.echo(f"drew {plot}", err=True)


def figures(summary: Summary) -> dict[str, Any]:
    """Everything as plain numbers; what is not known is left out."""
    found: dict[str, Any] = {
        "rows": summary.num_rows,
        "episodes": summary.num_episodes,
        "unfinished_rows": summary.unfinished_rows,
        "terminated": int(summary.terminated.sum()),
        "truncated": int((~summary.terminated).sum()),
        "missing_values": summary.missing,
        "next_observations": summary.has_next_observations,
        "bytes_in_memory": summary.bytes_in_memory,
        "rewards": _spread(summary.rewards) | {"values": {f"{k:g}": v for k, v in summary.reward_values.items()}},
        "columns": {
            column.name: {
                "shape": list(column.shape),
                "dtype": str(column.dtype),
                "nan": column.nan,
                "infinite": column.infinite,
                "low": column.low.tolist(),
                "high": column.high.tolist(),
                "mean": column.mean.tolist(),
                "std": column.std.tolist(),
            }
            for column in summary.columns
        },
    }
    if summary.num_episodes:
        found |= {"lengths": _quantiles(summary.lengths), "returns": _quantiles(summary.returns)}
    if summary.successes is not None:
        found["successes"] = int(summary.successes.sum())
    if summary.saturation is not None:
        found["action_saturation"] = summary.saturation
    metadata = summary.metadata
    for name in ("observation_space", "action_space", "environment", "source"):
        if (value := getattr(metadata, name)) is not None:
            found[name] = str(value)
    if metadata.score_range is not None:
        found["score_range"] = list(metadata.score_range)
    return found


def _quantiles(values: np.ndarray) -> dict[str, float]:
    low, median, high = np.quantile(values, [0.0, 0.5, 1.0])
    return {"min": float(low), "median": float(median), "mean": float(values.mean()), "max": float(high)}


def _spread(column: Column) -> dict[str, float]:
    return {"min": float(column.low[0]), "mean": float(column.mean[0]), "max": float(column.high[0])}


def show(uri: str, summary: Summary) -> None:
    """Prints the tables."""
    console = Console(highlight=False)
    table = Table(show_header=False, box=None, padding=(0, 2), title=uri, title_justify="left")
    for name, text in _lines(summary):
        table.add_row(name, text)
    console.print(table)
    columns = Table(box=None, padding=(0, 2))
    for title in ("column", "shape", "dtype", "smallest", "largest", "missing"):
        left = title in ("column", "dtype")
        columns.add_column(title, justify="left" if left else "right", overflow="fold")
    for column in summary.columns:
        columns.add_row(
            column.name,
            "x".join(map(str, column.shape)) or "1",
            str(column.dtype),
            f"{column.low.min():.4g}",
            f"{column.high.max():.4g}",
            f"{column.nan + column.infinite:,}",
        )
    console.print(columns)


def _lines(summary: Summary) -> list[tuple[str, str]]:
    number = summary.num_episodes
    open_end = f", {summary.unfinished_rows:,} more rows without an end" if summary.unfinished_rows else ""
    lines = [("rows", f"{summary.num_rows:,}"), ("episodes", f"{number:,}{open_end}")]
    if number:
        terminated = int(summary.terminated.sum())
        lines += [
            ("ends", f"{terminated:,} terminated, {number - terminated:,} truncated"),
            ("lengths", _line(summary.lengths)),
            ("returns", _line(summary.returns)),
        ]
    if summary.successes is not None:
        worth = max(summary.reward_values)
        count = int(summary.successes.sum())
        lines.append(("success", f"{count:,} episodes ({_share(count, number)}) meet the reward {worth:g}"))
    if summary.reward_values:
        values = (f"{k:g} ({_share(count, summary.num_rows)})" for k, count in summary.reward_values.items())
        lines.append(("rewards", ", ".join(values)))
    else:
        spread = _spread(summary.rewards)
        lines.append(("rewards", f"{spread['min']:.4g} to {spread['max']:.4g}, mean {spread['mean']:.4g}"))
    saturation = "unknown: no bounds" if summary.saturation is None else f"{summary.saturation:.1%} of numbers"
    lines += [
        ("actions at a bound", saturation),
        ("missing values", f"{summary.missing:,}" if summary.missing else "none"),
        ("next observations", "logged" if summary.has_next_observations else "not logged (derived)"),
        ("memory", f"{summary.bytes_in_memory / 1e6:,.3g} MB when it trains"),
    ]
    metadata = summary.metadata
    for name, value in {
        "observation space": metadata.observation_space,
        "action space": metadata.action_space,
        "environment": json.loads(metadata.environment)["id"] if metadata.environment else None,
        "scores 0 and 1": metadata.score_range,
        "source": metadata.source,
    }.items():
        if value is not None:
            lines.append((name, str(value)))
    return lines


def _line(values: np.ndarray) -> str:
    found = _quantiles(values)
    return ", ".join(f"{name} {found[name]:.6g}" for name in ("min", "median", "mean", "max"))


def _share(count: int, total: int) -> str:
    return f"{100.0 * count / max(total, 1):.3g} %"
