"""PointMaze as a camera sees it: MuJoCo's pictures instead of positions."""

from __future__ import annotations

import ctypes.util
import os
import sys
from typing import Any

import gymnasium as gym
import numpy as np

from rllib_calql.envs.mazes import PointMaze

# Metres. Ball and goal are drawn as large as a cell allows: half the size is learned from half as fast.
_RADIUS = 0.4


class VisualPointMaze(PointMaze):
    """PointMaze seen by a camera straight above it: a ball (green), its goal (red), walls.

    The picture is of the whole maze, down to half of its outer walls, y upwards. Shadows, reflections and
    multi-sampling are off. It does not tell how fast the ball is: use `frame_stack`, or `velocity`.

    Args:
        maze: see `PointMaze`.
        size: the picture is (size, size, 3) uint8.
        velocity: observe a Dict of `image` and `velocity`, (2,) float32 in m/s, instead of the picture alone.
        **kwargs: `PointMaze`'s.

    Raises:
        RuntimeError: there is nothing to render with. `MUJOCO_GL`, where it is not set, becomes "egl", or "osmesa"
            where there is no EGL.
    """

    def __init__(self, maze: str = "umaze", *, size: int = 48, velocity: bool = False, **kwargs: Any) -> None:
        choose_renderer()
        super().__init__(maze, **kwargs)
        self._size, self._velocity = size, velocity
        self._renderer: Any = None
        picture = gym.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.observation_space: gym.Space = picture
        if velocity:
            speeds = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
            self.observation_space = gym.spaces.Dict({"image": picture, "velocity": speeds})

    def _flatten(self, parts: dict[str, np.ndarray]) -> Any:
        state = super()._flatten(parts)
        return {"image": self.picture(), "velocity": state[2:]} if self._velocity else self.picture()

    def picture(self) -> np.ndarray:
        """The present picture, (size, size, 3) uint8."""
        if self._renderer is None:
            self._renderer = self._make_renderer()
        self._renderer.viewer.make_context_current()  # another environment's may be
        return np.ascontiguousarray(self._renderer.render("rgb_array"))

    def _make_renderer(self) -> Any:
        import mujoco
        from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer

        model = self._simulation.model
        model.vis.quality.shadowsize = model.vis.quality.offsamples = 0
        model.site_size[:, 0] = _RADIUS
        model.site("particle_site").pos[2] = _RADIUS  # above the walls
        model.vis.global_.orthographic = 1  # walls hide nothing; the field of view is then in metres
        model.vis.global_.fovy = self.layout.cell_size * (max(self.layout.walls.shape) - 1)
        camera = {"lookat": np.zeros(3), "distance": 5.0, "azimuth": 90.0, "elevation": -90.0}
        renderer = MujocoRenderer(model, self._simulation.data, camera, self._size, self._size, camera_id=-1)
        flags = renderer._get_viewer("rgb_array").scn.flags
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            flags[flag] = 0
        return renderer

    def close(self) -> None:
        """Closes the camera and the simulation."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        super().close()


def choose_renderer() -> None:
    """Sets `MUJOCO_GL` to what renders without a screen, on Linux where it is not set.

    Raises:
        RuntimeError: neither EGL nor OSMesa is installed.
    """
    if sys.platform != "linux" or os.environ.get("MUJOCO_GL"):
        return
    for backend, library in (("egl", "EGL"), ("osmesa", "OSMesa")):
        if ctypes.util.find_library(library):
            os.environ["MUJOCO_GL"] = backend
            return
    raise RuntimeError(
        "pictures need EGL or OSMesa to be rendered without a screen, and neither is installed: apt-get install "
        "libegl1 libgl1-mesa-dri (or libosmesa6); with a screen set MUJOCO_GL=glfw"
    )
