"""`calql data collect`: episodes of a random or trained policy, recorded where training finds them."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from rllib_calql import CalQL
from rllib_calql.cli.calql import app
from rllib_calql.data import Transitions, open_dataset
from tests.test_resume import small_config


def collect(*args: str | Path) -> Result:
    return CliRunner().invoke(app, ["data", "collect", *map(str, args)])


def recorded(path: str | Path, *args: str) -> Transitions:
    result = collect(*args, "--out", path)
    assert result.exit_code == 0, result.stderr
    return open_dataset(path)


def test_a_random_policy_in_every_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    command = ("--env", "Pendulum-v1", "--env-config", "{max_episode_steps: 20}", "--policy", "random")
    places = (tmp_path / "arrow", tmp_path / "data.h5", "minari://pendulum/random-v0")
    first, *others = (recorded(place, *command, "--episodes", "3", "--seed", "5") for place in places)

    env = gym.make("Pendulum-v1", max_episode_steps=20)
    for number, episode in enumerate(first.episodes()):
        observation, _ = env.reset(seed=5 + number)
        env.action_space.seed(5 + number)
        for row in range(20):
            action = env.action_space.sample()
            np.testing.assert_array_equal(episode.observations[row], observation)
            np.testing.assert_array_equal(episode.actions[row], action)
            observation, reward, *_ = env.step(action)
            assert episode.rewards[row] == np.float32(reward)
        np.testing.assert_array_equal(episode.final_observations[0], observation)
    assert first.num_episodes == 3
    assert first.metadata.action_space == env.action_space
    assert gym.envs.registration.EnvSpec.from_json(first.metadata.environment or "").max_episode_steps == 20
    for other in others:
        assert other.fingerprint == first.fingerprint
        assert other.metadata.environment == first.metadata.environment


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("new_stack", [False, True], ids=["policy stack", "new stack"])
def test_a_trained_policy(pendulum_data: Transitions, tmp_path: Path, new_stack: bool) -> None:
    config = small_config(pendulum_data, 0).api_stack(
        enable_rl_module_and_learner=new_stack, enable_env_runner_and_connector_v2=new_stack
    )
    algo: CalQL = config.build_algo()
    algo.save(str(tmp_path / "checkpoint"))
    command = ("--checkpoint", str(tmp_path / "checkpoint"), "--episodes", "2")

    greedy = recorded(tmp_path / "greedy", *command, "--no-explore")
    assert (len(greedy), greedy.num_episodes) == (100, 2)  # the checkpoint's environment has 50 steps
    update = algo.update
    mode, _ = update.act(update.to_tensors({"observations": greedy.observations})["observations"], None)
    np.testing.assert_allclose(greedy.actions, 2.0 * mode.numpy(), atol=1e-5)
    algo.stop()

    once, again = (recorded(tmp_path / name, *command, "--seed", "3") for name in ("once", "again"))
    assert once.fingerprint == again.fingerprint
    assert not np.allclose(once.actions[:50], greedy.actions[:50])
    assert once.metadata.source is not None
    assert "checkpoint, exploring, seed 3" in once.metadata.source


def test_wrong_usage(tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "data"), "--episodes", "1")
    cases: list[tuple[tuple[str, ...], str]] = [
        ((), "choose the one who acts"),
        (("--policy", "random", "--checkpoint", "x"), "choose the one who acts"),
        (("--policy", "random"), "--policy random needs --env"),
        (("--policy", "greedy", "--env", "Pendulum-v1"), "--policy greedy: only random is known"),
        (("--checkpoint", str(tmp_path)), "is not an RLlib checkpoint"),
    ]
    for arguments, message in cases:
        result = collect(*out, *arguments)
        assert result.exit_code == 2, result.output
        assert message in result.stderr
    assert list(tmp_path.iterdir()) == []
