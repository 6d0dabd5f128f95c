"""What a frozen backbone makes of each poster, computed once, as the examples of its head."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from trainer.data import augmentation, batching as batching_lib, test_time

_ROWS_READ = 256  # At a time: by single ones Python would be felt.


class Features(NamedTuple):
    """Of a split, in its order; in memory or in files."""

    values: np.ndarray  # float32 [N, V, F], of each poster and of its variants.
    labels: np.ndarray  # float32 [N, G], multi-hot.


class Collector:
    """Takes the features of a split in memory, as they are computed."""

    def __init__(self, num_examples: int):
        self._num_examples, self._taken = num_examples, 0
        self._features: Features | None = None

    def take(self, labels: np.ndarray, values: np.ndarray) -> None:
        """Takes those of the next posters: float32 [M, G] and [M, V, F]."""
        if self._features is None:
            shapes = ((self._num_examples, *array.shape[1:]) for array in (values, labels))
            self._features = Features(*(np.empty(shape, np.float32) for shape in shapes))
        rows = slice(self._taken, self._taken + len(labels))
        self._features.values[rows], self._features.labels[rows] = values, labels
        self._taken = rows.stop

    def finish(self) -> Features:
        return self._features

    def close(self) -> None:
        """Leaves nothing behind."""


def variants(backbone: keras.Model, mirrored: bool) -> Callable[..., tf.Tensor]:
    """Returns a model of uint8 [B, S, S, 3] to the features float32 [B, V, F] of its variants.

    The backbone gives [B, F]. `mirrored`: whether the mirror image is a variant, the second.
    """

    def compute(images: tf.Tensor, training: bool) -> tf.Tensor:
        of_variants = test_time.variants(images, "mirror" if mirrored else "none")
        features = [backbone(variant, training=training) for variant in of_variants]
        return tf.cast(tf.stack(features, axis=1), tf.float32)

    return compute


def train_batches(
    features: Features,
    batching: batching_lib.Batching,
    context: tf.distribute.InputContext = batching_lib.WHOLE,
) -> tf.data.Dataset:
    """Returns endless shuffled batches of features, as `pipeline` does of posters.

    One of a poster's variants is drawn for an epoch.

    Yields:
        For one replica after the other, `image` float32 [B, F] and `genres` float32 [B, G].
    """
    size, num_variants, _ = features.values.shape

    def prepare(rows, epoch):
        def draw(row):
            return row, augmentation.draw_variant(num_variants, batching.seed, epoch, row)

        return _look_up(features, batching_lib.map_parallel(rows, draw))

    return batching_lib.train_batches(
        functools.partial(batching.shuffled, tf.data.Dataset.range(size)),
        batching,
        prepare,
        batching_lib.Share(batching.batch_size, context),
    )


def eval_batches(
    features: Features,
    batching: batching_lib.Batching,
    context: tf.distribute.InputContext = batching_lib.WHOLE,
) -> tf.data.Dataset:
    """Returns endless passes over features of posters as they are, as `pipeline` does over posters.

    Yields:
        For one replica after the other, `image` float32 [B, F], `genres` float32 [B, G]
        and `weight` float32 [B].
    """

    def prepare(rows):
        return _look_up(features, rows.map(lambda row: (row, tf.zeros([], tf.int64))))

    rows = tf.data.Dataset.range(len(features.labels))
    return batching_lib.eval_batches(rows, batching, prepare, context)


def _look_up(features: Features, places: tf.data.Dataset) -> tf.data.Dataset:
    """Returns the examples at pairs of a row and a variant, which are read some at a time."""

    def read(rows, variants):
        return features.values[rows, variants], features.labels[rows]

    def look_up(rows, variants):
        values, labels = tf.numpy_function(read, (rows, variants), (tf.float32, tf.float32))
        values.set_shape([None, *features.values.shape[2:]])
        labels.set_shape([None, *features.labels.shape[1:]])
        return {"image": values, "genres": labels}

    return places.batch(_ROWS_READ).map(look_up).unbatch()
