"""Runs one experiment file to its end in this process and writes its learning curve as JSON.

    python -m benchmarks.learning_curve tuned_configs/calql-pointmaze.yaml --set calibrate=false --json OUT.json

Each row of `curve` is the `calql` block of a training iteration, with the seconds since the start.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import ray
import torch
from ray.tune.utils.util import SafeFallbackEncoder

import rllib_calql
from rllib_calql import CalQL, CalQLConfig
from rllib_calql.cli.experiments import load_file, override
from rllib_calql.cli.options import TrainOptions
from rllib_calql.presets import PRESET


def load_settings(path: Path, overrides: list[str]) -> dict[str, Any]:
    """Of the first experiment of a file, read and changed as by `rllib train file FILE --set KEY=VALUE`."""
    name, spec = next(iter(load_file(str(path)).items()))
    return override(name, spec, TrainOptions(set_=overrides))["config"]


def load_config(path: Path, overrides: list[str]) -> CalQLConfig:
    """The config of these settings."""
    return CalQLConfig().update_from_dict(load_settings(path, overrides))


def run(config: CalQLConfig, label: str, checkpoint: Path | None = None) -> list[dict[str, Any]]:
    """Trains until both phases are complete; returns the curve, and prints each evaluation."""
    algo: CalQL = config.build_algo()
    start = time.perf_counter()
    curve: list[dict[str, Any]] = []
    done = False
    while not done:
        result = algo.train()
        done = result["done"]
        curve.append({**result["calql"], "seconds": round(time.perf_counter() - start, 2)})
        if "normalized_score" in curve[-1]:
            row = curve[-1]
            print(
                f"{label}: {row['phase']} updates {row['num_updates']} env steps {row['num_online_env_steps']} "
                f"score {row['normalized_score']:.2f} bound rate {row.get('bound_rate', float('nan')):.3f} "
                f"{row.get('updates_per_second', float('nan')):.1f} updates/s {row['seconds']:.0f} s",
                flush=True,
            )
    if checkpoint is not None:
        algo.save(str(checkpoint.resolve()))
    algo.stop()
    return curve


def _portable(value: Any) -> Any:
    """Settings with absolute paths written as seen from the present folder."""
    if isinstance(value, dict):
        return {key: _portable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_portable(inner) for inner in value]
    return os.path.relpath(value) if isinstance(value, str) and os.path.isabs(value) else value


def write(path: Path, config: CalQLConfig, preset: str | None, curve: list[dict[str, Any]]) -> None:
    """The curve with what made it: command, preset, settings that differ from the defaults, versions."""
    defaults = CalQLConfig().to_dict()
    settings = {key: value for key, value in config.to_dict().items() if defaults.get(key) != value}
    document = {
        "command": shlex.join(["python", "-m", "benchmarks.learning_curve", *sys.argv[1:]]),
        "preset": preset,
        "settings": _portable(settings),
        "versions": {
            "rllib_calql": rllib_calql.__version__,
            "ray": ray.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "torch_threads": torch.get_num_threads(),
        "curve": curve,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, cls=SafeFallbackEncoder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a YAML experiment file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting")
    parser.add_argument("--json", type=Path, required=True, help="where the curve goes")
    parser.add_argument("--checkpoint", type=Path, help="where the final checkpoint goes")
    parser.add_argument("--threads", type=int, help="torch threads of the updates")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    config = load_config(options.file, options.set)
    ray.init("local", include_dashboard=False, log_to_driver=False)
    curve = run(config, options.json.stem, options.checkpoint)
    write(options.json, config, load_settings(options.file, options.set).get(PRESET), curve)
    print(f"wrote {options.json}")


if __name__ == "__main__":
    main()
