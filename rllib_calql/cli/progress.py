"""A progress bar per trial, for people who sit in front of `rllib train`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.tune import Callback
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from rllib_calql import CalQLConfig


def position(
    result: Mapping[str, Any], config: Mapping[str, Any], stop: Mapping[str, Any]
) -> tuple[str, int, int | None]:
    """What a trial is doing, how far it is, and how far it has to go (None: no end known).

    CalQL counts updates offline and environment steps online; any other algorithm counts training iterations.
    """
    if "calql" not in result:
        return "iterations", result["training_iteration"], stop.get("training_iteration")
    block, defaults = result["calql"], CalQLConfig()
    if block["phase"] == "offline":
        total = config.get("num_offline_updates", defaults.num_offline_updates)
        return "offline updates", block["num_updates"], total
    total = config.get("num_online_env_steps", defaults.num_online_env_steps)
    return "online env steps", block["num_online_env_steps"], total


def score(result: Mapping[str, Any]) -> str:
    """The one number to watch: success rate, else mean return; empty while there is neither."""
    if "success_rate" in result.get("calql", {}):
        return f"success {result['calql']['success_rate']:.0%}"
    value = result.get("env_runners", {}).get("episode_return_mean")
    return "" if value is None else f"return {value:.4g}"


def progress_display() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[score]}"),
    )


class ProgressBars(Callback):
    """Tune callback that moves one bar of a running `progress_display()` per trial."""

    def __init__(self, display: Progress) -> None:
        self._display = display
        self._tasks: dict[str, TaskID] = {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if trial.trial_id not in self._tasks:
            self._tasks[trial.trial_id] = self._display.add_task(f"{trial}: starting", total=None, score="")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        what, done, total = position(result, trial.config, trial.stopping_criterion)
        self._display.update(
            self._tasks[trial.trial_id],
            description=f"{trial}: {what}",
            completed=done,
            total=total,
            score=score(result),
        )
