"""Writes datasets of Minari, through its own storage (extra `minari`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import tree

from rllib_calql.data.assemble import Block, clean_blocks
from rllib_calql.data.claim import check_room, new_folder
from rllib_calql.data.columns import ObservationLayout, is_image, map_leaves
from rllib_calql.data.errors import DatasetError
from rllib_calql.data.rows import CHUNK_BYTES, COLUMNS, Metadata, Source, Tree
from rllib_calql.data.sources.minari import folder_of, import_minari

# What HDF5 adds for each episode's own columns, at the most.
_EPISODE_OVERHEAD = 1 << 18


def write(
    name: str,
    source: Source,
    *,
    observations: ObservationLayout = "keep",
    progress: Callable[[int], None] = lambda rows: None,
) -> None:
    """See `write_to`. Images are stored as they are, without JPEG's losses; the storage is HDF5."""
    minari = import_minari()
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    place = folder_of(name)
    episodes = _episodes(clean_blocks(source, observations))
    first = next(episodes)
    spaces = _spaces(source.metadata, first, observations)
    with new_folder(place) as partial:
        storage = MinariStorage.new(partial / "data", *spaces, data_format="hdf5", jpeg_encoding=False)
        about = {"dataset_id": name, "minari_version": minari.__version__, **_about(source.metadata)}
        storage.update_metadata(about)
        num_rows = 0
        for batch in _batches(chain([first], episodes)):
            check_room(partial / "data" / "main_data.hdf5", sum(map(_bytes, batch)))
            storage.update_episodes(EpisodeBuffer(**episode) for episode in batch)
            num_rows += sum(len(episode["rewards"]) for episode in batch)
            progress(num_rows)


def _about(metadata: Metadata) -> dict[str, Any]:
    """What Minari keeps of what the source knows."""
    about: dict[str, Any] = {}
    if metadata.environment is not None:
        about["env_spec"] = metadata.environment
    if metadata.score_range is not None:
        about["ref_min_score"], about["ref_max_score"] = metadata.score_range
    if metadata.source is not None:
        about["description"] = f"Converted from {metadata.source}."
    if metadata.actions_normalized:
        about["actions_normalized"] = True  # ours: Minari has no word for it
    return about


def _spaces(metadata: Metadata, episode: dict[str, Any], layout: ObservationLayout) -> tuple[gym.Space, gym.Space]:
    """The recorded spaces; where they are not known, unbounded ones of the columns' shapes."""
    observation_space, action_space = metadata.observation_space, metadata.action_space
    if observation_space is None:
        observation_space = _space_of(episode["observations"])
    elif layout == "flatten" and not isinstance(observation_space, gym.spaces.Box):
        observation_space = gym.spaces.flatten_space(observation_space)
    if action_space is None:
        if episode["actions"].ndim == 1:
            raise DatasetError("the data have discrete actions, and do not say of how many: Minari needs to know")
        action_space = _space_of(episode["actions"])
    return observation_space, action_space


def _space_of(column: Tree) -> gym.Space:
    if isinstance(column, Mapping):
        return gym.spaces.Dict({key: _space_of(inner) for key, inner in column.items()})
    if isinstance(column, tuple):
        return gym.spaces.Tuple([_space_of(inner) for inner in column])
    low, high = (0, 255) if is_image(column) else (-np.inf, np.inf)
    return gym.spaces.Box(low, high, column.shape[1:], column.dtype.type)


def _episodes(blocks: Iterator[Block]) -> Iterator[dict[str, Any]]:
    """Whole episodes as Minari has them: with one more observation than steps."""
    open_parts: list[dict[str, Any]] = []
    for block in blocks:
        starts = [0, *(block.ends + 1)]
        for number, (start, stop) in enumerate(pairwise(starts)):
            open_parts.append(_part(block, start, stop))
            yield _joined(open_parts, map_leaves(lambda leaf, n=number: leaf[n : n + 1], block.final_observations))
            open_parts = []
        if starts[-1] < len(block):
            open_parts.append(_part(block, starts[-1], len(block)))


def _part(block: Block, start: int, stop: int) -> dict[str, Any]:
    return {name: map_leaves(lambda leaf: leaf[start:stop], getattr(block, name)) for name in COLUMNS}


def _joined(parts: list[dict[str, Any]], final: Tree) -> dict[str, Any]:
    def join(*leaves: np.ndarray) -> np.ndarray:
        return np.concatenate(leaves)

    columns = {name: map_leaves(join, *(part[name] for part in parts)) for name in parts[0]}
    return {
        "observations": map_leaves(join, columns["observations"], final),
        "actions": columns["actions"],
        "rewards": columns["rewards"],
        "terminations": columns["terminated"],
        "truncations": columns["truncated"],
    }


def _bytes(episode: dict[str, Any]) -> int:
    return _EPISODE_OVERHEAD + 2 * sum(leaf.nbytes for leaf in tree.flatten(list(episode.values())))


def _batches(episodes: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Episodes of about a chunk's size together: each batch opens the file anew."""
    batch: list[dict[str, Any]] = []
    size = 0
    for episode in episodes:
        batch.append(episode)
        size += _bytes(episode)
        if size >= CHUNK_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
