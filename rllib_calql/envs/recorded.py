"""The environment that a dataset was recorded in: made again, and compared with the configured one.

What is recorded is the JSON of gymnasium's `EnvSpec`. Only its id, arguments, time limit and gymnasium's own
wrappers are used, never the code it points to, so that data from anywhere can be trusted with it.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from typing import Any

import gymnasium as gym
import numpy as np

from rllib_calql.data.errors import DatasetError
from rllib_calql.data.rows import Metadata
from rllib_calql.envs import register

# Packages whose environments gymnasium knows only once they are imported.
_PACKAGES = ("gymnasium_robotics", "ale_py", "minigrid")
_IGNORED = ("render_mode", "width", "height", "camera_id", "camera_name")
_WRAPPERS = "gymnasium.wrappers."
_FOR_WATCHING = ("RecordVideo", "HumanRendering", "RenderCollection")


def make_recorded(environment: str, **kwargs: Any) -> gym.Env:
    """The recorded environment, as the installed packages define its id.

    Args:
        environment: JSON of gymnasium's `EnvSpec`.
        **kwargs: arguments instead of or besides the recorded ones.

    Raises:
        DatasetError: nothing installed knows the id, its package refuses the arguments, or a wrapper is not
            gymnasium's own.
    """
    spec = _parsed(environment)
    for wrapper in spec["additional_wrappers"]:
        if not wrapper["entry_point"].startswith(_WRAPPERS) or wrapper["kwargs"] is None:
            raise DatasetError(
                f"{spec['id']} was recorded through the wrapper {wrapper['entry_point']}, which is not "
                "gymnasium's own: make the environment yourself and give it to config.environment"
            )
    _register(spec)
    try:
        given = {"max_episode_steps": spec["max_episode_steps"]} | spec["kwargs"] | kwargs
        env = gym.make(spec["id"], **given)
        for wrapper in spec["additional_wrappers"]:
            env = getattr(gym.wrappers, wrapper["entry_point"].rpartition(":")[2])(env, **wrapper["kwargs"])
    except Exception as error:  # whatever the environment's own code says
        raise DatasetError(
            f"the recorded environment {spec['id']} cannot be made ({error}): install and import its package, or "
            "give an environment of your own to config.environment"
        ) from error
    return env


def with_kwargs(environment: str, **kwargs: Any) -> str:
    """The same recorded environment with other arguments."""
    spec = json.loads(environment)
    return json.dumps({**spec, "kwargs": {**spec.get("kwargs", {}), **kwargs}})


def goes_on_after_success(environment: str) -> bool:
    """Whether it is a maze of gymnasium-robotics whose episodes do not end at the goal, their default."""
    spec = _parsed(environment)
    maze = re.match(r"(AntMaze|PointMaze)_", spec["id"]) is not None
    return maze and spec["kwargs"].get("continuing_task", True) is True


def differences(metadata: Metadata, env: gym.Env) -> list[str]:
    """In what the configured environment is not the one that a dataset was recorded in; empty if in nothing.

    Spaces are compared by what they hold, whether flattened or not, the environments by id, arguments and time
    limit, as far as each is known.
    """
    found = []
    for name in ("observation_space", "action_space"):
        recorded, present = getattr(metadata, name), getattr(env, name)
        if recorded is not None and not _same_space(recorded, present, bounds=name == "action_space"):
            found.append(f"{name.replace('_', ' ')}: recorded {recorded}, configured {present}")
    if metadata.environment is None or env.spec is None:
        return found
    recorded_spec, spec = _parsed(metadata.environment), env.spec
    if recorded_spec["id"] != spec.id:
        found.append(f"id: recorded {recorded_spec['id']}, configured {spec.id}")
    if (steps := recorded_spec["max_episode_steps"]) != spec.max_episode_steps:
        found.append(f"max_episode_steps: recorded {steps}, configured {spec.max_episode_steps}")
    defaults = _defaults(env) if recorded_spec["id"] == spec.id else {}
    before, now = ({**defaults, **_plain(kwargs)} for kwargs in (recorded_spec["kwargs"], spec.kwargs))
    for name in sorted(before.keys() & now.keys() - set(_IGNORED)):
        if before[name] != now[name]:
            found.append(
                "maze_map: another maze"
                if name == "maze_map"
                else f"{name}: recorded {before[name]}, configured {now[name]}"
            )
    return found


def _parsed(environment: str) -> dict[str, Any]:
    """What is used of an `EnvSpec`'s JSON."""
    try:
        spec = json.loads(environment)
        wrappers = [
            {"entry_point": str(wrapper["entry_point"]), "kwargs": wrapper["kwargs"]}
            for wrapper in spec.get("additional_wrappers") or ()
        ]
        steps = spec.get("max_episode_steps")
        return {
            "id": str(spec["id"]),
            "entry_point": str(spec.get("entry_point")),
            "kwargs": dict(spec.get("kwargs") or {}),
            "max_episode_steps": None if steps is None else int(steps),
            "additional_wrappers": [w for w in wrappers if not w["entry_point"].endswith(_FOR_WATCHING)],
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DatasetError(
            f"the recorded environment is not the JSON of a gymnasium EnvSpec: {error!r}"
        ) from error


def _register(spec: dict[str, Any]) -> None:
    """Makes the id known where a package that we know of registers it."""
    register()
    package = spec["entry_point"].partition(".")[0]
    if spec["id"] not in gym.registry and package in _PACKAGES:
        module = importlib.import_module(package)
        gym.register_envs(module)
    if spec["id"] not in gym.registry:
        raise DatasetError(
            f"the recorded environment {spec['id']} ({spec['entry_point']}) is not registered with gymnasium: "
            "import the package that registers it, or give an environment of your own to config.environment"
        )


def _same_space(recorded: gym.Space, present: gym.Space, bounds: bool) -> bool:
    if recorded == present:
        return True
    try:
        one, other = gym.spaces.flatten_space(recorded), gym.spaces.flatten_space(present)
    except NotImplementedError:
        return False
    if not (isinstance(one, gym.spaces.Box) and isinstance(other, gym.spaces.Box)) or one.shape != other.shape:
        return False
    if isinstance(recorded, gym.spaces.Dict) and isinstance(present, gym.spaces.Dict):
        return recorded.keys() == present.keys()
    return not bounds or (np.allclose(one.low, other.low) and np.allclose(one.high, other.high))


def _defaults(env: gym.Env) -> dict[str, Any]:
    """The arguments that the environment's class has defaults for."""
    parameters = inspect.signature(type(env.unwrapped)).parameters.values()
    return _plain({p.name: p.default for p in parameters if p.default is not p.empty})


def _plain(kwargs: dict[str, Any]) -> dict[str, Any]:
    """As they come out of JSON."""
    return json.loads(json.dumps(kwargs, default=lambda value: getattr(value, "tolist", value.__str__)()))
