"""D4RL's tasks: which file holds the data, and after how many steps an episode is cut off.

Source: d4rl's `infos.py` and the registrations in its packages (Farama-Foundation/D4RL, Apache-2.0). The
names follow rules, so the table is made by rule.
"""

from __future__ import annotations

from typing import NamedTuple

BASE_URL = "http://rail.eecs.berkeley.edu/datasets/offline_rl"


class Task(NamedTuple):
    """One D4RL task."""

    file: str  # below BASE_URL
    max_episode_steps: int


def _antmaze() -> dict[str, Task]:
    tasks = {}
    mazes = {"umaze": ("u-maze", 700), "medium": ("big-maze", 1000), "large": ("hardest-maze", 1000)}
    for maze, (old_name, steps) in mazes.items():
        kinds = {"": (False, False)} if maze == "umaze" else {"-play": (True, False)}
        for kind, (starts, goals) in {**kinds, "-diverse": (True, True)}.items():
            rest = f"noisy_multistart_{starts}_multigoal_{goals}_sparse"
            for version, file in {
                "v0": f"ant_maze_new/Ant_maze_{old_name}_{rest}.hdf5",
                "v1": f"ant_maze_v1/Ant_maze_{maze}_{rest}.hdf5",
                "v2": f"ant_maze_v2/Ant_maze_{old_name}_{rest}_fixed.hdf5",
            }.items():
                tasks[f"antmaze-{maze}{kind}-{version}"] = Task(file, steps)
    return tasks


def _adroit() -> dict[str, Task]:
    tasks = {}
    limits = {"pen": (100, 200), "hammer": (200, 600), "door": (200, 300), "relocate": (200, 500)}
    for task, (steps, long_steps) in limits.items():
        for kind, old_file in {
            "human": f"{task}-v0_demos_clipped",
            "cloned": f"{task}-demos-v0-bc-combined",
            "expert": f"{task}-v0_expert_clipped",
        }.items():
            files = {"v0": f"hand_dapg/{old_file}.hdf5", "v1": f"hand_dapg_v1/{task}-{kind}-v1.hdf5"}
            for version, file in files.items():
                tasks[f"{task}-{kind}-{version}"] = Task(file, steps)
                if kind == "human":
                    tasks[f"{task}-human-longhorizon-{version}"] = Task(file, long_steps)
    return tasks


def _locomotion() -> dict[str, Task]:
    tasks = {}
    for robot in ("hopper", "halfcheetah", "walker2d", "ant"):
        for kind in ("random", "medium", "expert", "medium-expert", "medium-replay", "full-replay"):
            name = f"{robot}_{kind.replace('-', '_')}"
            for version in ("v1", "v2"):
                tasks[f"{robot}-{kind}-{version}"] = Task(f"gym_mujoco_{version}/{name}-{version}.hdf5", 1000)
            if kind == "medium-replay":
                name = f"{robot.removesuffix('2d')}_mixed"
            if kind != "full-replay":
                tasks[f"{robot}-{kind}-v0"] = Task(f"gym_mujoco/{name}.hdf5", 1000)
    tasks["ant-random-expert-v0"] = Task("gym_mujoco/ant_random_expert.hdf5", 1000)
    return tasks


def _kitchen() -> dict[str, Task]:
    files = {
        "complete": "mini_kitchen_microwave_kettle_light_slider",
        "partial": "kitchen_microwave_kettle_light_slider",
        "mixed": "kitchen_microwave_kettle_bottomburner_light",
    }
    return {f"kitchen-{kind}-v0": Task(f"kitchen/{file}-v0.hdf5", 280) for kind, file in files.items()}


def _maze2d() -> dict[str, Task]:
    tasks = {}
    v1_steps = {"umaze": 300, "medium": 600, "large": 800}
    v0_steps = {"open": 150, "umaze": 150, "medium": 250, "large": 600}
    for suffix, reward in {"": "sparse", "-dense": "dense"}.items():
        for maze, steps in v0_steps.items():
            tasks[f"maze2d-{maze}{suffix}-v0"] = Task(f"maze2d/maze2d-{maze}-{reward}.hdf5", steps)
        for maze, steps in v1_steps.items():
            for name in (maze, f"eval-{maze}"):
                tasks[f"maze2d-{name}{suffix}-v1"] = Task(f"maze2d/maze2d-{name}-{reward}-v1.hdf5", steps)
    return tasks


TASKS = {**_antmaze(), **_adroit(), **_locomotion(), **_kitchen(), **_maze2d()}
