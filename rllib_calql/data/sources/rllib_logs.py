"""What RLlib itself logs: `config.offline_data(output=...)` on both API stacks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from rllib_calql.data.errors import DatasetError, DatasetWarning
from rllib_calql.data.rows import Metadata, Rows, Source, cut_off, gather, join
from rllib_calql.data.sources.files import data_files

# What the `dones` of an old Ray mean, which did not tell terminations from time-outs.
Dones = Literal["terminated", "truncated"]


@dataclass(frozen=True)
class Fragment:
    """Some consecutive steps of one episode; other episodes' steps may lie between its fragments.

    Attributes:
        episode: the episode's id; None in a log without ids, where rows simply follow each other.
        start: step number of the first row in the episode, where it was logged.
        rows: the steps.
    """

    episode: Hashable
    start: int | None
    rows: Rows


@dataclass(frozen=True)
class RLlibLog:
    """Fragments of episodes, put together; a step that is logged again is read once."""

    fragments: Callable[[], Iterator[Fragment]]
    metadata: Metadata

    def chunks(self) -> Iterator[Rows]:
        """Whole episodes, each where it ends; those that the log leaves unfinished are cut off, at the end."""
        return gather(self._episodes())

    def _episodes(self) -> Iterator[Rows]:
        waiting: dict[Hashable, list[Rows]] = {}
        next_steps: dict[Hashable, int] = {}
        ended: set[Hashable] = set()
        again = 0
        for fragment in self.fragments():
            rows = fragment.rows
            if fragment.episode is None:
                yield rows
                continue
            if fragment.start is not None:
                end = fragment.start + len(rows)
                known = next_steps.get(fragment.episode, fragment.start)
                repeated = min(max(0, known - fragment.start), len(rows))
                again += repeated
                if repeated == len(rows):
                    continue
                rows = rows.take(slice(repeated, None))
                next_steps[fragment.episode] = end
                if known < fragment.start and fragment.episode in waiting:  # steps are missing
                    yield cut_off(join(waiting.pop(fragment.episode)))
            elif fragment.episode in ended:
                again += len(rows)
                continue
            waiting.setdefault(fragment.episode, []).append(rows)
            if rows.terminated[-1] or rows.truncated[-1]:
                ended.add(fragment.episode)
                yield join(waiting.pop(fragment.episode))
        for parts in waiting.values():
            yield cut_off(join(parts))
        if again:
            warnings.warn(
                f"{again} rows have the episode and the step of another one: each step was read once (logs of two "
                "runs with one seed can number their episodes alike: give them as two datasets)",
                DatasetWarning,
                stacklevel=2,
            )


def open_json(path: str | Path, *, allow_pickle: bool = False, dones: Dones = "terminated") -> Source:
    """Sample batches in JSON, as the Policy stack writes them: one batch per line, of one policy.

    Actions are RLlib's own, in [-1, 1] (`metadata.actions_normalized`).

    Args:
        path: a file, a glob, or a folder.
        allow_pickle: RLlib packs observations as compressed pickles unless the log was written with
            `output_compress_columns=[]`. True reads them, admitting numpy arrays and builtin types only.
        dones: what `dones` mean where the log has no `terminateds` (before Ray 2.3).

    Raises:
        DatasetError: nothing to read, packed columns without `allow_pickle`, several policies, or damaged
            files (with file and line).
    """
    from rllib_calql.data.sources import rllib_json

    if dones not in ("terminated", "truncated"):
        raise DatasetError(f"dones must be 'terminated' or 'truncated', not {dones!r}")
    files = data_files(path, (".json",))
    reader = rllib_json.Reader(tuple(files), allow_pickle, dones)
    return _opened(reader.fragments, "RLlib sample batches (JSON)")


def is_log(schema: pa.Schema) -> bool:
    """Whether a Parquet file has the columns of RLlib's new API stack: whole episodes, or one step per row."""
    if schema.names == ["item"]:
        kind = schema.field("item").type
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
    return {"eps_id", "agent_id", "module_id", "obs", "actions", "rewards"} <= set(schema.names)


def open_parquet(files: list[Path], schema: pa.Schema, allow_pickle: bool = False) -> Source:
    """Parquet files of the new API stack: episodes, or steps where `output_write_episodes=False`.

    Ray writes all samples of a run again each time it writes, unless `output_max_rows_per_file` is set; they are
    read once. Actions are RLlib's own, in [-1, 1] (`metadata.actions_normalized`).

    Args:
        files: in natural order.
        schema: of the first one.
        allow_pickle: as in `open_json`; for steps only, episodes are not pickled.

    Raises:
        DatasetError: packed columns without `allow_pickle`, or damaged files.
    """
    from rllib_calql.data.sources import rllib_parquet

    if schema.names == ["item"]:
        reader: Callable[[], Iterator[Fragment]] = rllib_parquet.EpisodeReader(tuple(files)).fragments
        return _opened(reader, "RLlib episodes (Parquet)")
    return _opened(rllib_parquet.StepReader(tuple(files), allow_pickle).fragments, "RLlib steps (Parquet)")


def _opened(fragments: Callable[[], Iterator[Fragment]], source: str) -> Source:
    first = next(fragments(), None)
    if first is None:
        raise DatasetError("the log has no steps")
    floats = isinstance(first.rows.actions, np.ndarray) and first.rows.actions.dtype.kind == "f"
    return RLlibLog(fragments, Metadata(actions_normalized=floats, source=source))
