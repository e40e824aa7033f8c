"""`rllib evaluate`: plays the policy of a checkpoint in an environment of its own."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import ray
import typer
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_calql.cli.common import UserError, parse_mapping
from rllib_calql.cli.episodes import check_spaces, environment_for, play, rows_of
from rllib_calql.cli.experiments import algorithm_class
from rllib_calql.cli.options import EvaluateOptions
from rllib_calql.cli.policies import Trained, restored
from rllib_calql.metrics import normalized_score

STEPS = 10_000  # where neither limit is given


def run(options: EvaluateOptions) -> None:
    """Plays, prints, saves.

    Raises:
        UserError: nothing to evaluate, or no environment to do it in.
    """
    steps = (0 if options.episodes else STEPS) if options.steps is None else options.steps
    if not options.episodes and not steps:
        raise UserError("--episodes 0 and --steps 0 together would never end")
    if options.out and Path(options.out).suffix not in (".json", ".npz"):
        raise UserError(f"--out {options.out}: the name must end in .json or .npz")
    if options.save_info and not (options.out or "").endswith(".npz"):
        raise UserError("--save-info needs --out FILE.npz")
    changes = parse_mapping(options.config, "--config") | ({"env": options.env} if options.env else {})
    if options.checkpoint is None:
        trained = untrained(options, changes)
    else:
        if others := sorted(changes.keys() - {"env", "env_config", "explore"}):
            raise UserError(f"--config: {others} cannot change a trained policy; env, env_config and explore can")
        trained = restored(Path(options.checkpoint).expanduser(), options.algo)
    env = environment_for(trained, changes, {"render_mode": "human"} if options.render else {})
    try:
        check_spaces(env, trained)
        explore = bool(changes.get("explore", False))
        limits = {"num_episodes": options.episodes, "num_steps": steps}
        episodes = []
        for episode in play(env, trained, **limits, seed=options.seed, explore=explore):
            episodes.append(episode)
            typer.echo(f"Episode {len(episodes)}: return {episode.get_return():.6g}, length {len(episode)}")
    finally:
        env.close()
    if not episodes:
        raise UserError(f"no episode ended within --steps {steps}: allow more")
    summary = summarise(episodes, trained)
    typer.echo(", ".join(f"{name} {value:.6g}" for name, value in summary.items() if not isinstance(value, list)))
    if options.out:
        save(Path(options.out), episodes, summary, infos=options.save_info)


def untrained(options: EvaluateOptions, config: dict[str, Any]) -> Trained:
    """The policy as the algorithm first makes it: what training starts from."""
    if not options.algo:
        raise UserError("name a CHECKPOINT, or with --algo the algorithm to evaluate untrained")
    built = algorithm_class(options.algo).get_default_config().update_from_dict({"num_env_runners": 0} | config)
    ray.init(address="local", include_dashboard=False)
    try:
        algorithm = built.build_algo()
        with tempfile.TemporaryDirectory() as folder:
            algorithm.save(folder)
            algorithm.stop()
            return restored(Path(folder), None)
    finally:
        ray.shutdown()


# ---- telling -----------------------------------------------------------------------------------------------


def succeeded(episode: SingleAgentEpisode, reward_means_success: bool) -> float | None:
    """The highest `info["success"]` of any step, 0 to 1; None where that is unknown."""
    said = [float(info["success"]) for info in episode.get_infos() if "success" in info]
    if said:
        return max(said)
    return float(episode.is_terminated and episode.get_rewards(-1) > 0) if reward_means_success else None


def summarise(episodes: list[SingleAgentEpisode], trained: Trained) -> dict[str, Any]:
    """Means over episodes, then each episode's numbers; what is not known is left out."""
    returns = [float(episode.get_return()) for episode in episodes]
    lengths = [len(episode) for episode in episodes]
    summary: dict[str, Any] = {
        "episodes": len(episodes),
        "steps": sum(lengths),
        "return_mean": float(np.mean(returns)),
        "return_std": float(np.std(returns)),
        "length_mean": float(np.mean(lengths)),
    }
    if trained.score_range is not None:
        summary["normalized_score"] = normalized_score(summary["return_mean"], trained.score_range)
    # CalQL's tasks are sparse: where the environment does not speak of success, ending with a reward is one.
    found = [succeeded(episode, reward_means_success=trained.calql is not None) for episode in episodes]
    successes = [success for success in found if success is not None]
    if len(successes) == len(episodes):
        summary |= {"success_rate": float(np.mean(successes)), "successes": successes}
    return summary | {"returns": returns, "lengths": lengths}


def save(path: Path, episodes: list[SingleAgentEpisode], summary: dict[str, Any], *, infos: bool) -> None:
    """FILE.json: the summary. FILE.npz: the summary and, step by step, what a dataset has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps(summary, indent=2) + "\n")
        return

    parts = [rows_of(episode) for episode in episodes]
    if not all(isinstance(column, np.ndarray) and column.dtype != object for column in vars(parts[0]).values()):
        raise UserError("--out FILE.npz needs observations and actions that are arrays; FILE.json does not")
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])
    }
    if infos:
        steps = [info for episode in episodes for info in episode.get_infos()[1:]]
        columns["infos"] = np.array([json.dumps(info, default=_jsonable) for info in steps])
    np.savez_compressed(path, **columns, **summary)


def _jsonable(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else repr(value)
