"""MiniGrid's DoorKey: take the key, open the door, reach the goal; reward 1 there, and no other.

(Farama's minigrid package; imported when one is made, for it is an extra.)
"""

from __future__ import annotations

from collections import deque
from typing import Any

import gymnasium as gym
import numpy as np

_LEFT, _RIGHT, _FORWARD, _PICKUP, _TOGGLE = 0, 1, 2, 3, 5
_NUM_OBJECTS, _NUM_STATES, _NUM_DIRECTIONS = 11, 3, 4
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # MiniGrid's directions as (x, y)


class DoorKey(gym.Wrapper):
    """The whole grid as one flat vector of zeros and ones, and the reward 1 at the goal instead of less for later.

    Observations are (size^2 * 11 + 3 + 4,) float32: the kind of object in each cell (the agent among them), the
    door's state, and the agent's direction. A key that is nowhere is in the agent's hand.
    """

    metadata = {"render_modes": ["human", "rgb_array"]}  # noqa: RUF012 (gymnasium's way)

    def __init__(self, size: int = 5, max_steps: int = 100, **kwargs: Any) -> None:
        try:
            from minigrid.envs.doorkey import DoorKeyEnv
        except ImportError as error:
            raise ImportError(
                f"this environment needs minigrid ({error}): pip install rllib_calql[minigrid]"
            ) from error
        super().__init__(DoorKeyEnv(size=size, max_steps=max_steps, **kwargs))
        width = size**2 * _NUM_OBJECTS + _NUM_STATES + _NUM_DIRECTIONS
        self.observation_space = gym.spaces.Box(0.0, 1.0, (width,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        _, info = self.env.reset(seed=seed, options=options)
        return self._observation(), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        _, reward, terminated, truncated, info = self.env.step(int(action))
        return self._observation(), float(float(reward) > 0.0), terminated, truncated, info

    def _observation(self) -> np.ndarray:
        from minigrid.core.constants import OBJECT_TO_IDX

        world: Any = self.unwrapped
        cells = world.grid.encode()
        kinds, states = cells[..., 0].copy(), cells[..., 2]
        door_state = int(states[kinds == OBJECT_TO_IDX["door"]][0])
        kinds[tuple(world.agent_pos)] = OBJECT_TO_IDX["agent"]
        parts = (
            np.eye(_NUM_OBJECTS, dtype=np.float32)[kinds.reshape(-1)].reshape(-1),
            np.eye(_NUM_STATES, dtype=np.float32)[door_state],
            np.eye(_NUM_DIRECTIONS, dtype=np.float32)[world.agent_dir],
        )
        return np.concatenate(parts)


def planned_action(env: gym.Env, observation: np.ndarray) -> int:
    """The next action of a shortest way to the key, with it to the door, and through the door to the goal."""
    world: Any = env.unwrapped
    places = {
        cell.type: (x, y)
        for x in range(world.width)
        for y in range(world.height)
        if (cell := world.grid.get(x, y))
    }
    door = world.grid.get(*places["door"])
    if door.is_locked and world.carrying is None:
        return _towards(world, places["key"], _PICKUP)
    if not door.is_open:
        return _towards(world, places["door"], _TOGGLE)
    return _towards(world, places["goal"], _FORWARD)


def _towards(world: Any, target: tuple[int, int], at_target: int) -> int:
    """The first action of a shortest way to face `target`; facing it, `at_target`."""
    start = int(world.agent_pos[0]), int(world.agent_pos[1]), int(world.agent_dir)
    first: dict[tuple[int, int, int], int | None] = {start: None}
    queue = deque([start])
    while queue:
        x, y, direction = pose = queue.popleft()
        ahead = x + _STEPS[direction][0], y + _STEPS[direction][1]
        if ahead == target:
            found = first[pose]
            return at_target if found is None else found
        cell = world.grid.get(*ahead)
        moves = {_LEFT: (x, y, (direction - 1) % 4), _RIGHT: (x, y, (direction + 1) % 4)}
        if cell is None or cell.can_overlap():
            moves[_FORWARD] = (*ahead, direction)
        for action, following in moves.items():
            if following not in first:
                first[following] = action if first[pose] is None else first[pose]
                queue.append(following)
    return _RIGHT  # there is no way: something was dropped in it
