"""The registered mazes: frames, walls, episode ends, in real MuJoCo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from rllib_calql.envs import register
from rllib_calql.envs.layouts import MAPS, Layout
from tests.shared import shared_path

register()

ANT, POINT = "rllib_calql/AntMaze-UMaze-v2", "rllib_calql/PointMaze-UMaze-v3"
MAZES = [name for name in gym.registry if name.startswith(("rllib_calql/AntMaze", "rllib_calql/PointMaze"))]


def make(name: str, **arguments: Any) -> Any:
    return gym.make(name, **arguments)


def put(env: Any, xy: tuple[float, float]) -> None:
    """Places the robot at a position of the environment's own frame."""
    maze = env.unwrapped
    robot = maze._simulation.ant_env if hasattr(maze._simulation, "ant_env") else maze._simulation.point_env
    position = robot.data.qpos.copy()
    position[:2] = np.asarray(xy) + maze._origin
    robot.set_state(position, 0 * robot.data.qvel)


def mujoco_walls(env: Any) -> np.ndarray:
    """(walls, 2) centres of the simulation's wall blocks, in the environment's frame."""
    maze = env.unwrapped
    model = maze._simulation.model
    names = [model.geom(number).name for number in range(model.ngeom)]
    blocks = [number for number, name in enumerate(names) if name.startswith("block_")]
    assert np.allclose(model.geom_size[blocks, :2], maze.layout.cell_size / 2)
    return np.asarray(model.geom_pos[blocks, :2] - maze._origin)


def inside_blocks(env: Any, xy: np.ndarray) -> np.ndarray:
    """(N,) bool: positions inside one of the simulation's wall blocks."""
    half = env.unwrapped.layout.cell_size / 2
    return (np.abs(xy[:, None] - mujoco_walls(env)) < half).all(-1).any(-1)


def test_register_is_idempotent_and_names_every_maze() -> None:
    register()
    assert sorted(MAZES) == [
        "rllib_calql/AntMaze-Large-v2",
        "rllib_calql/AntMaze-Medium-v2",
        "rllib_calql/AntMaze-UMaze-v2",
        "rllib_calql/PointMaze-Large-v3",
        "rllib_calql/PointMaze-Medium-v3",
        "rllib_calql/PointMaze-UMaze-v3",
    ]


@pytest.mark.parametrize(
    ("name", "size", "limit"),
    [
        ("AntMaze-UMaze-v2", 29, 700),
        ("AntMaze-Medium-v2", 29, 1000),
        ("AntMaze-Large-v2", 29, 1000),
        ("PointMaze-UMaze-v3", 4, 300),
        ("PointMaze-Medium-v3", 4, 600),
        ("PointMaze-Large-v3", 4, 800),
    ],
)
def test_spaces_and_time_limits(name: str, size: int, limit: int) -> None:
    env = make(f"rllib_calql/{name}")
    observation, info = env.reset(seed=0)
    assert env.observation_space.shape == (size,)
    assert env.observation_space.dtype == observation.dtype == np.float32
    assert env.spec.max_episode_steps == limit
    assert env.action_space.is_bounded()
    assert info == {"success": False}


@pytest.mark.parametrize("name", [ANT, POINT])
@pytest.mark.parametrize("frame", ["d4rl", "gymnasium"])
@pytest.mark.filterwarnings("ignore:.*Box observation space (minimum|maximum) value is:UserWarning")
def test_gymnasium_env_checker(name: str, frame: str) -> None:
    check_env(make(name, frame=frame).unwrapped, skip_render_check=True)


# D4RL's coordinates, by hand from its published maps: 4 m cells, the origin at the start cell (1, 1).
@pytest.mark.parametrize(
    ("maze", "goal", "walls", "free"),
    [
        # corner block (0, 0); the bar of the U, row 2, columns 1 and 2; the far corner (4, 4)
        ("UMaze", (0, 8), [(-4, -4), (0, 4), (4, 4), (12, 12)], [(8, 0), (8, 4), (8, 8), (4, 8)]),
        (
            "Medium",
            (20, 20),
            [(8, 0), (12, 0), (0, 8), (16, 8), (24, 24)],
            [(4, 0), (4, 8), (20, 16), (16, 0)],
        ),
        ("Large", (32, 24), [(16, 0), (4, 4), (40, 28), (24, 24)], [(12, 0), (20, 0), (36, 24), (28, 24)]),
    ],
)
def test_d4rl_frame_has_d4rls_coordinates(maze: str, goal: Any, walls: Any, free: Any) -> None:
    env = make(f"rllib_calql/AntMaze-{maze}-v2", reset_noise_scale=0.0)
    observation, _ = env.reset(seed=0)
    np.testing.assert_allclose(observation[:2], [0, 0], atol=1e-6)
    np.testing.assert_allclose(env.unwrapped.goal, goal)
    blocks = {tuple(np.round(block, 6)) for block in mujoco_walls(env)}
    assert blocks >= set(walls)
    assert not blocks & {*free, (0, 0), goal}
    assert len(blocks) == sum(cell == 1 for row in MAPS[maze.lower()] for cell in row)


def test_gymnasium_frame_has_gymnasium_robotics_coordinates() -> None:
    umaze = make(ANT, frame="gymnasium", reset_noise_scale=0.0)
    np.testing.assert_allclose(umaze.reset(seed=0)[0][:2], [-4, -4], atol=1e-6)
    np.testing.assert_allclose(umaze.unwrapped.goal, [-4, 4])
    medium = make("rllib_calql/AntMaze-Medium-v2", frame="gymnasium", reset_noise_scale=0.0)
    np.testing.assert_allclose(medium.reset(seed=0)[0][:2], [-10, 10], atol=1e-6)
    np.testing.assert_allclose(medium.unwrapped.goal, [10, -10])


@pytest.mark.parametrize("frame", ["d4rl", "gymnasium"])
@pytest.mark.parametrize("name", MAZES)
def test_the_layouts_walls_are_the_simulations(name: str, frame: str) -> None:
    env = make(name, frame=frame)
    layout = env.unwrapped.layout
    rng = np.random.default_rng(0)
    corners = layout.cell_to_xy([[0, 0], np.array(layout.walls.shape) - 1])
    xy = rng.uniform(corners.min(0), corners.max(0), (2000, 2))
    np.testing.assert_array_equal(layout.is_wall(xy), inside_blocks(env, xy))
    np.testing.assert_array_equal(layout.xy_to_cell(layout.cell_to_xy([[1, 2], [3, 1]])), [[1, 2], [3, 1]])
    assert layout.is_wall(np.array([1000.0, -1000.0]))


@pytest.mark.parametrize(
    ("file", "name", "arguments"),
    [
        ("antmaze-umaze", "UMaze", {}),
        ("antmaze-umaze-diverse", "UMaze", {"start_cell": [3, 1], "goal_cell": [1, 1]}),
        ("antmaze-medium-diverse", "Medium", {}),
        ("antmaze-medium-narrow", "Medium", {"maze_map": None}),
    ],
)
def test_logged_positions_stay_out_of_the_walls(file: str, name: str, arguments: dict[str, Any]) -> None:
    with h5py.File(shared_path(f"data/{file}.hdf5")) as data:
        xy = data["observations"][:, :2].astype(np.float64)
        rewards, terminals = data["rewards"][:], data["terminals"][:]
        attributes = dict(data.attrs)
    if "maze_map" in arguments:
        arguments = {"maze_map": attributes["maze_map"]}
    env = make(f"rllib_calql/AntMaze-{name}-v2", frame="gymnasium", **arguments)
    np.testing.assert_allclose(env.unwrapped.goal, attributes["eval_goal"])
    assert not inside_blocks(env, xy).any()
    # Inside one wall-free maze, but not in the wrong one: mirrored in y the data run through walls.
    if name == "Medium":
        assert inside_blocks(env, xy * [1, -1]).any()
    reached = np.flatnonzero(terminals & (rewards == 1))
    after = np.linalg.norm(xy[reached] - env.unwrapped.goal, axis=1)
    assert len(reached) > 0
    assert after.max() < env.unwrapped.goal_radius + 0.5  # the row before the last step's end

    # The same walk in D4RL's frame: y turned round, origin moved to the start cell.
    d4rl = make(f"rllib_calql/AntMaze-{name}-v2", **_mirrored(attributes))
    start = env.unwrapped.layout.cell_to_xy(env.unwrapped.layout.start)
    assert not inside_blocks(d4rl, (xy - start) * [1, -1]).any()
    np.testing.assert_allclose((env.unwrapped.goal - start) * [1, -1], d4rl.unwrapped.goal)


def _mirrored(attributes: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the same maze in D4RL's frame: the same map, in which y now grows with the row."""
    return {"frame": "d4rl", "maze_map": json.loads(attributes["maze_map"])}


def test_the_shared_dynamics_are_gymnasiums() -> None:
    """The registered environment moves exactly as stock gymnasium-robotics."""
    import gymnasium_robotics

    gym.register_envs(gymnasium_robotics)
    stock = gym.make("AntMaze_UMaze-v5", include_cfrc_ext_in_observation=False)
    Path(stock.unwrapped.tmp_xml_file_path).unlink()  # gymnasium-robotics leaves it behind
    stock.unwrapped.position_noise_range = 0.0
    stock.unwrapped.ant_env._reset_noise_scale = 0.1
    ours = make(ANT, frame="gymnasium")
    parts, _ = stock.reset(seed=3, options={"reset_cell": np.array([3, 1]), "goal_cell": np.array([1, 1])})
    observation, _ = ours.reset(seed=3)
    rng = np.random.default_rng(0)
    for _ in range(30):
        expected = np.concatenate([parts["achieved_goal"], parts["observation"]])
        np.testing.assert_allclose(observation, expected, rtol=1e-6, atol=1e-6)
        action = rng.uniform(-1, 1, 8).astype(np.float32)
        parts, *_ = stock.step(action)
        observation, *_ = ours.step(action)


def test_dynamics_follow_the_frame_unless_given() -> None:
    def figures(**arguments: Any) -> tuple[float, float]:
        model = make(ANT, **arguments).unwrapped._simulation.model
        return model.opt.timestep, model.actuator_gear[0, 0]

    assert figures() == figures(frame="gymnasium", dynamics="d4rl") == (0.02, 30.0)
    assert figures(frame="gymnasium") == figures(dynamics="gymnasium") == (0.01, 150.0)


@pytest.mark.parametrize(("name", "frame", "radius"), [(ANT, "d4rl", 0.5), (POINT, "gymnasium", 0.45)])
def test_the_episode_ends_at_the_goal(name: str, frame: str, radius: float) -> None:
    env = make(name, frame=frame)
    env.reset(seed=0)
    nothing = np.zeros(env.action_space.shape, np.float32)
    x, y = env.unwrapped.goal
    put(env, (x + radius + 0.1, y))
    _, reward, terminated, truncated, info = env.step(nothing)
    assert (reward, terminated, truncated, info["success"]) == (0.0, False, False, False)
    put(env, (x + radius - 0.1, y))
    observation, reward, terminated, truncated, info = env.step(nothing)
    assert (reward, terminated, truncated, info["success"]) == (1.0, True, False, True)
    assert np.linalg.norm(observation[:2] - [x, y]) <= radius


def test_the_time_limit_truncates() -> None:
    env = make(POINT, max_episode_steps=5)
    env.reset(seed=0)
    ends = [env.step(np.zeros(2, np.float32))[2:4] for _ in range(5)]
    assert ends == [(False, False)] * 4 + [(False, True)]


@pytest.mark.parametrize("name", [ANT, POINT])
def test_seeds_reproduce(name: str) -> None:
    def walk(seed: int) -> np.ndarray:
        env = make(name)
        rows = [env.reset(seed=seed)[0]]
        env.action_space.seed(0)
        rows += [env.step(env.action_space.sample())[0] for _ in range(10)]
        return np.stack([*rows, env.reset()[0]])

    np.testing.assert_array_equal(walk(1), walk(1))
    assert not np.array_equal(walk(1), walk(2))


def test_goal_and_start_noise() -> None:
    env = make(ANT, goal_draw="d4rl")
    goals = []
    for seed in range(50):
        env.reset(seed=seed)
        goals.append(env.unwrapped.goal - [0, 8])
    assert np.min(goals) >= 0
    assert 1.0 < np.max(goals) <= 1.5
    assert np.mean(goals) == pytest.approx(0.75, abs=0.1)
    point = make(POINT, position_noise=0.25)
    starts = np.stack([point.reset(seed=seed)[0][:2] for seed in range(50)]) - [-1, -1]
    assert 0.2 < np.abs(starts).max() <= 0.25
    assert make(POINT, position_noise=0.0).reset(seed=0)[0].tolist() == [-1, -1, 0, 0]
    moved, _ = make(POINT, position_noise=0.0).reset(options={"start_cell": (2, 3)})
    assert moved.tolist() == [1, 0, 0, 0]


def test_random_start_covers_every_free_cell_but_the_goals() -> None:
    env = make(POINT, random_start=True, position_noise=0.25)
    layout = env.unwrapped.layout
    assert layout.free_cells().tolist() == [[1, 2], [1, 3], [2, 3], [3, 1], [3, 2], [3, 3]]

    def cells() -> list[list[int]]:
        starts = [env.reset(seed=0 if number == 0 else None)[0][:2] for number in range(18)]
        return layout.xy_to_cell(np.stack(starts)).tolist()

    rounds = cells()
    for first in (0, 6, 12):
        assert sorted(rounds[first : first + 6]) == layout.free_cells().tolist()
    assert not rounds[:6] == rounds[6:12] == rounds[12:]
    assert cells() == rounds


def test_frame_skip_repeats_the_action() -> None:
    def after(skip: int, steps: int) -> np.ndarray:
        env = make(POINT, frame_skip=skip, position_noise=0.0)
        env.reset(seed=0)
        return np.stack([env.step(np.array([0.5, 0.1], np.float32))[0] for _ in range(steps)])[-1]

    np.testing.assert_allclose(after(5, 2), after(1, 10), rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frame": "mujoco"}, "frame must be 'd4rl' or 'gymnasium', not 'mujoco'"),
        ({"goal_cell": [2, 1]}, r"goal_cell \[2, 1\] is a wall"),
        ({"start_cell": [9, 1]}, r"start_cell \[9, 1\] is not a \[row, column\] of a maze of \[5, 5\] cells"),
        ({"start_cell": [1, 2], "goal_cell": [1, 2]}, "start_cell and goal_cell are the same cell"),
        ({"maze_map": [[1, 1, 1], [1, "r"], [1, 1, 1]]}, "rows of equal length"),
        ({"maze_map": [[1, 1, 1], [1, "r", 0], [1, 1, 1]]}, "closed by walls"),
        ({"maze_map": [[1, 1, 1], [1, "r", 1], [1, 1, 1]]}, "marks 0 cells with 'g'.*give goal_cell"),
        ({"position_noise": 0.5}, "position_noise is a share of a cell"),
        ({"goal_draw": "random"}, "goal_draw must be"),
    ],
)
@pytest.mark.parametrize("name", [ANT, POINT])
def test_wrong_arguments_are_refused(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(name, **arguments)


def test_missing_robotics_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gymnasium_robotics.envs.maze.point_maze", None)
    with pytest.raises(ImportError, match=r"pip install rllib_calql\[robotics\]"):
        make(POINT)


def test_distances_are_steps_between_free_cells() -> None:
    layout = Layout.parse(MAPS["umaze"], 1.0, "d4rl")
    expected = [
        [-1, -1, -1, -1, -1],
        [-1, 6, 5, 4, -1],
        [-1, -1, -1, 3, -1],
        [-1, 0, 1, 2, -1],
        [-1, -1, -1, -1, -1],
    ]
    np.testing.assert_array_equal(layout.distances_to((3, 1)), expected)


def test_rllib_makes_it_by_name() -> None:
    """RLlib hands `env_config` to gymnasium.make, lists as YAML gives them."""
    from ray.rllib.env.env_context import EnvContext
    from ray.rllib.env.utils import _gym_env_creator

    config = {"frame": "gymnasium", "start_cell": [1, 1], "goal_cell": [3, 1], "max_episode_steps": 7}
    env = _gym_env_creator(EnvContext(config, worker_index=0), ANT)
    assert env.spec.max_episode_steps == 7
    np.testing.assert_allclose(env.unwrapped.goal, [-4, -4])
