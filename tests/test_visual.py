"""PointMaze as a camera sees it, and training on its pictures through both API stacks."""

from __future__ import annotations

import ctypes.util
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rllib_calql import CalQL, CalQLConfig
from rllib_calql.cli.episodes import check_spaces, environment_for, play
from rllib_calql.cli.export import deterministic_policy
from rllib_calql.cli.policies import restored
from rllib_calql.core.export import ExportError
from rllib_calql.data import Transitions, open_dataset
from rllib_calql.data.sources import pointmaze
from rllib_calql.data.sources.pointmaze import RECIPES, generate
from rllib_calql.envs import register
from rllib_calql.envs.visual import choose_renderer
from rllib_calql.presets import preset_settings
from tests.test_resume import BOTH_STACKS, deterministic

register()
ID = "rllib_calql/VisualPointMaze-UMaze-v3"
try:
    choose_renderer()
except RuntimeError as error:
    pytest.skip(str(error), allow_module_level=True)


def small_recipe(velocity: bool) -> pointmaze.Recipe:
    recipe = RECIPES["umaze-pixels"]
    return replace(recipe, num_rows=120, env={**recipe.env, "size": 16, "velocity": velocity})


def green_at(picture: np.ndarray) -> np.ndarray:
    """Where the ball is in the picture: x to the right and y upwards, in metres (4 m are seen)."""
    channels = picture.astype(int)
    rows, columns = np.nonzero(channels[..., 1] - channels[..., [0, 2]].max(-1) > 15)
    size = len(picture)
    return np.array([columns.mean() + 0.5 - size / 2, size / 2 - rows.mean() - 0.5]) * 4 / size


def test_the_picture_shows_the_ball_and_the_goal() -> None:
    env: Any = gym.make(ID, size=64, position_noise=0.25, frame_skip=5)
    for seed in range(4):
        picture, _ = env.reset(seed=seed, options={"start_cell": [(3, 1), (3, 3), (2, 3), (1, 3)][seed]})
        assert picture in env.observation_space
        np.testing.assert_allclose(green_at(picture), env.unwrapped.state[:2], atol=0.1)
        red = picture[16, 16].astype(int)  # the goal's cell, at (-1, 1)
        assert red[0] > 200
        assert red[1:].max() < 60
    for _ in range(10):
        picture, *_ = env.step(np.array([-1.0, 0.0], np.float32))
    np.testing.assert_allclose(green_at(picture), env.unwrapped.state[:2], atol=0.1)
    env.close()


def test_with_its_velocity_it_is_pointmaze() -> None:
    """The same physics, reward and end as the environment that observes numbers."""
    seeing: Any = gym.make(ID, size=16, velocity=True, frame_skip=5)
    plain: Any = gym.make("rllib_calql/PointMaze-UMaze-v3", frame_skip=5)
    pairs = [(seeing.reset(seed=3), plain.reset(seed=3))]
    rng = np.random.default_rng(0)
    for _ in range(5):
        action = rng.uniform(-1, 1, 2).astype(np.float32)
        pairs.append((seeing.step(action), plain.step(action)))
    for one, other in pairs:
        np.testing.assert_array_equal(one[0]["velocity"], other[0][2:])
        assert one[1:] == other[1:]
    seeing.close()


def test_without_a_renderer_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    with pytest.raises(RuntimeError, match=r"EGL or OSMesa .* apt-get install libegl1"):
        gym.make(ID)
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: name if name == "OSMesa" else None)
    choose_renderer()
    assert os.environ["MUJOCO_GL"] == "osmesa"
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    choose_renderer()
    assert os.environ["MUJOCO_GL"] == "glfw"


def test_rendered_data_are_cached_as_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLLIB_CALQL_CACHE", str(tmp_path))
    monkeypatch.setitem(RECIPES, "umaze-pixels", small_recipe(velocity=True))
    first = open_dataset("pointmaze://umaze-pixels")
    monkeypatch.setattr(pointmaze, "generate", lambda recipe: pytest.fail("rendered again"))
    again = open_dataset("pointmaze://umaze-pixels", observations="keep")
    assert again.fingerprint == first.fingerprint
    assert again.mapped is not None
    assert again.observations["image"].dtype == np.uint8
    assert again.observations["image"].shape == (len(again), 16, 16, 3)
    assert again.row_shapes[0] == {"image": (16, 16, 3), "velocity": (2,)}


def config_for(data: Transitions, new_stack: bool, velocity: bool, **changes: Any) -> CalQLConfig:
    settings: dict[str, Any] = {
        "num_offline_updates": 4,
        "num_online_env_steps": 80,
        "min_train_updates_per_iteration": 2,
        "train_batch_size": 8,
        "utd_ratio": 0.1,
        "num_actions": 2,
        "num_target_actions": 2,
        "policy_model_config": {"fcnet_hiddens": [8]},
        "q_model_config": {"fcnet_hiddens": [8]},
        "encoder_config": {"conv_filters": [[4, 3, 2], [4, 3, 1]], "feature_dim": 6},
        "frame_stack": 2,
        **changes,
    }
    return (
        CalQLConfig()
        .api_stack(new_stack, new_stack)
        .environment(ID, env_config={**small_recipe(velocity).env})
        .offline_data(input_=data)
        .training(**settings)
        .debugging(seed=0)
    )


@pytest.mark.usefixtures("ray_session")
@BOTH_STACKS
def test_both_stacks_train_on_pictures_and_go_on_bit_equal(tmp_path: Path, new_stack: bool) -> None:
    velocity = new_stack  # one of the two kinds of observations each
    data = generate(small_recipe(velocity))
    algo = config_for(data, new_stack, velocity).build_algo()
    for _ in range(3):
        last = algo.train()["calql"]
    assert (last["phase"], last["num_updates"]) == ("online", 4 + last["num_online_env_steps"] // 10)
    online = algo.local_replay_buffer.replay.online.rows
    assert online is not None
    frame_bytes = 16 * 16 * 3 + 8 * velocity
    assert (online.observations.dtype, online.observations.shape[1:]) == (np.uint8, (frame_bytes,))
    algo.save(str(tmp_path))
    # Outside of the algorithm the policy acts as it does inside: the checkpoint's encoder is the actor's.
    trained = restored(tmp_path)
    env = environment_for(trained, {}, {})
    check_spaces(env, trained)
    (episode,) = play(env, trained, num_episodes=1)
    env.close()
    for step in (0, len(episode) - 1):
        frames, played = (np.asarray(values(step)) for values in (episode.get_observations, episode.get_actions))
        assert frames.shape == (2, frame_bytes)
        np.testing.assert_allclose(algo.compute_single_action(frames, explore=False), played, atol=1e-6)
    stacked = gym.wrappers.FrameStackObservation(gym.make(ID, **small_recipe(velocity).env), 2)
    assert algo.compute_single_action(stacked.reset(seed=0)[0]).shape == (2,)
    stacked.close()
    with pytest.raises(ExportError, match="policies on images cannot be exported yet"):
        deterministic_policy(trained)
    other = CalQL.from_checkpoint(tmp_path, input_=data)
    np.testing.assert_equal(deterministic(other.train()["calql"]), deterministic(algo.train()["calql"]))
    np.testing.assert_equal(other.update.get_state(), algo.update.get_state())
    assert any(name.startswith("target_encoder.") for name in algo.update.weights())
    algo.stop()
    other.stop()


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("preset", ["awac", "iql", "o3f"])
def test_the_other_actors_train_on_pictures(preset: str) -> None:
    algo = config_for(generate(small_recipe(False)), True, False, **preset_settings(preset)).build_algo()
    for _ in range(3):
        last = algo.train()["calql"]
    assert (last["phase"], last["num_updates"]) == ("online", 4 + last["num_online_env_steps"] // 10)
    assert all(np.isfinite(last[name]) for name in ("actor_loss", "critic_loss"))
    assert ("value_loss" in last) == (preset == "iql")
    algo.stop()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalize_observations": True}, "normalize_observations=True is for vectors"),
        ({"reference_value": "learned"}, "reference_value='learned' .* is for vectors"),
        ({"replay_device": "update"}, "replay_device='update' is for vectors"),
        ({"encoder_config": {"conv_filters": [[4, 17, 2]]}}, "16 x 16 pixels are too small for conv_filters"),
    ],
)
def test_what_does_not_go_with_images_is_refused(changes: dict[str, Any], message: str) -> None:
    data = generate(replace(small_recipe(False), num_rows=1))
    with pytest.raises(ValueError, match=message):
        config_for(data, False, False, **changes).plan()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frame_stack": 3}, "frame_stack is for images, and the environment observes none"),
        ({"image_augmentation": None}, "image_augmentation is for images"),
        ({"encoder_config": {"feature_dim": 5}}, "encoder_config is for images"),
        ({"encoder_config": {"conv_filters": [[4, 3]]}}, r"\[\[channels, kernel, stride\], ...\]"),
        ({"encoder_config": {"filters": []}}, "encoder_config has no 'filters'"),
        ({"image_augmentation": "flip"}, "image_augmentation must be one of random_shift, None"),
    ],
)
def test_settings_of_images_are_checked(pendulum_data: Transitions, changes: dict[str, Any], message: str) -> None:
    config = CalQLConfig().environment("Pendulum-v1").offline_data(input_=pendulum_data)
    with pytest.raises(ValueError, match=message):
        config.training(**changes).plan()
