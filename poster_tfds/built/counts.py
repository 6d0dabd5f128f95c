"""What the build counts of each split and keeps in `metadata.json`, so that nobody reads it again.

    {"splits": {"train": {"posters": 3, "bytes": 99000, "together": [[2, 1], [1, 2]]}}}

`together` says how many posters have both of two genres, in the order of the dataset's genres. Its
diagonal are the posters of each genre.
"""

from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

KEY = "splits"  # In the metadata.


def describe(info: tfds.core.SplitInfo, together: np.ndarray) -> dict[str, Any]:
    return {"posters": info.num_examples, "bytes": info.num_bytes, "together": together.tolist()}


def read(builder: tfds.core.DatasetBuilder, split: str) -> dict[str, Any] | None:
    """Returns what `describe` gave for a whole split when the dataset was built.

    None if it is a part of one.
    """
    return builder.info.metadata[KEY].get(split)


def count_together(info: tfds.core.SplitInfo, num_genres: int) -> np.ndarray:
    """Returns the posters with both of two genres, int [G, G], from a split's records."""
    together = np.zeros((num_genres, num_genres), int)
    records = tf.data.TFRecordDataset(list(map(str, info.filepaths)))
    for record in records.as_numpy_iterator():
        features = tf.train.Example.FromString(record).features.feature
        genres = features["genres"].int64_list.value
        together[np.ix_(genres, genres)] += 1
    return together
