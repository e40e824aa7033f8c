"""Recorded runs, read from learning-curve files and from the folders that Tune writes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from rllib_calql.cli.common import UserError

# Files that Tune writes into a trial's folder.
PARAMETERS, RESULTS, FAILURE = "params.json", "result.json", "error.txt"

Row = dict[str, Any]  # the `calql` block of one training iteration


@dataclass(frozen=True)
class Run:
    """One training run.

    `settings` are flat, with dots in the names of nested ones, and complete: defaults are filled in. `given` are
    the names among them that the run was given. `preset` is the one it was started with, where that is recorded.
    """

    source: str
    settings: Mapping[str, Any]
    given: frozenset[str]
    preset: str | None
    curve: list[Row]
    label: str | None = None  # what the user calls the method

    @property
    def seed(self) -> Any:
        return self.settings.get("seed")

    @property
    def offline(self) -> list[Row]:
        """The iterations before the switch."""
        return [row for row in self.curve if row["phase"] == "offline"]

    @property
    def online(self) -> list[Row]:
        """The iterations after the switch."""
        return [row for row in self.curve if row["phase"] == "online"]

    @property
    def updates_at_switch(self) -> int:
        """Updates of the offline phase: those done where the run has gone on online, else those planned."""
        if self.online:
            return max((row["num_updates"] for row in self.offline), default=0)
        done = self.curve[-1]["num_updates"] if self.curve else 0
        return max(done, int(self.settings.get("num_offline_updates") or 0))


def read_runs(arguments: Iterable[str]) -> list[Run]:
    """The runs of files and folders; `NAME=PATH` gives the runs of PATH a name.

    Raises:
        UserError: a path does not exist, holds no run, or a file is broken.
    """
    runs = []
    for argument in arguments:
        name, path = _named(argument)
        found = list(_read(path))
        if not found:
            raise UserError(f"{path}: there is no run, neither a trial of Tune ({RESULTS}) nor a learning curve")
        runs += [replace(run, label=name or None) for run in found]
    sources = [run.source for run in runs]
    if twice := sorted({source for source in sources if sources.count(source) > 1}):
        raise UserError(f"{', '.join(twice)}: given twice")
    return runs


def _named(argument: str) -> tuple[str, Path]:
    """NAME and PATH; either may hold more of `=`, as the folders of Tune's trials do."""
    parts = argument.split("=")
    splits = [("=".join(parts[:i]), Path("=".join(parts[i:])).expanduser()) for i in range(len(parts))]
    return next((split for split in splits if split[1].exists()), splits[-1])


def _read(path: Path) -> Iterator[Run]:
    if path.is_dir():
        trials = sorted({file.parent for name in (PARAMETERS, RESULTS) for file in path.rglob(name)})
        experiments = {file.parent for file in path.rglob("experiment_state-*.json")}
        yield from map(read_trial, trials)
        for file in sorted(path.rglob("*.json")):
            # (Tune's own files and those of checkpoints are nobody's learning curve, and some are no JSON.)
            below_trial = any(trial in file.parents for trial in trials)
            if not below_trial and file.parent not in experiments and is_curve(_document(file)):
                yield read_curve(file)
    elif path.name == RESULTS:
        yield read_trial(path.parent)
    elif path.is_file():
        yield read_curve(path)
    else:
        raise UserError(f"{path}: there is no such file or folder")


def _document(path: Path) -> Any:
    """`read_json`; None of several lines of JSON, such as RLlib's logs of episodes."""
    try:
        return read_json(path)
    except UserError as error:
        if isinstance(error.__cause__, json.JSONDecodeError) and error.__cause__.msg == "Extra data":
            return None
        raise


def read_curve(path: Path) -> Run:
    """The run of a learning-curve file: a JSON object with `settings` and `curve`."""
    document = read_json(path)
    if not is_curve(document):
        raise UserError(f"{path}: not a learning curve: it has no `settings` and `curve`")
    given = dict(flat(document["settings"]))
    rows = [_checked(row, str(path)) for row in document["curve"]]
    settings = {**_defaults(), **given}
    return Run(str(path), settings, frozenset(given), document.get("preset"), rows)


def read_trial(folder: Path, until: float = math.inf) -> Run:
    """The run of a trial's folder, as far as it has come, or up to a training iteration."""
    given = dict(flat(read_json(folder / PARAMETERS))) if (folder / PARAMETERS).is_file() else {}
    if "input_" in given:  # the name under which `offline_data` takes it; results have the other one
        given["input"] = given.pop("input_")
    found = [row for row in trial_rows(folder / RESULTS) if row["training_iteration"] <= until]
    rows = [_checked(row.get("calql"), str(folder / RESULTS)) for row in found]
    # The last one: population based training changes it on the way.
    config = dict(flat(found[-1].get("config", {}))) if found else {}
    settings = {**_defaults(), **given, **config}
    return Run(str(folder), settings, frozenset(given), given.get("preset"), rows)


def trial_rows(path: Path) -> list[dict[str, Any]]:
    """The results of a trial; a line that was being written when the process died is left out."""
    rows: list[dict[str, Any]] = []
    if not path.is_file():
        return rows
    for line in path.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        # A restored trial goes on from an earlier iteration: what it had done after that counts no more.
        while rows and rows[-1]["training_iteration"] >= row["training_iteration"]:
            rows.pop()
        rows.append(row)
    return rows


def is_curve(document: Any) -> bool:
    """Whether a JSON document is a learning curve."""
    return (
        isinstance(document, dict)
        and isinstance(document.get("settings"), dict)
        and isinstance(document.get("curve"), list)
    )


def read_json(path: Path) -> Any:
    """A JSON file; UserError with its name where it is broken."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:  # not JSON, or not text
        raise UserError(f"{path}: broken, not a JSON file: {error}") from error


def _checked(row: Any, source: str) -> Row:
    if not isinstance(row, dict) or not {"phase", "num_updates", "num_online_env_steps"} <= row.keys():
        raise UserError(f"{source}: an iteration without the `calql` block of a CalQL run")
    return row


@cache
def _defaults() -> Mapping[str, Any]:
    from rllib_calql import CalQLConfig  # here, because it takes Ray's seconds

    return dict(flat(CalQLConfig().to_dict()))


# ---- settings ----------------------------------------------------------------------------------------------


def flat(mapping: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and values of a nested mapping, the names joined by dots."""
    for name, value in mapping.items():
        if isinstance(value, Mapping) and value:
            yield from ((f"{name}.{inner}", leaf) for inner, leaf in flat(value))
        else:
            yield name, value


def differing(settings: Iterable[Mapping[str, Any]], names: Iterable[str]) -> list[str]:
    """Those of the names, sorted, whose setting is not the same everywhere."""
    columns = {
        name: [one.get(name) for one in settings] for name in sorted(set(names)) if not name.startswith("__")
    }
    # (Tune writes functions and classes as "<function ... at 0x...>", which differ without meaning anything.)
    return [
        name
        for name, values in columns.items()
        if any(value != values[0] for value in values) and not any(str(value).startswith("<") for value in values)
    ]


def short(value: Any) -> str:
    """A setting's value as one shows it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
