"""What `rllib train` shows while it runs."""

from __future__ import annotations

from types import MappingProxyType

from rllib_calql import CalQLConfig
from rllib_calql.cli import progress


def test_progress_follows_the_phases() -> None:
    offline = {"calql": {"phase": "offline", "num_updates": 3}, "training_iteration": 1}
    assert progress.position(offline, {"num_offline_updates": 10}, {}) == ("offline updates", 3, 10)
    online = {"calql": {"phase": "online", "num_online_env_steps": 7, "success_rate": 0.5}}
    assert progress.position(online, {}, {}) == ("online env steps", 7, CalQLConfig().num_online_env_steps)
    assert progress.scores(online) == {"success": "success 50%"}
    other = {"training_iteration": 2, "env_runners": {"episode_return_mean": -12.3456}}
    assert progress.position(other, {}, {"training_iteration": 5}) == ("iterations", 2, 5)
    assert progress.scores(other) == {"mean_return": "return -12.35"}
    assert progress.scores(offline) == {}


def test_progress_bars_show_one_line_per_trial() -> None:
    class Trial:
        trainable_name, trial_id = "CalQL", "1"
        config = MappingProxyType({"num_offline_updates": 4})
        stopping_criterion: MappingProxyType[str, float] = MappingProxyType({})

    display = progress.progress_display()
    bars = progress.ProgressBars(display)
    for _ in range(2):  # a trial may be paused and started again
        bars.on_trial_start(0, [], Trial())
    block = {"phase": "offline", "num_updates": 2, "success_rate": 0.25}
    bars.on_trial_result(1, [], Trial(), {"calql": block})
    bars.on_trial_result(2, [], Trial(), {"calql": {"phase": "offline", "num_updates": 3}})
    (task,) = display.tasks
    assert (task.description, task.completed, task.total) == ("CalQL 1: offline updates", 3, 4)
    assert task.fields == {"success": "success 25%", "mean_return": ""}  # the latest that is known
