"""What the build counts of each split and keeps in `metadata.json`, so that nobody reads it again.

    {"splits": {"train": {"posters": 3, "bytes": 99000, "sha256": "0c1...", "together":
     [[2, 1], [1, 2]]}}}

`together` says how many posters have both of two genres, in the order of the dataset's genres. Its
diagonal are the posters of each genre.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from poster_tfds.built import checksums

KEY = "splits"  # In the metadata.


def describe(
    info: tfds.core.SplitInfo, together: np.ndarray, sums: Mapping[str, str]
) -> dict[str, Any]:
    """Returns what is kept of a split.

    Args:
        info: of the split.
        together: int [G, G], posters with both genres.
        sums: the SHA-256 of shards, by their names.
    """
    return {
        "posters": info.num_examples,
        "bytes": info.num_bytes,
        "sha256": checksums.of_split(info, sums),
        "together": together.tolist(),
    }


def read(builder: tfds.core.DatasetBuilder, split: str) -> dict[str, Any] | None:
    """Returns what `describe` gave for a whole split when the dataset was built.

    None if the dataset was built without it, or if its shards are others by now.
    """
    kept = (builder.info.metadata or {}).get(KEY, {}).get(split)
    if not kept:
        return None
    sha256 = checksums.of_split(builder.info.splits[split], checksums.read(builder.data_path))
    return kept if kept["sha256"] == sha256 else None
