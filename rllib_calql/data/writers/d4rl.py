"""Writes D4RL's flat HDF5 layout, with `next_observations`, so that nothing is lost at time-outs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np

from rllib_calql.data.assemble import Block, clean_blocks
from rllib_calql.data.claim import check_room, new_file
from rllib_calql.data.columns import row_bytes
from rllib_calql.data.rows import Source
from rllib_calql.data.spaces import METADATA, metadata_to_json

# Columns grow in pieces of about so many bytes; HDF5 takes whole ones from the disk.
_PIECE = 1 << 18


def write(
    path: str | Path,
    source: Source,
    *,
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda rows: None,
) -> None:
    """See `write_to`; what the source knows about itself is in the file's attribute `calql_metadata`."""
    with new_file(path, overwrite) as partial:
        num_rows = num_whole = 0
        with h5py.File(partial, "w") as file:
            file.attrs[METADATA] = json.dumps(metadata_to_json(source.metadata))
            for columns, last_end in _columns(clean_blocks(source)):
                file.flush()
                check_room(partial, sum(column.nbytes + _PIECE for column in columns.values()))
                for name, column in columns.items():
                    _append(file, name, column)
                if last_end is not None:
                    num_whole = num_rows + last_end + 1
                num_rows += len(columns["rewards"])
                progress(num_rows)
            for column in file.values():
                column.resize(num_whole, axis=0)


def _append(file: h5py.File, name: str, rows: np.ndarray) -> None:
    if name not in file:
        piece = max(1, _PIECE // row_bytes(rows))
        shape = rows.shape[1:]
        file.create_dataset(name, (0, *shape), rows.dtype, maxshape=(None, *shape), chunks=(piece, *shape))
    column = file[name]
    start = len(column)
    column.resize(start + len(rows), axis=0)
    column[start:] = rows


def _columns(blocks: Iterator[Block]) -> Iterator[tuple[dict[str, np.ndarray], int | None]]:
    """D4RL's columns of each block, and the last row in it that ends an episode."""
    present: Block | None = None
    for block in filter(len, blocks):
        if present is not None:
            yield _with_following(present, block)
        present = block
    if present is not None:
        yield _with_following(present, None)


def _with_following(block: Block, successor: Block | None) -> tuple[dict[str, np.ndarray], int | None]:
    observations, after = block.observations, (block if successor is None else successor).observations
    assert isinstance(observations, np.ndarray)  # flattened
    assert isinstance(after, np.ndarray)
    following = np.empty_like(observations)
    following[:-1] = observations[1:]
    following[-1] = after[0]  # without a successor, rows after the last end are cut off again
    ends = block.ends
    following[ends] = block.final_observations
    columns = {
        "observations": observations,
        "actions": block.actions,
        "rewards": block.rewards,
        "terminals": block.terminated,
        "timeouts": block.truncated,
        "next_observations": following,
    }
    return columns, int(ends[-1]) if len(ends) else None
