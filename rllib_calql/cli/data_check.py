"""`calql data check`: whether a dataset fits an environment and its calibration is sound."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import gymnasium as gym
import typer

from rllib_calql.cli.common import UserError, counting
from rllib_calql.data import DatasetError, Preparation, open_source
from rllib_calql.data.calibration import calibration_findings
from rllib_calql.data.findings import Finding, row_findings, same_shapes, space_findings
from rllib_calql.data.prepare import return_factor
from rllib_calql.data.rows import Source
from rllib_calql.data.summary import Summary, summarise
from rllib_calql.envs import register
from rllib_calql.envs.recorded import differences, make_recorded
from rllib_calql.envs.replay import Replay, logged_steps, replay

# The settings of `CalQLConfig` that decide what the bound is, and what `Preparation` calls them.
SETTINGS = {
    "gamma": "gamma",
    "reward_scale": "reward_scale",
    "reward_bias": "reward_bias",
    "sparse_failure_reward": "sparse_failure_reward",
    "truncation_mode": "truncation",
}
AGREEMENT = 0.9  # share of replayed transitions from which on data and environment belong together


def run(
    uri: str,
    reader_options: dict[str, Any],
    env_id: str | None,
    env_config: dict[str, Any],
    config: dict[str, Any],
    *,
    num_replayed: int,
    as_json: bool,
) -> None:
    """Prints what was found.

    Raises:
        UserError: no such environment or setting. DatasetError: the data cannot be read.
        typer.Exit: code 1 where there is a warning.
    """
    normalize_reward, preparation = _preparation(config)
    if env_config and env_id is None:
        raise UserError("--env-config needs --env")
    source = open_source(uri, **reader_options)
    findings: list[Finding] = []
    env = _recorded(source, findings) if env_id is None else _make(env_id, env_config)
    with counting("reading", source.metadata.num_rows) as read:
        summary = summarise(source, read)
    findings += row_findings(summary)
    if env is not None:
        findings += _in_environment(source, summary, env, num_replayed)
        env.close()
    if normalize_reward and summary.num_episodes:
        factor = return_factor(summary.returns)
        preparation = replace(preparation, reward_scale=preparation.reward_scale * factor)
    findings += calibration_findings(summary, preparation)
    warnings = sum(finding.kind == "warning" for finding in findings)
    if as_json:
        typer.echo(
            json.dumps({"uri": uri, "env": env_id, "findings": [asdict(one) for one in findings]}, indent=2)
        )
    else:
        for finding in findings:
            typer.echo(f"{finding.kind.upper():8}{finding.text}")
            if finding.advice:
                typer.echo(f"{'':8}-> {finding.advice}")
        typer.echo(f"{warnings} warning{'' if warnings == 1 else 's'}")
    if warnings:
        raise typer.Exit(1)


def _preparation(config: dict[str, Any]) -> tuple[bool, Preparation]:
    """`normalize_reward`, whose factor the data decide, and all other settings."""
    config = dict(config)
    normalize_reward = config.pop("normalize_reward", False)
    if not isinstance(normalize_reward, bool):
        raise UserError(f"--config: normalize_reward must be true or false, not {normalize_reward!r}")
    if unknown := sorted(config.keys() - SETTINGS.keys()):
        known = ", ".join([*SETTINGS, "normalize_reward"])
        raise UserError(f"--config: {', '.join(unknown)} has no part in the bound; {known} have")
    for name, value in config.items():
        absent = name == "sparse_failure_reward" and value is None
        if name != "truncation_mode" and not absent and not isinstance(value, (int, float)):
            raise UserError(f"--config: {name} must be a number, not {value!r}")
    if config.get("truncation_mode") == "bootstrap":
        # The value that goes on after time-outs is learned in training only; that one does is what counts here.
        config["truncation_mode"] = "infinite"
    try:
        return normalize_reward, Preparation(**{SETTINGS[name]: value for name, value in config.items()})
    except (TypeError, ValueError) as error:
        raise UserError(f"--config: {error}") from error


def _make(env_id: str, env_config: dict[str, Any]) -> gym.Env:
    register()
    try:
        return gym.make(env_id, **env_config)
    except (gym.error.NameNotFound, gym.error.NamespaceNotFound) as error:
        hint = "" if ":" in env_id else f" (of another package: PACKAGE:{env_id}, such as gymnasium_robotics:...)"
        raise UserError(f"--env {env_id}: {error}{hint}") from error
    except (gym.error.Error, ModuleNotFoundError, TypeError, ValueError) as error:
        raise UserError(f"--env {env_id}: {error}") from error


def _recorded(source: Source, findings: list[Finding]) -> gym.Env | None:
    """The environment that the data were recorded in, where they say so."""
    if source.metadata.environment is None:
        findings.append(Finding("note", "no environment: name one with --env to compare"))
        return None
    try:
        env = make_recorded(source.metadata.environment)
    except DatasetError as error:
        findings.append(Finding("note", str(error)))
        return None
    findings.append(Finding("fine", f"compared with the recorded environment {env.spec.id if env.spec else env}"))
    return env


def _in_environment(source: Source, summary: Summary, env: gym.Env, num_replayed: int) -> Iterator[Finding]:
    for difference in differences(source.metadata, env):
        yield Finding("warning", f"recorded in another environment: {difference}", "see env_config")
    yield from space_findings(summary, env)
    if not num_replayed or not same_shapes(summary, env):
        return
    try:
        steps = logged_steps(source, summary.num_rows, num_replayed, env)
        yield from replay_findings(replay(env, steps))
    except Exception as error:  # somebody else's environment, in states it may never have been in
        yield Finding("note", f"replay: the environment failed ({type(error).__name__}: {error})")


def replay_findings(found: Replay) -> Iterator[Finding]:
    """What a replay says about the dynamics and the rewards."""
    if not found.num_set:
        yield Finding("note", "replay: not possible, no logged state of this environment could be set")
        return
    share = found.num_agreeing / found.num_set
    text = (
        f"replay: {found.num_agreeing} of {found.num_set} transitions ({share:.1%}) go as logged; "
        f"worst difference {found.worst:.3g} (observation number {found.number})"
    )
    if share < AGREEMENT:
        yield Finding("warning", text, "the data are of other dynamics, action units, time step or frame")
        return
    yield Finding("fine", text)
    if found.num_equal_rewards < AGREEMENT * found.num_agreeing:
        yield Finding(
            "warning",
            f"replay: only {found.num_equal_rewards} of these {found.num_agreeing} get the logged reward",
            "the data's rewards are of another goal or task, or already scaled: online rewards must be alike",
        )
