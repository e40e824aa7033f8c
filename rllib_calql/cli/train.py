"""`rllib train`: checks experiments, then runs them through Ray Tune."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import ray
import typer
from ray.cluster_utils import Cluster
from ray.tune import Callback, run_experiments
from ray.tune.experiment import Trial
from rich.console import Console
from rich.table import Table

from rllib_calql import CalQLConfig
from rllib_calql.cli.common import UserError
from rllib_calql.cli.experiments import SCHEDULING, Spec, Variant, variants
from rllib_calql.cli.options import TrainOptions
from rllib_calql.cli.progress import ProgressBars, progress_display
from rllib_calql.cli.search import make_scheduler


def run(experiments: dict[str, Spec], options: TrainOptions) -> None:
    """Checks everything that can be checked without Ray, then trains (or, in a dry run, prints the plan).

    Raises:
        UserError: the command line or file asks for something that does not exist.
        typer.Exit: code 1 where a trial failed, 130 where training was interrupted.
    """
    for key in ("time_budget_s", *SCHEDULING):
        values = [spec.get(key) for spec in experiments.values()]
        if any(value != values[0] for value in values):
            raise UserError(f"{key} counts for the whole file, but its experiments differ: {values}")
    one = next(iter(experiments.values()))
    scheduler = make_scheduler(one.get("scheduler", "fifo"), one.get("scheduler_config", {}))
    experiments = {
        name: {key: value for key, value in spec.items() if key not in SCHEDULING}
        for name, spec in experiments.items()
    }
    callbacks, ends = loggers(options), Ends()
    checked = [variant for name, spec in experiments.items() for variant in variants(name, spec)]
    for variant in checked:
        if variant.unknown_keys:
            keys = ", ".join(variant.unknown_keys)
            typer.echo(f"Warning: {variant.label}: {variant.algorithm.__name__} has no setting {keys}", err=True)
    if options.dry_run:
        for variant in checked:
            print_plan(variant)
        return

    if options.resume:
        typer.echo("--resume: a run that has already begun goes on with the settings it began with.", err=True)
    if options.v or options.vv:
        logging.getLogger("ray").setLevel(logging.DEBUG if options.vv else logging.INFO)
    with started_ray(options):
        if not options.ray_address:
            refuse_too_large(checked, ray.cluster_resources())
        with contextlib.ExitStack() as display:
            verbose = 2 if options.v or options.vv else 1
            if sys.stdout.isatty() and verbose == 1:
                # The bars say all that Tune's regular tables would, and those would tear them apart.
                verbose = 0
                callbacks.append(ProgressBars(display.enter_context(progress_display())))
            trials = run_experiments(
                experiments,
                scheduler=scheduler,
                resume=options.resume,
                verbose=verbose,
                callbacks=[*callbacks, ends],
                raise_on_failed_trial=False,
            )
        code = report(trials, ends)
    if code:
        raise typer.Exit(code)


# ---- before ------------------------------------------------------------------------------------------------


def loggers(options: TrainOptions) -> list[Any]:
    """Weights & Biases where asked for; Tune itself adds CSV, JSON and TensorBoard."""
    if not options.wandb_project:
        if options.wandb_key or options.wandb_run_name:
            raise UserError("--wandb-key and --wandb-run-name need --wandb-project")
        return []
    if importlib.util.find_spec("wandb") is None:
        raise UserError("--wandb-project needs Weights & Biases: pip install wandb")
    from ray.air.integrations.wandb import WandbLoggerCallback

    return [
        WandbLoggerCallback(project=options.wandb_project, api_key=options.wandb_key, name=options.wandb_run_name)
    ]


def resources(variant: Variant) -> dict[str, float]:
    """What one trial reserves, such as {"CPU": 3, "GPU": 1}."""
    total: dict[str, float] = {}
    for bundle in variant.algorithm.default_resource_request(variant.config).bundles:
        for name, amount in bundle.items():
            total[name] = total.get(name, 0) + amount
    return total


def refuse_too_large(checked: list[Variant], available: Mapping[str, float]) -> None:
    """Tune would wait for ever for a trial that this machine cannot hold."""
    for variant in checked:
        for name, needed in resources(variant).items():
            if needed > (has := available.get(name, 0)):
                promise = (
                    f"--ray-num-{name.lower()}s {math.ceil(needed)}" if name in ("CPU", "GPU") else "--ray-address"
                )
                raise UserError(
                    f"{variant.label} needs {needed:g} {name}, Ray has {has:g}: lower num_env_runners "
                    f"or the like, or promise more with {promise}"
                )


def print_plan(variant: Variant) -> None:
    """What would run: for CalQL its own plan, which opens data and environment."""
    sections: dict[str, Mapping[str, Any]] = {
        "experiment": {
            "name": variant.label,
            "algorithm": variant.algorithm.__name__,
            "env": variant.config.env,
        },
    }
    if isinstance(variant.config, CalQLConfig):
        sections |= variant.config.plan()
    else:
        sections["resources per trial"] = {name: f"{amount:g}" for name, amount in resources(variant).items()}
    console = Console()
    for title, rows in sections.items():
        table = Table(show_header=False, box=None, padding=(0, 2))
        for key, value in rows.items():
            table.add_row(str(key), str(value))
        console.print(f"[bold]{title}[/bold]", table, sep="\n")


@contextlib.contextmanager
def started_ray(options: TrainOptions) -> Iterator[None]:
    """Ray, started (or joined, with an address) without a dashboard, and left again at the end."""
    limits: dict[str, Any] = {
        "num_cpus": options.ray_num_cpus,
        "num_gpus": options.ray_num_gpus,
        "object_store_memory": options.ray_object_store_memory,
    }
    with contextlib.ExitStack() as stack:
        # Without "local", Ray would join whatever cluster happens to run on this machine.
        address = options.ray_address or "local"
        if options.ray_num_nodes:
            if options.ray_address:
                raise UserError("--ray-num-nodes emulates a cluster, --ray-address joins one: choose")
            cluster = Cluster()
            stack.callback(cluster.shutdown)
            for _ in range(options.ray_num_nodes):
                given = {name: limit for name, limit in limits.items() if limit is not None}
                cluster.add_node(include_dashboard=False, **given)
            address, limits = cluster.address, {}
        ray.init(address=address, include_dashboard=False, **limits)
        stack.callback(ray.shutdown)
        yield


# ---- after -------------------------------------------------------------------------------------------------


class Ends(Callback):
    """Tune callback: which trials have come to their end, be it by a scheduler or a budget of time.

    Afterwards they do not say: Tune's cleaning up terminates those that an interrupt has caught, too.
    """

    def __init__(self) -> None:
        self._finished: dict[str, bool] = {}

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        self._finished = {trial.trial_id: trial.is_finished() for trial in trials}

    def __contains__(self, trial: Trial) -> bool:
        return self._finished.get(trial.trial_id, trial.is_finished())


def report(trials: list[Trial], ends: Ends) -> int:
    """Says where the checkpoints are and what failed. Returns the exit code: 1 failed, 130 interrupted."""
    code = 0
    for trial in trials:
        if trial.checkpoint:
            typer.echo(f"{trial}: rllib evaluate {trial.checkpoint.path}")
        if trial.status == Trial.ERROR:
            code = 1
            lines = (trial.get_error() or "no error was recorded").strip().splitlines()
            typer.echo(f"Error: {trial} failed: {lines[-1]} (traceback: {trial.path}/error.txt)", err=True)
        elif trial not in ends:
            code = code or 130
            typer.echo(f"{trial} was interrupted: the same command with --resume goes on with it", err=True)
    return code
