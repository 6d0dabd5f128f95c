"""RandAugment (https://arxiv.org/abs/1909.13719): two random changes of one magnitude to a poster.

Of the paper's 14 changes those are here that take a few passes over a batch, whichever is chosen:
geometry is one warp, colour one affine map. Sharpness, equalized and stretched histograms are not.
The ranges are those of AutoAugment (https://arxiv.org/abs/1805.09501, table 6), the largest
magnitude being 10.

What is drawn comes from (seed, step), as in `augmentation`. `keras.layers.RandAugment`
draws from a generator with a state of its own, one change for all posters of a batch, and computes
all changes to choose one; its warp cannot be compiled by XLA.
"""

import math

import tensorflow as tf

from trainer import config as config_lib
from trainer.data import augmentation

_CHANGES = (
    "rotate",
    "shear x",
    "shear y",
    "translate x",
    "translate y",
    "brightness",
    "contrast",
    "color",
    "solarize",
    "posterize",
)
# What the largest magnitude does.
_ROTATED = math.radians(30)
_SHEARED = 0.3
_TRANSLATED = 0.45  # Of the poster's side.
_SCALED = 0.9  # Of brightness, contrast and colour, more or less.
_LOST_BITS = 4  # Of the 8 of a level.
_FILL = 128


def draw(magnitude: float, seed: tf.Tensor, count: int) -> tf.Tensor:
    """Draws two changes to each of `count` posters, of which one may be none, from int64 [2].

    Returns:
        float32 [B, 10], the strength of each change, -1 to 1; 0: not chosen.
    """
    draws = tf.random.stateless_uniform([count, 4], seed)
    num_choices = len(_CHANGES) + 1  # And none.
    first = tf.cast(draws[:, 0] * num_choices, tf.int32)
    # Another one.
    second = (first + 1 + tf.cast(draws[:, 1] * (num_choices - 1), tf.int32)) % num_choices
    signs = tf.sign(draws[:, 2:] - 0.5)
    chosen = tf.one_hot(tf.stack([first, second], axis=1), len(_CHANGES))
    return magnitude / config_lib.MAX_MAGNITUDE * tf.reduce_sum(signs[..., None] * chosen, axis=1)


def augment_batch(images: tf.Tensor, strengths: tf.Tensor) -> tf.Tensor:
    """Changes posters, uint8 [B, S, S, 3], by float32 [B, 10] of `draw`."""
    of = dict(zip(_CHANGES, tf.unstack(strengths, axis=1), strict=True))
    size = images.shape[1]
    angle = _ROTATED * of["rotate"]
    cos, sin = tf.cos(angle), tf.sin(angle)
    shear_x, shear_y = _SHEARED * of["shear x"], _SHEARED * of["shear y"]
    # Of rows and columns: the rotation's matrix times the shear's.
    pixels = _warp(
        images,
        rows=(cos - sin * shear_x, cos * shear_y - sin, _TRANSLATED * size * of["translate y"]),
        columns=(sin + cos * shear_x, sin * shear_y + cos, _TRANSLATED * size * of["translate x"]),
    )
    factors = tf.stack([of[name] for name in ("brightness", "contrast", "color")], axis=1)
    pixels = augmentation.scale_color(pixels, 1 + _SCALED * factors)
    levels = tf.cast(augmentation.to_levels(pixels), tf.int32)
    threshold = tf.cast(tf.round(256 * (1 - tf.abs(of["solarize"]))), tf.int32)
    levels = tf.where(levels >= threshold[:, None, None, None], 255 - levels, levels)
    lost = tf.cast(tf.round(_LOST_BITS * tf.abs(of["posterize"])), tf.int32)
    lost = tf.bitwise.left_shift(1, lost)[:, None, None, None] - 1
    return tf.cast(tf.bitwise.bitwise_and(levels, 255 - lost), tf.uint8)


def _warp(images: tf.Tensor, rows: tuple, columns: tuple) -> tf.Tensor:
    """Moves the pixels of posters bilinearly, with grey where there were none.

    `rows` are a, b, c [B], of the row a * y + b * x + c that comes to row y and column x, both
    counted from the poster's centre; `columns` the same of the column. It gives float32.
    """
    size = images.shape[1]
    from_centre = tf.range(size, dtype=tf.float32) - (size - 1) / 2
    y, x = from_centre[:, None], from_centre

    def find(a, b, c):
        # Not a product of matrices, which a GPU may round to 11 bits.
        a, b, c = (factor[:, None, None] for factor in (a, b, c))
        # A border of one pixel is grey; beyond it all is as at the border.
        position = tf.clip_by_value(a * y + b * x + c + (size + 1) / 2, 0.0, size + 1.0)
        low = tf.minimum(tf.floor(position), size)
        return tf.cast(low, tf.int32), (position - low)[..., None]

    (row, down), (column, right) = find(*rows), find(*columns)
    bordered = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=_FILL)
    width = size + 2
    flat = tf.reshape(bordered, [-1, width * width, 3])
    index = row * width + column

    def at(offset):
        return tf.cast(tf.gather(flat, index + offset, axis=1, batch_dims=1), tf.float32)

    above = at(0) + (at(1) - at(0)) * right
    below = at(width) + (at(width + 1) - at(width)) * right
    return above + (below - above) * down
