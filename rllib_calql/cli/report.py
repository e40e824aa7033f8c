"""`calql report`: tables and figures of recorded runs, like the paper's tables 1 and 2 and figures 3, 6 and 8."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import typer

from rllib_calql.cli.common import UserError
from rllib_calql.cli.report_groups import Groups, Member, grouped, method_order
from rllib_calql.cli.runs import read_runs
from rllib_calql.cli.statistics import Interval, Mean, interquartile_mean, mean

FORMATS = ("png", "svg", "pdf")
NOTHING = "-"
Cell = Callable[[Sequence[Member]], str]


def run(results: list[str], by: list[str], out: str, formats: list[str]) -> None:
    """Writes report.md and its figures into the folder `out`, and prints the tables.

    Raises:
        UserError: a path holds no run, a file is broken, or there is no such format.
    """
    if unknown := [name for name in formats if name not in FORMATS]:
        raise UserError(f"--format {unknown[0]}: one of {', '.join(FORMATS)}")
    runs = read_runs(results)
    if unknown := [name for name in by if not any(name in run.settings for run in runs)]:
        raise UserError(f"--by {unknown[0]}: no run has such a setting")
    groups = grouped(runs, by)
    text = tables(groups)
    folder = Path(out).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    from rllib_calql.cli.report_figures import draw_all

    written = draw_all(groups, folder, formats)
    shown = [path for path in written if path.suffix == f".{formats[0]}"]
    pictures = "".join(f"\n![{path.stem.replace('-', ' ')}]({path.name})\n" for path in shown)
    (folder / "report.md").write_text(
        f"# Report\n\n{text}\n## Figures\n{pictures}" if shown else f"# Report\n\n{text}"
    )
    typer.echo(text)
    typer.echo(f"wrote {folder}/report.md" + "".join(f", {path.name}" for path in written))


# ---- tables ------------------------------------------------------------------------------------------------


def tables(groups: Groups) -> str:
    """The report's sections, as Markdown."""
    sections = [
        (
            "Normalised score, before → after fine-tuning",
            "Times 100; mean ± standard error over seeds; last evaluation before the switch and last of all.",
            comparison(groups, score_cell, _mean_scores),
        ),
        (
            "Improvement",
            "Score after less score before, times 100. The percentage is of the mean score before.",
            comparison(groups, improvement_cell, _mean_improvement),
        ),
        (
            "Cumulative regret",
            "Mean of 1 - normalised training score over the online episodes: 0 is best, 1 is worst.",
            comparison(groups, regret_cell, _mean_regret),
        ),
        (
            "Drop at the switch",
            "Score at the switch less the lowest of the first five evaluations after it, at least 0; times 100.",
            comparison(groups, drop_cell),
        ),
        (
            "Interquartile means over tasks",
            "The middle half of a method's runs, on the tasks that it has; 95 % bootstrap intervals, stratified "
            "by task, from two seeds of each.",
            interquartile_table(groups),
        ),
        ("Runs", "", run_table(groups)),
    ]
    return "\n".join(
        f"## {title}\n\n{note + chr(10) * 2 if note else ''}{table}" for title, note, table in sections
    )


def comparison(groups: Groups, cell: Cell, last: Callable[[Groups, str], str] | None = None) -> str:
    """A row per task and a column per method; `last` is a row over all tasks, where there are several."""
    methods = method_order(groups)
    rows = [[task, *(cell(found.get(method, [])) for method in methods)] for task, found in groups.items()]
    if last and len(groups) > 1:
        rows.append(["**mean of the tasks**", *(last(groups, method) for method in methods)])
    return markdown(["task", *methods], rows)


def interquartile_table(groups: Groups) -> str:
    """A row per method."""
    rows = []
    for method in method_order(groups):
        tasks = [found[method] for found in groups.values() if method in found]
        cells = []
        for name, scale in (("before", 100.0), ("after", 100.0), ("cumulative_regret", 1.0)):
            found = [_values(members, name) for members in tasks]
            cells.append(_interval(interquartile_mean(found) if all(found) else None, scale))
        rows.append([method, f"{len(tasks)} of {len(groups)}", str(sum(map(len, tasks))), *cells])
    return markdown(["method", "tasks", "runs", "score before", "score after", "cumulative regret"], rows)


def run_table(groups: Groups) -> str:
    """A row per run, with what is missing in it."""
    rows = []
    for task, methods in groups.items():
        for method, members in methods.items():
            for member in members:
                last = member.run.curve[-1] if member.run.curve else {"num_updates": 0, "num_online_env_steps": 0}
                counts = [f"{last[name]:,}" for name in ("num_updates", "num_online_env_steps")]
                notes = "; ".join(member.notes)
                rows.append([task, method, str(member.run.seed), *counts, member.run.source, notes])
    return markdown(["task", "method", "seed", "updates", "environment steps", "from", "notes"], rows)


def score_cell(members: Sequence[Member]) -> str:
    before, after = mean(_values(members, "before")), mean(_values(members, "after"))
    return NOTHING if before is None and after is None else f"{_mean(before)} → {_mean(after)}"


def improvement_cell(members: Sequence[Member]) -> str:
    return _mean(mean(_values(members, "improvement")), sign="+")


def regret_cell(members: Sequence[Member]) -> str:
    return _mean(mean(_values(members, "cumulative_regret")), scale=1.0, digits=2)


def drop_cell(members: Sequence[Member]) -> str:
    return _mean(mean(_values(members, "switch_drop")))


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["-"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


# ---- over all tasks: where a method has them all ------------------------------------------------------------


def _over_tasks(groups: Groups, method: str, name: str) -> float | None:
    """Mean of the tasks' means; None where the method lacks a task."""
    means = [mean(_values(methods.get(method, []), name)) for methods in groups.values()]
    return sum(one.value for one in means if one) / len(means) if all(means) else None


def _mean_scores(groups: Groups, method: str) -> str:
    pair = [_over_tasks(groups, method, name) for name in ("before", "after")]
    return NOTHING if pair == [None, None] else " → ".join(_number(one) for one in pair)


def _mean_improvement(groups: Groups, method: str) -> str:
    gain = _over_tasks(groups, method, "improvement")
    with_gain = {
        task: {method: [one for one in methods.get(method, []) if one.outcome.improvement is not None]}
        for task, methods in groups.items()
    }
    before = _over_tasks(with_gain, method, "before")
    share = f" ({gain / before:+.1%})" if gain is not None and before is not None and before > 0.0 else ""
    return _number(gain, sign="+") + share


def _mean_regret(groups: Groups, method: str) -> str:
    return _number(_over_tasks(groups, method, "cumulative_regret"), scale=1.0, digits=2)


# ---- numbers -----------------------------------------------------------------------------------------------


def _values(members: Sequence[Member], name: str) -> list[float]:
    found = [getattr(member.outcome, name) for member in members]
    return [value for value in found if value is not None]


def _number(value: float | None, scale: float = 100.0, digits: int = 1, sign: str = "") -> str:
    return NOTHING if value is None else f"{scale * value:{sign}.{digits}f}"


def _mean(found: Mean | None, scale: float = 100.0, digits: int = 1, sign: str = "") -> str:
    if found is None:
        return NOTHING
    text = _number(found.value, scale, digits, sign)
    return text if found.error is None else f"{text} ± {_number(found.error, scale, digits)}"


def _interval(found: Interval | None, scale: float) -> str:
    if found is None:
        return NOTHING
    digits = 1 if scale == 100.0 else 2
    text = f"{scale * found.value:.{digits}f}"
    if found.low is None or found.high is None:
        return text
    return f"{text} [{scale * found.low:.{digits}f}, {scale * found.high:.{digits}f}]"
