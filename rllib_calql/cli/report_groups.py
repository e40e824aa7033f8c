"""Runs by task, method and seed, and what each of them comes to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from rllib_calql.cli.runs import Row, Run, differing, short

SCORE = "normalized_score"
# Settings by which runs of one method may differ: the task's, the seed, and how it is looked at.
_NO_METHOD = ("seed", "env", "input", "evaluation", "preset", "checkpoint")
_UNNAMED = ("sampler", "memory://")  # no dataset, and one that was given in memory
_SHORT = 0.95  # of the longest run's length: what ends before it is named


@dataclass(frozen=True)
class Outcome:
    """A run's figures; scores are normalised, 0 to 1, and None where there was no such evaluation."""

    before: float | None  # the last evaluation before the switch
    after: float | None  # the last evaluation after it
    cumulative_regret: float | None
    switch_drop: float | None

    @property
    def improvement(self) -> float | None:
        """Score after less score before fine-tuning."""
        return None if self.before is None or self.after is None else self.after - self.before


def outcome(run: Run) -> Outcome:
    """What a run came to, as far as it has come."""
    before, after = (_last(phase, SCORE) for phase in (run.offline, run.online))
    return Outcome(before, after, _last(run.curve, "cumulative_regret"), _last(run.curve, "switch_drop"))


def _last(rows: Iterable[Row], name: str) -> float | None:
    values = [row[name] for row in rows if math.isfinite(row.get(name, math.nan))]
    return float(values[-1]) if values else None


def task_name(run: Run) -> str:
    """The environment and the dataset, without what is the same for all: registrations, folders and endings."""
    env, data = run.settings.get("env"), run.settings.get("input")
    parts = [PurePath(env).name] if isinstance(env, str) else []
    inputs = data if isinstance(data, list) else [data]
    names = [PurePath(one).name for one in inputs if isinstance(one, str) and one not in _UNNAMED]
    parts += [" + ".join(name.removesuffix(".hdf5") for name in names)] if names else []
    return ", ".join(parts) or "unknown task"


def method_names(runs: Sequence[Run], by: Sequence[str] = ()) -> list[str]:
    """What the method of each run is called.

    The user's label, or else the preset (see `preset_name`) and, in runs of one task and preset that differ in
    settings, these settings; or those named by `by`, whether they differ or not.
    """
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((task_name(run), preset_name(run)), []).append(run)
    names = []
    for run in runs:
        preset = preset_name(run)
        group = [one for one in groups[task_name(run), preset] if one.label is None]
        given = {name for one in group for name in one.given if not name.startswith(_NO_METHOD)}
        shown = by or differing([one.settings for one in group], given)
        names.append(run.label or ", ".join([preset, *(_setting(run.settings, name) for name in shown)]))
    return names


def preset_name(run: Run) -> str:
    """The preset that a run was started with or, where that is not recorded, the largest that it agrees with.

    A run that agrees with none is `cal-ql` with the settings in which it differs from that.
    """
    from rllib_calql.presets import PRESETS  # here, because it takes Ray's seconds

    if run.preset is not None:
        return run.preset
    agreeing = [
        name
        for name, settings in PRESETS.items()
        if all(run.settings.get(key) == value for key, value in settings.items())
    ]
    if agreeing:
        return max(agreeing, key=lambda name: len(PRESETS[name]))
    others = [name for name, value in PRESETS["cal-ql"].items() if run.settings.get(name) != value]
    return ", ".join(["cal-ql", *(_setting(run.settings, name) for name in others)])


def _setting(settings: Mapping[str, Any], name: str) -> str:
    return f"{name.split('.')[-1]}={short(settings.get(name))}"


@dataclass(frozen=True)
class Member:
    """A run, with what is said of it where it is not like the others of its task and method."""

    run: Run
    outcome: Outcome
    notes: tuple[str, ...]


Groups = dict[str, dict[str, list[Member]]]  # by task and method


def grouped(runs: Sequence[Run], by: Sequence[str] = ()) -> Groups:
    """The runs by task and method, in the order of names and seeds; every task has the same order of methods."""
    found: dict[str, dict[str, list[Run]]] = {}
    named = zip(runs, method_names(runs, by), strict=True)
    for run, method in sorted(named, key=lambda pair: (pair[1], str(pair[0].seed), pair[0].source)):
        found.setdefault(task_name(run), {}).setdefault(method, []).append(run)
    return {
        task: {
            method: [Member(run, outcome(run), tuple(_notes(run, group))) for run in group]
            for method, group in methods.items()
        }
        for task, methods in sorted(found.items())
    }


def method_order(groups: Groups) -> list[str]:
    """Every method once: presets in their own order, then the user's names."""
    from rllib_calql.presets import PRESETS

    names = {method for methods in groups.values() for method in methods}
    order = list(PRESETS)
    places = {name: order.index(preset) for name in names if (preset := name.split(",")[0]) in order}
    return sorted(names, key=lambda name: (places.get(name, len(order)), name))


def _notes(run: Run, group: Sequence[Run]) -> Iterable[str]:
    from rllib_calql.presets import PRESETS  # here, because it takes Ray's seconds

    own = PRESETS.get(run.preset or "", {})
    if changed := [name for name in sorted(own) if run.settings.get(name, own[name]) != own[name]]:
        yield f"unlike the preset: {', '.join(_setting(run.settings, name) for name in changed)}"
    if not run.curve:
        yield "no result yet"
        return
    scores = [row for row in run.curve if SCORE in row]
    if not scores:
        yield "never evaluated"
    elif run.offline and not any(SCORE in row for row in run.offline):
        yield "not evaluated before the switch"
    elif run.online and not any(SCORE in row for row in run.online):
        yield "not evaluated after the switch"
    planned = run.settings.get("num_online_env_steps") or 0
    if not run.online and planned:
        yield f"ends before the switch, at update {run.curve[-1]['num_updates']:,}"
    name, what = ("num_online_env_steps", "environment steps") if run.online else ("num_updates", "updates")
    length = run.curve[-1][name]
    longest = max(one.curve[-1][name] for one in group if one.curve)
    if length < _SHORT * longest and (run.online or not planned):
        yield f"shorter than others: {length:,} of {longest:,} {what}"
    names = {name for one in group for name in one.given if name.startswith(("input", "env_config"))}
    for name in differing([one.settings for one in group], names):
        yield f"{name} is not the same in all runs: {short(run.settings.get(name))}"
    if run.seed is not None and sum(one.seed == run.seed for one in group) > 1:
        yield "another run has the same seed"
