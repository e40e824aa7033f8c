"""Methods by name: the settings that make Cal-QL, its baselines and its ablations of one another.

A preset says what a method is and leaves the task to the task: rewards, networks, numbers of updates and steps,
the weight of a conservative term and the mixing ratio are set elsewhere, unless they are the method. It is laid
over the settings that stand before it, and the settings after it win: see `with_preset`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from rllib_calql.checks import RULES_NEED

PRESET = "preset"  # the key

_NO_CONSERVATISM = {
    "min_q_weight": 0.0,
    "min_q_weight_online": None,
    "calibrate": False,
    "lagrangian": False,
}
# SAC as published (Haarnoja et al. 2018, arXiv 1812.05905), trained from the first environment step on: the
# TD target from one action, with its entropy (Cal-QL paper, appendix E.6).
_FROM_SCRATCH = _NO_CONSERVATISM | {
    "num_offline_updates": 0,
    "bc_iters": 0,
    "max_target_backup": False,
    "deterministic_backup": False,
}
# Many updates per step without overfitting: ten critics with LayerNorm, two of them drawn for the TD target, their
# mean for the actor, which moves once per environment step (REDQ, Chen et al. 2021, algorithm 1; RLPD, Ball et al.
# 2023, algorithm 1).
_HIGH_UTD = {
    "num_critics": 10,
    "num_target_critics": 2,
    "critic_layer_norm": True,
    "actor_q": "mean",
    "actor_updates": "every_step",
    "utd_ratio": 20.0,
}

_METHODS: dict[str, dict[str, Any]] = {
    # Nakamoto et al. 2023, arXiv 2303.05479: equation 5.1 in both phases.
    "cal-ql": {"calibrate": True, "calibrate_online": True},
    # Cal-QL paper, section 7.2: Cal-QL with the critics of RLPD and 20 updates per step.
    "cal-ql-utd20": {"calibrate": True, "calibrate_online": True, **_HIGH_UTD},
    # Kumar et al. 2020, arXiv 2006.04779, in both phases: the bound of equation 5.1 is the one thing that is gone.
    "cql": {"calibrate": False},
    # Cal-QL paper, section 7 and appendix E.6: CQL, then SAC on offline and online data.
    "cql-sac": {"calibrate": False, "min_q_weight_online": 0.0},
    # Cal-QL paper, section 7 and appendix E.6: no pre-training; the dataset is in the replay from the start and
    # all rows are equally likely.
    "sac-offline-data": {**_FROM_SCRATCH, "mixing_ratio": -1.0},
    # Song et al. 2022, arXiv 2210.06718, as in the Cal-QL paper's appendix E.6: the same with the task's fixed
    # mixing ratio.
    "hybrid-rl": _FROM_SCRATCH,
    # Haarnoja et al. 2018: online rows alone. A dataset is not needed; one that is given is not trained on.
    "sac": {**_FROM_SCRATCH, "mixing_ratio": 0.0},
    # Ball et al. 2023, arXiv 2302.02948, section 4 and its published settings: half of each batch is offline, no
    # pre-training, random actions for 5000 steps. (Its sparse tasks have no entropy in the TD target:
    # deterministic_backup=True; its AntMaze has num_target_critics=1.)
    "rlpd": {
        **_FROM_SCRATCH,
        **_HIGH_UTD,
        "mixing_ratio": 0.5,
        "warmup_env_steps": 5000,
        "warmup_actions": "random",
    },
    # Nair et al. 2020, arXiv 2006.09359: both phases clone the rows' actions by their advantage; lambda = 1
    # (Cal-QL paper, appendix E.5: AntMaze and Kitchen; Adroit has 0.3, which is beta=3.33).
    "awac": {"update_rule": "awac", **RULES_NEED["awac"], "max_target_backup": False, "beta": 1.0},
    # Kostrikov et al. 2021, arXiv 2110.06169. Table 4 of the Cal-QL paper: AntMaze has expectile 0.9 and beta 10,
    # Adroit 0.8 and 3, Kitchen 0.7 and 0.5.
    "iql": {"update_rule": "iql", **RULES_NEED["iql"], "expectile": 0.9, "beta": 10.0},
    # Mark et al. 2022, "Fine-tuning offline policies with optimistic action selection": CQL's loss in both phases;
    # only exploration is optimistic, the critics' best of ten actions of the policy.
    "o3f": {"calibrate": False, "num_exploration_actions": 10},
    # Zhou et al. 2024, arXiv 2412.07762: Cal-QL offline; 5000 steps of the frozen policy; then SAC with many
    # updates per step, on online rows alone.
    "wsrl": {
        "calibrate": True,
        **_HIGH_UTD,
        "utd_ratio": 4.0,
        "min_q_weight_online": 0.0,
        "mixing_ratio": 0.0,
        "warmup_env_steps": 5000,
        "warmup_actions": "policy",
    },
}
# Every preset says by which rule it updates, and takes back what that rule has no use for: a task's file may have
# another. The temperature of one rule's advantages is none for another's.
_SAC = {"update_rule": "sac", **RULES_NEED["sac"]}
PRESETS = {
    name: (_SAC if "update_rule" not in settings else {"beta_online": None}) | settings
    for name, settings in _METHODS.items()
}


def preset_settings(name: str) -> dict[str, Any]:
    """The settings of a preset, by names of `CalQLConfig`.

    Raises:
        ValueError: there is no such preset.
    """
    if name not in PRESETS:
        close = difflib.get_close_matches(str(name), PRESETS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ";"
        raise ValueError(f"there is no preset {name!r}{hint} known are {', '.join(sorted(PRESETS))}")
    return dict(PRESETS[name])


def with_preset(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with a `preset: NAME` among them replaced by what it stands for.

    Keys count in their order: the preset replaces what stands before it, and is overridden by what stands after.
    """
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found.update(preset_settings(value) if key == PRESET else {key: value})
    return found
