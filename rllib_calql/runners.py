"""Episodes from env runners: asked for, waited for, and asked for again where runners have died."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.env.env_runner_group import EnvRunnerGroup

logger = logging.getLogger(__name__)
_TAG = "collect"
# Times that all runners may fail in a row: killed ones come back, but an environment that raises will do so again.
ATTEMPTS = 3


class Runners:
    """The training runners of an algorithm, each of which answers `collect(runner, random_actions)`."""

    def __init__(self, algorithm: Algorithm, collect: Callable[[Any, bool], Any]) -> None:
        self._algorithm, self._collect = algorithm, collect
        self.num_asked = 0  # runners that are collecting for us now

    @property
    def _group(self) -> EnvRunnerGroup:
        return self._algorithm.env_runner_group

    @property
    def remote(self) -> bool:
        """Whether the episodes come from other processes than this one."""
        return self._group.num_remote_env_runners() > 0

    def ask(self, random_actions: bool = False) -> None:
        """Lets every living remote runner collect, and does not wait for it."""
        collect = self._collect
        self.num_asked = self._group.foreach_env_runner_async(
            lambda runner: collect(runner, random_actions), tag=_TAG
        )

    def results(self, random_actions: bool = False) -> list[Any]:
        """What the runners have been asked for, in their order; they are asked now if they have not been.

        Results of runners that die are missing (RLlib restarts them before the next iteration); where all have
        died, this waits for the first that comes back.

        Raises:
            RuntimeError: all fail again and again, none comes back within `env_runner_restore_timeout_s`, or they
                are not to be restarted.
        """
        if not self.remote:
            return [self._collect(self._group.local_env_runner, random_actions)]
        for _ in range(ATTEMPTS):
            wait_for_one(self._algorithm, self._group)
            if self.num_asked == 0:
                self.ask(random_actions)
            found = self._group.fetch_ready_async_reqs(tags=_TAG, timeout_seconds=None)
            self.num_asked = 0
            if found:
                return [result for _, result in sorted(found, key=lambda item: item[0])]
        raise RuntimeError(
            f"no env runner has brought an episode in {ATTEMPTS} attempts: their own errors are above"
        )


def wait_for_one(algorithm: Algorithm, group: EnvRunnerGroup) -> None:
    """Waits until at least one remote runner of a group is alive (at once, if one is).

    Raises:
        RuntimeError: none comes back within `env_runner_restore_timeout_s`, or they are not to be restarted.
    """
    give_up = time.monotonic() + algorithm.config.env_runner_restore_timeout_s
    while group.num_healthy_remote_workers() == 0:
        if not algorithm.config.restart_failed_env_runners or time.monotonic() > give_up:
            raise RuntimeError(
                "all env runners have died: their own errors are above; restart_failed_env_runners=True brings "
                "them back"
            )
        logger.warning("all env runners have died: waiting for one to come back")
        if not algorithm.restore_env_runners(group):
            time.sleep(1.0)


def play_in_shares(group: EnvRunnerGroup, num_episodes: int, limit_s: float) -> tuple[list[Any], int]:
    """Episodes of remote evaluation runners, of each as many as of the others, or one more.

    What a runner that dies has left is shared among the others.

    Args:
        limit_s: seconds that an episode may take on average.

    Returns:
        RLlib's metrics, of each episode (Policy stack) or of each runner (new stack), and the number of steps.
    """
    metrics: list[Any] = []
    left, steps = num_episodes, 0
    while left > 0 and (healthy := group.healthy_worker_ids()):
        least, more = divmod(left, len(healthy))
        shares = {index: least + (place < more) for place, index in enumerate(healthy)}

        def play(runner: Any, shares: dict[int, int] = shares) -> tuple[int, list[Any], int]:
            share = shares[runner.worker_index]
            if runner.config.enable_env_runner_and_connector_v2:
                parts = runner.sample(num_episodes=share)
                return share, [runner.get_metrics()], sum(map(len, parts))
            parts = [runner.sample() for _ in range(share)]
            return share, runner.get_metrics(), sum(part.env_steps() for part in parts)

        found = group.foreach_env_runner(
            play,
            local_env_runner=False,
            remote_worker_ids=[index for index, share in shares.items() if share],
            timeout_seconds=limit_s * (least + 1),
        )
        for share, of_runner, count in found:
            left -= share
            metrics += of_runner
            steps += count
        if not found:
            logger.warning("no evaluation runner has brought its episodes")
            break
    return metrics, steps


def episode_seeds(entropy: int, number: int) -> tuple[int, int]:
    """Of a runner's episode: the seeds of the environment's reset (31 bits, as some want) and of exploration."""
    reset, explore = np.random.SeedSequence([entropy, number]).generate_state(2)
    return int(reset >> 1), int(explore)


def other_entropy(entropy: int, *numbers: int) -> int:
    """Entropy for new episodes of a runner that has begun with `entropy` before: none of the old come again."""
    return int(np.random.SeedSequence([entropy, *numbers]).generate_state(1, np.uint64)[0])
