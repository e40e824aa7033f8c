"""Whether logged transitions are those of an environment: put it where a row was, act, and compare."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import tree
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.spaces import flatten

from rllib_calql.data.rows import Source, Tree
from rllib_calql.envs.mazes import Maze

# A step agrees where each number is off by at most this share of its usual change, and a rounding.
TOLERANCE, ROUNDING = 0.05, 1e-4
CLIPPED = 10.0  # Hopper and Walker2d observe velocities clipped to this, so it is not the true one


@dataclass(frozen=True, eq=False, kw_only=True)
class Step:
    """One logged transition, in the environment's spaces; `joints`: MuJoCo's qpos and qvel, where logged."""

    observation: Any
    action: Any
    reward: float
    next_observation: Any
    joints: tuple[np.ndarray, np.ndarray] | None = None


def logged_steps(source: Source, num_rows: int, count: int, env: gym.Env) -> list[Step]:
    """About `count` transitions at equal distances, less those whose next observation is not known.

    Args:
        source: read once, as far as needed.
        num_rows: how many rows it has.
        count: how many to look for.
        env: whose spaces the observations are to be in; flat ones are taken apart for Dict spaces.
    """
    wanted = np.unique(np.linspace(0, max(num_rows - 2, 0), count).astype(int))
    numbers, steps, start = [], [], 0
    normalized = source.metadata.actions_normalized and isinstance(env.action_space, gym.spaces.Box)
    for rows in source.chunks():
        for row in wanted[(wanted >= start) & (wanted < start + len(rows))] - start:
            following, at = (rows.next_observations, row) if rows.next_observations is not None else (None, -1)
            if following is None and row + 1 < len(rows) and not (rows.terminated[row] or rows.truncated[row]):
                following, at = rows.observations, row + 1
            if following is not None:
                action = _taken(rows.actions, row, env.action_space)
                numbers.append(start + int(row))
                steps.append(
                    Step(
                        observation=_taken(rows.observations, row, env.observation_space),
                        action=_scaled(action, env.action_space) if normalized else action,
                        reward=float(rows.rewards[row]),
                        next_observation=_taken(following, at, env.observation_space),
                    )
                )
        start += len(rows)
    joints = source.joints(numbers) if hasattr(source, "joints") else None
    return steps if joints is None else [replace(step, joints=j) for step, j in zip(steps, joints, strict=True)]


def _taken(column: Tree, row: int, space: gym.Space) -> Any:
    """One row as the space has it."""
    value = tree.map_structure(lambda leaf: leaf[row], column)
    nested = isinstance(space, (gym.spaces.Dict, gym.spaces.Tuple))
    if nested == isinstance(value, (Mapping, tuple)):
        return value
    flat = np.concatenate([np.ravel(leaf) for leaf in tree.flatten(value)])
    return gym.spaces.unflatten(space, flat) if nested else flat


def _scaled(action: np.ndarray, space: gym.spaces.Box) -> np.ndarray:
    """An action of [-1, 1], clipped to it, in the bounds of the environment."""
    share = (np.clip(action, -1.0, 1.0).reshape(space.shape) + 1.0) / 2.0
    return (space.low + share * (space.high - space.low)).astype(space.dtype)


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What came of it.

    Attributes:
        num_steps: how many transitions were tried.
        num_set: into how many of their states the environment could be put, verified by its own observation.
        num_agreeing: of these, how many next observations agree.
        num_equal_rewards: of the agreeing, how many rewards do.
        worst: largest difference of any number of the next observations (of those set).
        number: which number that is.
    """

    num_steps: int
    num_set: int = 0
    num_agreeing: int = 0
    num_equal_rewards: int = 0
    worst: float = 0.0
    number: int = 0


def replay(env: gym.Env, steps: Sequence[Step]) -> Replay:
    """Tries each transition in the environment; where states cannot be set, `num_set` is 0."""
    way = _way(env.unwrapped) if env.observation_space == env.unwrapped.observation_space else None
    flat = [(_flat(env, step.observation), _flat(env, step.next_observation)) for step in steps]
    differences, rewards = [], []
    for step, (before, after) in zip(steps, flat, strict=True):
        env.reset(seed=0)
        if way is None or not _put(env, way, step, before):
            continue
        observation, reward, *_ = env.step(step.action)
        differences.append(np.abs(_flat(env, observation) - after))
        rewards.append(bool(np.isclose(float(reward), step.reward, rtol=1e-3, atol=1e-3)))
    if not differences:
        return Replay(num_steps=len(steps))
    usual = np.std([after - before for before, after in flat], axis=0)
    agree = (np.array(differences) <= TOLERANCE * usual + ROUNDING).all(axis=1)
    worst = np.max(differences, axis=0)
    return Replay(
        num_steps=len(steps),
        num_set=len(agree),
        num_agreeing=int(agree.sum()),
        num_equal_rewards=int((agree & rewards).sum()),
        worst=float(worst.max()),
        number=int(worst.argmax()),
    )


def _flat(env: gym.Env, observation: Any) -> np.ndarray:
    return np.asarray(flatten(env.observation_space, observation), np.float64)


# ---- setting states ----------------------------------------------------------------------------------------


class _Way(NamedTuple):
    """How the states of a kind of environment are set."""

    # States that a step may have begun in, each with the number of leading observation numbers that it decides.
    guesses: Callable[[Step], Iterator[tuple[Any, int | None]]]
    put: Callable[[Any], Any]  # sets a state; returns what the environment then observes


def _put(env: gym.Env, way: _Way, step: Step, logged: np.ndarray) -> bool:
    """Puts the environment where the step begins: into the first state in which it observes what was logged."""
    for state, known in way.guesses(step):
        observed = _flat(env, way.put(state))
        if np.allclose(observed[:known], logged[:known], rtol=1e-4, atol=1e-4):
            return True
    return False


def _way(world: Any) -> _Way | None:
    """None where no way is known."""
    if isinstance(world, Maze):
        return _Way(lambda step: iter([(step.observation, None)]), world.restore)
    for robot in (world, getattr(world, "ant_env", None), getattr(world, "point_env", None)):
        if isinstance(robot, MujocoEnv):
            return _mujoco(world, robot)
    if type(world).__module__.startswith("gymnasium.envs.classic_control"):
        return _classic_control(world)
    return None


def _mujoco(world: Any, robot: Any) -> _Way:
    """Positions and velocities: as logged, or as the observation begins with them, less up to 2 coordinates."""
    nq, nv = robot.model.nq, robot.model.nv

    def guesses(step: Step) -> Iterator[tuple[Any, int | None]]:
        goal, before = None, 0
        observations = [step.observation]
        if isinstance(step.observation, Mapping):  # of gymnasium-robotics' mazes
            rest, at, goal = (step.observation[key] for key in ("observation", "achieved_goal", "desired_goal"))
            observations, before = [rest, np.concatenate([at, rest])], len(at) + len(goal)
        if step.joints is not None:
            yield (*step.joints, goal), None
        for observation in observations:
            for left_out in range(3):
                used = nq - left_out + nv
                if len(observation) >= used:
                    position, velocity = observation[: nq - left_out], observation[nq - left_out : used]
                    if (np.abs(velocity) != CLIPPED).all():
                        yield (np.append(robot.init_qpos[:left_out], position), velocity, goal), before + used

    def put(state: tuple[np.ndarray, np.ndarray, np.ndarray | None]) -> Any:
        position, velocity, goal = state
        if goal is not None:
            world.goal = np.asarray(goal)
        robot.set_state(np.asarray(position, np.float64), np.asarray(velocity, np.float64))
        observation = robot._get_obs()
        observation = observation[0] if isinstance(observation, tuple) else observation
        return observation if world is robot else world._get_obs(observation)

    return _Way(guesses, put)


def _classic_control(world: Any) -> _Way:
    """The observation is the state, or has the angle as cosine and sine."""

    def guesses(step: Step) -> Iterator[tuple[Any, int | None]]:
        observation = np.asarray(step.observation, np.float64)
        if len(observation) == len(world.state):
            yield observation, None
        elif (len(observation), len(world.state)) == (3, 2):
            yield np.array([np.arctan2(observation[1], observation[0]), observation[2]]), None

    def put(state: np.ndarray) -> Any:
        world.state = state
        return world._get_obs() if hasattr(world, "_get_obs") else state

    return _Way(guesses, put)
