"""Maze layouts: which cells are walls, where a task starts and ends, and cell coordinates in both frames.

The maps with their start and goal cells are those of D4RL's AntMaze v2 tasks (`d4rl/locomotion/maze_env.py`);
the walls are the same as gymnasium-robotics' `U_MAZE`, `MEDIUM_MAZE` and `LARGE_MAZE`.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Frame = Literal["d4rl", "gymnasium"]
Cell = tuple[int, int]
MazeMap = Sequence[Sequence[int | str]]

START, GOAL = "r", "g"

# 1 is a wall, "r" the start ("reset") and "g" the goal, as both libraries write them.
MAPS: dict[str, MazeMap] = {
    "umaze": [
        [1, 1, 1, 1, 1],
        [1, "r", 0, 0, 1],
        [1, 1, 1, 0, 1],
        [1, "g", 0, 0, 1],
        [1, 1, 1, 1, 1],
    ],
    "medium": [
        [1, 1, 1, 1, 1, 1, 1, 1],
        [1, "r", 0, 1, 1, 0, 0, 1],
        [1, 0, 0, 1, 0, 0, 0, 1],
        [1, 1, 0, 0, 0, 1, 1, 1],
        [1, 0, 0, 1, 0, 0, 0, 1],
        [1, 0, 1, 0, 0, 1, 0, 1],
        [1, 0, 0, 0, 1, 0, "g", 1],
        [1, 1, 1, 1, 1, 1, 1, 1],
    ],
    "large": [
        [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
        [1, "r", 0, 0, 0, 1, 0, 0, 0, 0, 0, 1],
        [1, 0, 1, 1, 0, 1, 0, 1, 0, 1, 0, 1],
        [1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1],
        [1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 0, 1],
        [1, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 1],
        [1, 1, 0, 1, 0, 1, 0, 1, 0, 1, 1, 1],
        [1, 0, 0, 1, 0, 0, 0, 1, 0, "g", 0, 1],
        [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
    ],
}


def default_map(name: str, frame: Frame) -> MazeMap:
    """The named layout's map for a frame.

    D4RL's U-maze is walked towards growing y. With gymnasium's rows that is from row 3 to row 1, so there the
    rows are reversed. The other two keep D4RL's cells in both frames, as data made in gymnasium-robotics do.
    """
    if name not in MAPS:
        raise ValueError(f"unknown maze {name!r}; there are {', '.join(MAPS)}")
    return MAPS[name][::-1] if (name, frame) == ("umaze", "gymnasium") else MAPS[name]


@dataclass(frozen=True)
class Layout:
    """A maze with its task: walls, start and goal cell, and the frame its coordinates are given in.

    Attributes:
        walls: (rows, columns) bool, True where the cell is a wall.
        start, goal: (row, column) of the cells.
        cell_size: side of a cell in metres (AntMaze 4, PointMaze 1).
        frame: "d4rl": x grows with the column and y with the row, origin at the start cell's centre;
            "gymnasium": x grows with the column and y AGAINST the row, origin at the maze's centre.
    """

    walls: np.ndarray
    start: Cell
    goal: Cell
    cell_size: float
    frame: Frame

    @classmethod
    def parse(
        cls,
        maze_map: MazeMap | str,
        cell_size: float,
        frame: Frame,
        start: Sequence[int] | None = None,
        goal: Sequence[int] | None = None,
    ) -> Layout:
        """Read a map (nested lists, or the same as JSON text); cells given override its "r" and "g".

        Raises ValueError for a ragged or open map, a missing, walled, outside or shared start or goal cell.
        """
        if frame not in ("d4rl", "gymnasium"):
            raise ValueError(f"frame must be 'd4rl' or 'gymnasium', not {frame!r}")
        rows = [list(row) for row in (json.loads(maze_map) if isinstance(maze_map, str) else maze_map)]
        if not rows or any(len(row) != len(rows[0]) for row in rows):
            raise ValueError("maze_map must be a rectangle: rows of equal length")
        walls = np.array([[cell == 1 or cell == "1" for cell in row] for row in rows])
        if not (walls[[0, -1]].all() and walls[:, [0, -1]].all()):
            raise ValueError("maze_map must be closed by walls (1) on all four sides")
        cells = {
            "start_cell": _pick(rows, walls, "start_cell", start, START),
            "goal_cell": _pick(rows, walls, "goal_cell", goal, GOAL),
        }
        if cells["start_cell"] == cells["goal_cell"]:
            raise ValueError(f"start_cell and goal_cell are the same cell {cells['start_cell']}")
        return cls(walls, cells["start_cell"], cells["goal_cell"], float(cell_size), frame)

    def cell_to_xy(self, cell: Sequence[int] | np.ndarray) -> np.ndarray:
        """(..., 2) rows and columns to (..., 2) x, y of the cells' centres, float64, in this frame."""
        row, column = np.moveaxis(np.asarray(cell, np.float64), -1, 0)
        if self.frame == "d4rl":
            return self.cell_size * np.stack([column - self.start[1], row - self.start[0]], axis=-1)
        height, width = self.walls.shape
        return self.cell_size * np.stack([column + 0.5 - width / 2, height / 2 - row - 0.5], axis=-1)

    def xy_to_cell(self, xy: np.ndarray) -> np.ndarray:
        """(..., 2) positions in this frame to (..., 2) int rows and columns of the cells they lie in."""
        offset = (np.asarray(xy, np.float64) - self.cell_to_xy((0, 0))) / self.cell_size
        row = offset[..., 1] if self.frame == "d4rl" else -offset[..., 1]
        return np.floor(np.stack([row, offset[..., 0]], axis=-1) + 0.5).astype(np.int64)

    def is_wall(self, xy: np.ndarray) -> np.ndarray:
        """(..., 2) positions in this frame to (...) bool: inside a wall, or outside the maze."""
        cell = self.xy_to_cell(xy)
        inside = np.asarray(((cell >= 0) & (cell < self.walls.shape)).all(-1))
        # Cell (0, 0) is a wall: the outside is answered by it.
        row, column = np.moveaxis(np.where(inside[..., None], cell, 0), -1, 0)
        return np.asarray(self.walls[row, column])

    def free_cells(self) -> np.ndarray:
        """(cells, 2) int: rows and columns of the cells from which a way leads to the goal (itself not)."""
        return np.argwhere(self.distances_to(self.goal) > 0)

    def distances_to(self, cell: Cell) -> np.ndarray:
        """(rows, columns) int: steps between neighbouring free cells to `cell`; -1 where no way leads."""
        distance = np.full(self.walls.shape, -1)
        distance[cell] = 0
        queue = deque([cell])
        while queue:
            row, column = queue.popleft()
            for near in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
                if distance[near] < 0 and not self.walls[near]:
                    distance[near] = distance[row, column] + 1
                    queue.append(near)
        return distance


def _pick(
    rows: list[list[int | str]], walls: np.ndarray, name: str, given: Sequence[int] | None, letter: str
) -> Cell:
    """The cell given, else the map's only one with this letter."""
    if given is None:
        marked = [(i, j) for i, row in enumerate(rows) for j, value in enumerate(row) if value == letter]
        if len(marked) != 1:
            raise ValueError(f"maze_map marks {len(marked)} cells with {letter!r}: mark one, or give {name}")
        return marked[0]
    return check_cell(name, given, walls)


def check_cell(name: str, given: Sequence[int], walls: np.ndarray) -> Cell:
    """The cell as a (row, column) pair; ValueError where it is outside the maze or a wall."""
    cell = tuple(int(index) for index in given)
    rows_columns = walls.shape
    if len(cell) != 2 or not (0 <= cell[0] < rows_columns[0] and 0 <= cell[1] < rows_columns[1]):
        raise ValueError(f"{name} {list(cell)} is not a [row, column] of a maze of {list(rows_columns)} cells")
    if walls[cell]:
        raise ValueError(f"{name} {list(cell)} is a wall")
    return cell[0], cell[1]
