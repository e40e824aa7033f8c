"""Genuine Minari datasets, recorded with its DataCollector, and what was played while recording."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import tree

from rllib_calql.data.rows import Rows, Source

minari = pytest.importorskip("minari")

FORMATS = ("hdf5", "arrow", "parquet")


class Played:
    """The rows of an environment, noted beside the recorder."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def column(self, name: str) -> Any:
        return tree.map_structure(lambda *leaves: np.stack(leaves), *[row[name] for row in self.rows])


def record(
    name: str,
    env: gym.Env,
    data_format: str,
    policy: Callable[[Any], Any] | None = None,
    *,
    num_episodes: int = 3,
    max_steps: int = 1000,
    record_infos: bool = True,
    options: dict[str, Any] | None = None,
    jpeg_encoding: bool = True,
    **metadata: Any,
) -> Played:
    """Records whole episodes, or those of `max_steps` which are then left off, into $MINARI_DATASETS_PATH."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        recorder = minari.DataCollector(
            env, data_format=data_format, record_infos=record_infos, jpeg_encoding=jpeg_encoding
        )
        recorder.action_space.seed(0)
        played = Played()
        for seed in range(num_episodes):
            observation, _ = recorder.reset(seed=seed, options=options)
            for step in range(max_steps):
                action = recorder.action_space.sample() if policy is None else policy(observation)
                following, reward, terminated, truncated, info = recorder.step(action)
                played.rows.append(
                    {
                        "observations": observation,
                        "actions": action,
                        "rewards": reward,
                        "next_observations": following,
                        "terminated": terminated,
                        "truncated": truncated or (not terminated and step == max_steps - 1),
                        "success": bool(info.get("success")),
                    }
                )
                observation = following
                if terminated or truncated:
                    break
        recorder.create_dataset(name, **metadata)
        recorder.close()
    return played


def read(source: Source) -> Rows:
    """All rows of a source."""
    chunks = list(source.chunks())
    return Rows(
        **{
            name: tree.map_structure(lambda *leaves: np.concatenate(leaves), *[getattr(c, name) for c in chunks])
            for name in Rows.__dataclass_fields__
        }
    )


def assert_same(rows: Rows, played: Played, keep: Any = slice(None), **instead: Any) -> None:
    """The rows are those of `keep` of what was played, bit by bit; `instead`: other columns than the played."""
    for name in Rows.__dataclass_fields__:
        expected = tree.map_structure(lambda leaf: leaf[keep], instead.get(name, played.column(name)))
        tree.map_structure(np.testing.assert_array_equal, getattr(rows, name), expected)


def point_maze(**kwargs: Any) -> gym.Env:
    """PointMaze of gymnasium-robotics."""
    robotics = pytest.importorskip("gymnasium_robotics")
    gym.register_envs(robotics)
    return gym.make("PointMaze_UMaze-v3", **{"max_episode_steps": 60, **kwargs})


def towards_goal(observation: dict[str, np.ndarray]) -> np.ndarray:
    """Rolls straight to the goal, through it and back."""
    way = observation["desired_goal"] - observation["achieved_goal"]
    return np.clip(10 * way - observation["observation"][2:], -1, 1).astype(np.float32)
