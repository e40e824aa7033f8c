"""Search spaces and trial schedulers as a YAML file or a command line writes them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from ray import tune
from ray.tune.schedulers import SCHEDULER_IMPORT, TrialScheduler, create_scheduler

from rllib_calql.cli.common import UserError

# Ray Tune's own functions, by whose names a file asks for them: {loguniform: [1e-4, 1e-2]}.
SPACES = (
    "choice",
    "uniform",
    "quniform",
    "loguniform",
    "qloguniform",
    "randint",
    "qrandint",
    "lograndint",
    "qlograndint",
    "randn",
    "qrandn",
)


def is_written_space(value: Any) -> bool:
    """Whether this is a mapping such as {grid_search: [1, 2]} or {uniform: [0, 1]}."""
    return isinstance(value, Mapping) and len(value) == 1 and next(iter(value)) in (*SPACES, "grid_search")


def with_spaces(value: Any, path: str = "config") -> Any:
    """The same, with every written space, however deep in mappings, as Tune's own object.

    Raises:
        UserError: arguments that Tune's function does not take.
    """
    if not isinstance(value, Mapping):
        return value
    if not is_written_space(value):
        return {key: with_spaces(inner, f"{path}.{key}") for key, inner in value.items()}
    ((name, arguments),) = value.items()
    if not isinstance(arguments, list) or not arguments:
        raise UserError(f"{path}: {name} takes a list, not {arguments!r}")
    if name == "grid_search":
        return {name: arguments}
    try:
        return getattr(tune, name)(*([arguments] if name == "choice" else arguments))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {name} does not take {arguments}: {error}") from error


def make_scheduler(name: str, arguments: Mapping[str, Any]) -> TrialScheduler:
    """Tune's scheduler by name; unlike Tune's own `create_scheduler`, unknown arguments are refused.

    Raises:
        UserError: no such scheduler, or arguments that it does not take.
    """
    name = name.lower()
    name = {"asha": "async_hyperband"}.get(name, name)
    if name not in SCHEDULER_IMPORT:
        raise UserError(f"scheduler {name} is none of {sorted([*SCHEDULER_IMPORT, 'asha'])}")
    kind = SCHEDULER_IMPORT[name]
    known = inspect.signature(kind() if inspect.isfunction(kind) else kind).parameters
    if unknown := arguments.keys() - known.keys():
        raise UserError(f"scheduler_config: {name} has no {sorted(unknown)}; known are {sorted(known)}")
    try:
        return create_scheduler(name, **with_spaces(arguments, "scheduler_config"))
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"scheduler_config: {error}") from error
