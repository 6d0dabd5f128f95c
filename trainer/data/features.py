"""What a frozen backbone makes of each poster, computed once, as the examples of its head."""

from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from trainer.data import augmentation, batching as batching_lib, test_time


class Features(NamedTuple):
    """Of a split, in its order."""

    values: np.ndarray  # float32 [N, V, F], of each poster and of its variants.
    labels: np.ndarray  # float32 [N, G], multi-hot.


def variants(backbone: keras.Model, mirrored: bool) -> Callable[..., tf.Tensor]:
    """Returns a model of uint8 [B, S, S, 3] to the features float32 [B, V, F] of its variants.

    Args:
        backbone: model of posters to features [B, F].
        mirrored: whether the mirror image is a variant, the second.
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

    Args:
        features: of the split; one of a poster's variants is drawn for an epoch.
        batching: their order and their batches.
        context: which worker this is, of how many, and the number of replicas.

    Yields:
        For one replica after the other, `image` float32 [B, F] and `genres` float32 [B, G].
    """
    size, num_variants, _ = features.values.shape
    examples = tf.data.Dataset.from_tensor_slices(
        {"image": features.values, "genres": features.labels, "key": np.arange(size)}
    )

    def prepare(chosen, epoch):
        def draw(example):
            variant = augmentation.draw_variant(num_variants, batching.seed, epoch, example["key"])
            return {"image": example["image"][variant], "genres": example["genres"]}

        return batching_lib.map_parallel(chosen, draw)

    return batching_lib.train_batches(examples, batching, _empty_batch(features), prepare, context)


def eval_batches(
    features: Features,
    batching: batching_lib.Batching,
    context: tf.distribute.InputContext = batching_lib.WHOLE,
) -> tf.data.Dataset:
    """Returns endless passes over features, as `pipeline` does over posters.

    Args:
        features: of the split; the posters as they are count.
        batching: their batches.
        context: which worker this is, of how many, and the number of replicas.

    Yields:
        For one replica after the other, `image` float32 [B, F], `genres` float32 [B, G]
        and `weight` float32 [B].
    """
    examples = tf.data.Dataset.from_tensor_slices(
        {"image": features.values[:, 0], "genres": features.labels}
    )
    return batching_lib.eval_batches(
        examples, batching, _empty_batch(features), lambda chosen: chosen, context
    )


def _empty_batch(features: Features) -> dict[str, tf.Tensor]:
    return batching_lib.empty_batch(features.values.shape[2:], features.labels.shape[1], tf.float32)
