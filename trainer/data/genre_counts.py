"""Posters of each genre of a part of a split, or of a dataset that was built without counting.

They are counted once and kept in a file, `genre_counts-DIGEST.json`. The digest is of the name of
the part and of the dataset's shards, so that a dataset that is built anew is counted anew.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import utils

from poster_tfds.built import checksums

_ERRORS = (OSError, tf.errors.OpError)  # The latter on an object store.


def file_name(builder: tfds.core.DatasetBuilder, split: str) -> str:
    """Returns the name of the file for a split, or a part of one, of a built dataset."""
    sums = checksums.read(builder.data_path)
    digest = hashlib.sha256(split.encode())
    for info in builder.info.splits.values():
        digest.update(checksums.of_split(info, sums).encode())
    return f"genre_counts-{digest.hexdigest()[:16]}.json"


def read_or_count(
    paths: Sequence[epath.Path], num_genres: int, count: Callable[[], np.ndarray]
) -> np.ndarray:
    """Returns the posters of each genre, int [G], as they are kept or counted now.

    Of several workers that find no file, each counts and writes the same.

    Args:
        paths: of the file; what is counted is kept in the first that can be written, if any.
        num_genres: G.
        count: reads the records.
    """
    for path in paths:
        with contextlib.suppress(*_ERRORS, TypeError, ValueError):  # Not there, or damaged.
            counts = np.array(json.loads(path.read_text()), int)
            if counts.shape == (num_genres,):
                return counts
    counts = count()
    for path in paths:
        with contextlib.suppress(*_ERRORS), utils.incomplete_file(path) as temporary:
            temporary.write_text(json.dumps(counts.tolist()) + "\n")
            break
    return counts
