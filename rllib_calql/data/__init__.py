"""Datasets, returns and replay: numpy only, no Ray."""

from rllib_calql.data.errors import DatasetError, DatasetWarning
from rllib_calql.data.mixture import Mixture
from rllib_calql.data.prepare import Preparation, check_fits, require_trainable
from rllib_calql.data.replay import EpisodeStore, MixedReplay, check_mixing_ratio
from rllib_calql.data.returns import return_to_go
from rllib_calql.data.rows import Metadata, Rows, Source
from rllib_calql.data.sources import open_dataset, open_source
from rllib_calql.data.storage_writer import write_dataset
from rllib_calql.data.transitions import Batch, Transitions

__all__ = [
    "Batch",
    "DatasetError",
    "DatasetWarning",
    "EpisodeStore",
    "Metadata",
    "MixedReplay",
    "Mixture",
    "Preparation",
    "Rows",
    "Source",
    "Transitions",
    "check_fits",
    "check_mixing_ratio",
    "open_dataset",
    "open_source",
    "require_trainable",
    "return_to_go",
    "write_dataset",
]
