"""D4RL's reference scores: the episode returns that count as 0 (random policy) and 1 (expert) of each task.

Source: d4rl's `infos.py` and the registrations in its packages (Farama-Foundation/D4RL, Apache-2.0). They
belong to the rewards and the environments of D4RL, with AntMaze's episodes ending at the goal.
"""

from __future__ import annotations

_MAZE2D = {
    "open-v0": (0.01, 20.66),
    "umaze-v0": (0.94, 62.6),
    "medium-v0": (5.77, 85.14),
    "large-v0": (4.83, 191.99),
    "umaze-v1": (23.85, 161.86),
    "medium-v1": (13.13, 277.39),
    "large-v1": (6.7, 273.99),
    "eval-umaze-v1": (36.63, 141.4),
    "eval-medium-v1": (13.07, 204.93),
    "eval-large-v1": (16.4, 302.22),
    "open-dense-v0": (11.17817, 27.166538620695782),
    "umaze-dense-v0": (23.249793, 81.78995240126592),
    "medium-dense-v0": (19.47762, 96.03474232952358),
    "large-dense-v0": (27.38831, 215.09965671563742),
    "umaze-dense-v1": (68.537689, 193.66285642381482),
    "medium-dense-v1": (44.264742, 297.4552547777125),
    "large-dense-v1": (30.569041, 303.4857382709002),
    "eval-umaze-dense-v1": (56.95455, 178.21373133248397),
    "eval-medium-dense-v1": (42.28578, 235.5658957482388),
    "eval-large-dense-v1": (56.95455, 326.09647655082637),
}

# All of a family's tasks, whatever data and version, have the same.
_FAMILIES = {
    "antmaze": (0.0, 1.0),
    "kitchen": (0.0, 4.0),
    "halfcheetah": (-280.178953, 12135.0),
    "hopper": (-20.272305, 3234.3),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
    "pen": (96.262799, 3076.8331017826877),
    "hammer": (-274.856578, 12794.134825156867),
    "door": (-56.512833, 2880.5693087298737),
    "relocate": (-6.425911, 4233.877797728884),
}


def reference_scores(task: str) -> tuple[float, float] | None:
    """(low, high) of a D4RL task by its name, e.g. `hopper-medium-v2`; None where D4RL has none."""
    family, _, rest = task.partition("-")
    return _MAZE2D.get(rest) if family == "maze2d" else _FAMILIES.get(family)
