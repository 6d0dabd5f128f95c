"""Answers for several variants of a poster, averaged, in evaluation and in the export (`--tta`)."""

from collections.abc import Callable

import keras
import tensorflow as tf

from trainer import config as config_lib
from trainer.data import preprocessing

_ENLARGED = 1.25  # The second of two sizes.


def variants(images: tf.Tensor, tta: str) -> list[tf.Tensor]:
    """Returns posters and their variants: tensors like `images`, which come first.

    Args:
        images: uint8 [B, S, S, 3].
        tta: of `config.TTA`. mirror: the mirror image too; sizes: also the middle of the poster,
            enlarged to 1.25 times its size, as models take posters of one size. With both there
            are four variants.
    """
    found = [images]
    if "sizes" in tta:
        size = images.shape[1]
        margin = round(size * (1 - 1 / _ENLARGED) / 2)
        middle = images[:, margin : size - margin, margin : size - margin]
        found.append(preprocessing.resize(middle, size))
    if "mirror" in tta:
        found += [tf.reverse(image, [2]) for image in found]
    return found


def averaged(model: keras.Model, tta: str) -> Callable[..., tf.Tensor]:
    """Returns what answers with the mean of a model's logits for the variants of each poster.

    Of logits, and not of probabilities, as all that scores answers takes logits; both are
    measured alike. The cross-entropy of either mean is at most the mean of the variants'.
    """
    if tta == config_lib.NO_TTA:
        return model

    def answer(images: tf.Tensor, training: bool) -> tf.Tensor:
        of_posters = variants(images, tta)
        logits = model(tf.concat(of_posters, axis=0), training=training)
        return tf.reduce_mean(tf.stack(tf.split(logits, len(of_posters))), axis=0)

    return answer
