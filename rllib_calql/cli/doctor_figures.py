"""What the doctor reads: figures of a curve, and what the settings say of the method, rewards and noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rllib_calql.cli.runs import Row, Run


def series(rows: Sequence[Row], name: str) -> list[tuple[Row, float]]:
    """The rows that have a figure, and the figure where it is finite."""
    return [(row, row[name]) for row in rows if math.isfinite(row.get(name, math.nan))]


def when(row: Row) -> str:
    """Where in the run a row stands."""
    if row["phase"] == "offline":
        return f"update {row['num_updates']:,}"
    return f"environment step {row['num_online_env_steps']:,}"


def setting(run: Run, name: str, default: Any = None) -> Any:
    value = run.settings.get(name)
    return default if value is None else value


def is_conservative(run: Run) -> bool:
    """Whether it has the conservative term, before the switch at least; there is nothing else to calibrate."""
    return setting(run, "update_rule", "sac") == "sac" and setting(run, "min_q_weight", 5.0) > 0.0


def closer_to_the_data(run: Run) -> str:
    """What keeps a policy nearer to the data, by the settings that its update rule takes."""
    rule = setting(run, "update_rule", "sac")
    if rule == "sac":
        return "more conservatism: a larger min_q_weight, or lagrangian=True (paper, AntMaze)"
    return "a smaller beta" + " or expectile" * (rule == "iql")


def reward_range(run: Run) -> tuple[float, float] | None:
    """Least and largest reward as the critics see them, where the settings tell: in sparse tasks.

    A step that fails earns `sparse_failure_reward`, one that succeeds 1 more: 0 and 1, or -1 and 0.
    """
    failure = setting(run, "sparse_failure_reward")
    if failure is None or setting(run, "normalize_reward", False):
        return None
    scale, bias = setting(run, "reward_scale", 1.0), setting(run, "reward_bias", 0.0)
    low, high = sorted((scale * failure + bias, scale * (failure + 1.0) + bias))
    return low, high


def value_range(run: Run) -> tuple[float, float] | None:
    """Least and largest return that these rewards admit: one step, or the same reward for ever."""
    if (rewards := reward_range(run)) is None:
        return None
    horizon = 1.0 / max(1e-9, 1.0 - setting(run, "gamma", 0.99))
    return min(rewards[0], rewards[0] * horizon), max(rewards[1], rewards[1] * horizon)


def evaluation_error(run: Run, *scores: float) -> float:
    """Standard error of a difference between success rates."""
    duration, unit = setting(run, "evaluation_duration", 10), setting(run, "evaluation_duration_unit", "episodes")
    episodes = max(1, duration) if isinstance(duration, int) and unit == "episodes" else 10
    clipped = [min(1.0, max(0.0, score)) for score in scores]
    return math.sqrt(sum(max(score * (1.0 - score), 1.0 / episodes / 4) / episodes for score in clipped))
