"""D4RL's kitchen tasks: gymnasium-robotics' robot and kitchen, with D4RL's observation, noise, start and reward.

Source of the conventions: d4rl's `kitchen_envs.py`, `kitchen_multitask_v0.py` and the script that made its files
(Farama-Foundation/D4RL, Apache-2.0).
"""

from __future__ import annotations

from typing import Any, Literal

import gymnasium as gym
import numpy as np

from rllib_calql.envs.robotics import robotics

_LIGHT_AND_SLIDE = ("microwave", "kettle", "light switch", "slide cabinet")
# The data of "complete" are whole demonstrations of its sub-tasks, those of "partial" some, those of "mixed" none.
SUB_TASKS: dict[str, tuple[str, ...]] = {
    "complete": _LIGHT_AND_SLIDE,
    "partial": _LIGHT_AND_SLIDE,
    "mixed": ("microwave", "kettle", "bottom burner", "light switch"),
}
# Each sub-task's joints among the 30 positions, and where they should be.
GOALS: dict[str, tuple[slice, tuple[float, ...]]] = {
    "bottom burner": (slice(11, 13), (-0.88, -0.01)),
    "light switch": (slice(17, 19), (-0.69, -0.05)),
    "slide cabinet": (slice(19, 20), (0.37,)),
    "microwave": (slice(22, 23), (-0.75,)),
    "kettle": (slice(23, 30), (-0.23, 0.75, 1.62, 0.99, 0.0, 0.0, -0.06)),
}
SOLVED_WITHIN = 0.3  # distance of a sub-task's joints to their goal
NUM_ROBOT_JOINTS = 9
NOISE = 0.1  # share of the amplitudes in the robot's description ...
LAST_AMPLITUDE = 0.005  # ... from which gymnasium-robotics does not read the 30th position's
# Arm and fingers; knobs, burners, light, cabinets and microwave; the kettle's position and quaternion.
START = np.concatenate(
    [
        [0.148388023, -1.76848573, 1.84390296, -2.4768576, 0.260252026, 0.712533105, 1.59515394],
        [0.0479267505, 0.0371350919],
        [-2.6627985e-4, -5.18043486e-5, 3.1287722e-5, -4.51199853e-5, -3.90842156e-6, -4.22629655e-5],
        [6.28065475e-5, 4.04984708e-5, 4.62730939e-4, -2.26906415e-4, -4.65501369e-4],
        [-6.44129196e-3, -1.77048263e-3, 1.08009684e-3],
        [-0.26939744, 0.350383255, 1.61944683],
        [1.00618764, 4.06395120e-3, -6.62095997e-3, -2.68278933e-4],
    ]
)
_Franka: Any = robotics("franka_kitchen.franka_env:FrankaRobot")


class Kitchen(_Franka):
    """A 9-joint Franka arm arranges a kitchen: four sub-tasks, in whichever order.

    Observed are 60 numbers, as in D4RL's files: the positions of 9 joints of the robot and of 21 of the kitchen's
    objects, both with noise, and the goal of these 30, which is 0 but for the sub-tasks'. An action is the robot's
    joint speeds for 0.08 s, in shares of 2 rad/s (or m/s). `info["success"]` is the share of the sub-tasks that
    have been solved since the episode began: D4RL's normalised score.

    Args:
        task: "complete", "partial" or "mixed" (the registered ids set it).
        reward: "solved" (default; what D4RL's files hold): how many sub-tasks are solved at this step; episodes
            run to the time limit. "new" (what D4RL's environment gives): how many are solved for the first time;
            the episode ends when all have been.
        render_mode: as gymnasium-robotics'.
    """

    def __init__(
        self,
        task: str = "complete",
        *,
        reward: Literal["solved", "new"] = "solved",
        render_mode: str | None = None,
    ) -> None:
        if task not in SUB_TASKS:
            raise ValueError(f"unknown task {task!r}; there are {', '.join(SUB_TASKS)}")
        if reward not in ("solved", "new"):
            raise ValueError(f"reward must be 'solved' or 'new', not {reward!r}")
        super().__init__(
            "../assets/kitchen_franka/kitchen_assets/kitchen_env_model.xml",
            robot_noise_ratio=NOISE,
            render_mode=render_mode,
        )
        self.init_qpos, self.init_qvel = START, np.zeros(self.model.nv)
        self.sub_tasks, self._reward = SUB_TASKS[task], reward
        self.goal = np.zeros(len(START))
        for name in self.sub_tasks:
            joints, self.goal[joints] = GOALS[name][0], GOALS[name][1]
        self._ever = np.zeros(len(self.sub_tasks), dtype=bool)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (NUM_ROBOT_JOINTS,), np.float32)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2 * len(START),), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode, always in the same state; only the noise is drawn."""
        self._ever[:] = False
        observation, _ = super().reset(seed=seed, options=options)
        return observation, {"success": 0.0}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One control step, see the class."""
        observation, *_ = super().step(action)
        solved = self.solved(observation)
        new = solved & ~self._ever
        self._ever |= solved
        reward, terminated = (solved, False) if self._reward == "solved" else (new, bool(self._ever.all()))
        return observation, float(reward.sum()), terminated, False, {"success": float(self._ever.mean())}

    def solved(self, observation: np.ndarray) -> np.ndarray:
        """(4,) bool: which sub-tasks are solved in an observation, noise included, as in D4RL."""
        away = observation[: len(START)] - self.goal
        return np.array([np.linalg.norm(away[GOALS[name][0]]) < SOLVED_WITHIN for name in self.sub_tasks])

    def _get_obs(self) -> np.ndarray:
        """What is observed now; the next step's targets are relative to the noisy joints, as in D4RL."""
        noise = (
            NOISE
            * np.append(self.robot_pos_noise_amp, LAST_AMPLITUDE)
            * self.np_random.uniform(-1.0, 1.0, len(START))
        )
        positions = self.data.qpos + noise
        self._last_robot_qpos = positions[:NUM_ROBOT_JOINTS]
        return np.concatenate([positions, self.goal]).astype(np.float32)
