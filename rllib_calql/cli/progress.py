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


def scores(result: Mapping[str, Any]) -> dict[str, Any]:
    """Success rate and mean training return, as far as this result has them."""
    found = {}
    if "success_rate" in result.get("calql", {}):
        found["success"] = f"success {result['calql']['success_rate']:.0%}"
    if (value := result.get("env_runners", {}).get("episode_return_mean")) is not None:
        found["mean_return"] = f"return {value:.4g}"
    return found


def progress_display() -> Progress:
    """Per trial: what it does, bar, counts, time left and the latest scores."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[success]}"),
        TextColumn("{task.fields[mean_return]}"),
    )


class ProgressBars(Callback):
    """Tune callback that moves one bar of a running `progress_display()` per trial."""

    def __init__(self, display: Progress) -> None:
        self._display = display
        self._tasks: dict[str, TaskID] = {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if trial.trial_id not in self._tasks:
            self._tasks[trial.trial_id] = self._display.add_task(
                f"{trial.trainable_name} {trial.trial_id}: starting", total=None, success="", mean_return=""
            )

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        what, done, total = position(result, trial.config, trial.stopping_criterion)
        self._display.update(
            self._tasks[trial.trial_id],
            description=f"{trial.trainable_name} {trial.trial_id}: {what}",
            completed=done,
            total=total,
            **scores(result),
        )
