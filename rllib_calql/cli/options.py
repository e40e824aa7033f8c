"""The options of `rllib train` and `rllib evaluate`: each is declared once, as a field of a dataclass.

Names and defaults are those of Ray 2.40's command where an option still means something. What no longer works
is listed in `REFUSED`, so that an old command line is told why, and what to write instead.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import typer
import typer.core

from rllib_calql.cli.common import DebugOptions

_NO_DASHBOARD = (
    "Ray's dashboard is not part of this installation. Start a cluster that has one (`ray start --head`, "
    "from ray[default]) and pass its address with --ray-address."
)
_NO_LOCAL_MODE = (
    "Ray 2.60 has no local mode. To debug in few processes, set num_env_runners to 0 "
    "(--set num_env_runners=0); -vv shows tracebacks."
)
_NO_TENSORFLOW = "it is about TensorFlow graphs, and everything runs with PyTorch here. Leave it out."

REFUSED = {
    "--local-mode": _NO_LOCAL_MODE,
    "--no-local-mode": _NO_LOCAL_MODE,
    "--ray-ui": _NO_DASHBOARD,
    "--no-ray-ui": _NO_DASHBOARD,
    "--trace": _NO_TENSORFLOW,
    "--no-trace": _NO_TENSORFLOW,
    "--resources-per-trial": (
        "an RLlib algorithm asks for its own resources. Set num_env_runners, num_cpus_per_env_runner, "
        "num_gpus, num_gpus_per_learner and the like in the config (--set KEY=VALUE)."
    ),
    "--local-dir": "Tune 2.60 ignores it. Use --storage-path DIR.",
    "--upload-dir": "Tune 2.60 has no such thing. Use --storage-path with a folder or a URI (s3://bucket/...).",
    "--use-shelve": "shelve files are pickles. --out FILE.npz saves every step of every episode.",
    "--track-progress": "a line is printed for each episode as it ends. Redirect the output to keep it.",
    "--video-dir": "RLlib no longer records videos. Use gymnasium's RecordVideo wrapper in your environment.",
}


def refuse(args: list[str]) -> None:
    """Stops at the first argument that names an option which no longer works."""
    for arg in args:
        name = arg.split("=", 1)[0]
        if name in REFUSED:
            typer.echo(f"Error: {name} is refused: {REFUSED[name]}", err=True)
            raise typer.Exit(2)


class Command(typer.core.TyperCommand):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        refuse(args)
        return super().parse_args(ctx, args)


class Group(typer.core.TyperGroup):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        refuse(args)
        return super().parse_args(ctx, args)


@dataclass(frozen=True, kw_only=True)
class TrainOptions(DebugOptions):
    """Options of both `rllib train` and `rllib train file`. None: as the file says, or Tune's default."""

    v: Annotated[bool, typer.Option("--log-info", "-v", help="INFO logging and every result in full.")] = False
    vv: Annotated[bool, typer.Option("--log-debug", "-vv", help="DEBUG logging, and tracebacks.")] = False
    env: Annotated[
        str | None, typer.Option("--env", "-e", help="Environment: a gymnasium or Tune-registered name.")
    ] = None
    dataset: Annotated[
        str | None, typer.Option(help="Dataset (path or URI such as d4rl://NAME): sets the config's input_.")
    ] = None
    download: Annotated[
        bool | None,
        typer.Option("--download/--no-download", help="Whether CalQL may download a missing dataset."),
    ] = None
    preset: Annotated[
        str | None, typer.Option(help="Method by its name, such as cql-sac; --config and --set count after it.")
    ] = None
    config: Annotated[
        str, typer.Option("--config", "-c", help="JSON or YAML mapping merged into the algorithm's config.")
    ] = "{}"
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="One config key, dots for nested keys. Repeatable."),
    ] = None
    stop: Annotated[
        str | None,
        typer.Option("--stop", "-s", help="JSON or YAML mapping: stop when a result reaches this."),
    ] = None
    experiment_name: Annotated[
        str | None, typer.Option("--experiment-name", "-n", help="Name of the folder for the results.")
    ] = None
    num_samples: Annotated[int | None, typer.Option(min=1, help="How often to sample the search space.")] = None
    storage_path: Annotated[
        str | None, typer.Option(help="Folder or URI for the results; ~/ray_results by default.")
    ] = None
    checkpoint_freq: Annotated[
        int | None, typer.Option(min=0, help="Training iterations between checkpoints; 0: none in between.")
    ] = None
    checkpoint_at_end: Annotated[
        bool | None, typer.Option("--checkpoint-at-end/--no-checkpoint-at-end", help="On by default.")
    ] = None
    keep_checkpoints_num: Annotated[
        int | None, typer.Option(min=1, help="How many checkpoints to keep; all by default.")
    ] = None
    checkpoint_score_attr: Annotated[
        str | None, typer.Option(help="Result by which checkpoints are kept; 'min-NAME' keeps the lowest.")
    ] = None
    framework: Annotated[str | None, typer.Option(help="The deep learning framework: torch.")] = None
    restore: Annotated[str | None, typer.Option(help="Checkpoint to start from.")] = None
    resume: Annotated[
        bool,
        typer.Option("--resume/--no-resume", help="Go on with an earlier run of this name, as it was set up."),
    ] = False
    scheduler: Annotated[
        str | None, typer.Option(help="Tune's trial scheduler, such as async_hyperband (ASHA); FIFO by default.")
    ] = None
    scheduler_config: Annotated[
        str | None, typer.Option(help="JSON or YAML mapping with the scheduler's arguments.")
    ] = None
    wandb_key: Annotated[str | None, typer.Option(help="Weights & Biases API key.")] = None
    wandb_project: Annotated[str | None, typer.Option(help="Log to this Weights & Biases project.")] = None
    wandb_run_name: Annotated[str | None, typer.Option(help="Name of the Weights & Biases run.")] = None
    ray_address: Annotated[
        str | None,
        typer.Option(envvar="RAY_ADDRESS", help="Running Ray cluster to use; else one is started."),
    ] = None
    ray_num_cpus: Annotated[int | None, typer.Option(help="CPUs of the Ray that is started.")] = None
    ray_num_gpus: Annotated[int | None, typer.Option(help="GPUs of the Ray that is started.")] = None
    ray_num_nodes: Annotated[int | None, typer.Option(min=1, help="Emulate this many nodes here.")] = None
    ray_object_store_memory: Annotated[int | None, typer.Option(help="Bytes of Ray's object store.")] = None
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check config, data and environment, print the plan, and stop.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class TrainFileOptions(TrainOptions):
    config_file: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG_FILE",
            help="YAML file of experiments, or Python file defining `config`; path or URL.",
        ),
    ]


@dataclass(frozen=True, kw_only=True)
class TrainAlgorithmOptions(TrainOptions):
    algo: Annotated[
        str | None, typer.Option("--algo", "--run", "-a", "-r", help="Name of the algorithm: CalQL, PPO, ...")
    ] = None


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(DebugOptions):
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            metavar="[CHECKPOINT]", help="Checkpoint folder. Without one, an untrained --algo is evaluated."
        ),
    ] = None
    algo: Annotated[str | None, typer.Option("--algo", "--run", "-a", "-r", help="Name of the algorithm.")] = None
    env: Annotated[str | None, typer.Option("--env", "-e", help="Another environment than trained on.")] = None
    config: Annotated[
        str,
        typer.Option("--config", "-c", help="JSON or YAML mapping; with a checkpoint: env_config, explore."),
    ] = "{}"
    episodes: Annotated[int, typer.Option(min=0, help="Stop after this many episodes; 0: no limit.")] = 0
    steps: Annotated[
        int | None,
        typer.Option(min=0, help="Stop after this many steps; 0: no limit. 10,000 where --episodes sets none."),
    ] = None
    seed: Annotated[int, typer.Option(help="Episode number i starts from seed + i.")] = 0
    render: Annotated[bool, typer.Option("--render/--no-render", help="Show the environment.")] = False
    out: Annotated[
        str | None, typer.Option(help="Save to FILE.json (per episode) or FILE.npz (every step too).")
    ] = None
    save_info: Annotated[
        bool, typer.Option("--save-info/--no-save-info", help="Save every step's info in FILE.npz, as JSON.")
    ] = False
