"""`calql doctor CHECKPOINT`, on checkpoints that both API stacks have written."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from rllib_calql import CalQLConfig, Transitions
from rllib_calql.cli.doctor import read_checkpoint
from tests.recorded import write_trial
from tests.test_doctor import doctor
from tests.test_resume import BOTH_STACKS


@pytest.mark.usefixtures("ray_session")
@BOTH_STACKS
def test_checkpoint(pendulum_data: Transitions, tmp_path: Path, new_stack: bool) -> None:
    algo = (
        CalQLConfig()
        .api_stack(new_stack, new_stack)
        .environment("Pendulum-v1")
        .offline_data(input_=pendulum_data)
        .training(
            num_offline_updates=2,
            num_online_env_steps=0,
            train_batch_size=8,
            initial_alpha=0.5,
            alpha_multiplier=0.1,
            policy_model_config={"fcnet_hiddens": [8]},
            q_model_config={"fcnet_hiddens": [8]},
            truncation_mode="infinite",
        )
        .debugging(seed=0)
        .build_algo()
    )
    row = algo.train()["calql"]
    folder = tmp_path / "trial" / "checkpoint_000000"
    write_trial(folder.parent, [row, {**row, "q_data_mean": math.nan}])  # the second came after the checkpoint
    algo.save(str(folder))
    done = doctor(folder)
    assert "cal-ql on Pendulum-v1, seed 0" in done.output
    assert "1 iterations, 2 updates" in done.output
    assert "not numbers" not in done.output
    # Results that begin later, as those of a run that was itself restored, count by their iteration.
    assert read_checkpoint(folder).curve[-1]["alpha"] == pytest.approx(0.05, rel=0.01)
    results = folder.parent / "result.json"
    results.write_text("".join(line + "\n" for line in results.read_text().splitlines()[1:]))
    assert "not numbers" not in doctor(folder).output
    (folder.parent / "result.json").unlink()
    name = next(name for name in algo.stack.weights() if name.startswith("critics"))
    algo.stack.load_weights({name: np.full_like(algo.stack.weights()[name], np.nan)})
    algo.save(str(folder))
    algo.stop()
    done = doctor(folder)
    assert done.exit_code == 1
    assert f"seen: weights {name} from update 2 on" in done.output
    (folder / "calql" / "run.json").write_text(json.dumps({}))
    done = doctor(folder)
    assert done.exit_code == 2
    assert "calql/run.json of the checkpoint" in done.output
