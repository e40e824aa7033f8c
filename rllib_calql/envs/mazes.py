"""AntMaze and PointMaze with one fixed start cell and one fixed goal, as flat observations, in either frame.

Physics, robots and walls are gymnasium-robotics' (extra `robotics`); this module sets the task as D4RL does:
reward 1 at the goal and 0 elsewhere, the episode ENDS (terminated) at the goal, `info["success"]` says so.
D4RL's reference scores of these tasks are 0 and 1, so the normalised score of an episode is its success.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import gymnasium as gym
import numpy as np

from rllib_calql.envs.layouts import Cell, Frame, Layout, MazeMap, check_cell, default_map
from rllib_calql.envs.robotics import robotics


class Maze(gym.Env[np.ndarray, np.ndarray]):
    """What both mazes share: the task in the layout's frame around gymnasium-robotics' simulation.

    The simulation always lives in gymnasium's frame. For D4RL's frame the rows of the map are reversed before
    the simulation is built, so that y grows with the row, and `self._origin` is subtracted from positions.
    """

    metadata: ClassVar[dict[str, Any]] = {
        "render_modes": ["human", "rgb_array", "depth_array"],
        "render_fps": 50,
    }
    # D4RL ends an episode within 0.5 m of the goal, gymnasium-robotics within 0.45 m.
    _RADIUS: ClassVar[dict[Frame, float]] = {"d4rl": 0.5, "gymnasium": 0.45}

    def __init__(
        self,
        robot: str,
        layout: Layout,
        *,
        goal_draw: Literal["fixed", "d4rl"],
        goal_radius: float | None,
        random_start: bool,
        position_noise: float,
        render_mode: str | None,
        **simulation: Any,
    ) -> None:
        if goal_draw not in ("fixed", "d4rl"):
            raise ValueError(f"goal_draw must be 'fixed' or 'd4rl', not {goal_draw!r}")
        if not 0 <= position_noise < 0.5:
            raise ValueError(f"position_noise is a share of a cell in [0, 0.5), not {position_noise}")
        self.layout = layout
        self.goal_radius = self._RADIUS[layout.frame] if goal_radius is None else float(goal_radius)
        self.render_mode = render_mode
        self._goal_draw = goal_draw
        self._random_start = random_start
        self._round: list[list[int]] = []  # start cells still to come
        self._position_noise = position_noise
        self.goal = layout.cell_to_xy(layout.goal)

        simulated_map = layout.walls.astype(int).tolist()
        self._simulation = robotics(f"maze.{robot}")(
            maze_map=simulated_map[::-1] if layout.frame == "d4rl" else simulated_map,
            render_mode=render_mode,
            continuing_task=False,
            **simulation,
        )
        self._simulation.position_noise_range = 0.0
        # The model is loaded by now; gymnasium-robotics leaves its description behind.
        Path(self._simulation.tmp_xml_file_path).unlink(missing_ok=True)
        maze = self._simulation.maze
        row = len(layout.walls) - 1 - layout.start[0] if layout.frame == "d4rl" else layout.start[0]
        self._origin = maze.cell_rowcol_to_xy(np.array([row, layout.start[1]])) - layout.cell_to_xy(layout.start)

        self.action_space = self._simulation.action_space
        size = sum(self._simulation.observation_space[key].shape[0] for key in self._KEYS)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (size,), np.float32)

    state: np.ndarray  # the flat vector of the present step, whatever is observed of it
    _KEYS: ClassVar[tuple[str, ...]]
    _ROBOT: ClassVar[str]  # the simulation's name of it

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode at the start cell; `options={"start_cell": (row, column)}` moves it once."""
        super().reset(seed=seed)
        if seed is not None:
            self._round = []
        start_cell = self._start_cell(options or {})
        size = self.layout.cell_size
        self.goal = self.layout.cell_to_xy(self.layout.goal)
        if self._goal_draw == "d4rl":
            self.goal += self.np_random.uniform(0, size / 4, 2) + self.np_random.uniform(0, size / 8, 2)
        start = self.layout.cell_to_xy(start_cell) + size * self.np_random.uniform(
            -self._position_noise, self._position_noise, 2
        )
        # gymnasium-robotics asks these two methods where an episode starts and ends.
        self._simulation.generate_target_goal = lambda: self.goal + self._origin
        self._simulation.generate_reset_pos = lambda: start + self._origin
        parts, _ = self._simulation.reset(seed=seed)
        return self._flatten(parts), {"success": False}

    def _start_cell(self, options: dict[str, Any]) -> Cell:
        if "start_cell" in options:
            return check_cell("start_cell", options["start_cell"], self.layout.walls)
        if self._random_start:
            if not self._round:
                self._round = self.np_random.permutation(self.layout.free_cells()).tolist()
            row, column = self._round.pop()
            return row, column
        return self.layout.start

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One control step; `terminated` exactly when the robot is within `goal_radius` of the goal."""
        parts, *_ = self._simulation.step(action)
        distance = np.linalg.norm(parts["achieved_goal"] - self._origin - self.goal)
        success = bool(distance <= self.goal_radius)
        return self._flatten(parts), float(success), success, False, {"success": success}

    def restore(self, observation: np.ndarray) -> np.ndarray:
        """Puts the robot where an observation says, joints and velocities; returns what is observed there."""
        state = np.array(observation, np.float64)
        state[:2] += self._origin
        joints = self._robot.model.nq
        self._robot.set_state(state[:joints], state[joints:])
        observed = self._robot._get_obs()
        return self._flatten(self._simulation._get_obs(observed[0] if isinstance(observed, tuple) else observed))

    @property
    def _robot(self) -> Any:
        """gymnasium-robotics' ant or ball, without the maze's task."""
        return getattr(self._simulation, self._ROBOT)

    def _flatten(self, parts: dict[str, np.ndarray]) -> np.ndarray:
        flat = np.concatenate([parts[key] for key in self._KEYS])
        flat[:2] -= self._origin
        self.state = flat.astype(np.float32)
        return self.state

    def render(self) -> Any:
        """The picture of the simulation, as gymnasium-robotics renders it."""
        return self._simulation.render()

    def close(self) -> None:
        """Close the simulation and its viewer."""
        self._simulation.close()


class AntMaze(Maze):
    """An 8-joint ant walks to the goal: 29 numbers, position first, then joints and velocities.

    Args:
        maze: layout "umaze", "medium" or "large" (the registered ids set it).
        frame: "d4rl" (default; what D4RL's data has): origin at the start cell, y grows with the row, success
            within 0.5 m; "gymnasium": origin in the maze's centre, y against the row, success within 0.45 m.
        maze_map: nested lists (or their JSON text): 1 for a wall, 0, "r" for the start, "g" for the goal.
        start_cell, goal_cell: [row, column] of the map, instead of its "r" and "g".
        goal_draw: "fixed" at the goal cell's centre, or "d4rl": drawn anew for each episode as antmaze-v2
            does, centre + U(0, 1) + U(0, 0.5) metres on each axis.
        goal_radius: metres, instead of the frame's.
        random_start: instead of the start cell, start in each free cell but the goal's once, in random order,
            then begin the next round. A reset with a seed begins a new round, so that in training and evaluation,
            whose episodes all have seeds, every episode draws its cell by itself.
        position_noise: the start is uniform within this share of a cell around its centre.
        reset_noise_scale: noise of the ant's own start pose and velocity, D4RL's 0.1 by default.
        dynamics: "d4rl" or "gymnasium", the frame's by default. They are different robots: D4RL's moves in
            steps of 0.1 s with torques up to 30, gymnasium's in steps of 0.05 s with torques up to 150.
        render_mode: as gymnasium-robotics'.
    """

    _KEYS = ("achieved_goal", "observation")
    _ROBOT = "ant_env"

    def __init__(
        self,
        maze: str = "umaze",
        *,
        frame: Frame = "d4rl",
        maze_map: MazeMap | str | None = None,
        start_cell: Sequence[int] | None = None,
        goal_cell: Sequence[int] | None = None,
        goal_draw: Literal["fixed", "d4rl"] = "fixed",
        goal_radius: float | None = None,
        random_start: bool = False,
        position_noise: float = 0.0,
        reset_noise_scale: float = 0.1,
        dynamics: Frame | None = None,
        render_mode: str | None = None,
    ) -> None:
        if dynamics not in (None, "d4rl", "gymnasium"):
            raise ValueError(f"dynamics must be 'd4rl' or 'gymnasium', not {dynamics!r}")
        layout = Layout.parse(
            default_map(maze, frame) if maze_map is None else maze_map, 4.0, frame, start_cell, goal_cell
        )
        super().__init__(
            "ant_maze_v5:AntMazeEnv",
            layout,
            goal_draw=goal_draw,
            goal_radius=goal_radius,
            random_start=random_start,
            position_noise=position_noise,
            render_mode=render_mode,
            include_cfrc_ext_in_observation=False,
        )
        # gymnasium-robotics passes 0 on to the ant and offers no argument for it.
        self._robot._reset_noise_scale = reset_noise_scale
        if (dynamics or frame) == "d4rl":
            model = self._simulation.model
            model.opt.timestep = 0.02
            model.actuator_gear[:, 0] = 30.0
            model.geom_solimp[:, :3] = (0.8, 0.8, 0.01)


class PointMaze(Maze):
    """A force-actuated ball rolls to the goal: 4 numbers, x, y and their velocities.

    The goal is the same in every episode, so it is not part of the observation. Arguments as `AntMaze`'s, in
    gymnasium-robotics' frame by default; "d4rl" here means AntMaze's D4RL frame, with cells of 1 m.

    Args:
        frame_skip: simulation steps of 0.01 s per action. More than gymnasium-robotics' 1 makes a task of
            fewer actions (with 5 they last as long as an ant's), which is learned faster.
    """

    _KEYS = ("observation",)
    _ROBOT = "point_env"

    def __init__(
        self,
        maze: str = "umaze",
        *,
        frame: Frame = "gymnasium",
        maze_map: MazeMap | str | None = None,
        start_cell: Sequence[int] | None = None,
        goal_cell: Sequence[int] | None = None,
        goal_draw: Literal["fixed", "d4rl"] = "fixed",
        goal_radius: float | None = None,
        random_start: bool = False,
        position_noise: float = 0.1,
        frame_skip: int = 1,
        render_mode: str | None = None,
    ) -> None:
        if frame_skip < 1:
            raise ValueError(f"frame_skip must be at least 1, not {frame_skip}")
        layout = Layout.parse(
            default_map(maze, frame) if maze_map is None else maze_map, 1.0, frame, start_cell, goal_cell
        )
        super().__init__(
            "point_maze:PointMazeEnv",
            layout,
            goal_draw=goal_draw,
            goal_radius=goal_radius,
            random_start=random_start,
            position_noise=position_noise,
            render_mode=render_mode,
        )
        # gymnasium-robotics offers no argument for it.
        self.frame_skip = self._robot.frame_skip = frame_skip
