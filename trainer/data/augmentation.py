"""Random changes to training posters, drawn from (seed, epoch, example).

The same seed, epoch and example give the same change, whatever was drawn before, so that
a run can be repeated and resumed. Each change has its own numbers: choosing one more
leaves the others as they were.
"""

from collections.abc import Sequence

import tensorflow as tf

_CROPPED_AREA = (0.6, 1.0)  # Share of the poster that a crop keeps.
_CROPPED_ASPECT = (3 / 4, 4 / 3)
_COLOR = (0.75, 1.25)  # Factors of brightness, contrast and saturation.
_ERASED_AREA = (0.02, 0.2)
_ERASED_ASPECT = (1 / 2, 2)
_ERASED_LEVEL = 128
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in JPEG.


def augment(
    image: tf.Tensor, changes: Sequence[str], seed: int, epoch: tf.Tensor, key: tf.Tensor
) -> tf.Tensor:
    """Changes a poster at random.

    Args:
        image: uint8 [S, S, 3].
        changes: of flip (left to right, every other poster), crop (60 to 100% of the
            area, resized to the whole), color (brightness, contrast, saturation by up
            to a quarter), erase (a grey rectangle of 2 to 20% of the area, on every
            other poster).
        seed: of the run.
        epoch: int64 scalar.
        key: int64 scalar, which tells the poster from others.

    Returns:
        uint8 [S, S, 3].
    """
    draws = tf.random.stateless_uniform([4, 5], _stateless_seed(seed, epoch, key))
    flip, crop, color, erase = tf.unstack(draws)
    if "flip" in changes:
        image = _flip(image, flip)
    # Rounded once, after both: each pass over the pixels costs as much as the arithmetic.
    pixels = _crop(image, crop) if "crop" in changes else tf.cast(image, tf.float32)
    if "color" in changes:
        pixels = _color(pixels, color)
    if {"crop", "color"} & set(changes):
        image = tf.cast(
            tf.raw_ops.ClipByValue(t=pixels + 0.5, clip_value_min=0.0, clip_value_max=255.0),
            tf.uint8,
        )
    return _erase(image, erase) if "erase" in changes else image


def draw_variant(count: int, seed: int, epoch: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    """Returns which of `count` variants of a poster an epoch has, an int32 scalar.

    Args:
        count: of variants; each is as likely.
        seed: of the run.
        epoch: int64 scalar.
        key: int64 scalar, which tells the poster from others.
    """
    return tf.random.stateless_uniform(
        [], _stateless_seed(seed, epoch, key), 0, count, dtype=tf.int32
    )


def _stateless_seed(seed: int, epoch: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    return tf.stack([seed * 1_000_003 + epoch, key])


def _flip(image: tf.Tensor, draw: tf.Tensor) -> tf.Tensor:
    return tf.cond(draw[0] < 0.5, lambda: tf.reverse(image, [1]), lambda: image)


def _crop(image: tf.Tensor, draw: tf.Tensor) -> tf.Tensor:
    size = image.shape[0]
    top, left, height, width = _rectangle(size, draw, _CROPPED_AREA, _CROPPED_ASPECT)
    cropped = tf.cast(image[top : top + height, left : left + width], tf.float32)
    return tf.image.resize(cropped, (size, size), method="bilinear")


def _color(pixels: tf.Tensor, draw: tf.Tensor) -> tf.Tensor:
    """Saturation, then contrast about the mean luma, then brightness: one affine map.

    The mean is that of every eighth row and column, which costs a 64th.
    """
    low, high = _COLOR
    brightness, contrast, saturation = tf.unstack(low + (high - low) * draw[:3])
    luma = tf.constant(_LUMA)
    mean = tf.tensordot(tf.reduce_mean(pixels[::8, ::8], axis=[0, 1]), luma, 1)
    to_luma = tf.tile(luma[:, None], [1, 3])
    matrix = brightness * contrast * (saturation * tf.eye(3) + (1 - saturation) * to_luma)
    changed = tf.matmul(tf.reshape(pixels, [-1, 3]), matrix)
    return tf.reshape(changed + brightness * (1 - contrast) * mean, pixels.shape)


def _erase(image: tf.Tensor, draw: tf.Tensor) -> tf.Tensor:
    top, left, height, width = _rectangle(image.shape[0], draw, _ERASED_AREA, _ERASED_ASPECT)

    def erased() -> tf.Tensor:
        band = image[top : top + height]
        grey = tf.fill([height, width, 3], tf.constant(_ERASED_LEVEL, tf.uint8))
        band = tf.concat([band[:, :left], grey, band[:, left + width :]], axis=1)
        return tf.ensure_shape(
            tf.concat([image[:top], band, image[top + height :]], axis=0), image.shape
        )

    return tf.cond(draw[4] < 0.5, erased, lambda: image)


def _rectangle(size: int, draw: tf.Tensor, areas: tuple, aspects: tuple) -> list[tf.Tensor]:
    """Returns top, left, height and width of a rectangle in a square, int32 scalars."""
    area = areas[0] + (areas[1] - areas[0]) * draw[0]
    aspect = aspects[0] * (aspects[1] / aspects[0]) ** draw[1]
    sides = tf.sqrt(area * tf.stack([1 / aspect, aspect]))
    lengths = tf.cast(tf.clip_by_value(tf.round(size * sides), 1, size), tf.int32)
    corner = tf.cast(draw[2:4] * tf.cast(size - lengths + 1, tf.float32), tf.int32)
    return [*tf.unstack(tf.minimum(corner, size - lengths)), *tf.unstack(lengths)]
