"""Remote learners: one is the local one, several stay bit-equal and do together what one does alone."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.exceptions import RayError

from rllib_calql import CalQL, CalQLConfig
from rllib_calql.data import Transitions
from rllib_calql.new_stack.learner import first_learners
from tests.test_resume import deterministic, small_config

pytestmark = pytest.mark.usefixtures("ray_session")


def learners_config(data: Transitions, num_learners: int) -> CalQLConfig:
    config = small_config(data, 0, True, num_offline_updates=30, normalize_observations=True)
    return config.learners(num_learners=num_learners)


def states(algo: CalQL) -> list[dict[str, Any]]:
    """The whole state of every learner's update."""
    results = algo.learner_group.foreach_learner(lambda learner: learner.calql.get_state())
    return [result.get() for result in results]


def test_learners_agree_with_one_another_and_with_the_local_one(
    pendulum_data: Transitions, tmp_path: Path
) -> None:
    local = learners_config(pendulum_data, 0).build_algo()
    expected = [deterministic(local.train()["calql"]) for _ in range(4)]
    (state,) = states(local)
    assert state["num_updates"] == 40

    remote = learners_config(pendulum_data, 1).build_algo()
    assert [deterministic(remote.train()["calql"]) for _ in range(4)] == expected
    np.testing.assert_equal(states(remote), [state])
    with pytest.raises(ValueError, match=r"the update is in the remote learners: use algo.learner_group"):
        _ = remote.update
    remote.stop()

    two = learners_config(pendulum_data, 2).build_algo()
    # Without a seed, learners would start alike too: with the first one's.
    seeds = two.learner_group.foreach_learner(lambda learner: first_learners(5 + learner._learner_index))
    assert [result.get() for result in seeds] == [5, 5]
    for theirs in expected:
        ours = deterministic(two.train()["calql"])
        assert ours.pop("phase") == theirs.pop("phase")
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-3)
    first, second = states(two)
    np.testing.assert_equal(first, second)  # weights, temperatures, multiplier, optimiser, generator, counters
    # They have seen the local one's rows and noise, and summed them in another order.
    np.testing.assert_array_equal(first["generator"], state["generator"])
    for name, array in state["weights"].items():
        np.testing.assert_allclose(first["weights"][name], array, rtol=1e-3, atol=1e-5, err_msg=name)

    # Their checkpoint fits any number of learners; a step back reaches all of them, and the runners.
    two.save(str(tmp_path / "checkpoint"))
    two.train()
    two.restore(str(tmp_path / "checkpoint"))
    np.testing.assert_equal(states(two), [first, first])
    two.evaluate()
    acting = two.eval_env_runner.module.get_state()
    np.testing.assert_array_equal(acting["actor.layers.0.weight"], first["weights"]["actor.layers.0.weight"])
    # A learner that dies ends the run with an error (Tune then goes on from the last checkpoint), not in a hang.
    pids = [result.get() for result in two.learner_group.foreach_learner(lambda learner: os.getpid())]
    os.kill(pids[1], signal.SIGKILL)
    with pytest.raises((RayError, RuntimeError)):
        two.train()
    two.stop()
    local.restore(str(tmp_path / "checkpoint"))
    np.testing.assert_equal(states(local), [first])
    assert local.train()["calql"]["num_updates"] == 50
    local.stop()
