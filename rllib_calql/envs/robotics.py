"""Gymnasium-robotics' environments, imported when one is made: the package is an extra."""

from __future__ import annotations

import importlib
from typing import Any


def robotics(name: str) -> Any:
    """The class `module:Name` below `gymnasium_robotics.envs`.

    Raises:
        ImportError: gymnasium-robotics or MuJoCo is not installed.
    """
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(f"gymnasium_robotics.envs.{module}"), attribute)
    except ImportError as error:
        raise ImportError(
            f"this environment needs gymnasium-robotics and MuJoCo ({error}): pip install rllib_calql[robotics]"
        ) from error
