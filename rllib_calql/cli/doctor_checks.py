"""What can be wrong with a run, found in its recorded figures: one small function per ailment, all in `CHECKS`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rllib_calql.cli.doctor_figures import (
    closer_to_the_data,
    evaluation_error,
    is_conservative,
    series,
    setting,
    value_range,
    when,
)
from rllib_calql.cli.report_groups import SCORE, outcome
from rllib_calql.cli.runs import Row, Run

MULTIPLIER_CAP = 1e6  # `Update` lets alpha' act no further, as the reference does
SUCCESS = 0.2  # the least score that counts as having learned something
FAILURE = 0.1  # the highest that counts as having learned nothing
NOISE = 2.0  # standard errors of an evaluation beyond which scores differ


@dataclass(frozen=True)
class Finding:
    """What is off, the figures that show it, and the settings to try."""

    what: str
    evidence: str
    advice: str


Check = Callable[[Run], Finding | None]


# ---- numbers -----------------------------------------------------------------------------------------------


def not_a_number(run: Run) -> Finding | None:
    for row in run.curve:
        names = [name for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
        if names:
            return Finding(
                "The run has broken down: figures are not numbers.",
                f"{', '.join(names)} from {when(row)} on",
                "restart from an earlier checkpoint with a lower critic_lr and actor_lr, and "
                "precision='float32'; `calql data check` tells whether the data hold such numbers",
            )
    return None


def diverging_q(run: Run) -> Finding | None:
    # (With its entropy in the TD target Q is more than a return.)
    limits = value_range(run) if setting(run, "deterministic_backup", True) else None
    returns = [abs(value) for _, value in series(run.curve, "mc_return_mean")]
    for name in ("q_data_mean", "q_policy_mean"):
        for row, q in series(run.curve, name):
            if limits is not None:
                margin = 0.1 * (limits[1] - limits[0])
                beyond = not limits[0] - margin <= q <= limits[1] + margin
                bound = f"with these rewards and gamma no return lies outside {limits[0]:.4g} to {limits[1]:.4g}"
            elif returns:
                beyond = abs(q) > 10.0 * max(1.0, *returns)
                bound = f"the returns of the data are {max(returns):.4g} in size at most"
            else:
                return None
            if beyond:
                return Finding(
                    "Q-values diverge: they are where no return can be.",
                    f"{name} is {q:.4g} at {when(row)}; {bound}",
                    "lower critic_lr or tau; "
                    + is_conservative(run)
                    * "raise min_q_weight where Q is too high, lower it (or set lagrangian=True) where too low; "
                    + "with utd_ratio above 1, critic_layer_norm=True and more num_critics",
                )
    return None


def returns_beyond_rewards(run: Run) -> Finding | None:
    if (limits := value_range(run)) is None:
        return None
    margin = 0.01 * (limits[1] - limits[0])
    for row, value in series(run.curve, "mc_return_mean"):
        if not limits[0] - margin <= value <= limits[1] + margin:
            return Finding(
                "The returns of the data do not fit the rewards.",
                f"mc_return_mean is {value:.4g} at {when(row)}; a failing step of "
                f"sparse_failure_reward={setting(run, 'sparse_failure_reward'):g}, scaled and shifted, and a "
                f"success of 1 more admit {limits[0]:.4g} to {limits[1]:.4g}",
                "sparse_failure_reward is the raw reward of a step that fails (AntMaze 0, Adroit binary -1), "
                "before reward_scale and reward_bias; look at the rewards with `calql data info`",
            )
    return None


def failures_too_cheap(run: Run) -> Finding | None:
    told = setting(run, "sparse_failure_reward") is not None or setting(run, "truncation_mode", "stop") != "stop"
    returns = series(run.offline, "mc_return_mean")
    if told or not returns or returns[-1][1] >= 0.0 or not setting(run, "calibrate", True):
        return None
    return Finding(
        "Episodes that were cut short may count as better than they are.",
        f"mc_return_mean is {returns[-1][1]:.4g}, and nothing is counted after a time-out "
        "(truncation_mode='stop', no sparse_failure_reward): the sooner such an episode ends, the less it loses",
        "sparse tasks: sparse_failure_reward; dense rewards: truncation_mode='infinite' or 'drop'; nothing to do "
        "where all episodes of the data end by termination (`calql data check` counts them)",
    )


# ---- Q-values against returns ------------------------------------------------------------------------------


def _last_values(rows: Sequence[Row], name: str) -> tuple[Row, float, float] | None:
    """The last row with both figures: the row, the Q-value, the return of the data."""
    both = [(row, q, row["mc_return_mean"]) for row, q in series(rows, name) if "mc_return_mean" in row]
    return both[-1] if both else None


def scale_not_reached(run: Run) -> Finding | None:
    """Q starts at 0 and sinks (or climbs) by about a reward per 1 / tau updates."""
    found = _last_values(run.offline, "q_data_mean")
    values = series(run.offline, "q_data_mean")
    if found is None or len(values) < 4:
        return None
    row, q, target = found
    earlier_row, earlier = values[-1 - len(values) // 4]
    step, updates = q - earlier, row["num_updates"] - earlier_row["num_updates"]
    # Q that settles slows down; a good policy's settles well above the data's mean return.
    moving = abs(step) / max(1, updates) >= 0.5 * abs(q) / row["num_updates"]
    towards = moving and abs(target - q) < abs(target - earlier)
    if abs(q) >= 0.7 * abs(target) or not towards:
        return None
    needed = math.ceil(abs(target - q) / abs(step) * updates / 1000) * 1000
    sweep = 1.0 / max(1e-9, (1.0 - setting(run, "gamma", 0.99)) * setting(run, "tau", 0.005))
    return Finding(
        "Pre-training has not come to the scale of the returns: Q is still on its way.",
        f"q_data_mean is {q:.4g} at {when(row)} and moved by {step:.4g} in the last {updates:,} updates; the "
        f"data's mean return is {target:.4g}, at that pace {needed:,} updates or more away",
        f"more num_offline_updates: it takes some 1 / ((1 - gamma) tau) = {sweep:,.0f} of them, whatever the "
        "rewards; a larger tau or critic_lr",
    )


def promises_too_much(run: Run) -> Finding | None:
    """Overestimation: the paper's figure 3 the other way round."""
    found, result = _last_values(run.offline, "q_policy_mean"), outcome(run)
    if found is None or result.before is None or result.before > FAILURE or scale_not_reached(run):
        return None
    row, q, earned = found
    if q - earned <= 0.2 * abs(earned):
        return None
    lowest, least = min(series(run.offline, "q_policy_mean"), key=lambda pair: pair[1])
    rising = f"; it has risen from {least:.4g} at {when(lowest)}" if q - least > 0.1 * abs(earned) else ""
    return Finding(
        "The critics promise more than the data earned, and the policy does not keep it: Q is overestimated.",
        f"q_policy_mean {q:.4g} against mc_return_mean {earned:.4g} at {when(row)}{rising}; score "
        f"{result.before:.2f}",
        f"{closer_to_the_data(run)}; "
        + is_conservative(run)
        * "fewer num_target_actions or max_target_backup=False, which take the best of several estimates; "
        + "a lower actor_lr",
    )


def bound_always_on(run: Run) -> Finding | None:
    rates = series(run.offline, "bound_rate")
    late = rates[len(rates) // 2 :]
    if not is_conservative(run) or len(late) < 3 or min(rate for _, rate in late) < 0.95:
        return None
    if setting(run, "calibrate", True):
        advice = "check the returns (sparse_failure_reward, truncation_mode); a smaller min_q_weight"
    else:
        advice = "calibrate=True holds them up; without it expect a dip at the switch"
    return Finding(
        "Nearly all Q-values of the policy's actions lie below the data's returns.",
        f"bound_rate is {min(rate for _, rate in late):.2f} or more from {when(late[0][0])} to "
        f"{when(late[-1][0])}",
        advice,
    )


def bound_never_on(run: Run) -> Finding | None:
    rates = series(run.offline, "bound_rate")
    if not setting(run, "calibrate", True) or len(rates) < 3 or max(rate for _, rate in rates) > 1e-3:
        return None
    return Finding(
        "The calibration never acts: so far this run is plain CQL.",
        f"bound_rate is {max(rate for _, rate in rates):.4f} at most in {len(rates)} iterations of pre-training",
        "nothing, where data of high coverage keep Q above the returns (paper, section 7.3) and the score is "
        "good; else check that returns are not too low (sparse_failure_reward, truncation_mode)",
    )


# ---- temperature and multiplier ----------------------------------------------------------------------------


def entropy_collapse(run: Run) -> Finding | None:
    """Alpha rises for as long as the entropy is below its target."""
    both = [(row, alpha, row["entropy"]) for row, alpha in series(run.curve, "alpha") if "entropy" in row]
    late = both[len(both) // 2 :]
    target = setting(run, "target_entropy", "auto")
    if len(late) < 4:
        return None
    row, alpha, entropy = late[-1]
    first_row, first_alpha, first_entropy = late[0]
    pressed = alpha > 2.0 * first_alpha and alpha >= 0.9 * max(one[1] for one in late)
    below = not isinstance(target, str) and entropy < target - max(2.0, 0.5 * abs(target))
    if not below and not (pressed and entropy <= first_entropy):
        return None
    aim = f" (target {target:g})" if not isinstance(target, str) else ""
    return Finding(
        "The policy's entropy has collapsed: it hardly explores, and its temperature does not bring it back.",
        f"entropy {first_entropy:.3g} at {when(first_row)}, {entropy:.3g} at {when(row)}{aim}; alpha "
        f"{first_alpha:.3g}, then {alpha:.3g}",
        "a lower actor_lr; a higher alpha_lr or initial_alpha; a lower target_entropy if the data's actions are "
        "themselves at the bounds (`calql data info` counts saturated ones)",
    )


def temperature_explodes(run: Run) -> Finding | None:
    start = setting(run, "initial_alpha", 1.0) * setting(run, "alpha_multiplier", 1.0)
    alphas = series(run.curve, "alpha")
    if len(alphas) < 4 or start == 0.0:
        return None
    row, last = alphas[-1]
    quarter = alphas[-1 - len(alphas) // 4][1]
    if last < 10.0 * start or last < 1.5 * quarter:
        return None
    return Finding(
        "The entropy temperature alpha explodes.",
        f"alpha is {last:.4g} at {when(row)}, from {start:g}, and {last / quarter:.1f} times what it was a "
        "quarter of the run before",
        "a lower alpha_lr or learn_alpha=False; a lower target_entropy, which the policy can reach",
    )


def multiplier_explodes(run: Run) -> Finding | None:
    values = series(run.curve, "alpha_prime")
    if not setting(run, "lagrangian", False) or len(values) < 4:
        return None
    row, last = values[-1]
    quarter = values[-1 - len(values) // 4][1]
    if last < MULTIPLIER_CAP and (last < 100.0 or last < 1.5 * quarter):
        return None
    state = "at its cap" if last >= MULTIPLIER_CAP else "and still growing"
    gap = f"conservative_gap {row['conservative_gap']:.4g} against " if "conservative_gap" in row else ""
    return Finding(
        "The Lagrange multiplier alpha' explodes: the conservative term drowns the TD error.",
        f"alpha_prime is {last:.4g} at {when(row)}, {state}; "
        f"{gap}lagrangian_thresh={setting(run, 'lagrangian_thresh')}",
        "a larger lagrangian_thresh, which the critics can reach; a lower lagrangian_lr; or lagrangian=False and "
        "a fixed min_q_weight",
    )


# ---- scores ------------------------------------------------------------------------------------------------


def not_evaluated(run: Run) -> Finding | None:
    advice = "set evaluation_interval (in iterations); without it there is no score"
    if run.curve and not series(run.curve, SCORE):
        return Finding(
            "The policy was never evaluated.",
            f"no {SCORE} in {len(run.curve)} iterations; "
            f"evaluation_interval={run.settings.get('evaluation_interval')}",
            advice,
        )
    for name, rows in (("before", run.offline), ("after", run.online)):
        if len(rows) > 1 and not series(rows, SCORE):
            return Finding(
                f"The policy was not evaluated {name} the switch.", f"no {SCORE} in {len(rows)} iterations", advice
            )
    return None


def never_succeeds(run: Run) -> Finding | None:
    scores = series(run.curve, SCORE)
    if len(scores) < 3 or max(score for _, score in scores) > 0.0:
        return None
    evidence = f"the score is 0 in all {len(scores)} evaluations up to {when(scores[-1][0])}"
    limits, returns = value_range(run), series(run.offline, "mc_return_mean")
    if limits is not None and returns and returns[-1][1] > limits[0] + 0.05 * (limits[1] - limits[0]):
        return Finding(
            "The data hold successes, but the policy has none.",
            f"{evidence}; the data's mean return is {returns[-1][1]:.4g}, and {limits[0]:.4g} is what failing "
            "for ever is worth",
            "`calql data check DATA --env ENV`: do data and environment agree?; bc_iters: can a clone of the "
            "data do it?; then more num_offline_updates",
        )
    return Finding(
        "The policy never succeeds.",
        evidence,
        "`calql data info`: how many episodes of the data succeed?; more num_offline_updates and "
        "num_online_env_steps",
    )


def lost_in_pretraining(run: Run) -> Finding | None:
    scores = series(run.offline, SCORE)
    if len(scores) < 2:
        return None
    best_row, best = max(scores, key=lambda pair: pair[1])
    row, last = scores[-1]
    if best < SUCCESS or last > 0.5 * best or best - last < NOISE * evaluation_error(run, best, last):
        return None
    evidence = f"score {best:.2f} at {when(best_row)}, {last:.2f} at {when(row)}"
    cloned = int(setting(run, "bc_iters", 0))
    if best_row["num_updates"] <= cloned:
        return Finding(
            "The cloned policy was lost when the actor turned from the data to the critics.",
            f"{evidence}; bc_iters={cloned:,}",
            "the critics are not yet worth following: see the findings about Q; a lower actor_lr; "
            f"{closer_to_the_data(run)}; a longer bc_iters alone only puts it off",
        )
    return Finding(
        "Pre-training has unlearned what it knew.",
        evidence,
        f"an earlier checkpoint; a lower actor_lr and critic_lr; {closer_to_the_data(run)}",
    )


def dip_at_switch(run: Run) -> Finding | None:
    drops, before = series(run.online, "switch_drop"), outcome(run).before
    if not drops or before is None:
        return None
    drop = drops[-1][1]
    error = evaluation_error(run, before, before - drop)
    if drop < max(FAILURE, NOISE * error):
        return None
    return Finding(
        "The score dips at the switch.",
        f"from {before:.2f} to {before - drop:.2f} within the first five evaluations after it; so few episodes "
        f"give such a difference a standard error of {error:.2f}",
        _behind_a_dip(run),
    )


def _behind_a_dip(run: Run) -> str:
    """The settings known to bring it about, the likeliest first."""
    weight, online = setting(run, "min_q_weight", 5.0), setting(run, "min_q_weight_online")
    ratio, updates = setting(run, "mixing_ratio", 0.5), setting(run, "utd_ratio", 1.0)
    calibrated = setting(run, "calibrate", True)
    reasons = [
        (
            is_conservative(run) and not calibrated,
            "calibrate=False: Q-values below the returns let the first online data look better; set it True",
        ),
        (calibrated and not setting(run, "calibrate_online", True), "calibrate_online=False: keep it True"),
        (
            online is not None and online != weight,
            f"min_q_weight_online={online} beside min_q_weight={weight}: Q-values move to another scale; keep "
            "the weight",
        ),
        (
            isinstance(ratio, (int, float)) and 0.0 <= ratio < 0.25,
            f"mixing_ratio={ratio}: few offline rows hold what was learned; 0.25 or more",
        ),
        (
            updates > 1.0 and not setting(run, "critic_layer_norm", False),
            f"utd_ratio={updates:g} without critic_layer_norm: overfitting to the first episodes",
        ),
    ]
    return "; ".join(text for applies, text in reasons if applies) or (
        "none of the settings known for it: see the findings about Q; a larger evaluation_duration, and more seeds"
    )


CHECKS: tuple[Check, ...] = (
    not_a_number,
    diverging_q,
    returns_beyond_rewards,
    failures_too_cheap,
    never_succeeds,
    lost_in_pretraining,
    dip_at_switch,
    scale_not_reached,
    promises_too_much,
    bound_always_on,
    bound_never_on,
    entropy_collapse,
    temperature_explodes,
    multiplier_explodes,
    not_evaluated,
)


def findings(run: Run) -> list[Finding]:
    """What is off with a run, the gravest first."""
    return [found for check in CHECKS if (found := check(run)) is not None]
