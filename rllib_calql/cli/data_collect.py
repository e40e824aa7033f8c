"""`calql data collect`: plays a policy and records what happens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_calql.cli import data_convert
from rllib_calql.cli.common import UserError
from rllib_calql.cli.episodes import check_spaces, environment_for, environment_of, play, rows_of
from rllib_calql.cli.policies import Trained, restored
from rllib_calql.data.rows import Metadata, Rows


def run(
    destination: str,
    *,
    env: str | None,
    env_config: dict[str, Any],
    checkpoint: str | None,
    policy: str | None,
    num_episodes: int,
    seed: int,
    explore: bool,
    observations: str | None,
    overwrite: bool,
) -> None:
    """Plays and writes, episode by episode.

    Raises:
        UserError: not one of checkpoint and policy, or no environment. DatasetError: it cannot be written there.
    """
    if (checkpoint is None) == (policy is None):
        raise UserError("choose the one who acts: --checkpoint CHECKPOINT, or --policy random")
    if policy not in (None, "random"):
        raise UserError(f"--policy {policy}: only random is known; trained ones come from a --checkpoint")
    if checkpoint is None and env is None:
        raise UserError("--policy random needs --env")
    changes = {"env_config": env_config} | ({"env": env} if env else {})
    if checkpoint is None:
        made = environment_of({}, changes, {})
        trained, by = random_policy(made), "a random policy"
    else:
        trained = restored(Path(checkpoint).expanduser())
        made, by = environment_for(trained, changes, {}), f"{checkpoint}{', exploring' if explore else ''}"
    try:
        check_spaces(made, trained)
        source = f"{num_episodes} episodes of {by}, seed {seed}"
        played = Played(made, trained, num_episodes, seed, explore, source)
        data_convert.write(played, destination, observations=observations, overwrite=overwrite)
    finally:
        made.close()


def random_policy(env: gym.Env) -> Trained:
    """Acts as the environment's action space samples."""

    def act(episode: SingleAgentEpisode, explore: bool) -> tuple[Any, dict[str, Any]]:
        action = env.action_space.sample()
        return action, {Columns.ACTIONS: action}

    spaces = env.observation_space, env.action_space
    return Trained(act, {}, *spaces, begin_episode=env.action_space.seed)


class Played:
    """Episodes as they are played: a source that plays them when it is read."""

    def __init__(
        self, env: gym.Env, trained: Trained, num_episodes: int, seed: int, explore: bool, source: str
    ) -> None:
        self._env, self._trained = env, trained
        self._num_episodes, self._seed, self._explore = num_episodes, seed, explore
        self.metadata = Metadata(
            observation_space=env.observation_space,
            action_space=env.action_space,
            environment=_spec(env),
            score_range=trained.score_range,
            source=source,
        )

    def chunks(self) -> Iterator[Rows]:
        """A chunk per episode."""
        episodes = play(
            self._env, self._trained, num_episodes=self._num_episodes, seed=self._seed, explore=self._explore
        )
        yield from map(rows_of, episodes)


def _spec(env: gym.Env) -> str | None:
    """JSON of the environment's spec, where it has one that can be written."""
    try:
        return None if env.spec is None else env.spec.to_json()
    except (TypeError, ValueError):
        return None
