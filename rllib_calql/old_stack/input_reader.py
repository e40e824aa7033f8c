"""`CalQLInputReader`: a dataset with Monte-Carlo returns as input of any old-stack RLlib algorithm."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from ray.rllib.offline.input_reader import InputReader
from ray.rllib.offline.io_context import IOContext
from ray.rllib.policy.sample_batch import SampleBatch

from rllib_calql.data import MixedReplay, Preparation, Transitions, check_fits, open_dataset
from rllib_calql.replay_buffer import to_sample_batch

INPUT_NAME = "calql"


class CalQLInputReader(InputReader):
    """Yields `train_batch_size` rows drawn uniformly with replacement, with an `mc_returns` column.

    Use it in a plain RLlib config, after importing this package::

        config.offline_data(
            input_="calql",
            input_config={"dataset": "d4rl://antmaze-umaze-v2", "reward_scale": 10, "reward_bias": -5},
        )

    `input_config` takes `dataset` (anything `open_dataset` opens), the fields of `Preparation`, `seed`, and the
    reader's own options. Actions come out in [-1, 1], as RLlib's policies learn them.

    Raises:
        ValueError: no `dataset`. DatasetError: the data cannot be used, or do not fit the environment.
    """

    def __init__(self, ioctx: IOContext | None = None) -> None:
        super().__init__()
        ioctx = ioctx or IOContext()
        options: dict[str, Any] = dict(ioctx.input_config)
        for added_by_rllib in ("num_cpus_per_read_task", "parallelism"):
            options.pop(added_by_rllib, None)
        if "dataset" not in options:
            raise ValueError("input_config needs 'dataset': a path or a URI such as d4rl://antmaze-umaze-v2")
        dataset, seed = options.pop("dataset"), options.pop("seed", ioctx.config["seed"])
        if seed is not None:  # workers draw different batches
            seed = int(np.random.SeedSequence([seed, ioctx.worker_index]).generate_state(1)[0])
        known = {field.name for field in fields(Preparation)}
        settings = {key: options.pop(key) for key in known & options.keys()}
        settings.setdefault("gamma", ioctx.config["gamma"])
        raw = open_dataset(dataset, **options)
        bounds: dict[str, Any] = {}
        if ioctx.worker is not None:
            for policy in ioctx.worker.policy_map.values():
                check_fits(raw, policy.observation_space, policy.action_space)
                if isinstance(policy.action_space, Box):
                    bounds = {"action_low": policy.action_space.low, "action_high": policy.action_space.high}

        def prepared(part: Transitions) -> Transitions:
            in_bounds = {} if part.metadata.actions_normalized else bounds
            return Preparation(**{**in_bounds, **settings})(part)

        self._batch_size = ioctx.config["train_batch_size"]
        rows = raw.each(prepared)
        self._replay = MixedReplay(rows, 1, 1.0, seed, rows.obs_dim, rows.act_dim)

    def next(self) -> SampleBatch:
        """The next batch."""
        return to_sample_batch(self._replay.sample(self._batch_size, online=False))


def create_input_reader(ioctx: IOContext) -> CalQLInputReader:
    """What the input name `calql` stands for."""
    return CalQLInputReader(ioctx)
