"""Augmentations of training posters: flip, crop, color, erase.

What is random is drawn for a whole batch, from (seed, step), so that a run can be repeated and
resumed. The posters are changed on the CPU, one by one (`augment`), or on the device that trains, a
batch at a time (`augment_batch`).
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


def draw(size: int, seed: tf.Tensor, count: int) -> tf.Tensor:
    """Draws the augmentations of posters of side `size`, in pixels.

    Args:
        size: S.
        seed: int64 [2].
        count: of posters, B.

    Returns:
        float32 [B, 4, 5]: for flip, crop, color and erase, five numbers from 0 to 1, of which crop
        and erase have top, left, height and width of a rectangle, in pixels, for the first four.
    """
    flip, crop, color, erase = tf.unstack(tf.random.stateless_uniform([count, 4, 5], seed), axis=1)
    # Here, since another device may round the last digit otherwise, and with it to a whole pixel.
    crop = _with_rectangle(size, crop, _CROPPED_AREA, _CROPPED_ASPECT)
    erase = _with_rectangle(size, erase, _ERASED_AREA, _ERASED_ASPECT)
    return tf.stack([flip, crop, color, erase], axis=1)


def augment(image: tf.Tensor, changes: Sequence[str], draws: tf.Tensor) -> tf.Tensor:
    """Changes a poster, uint8 [S, S, 3], at random.

    Args:
        image: the poster.
        changes: of flip (left to right, every other poster), crop (60 to 100% of the
            area, resized to the whole), color (brightness, contrast, saturation by up
            to a quarter), erase (a grey rectangle of 2 to 20% of the area, on every
            other poster).
        draws: of `draw`.
    """
    flip, crop, color, erase = tf.unstack(draws)
    if "flip" in changes:
        image = _flip(image, flip)
    # Rounded once, after both: each pass over the pixels costs as much as the arithmetic.
    pixels = _crop(image, crop) if "crop" in changes else tf.cast(image, tf.float32)
    if "color" in changes:
        pixels = _color(pixels, color)
    if {"crop", "color"} & set(changes):
        image = to_levels(pixels)
    return _erase(image, erase) if "erase" in changes else image


def augment_batch(changes: Sequence[str], images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """Changes posters as `augment` does, to one level, without a branch or a loop.

    `images` are uint8 [B, S, S, 3], `draws` float32 [B, 4, 5].
    """
    flip, crop, color, erase = tf.unstack(draws, axis=1)
    if "flip" in changes:
        mirrored = flip[:, 0] < 0.5
        images = tf.where(mirrored[:, None, None, None], tf.reverse(images, [2]), images)
    pixels = _crop_batch(images, crop) if "crop" in changes else tf.cast(images, tf.float32)
    if "color" in changes:
        low, high = _COLOR
        pixels = scale_color(pixels, low + (high - low) * color[:, :3])
    if {"crop", "color"} & set(changes):
        images = to_levels(pixels)
    return _erase_batch(images, erase) if "erase" in changes else images


def to_levels(pixels: tf.Tensor) -> tf.Tensor:
    """Rounds to uint8; what is beyond 0 and 255 becomes these."""
    return tf.cast(
        tf.raw_ops.ClipByValue(t=pixels + 0.5, clip_value_min=0.0, clip_value_max=255.0), tf.uint8
    )


def scale_color(pixels: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
    """Changes colours of float32 [B, S, S, 3] as `_color` does.

    `factors`, float32 [B, 3], are of brightness, contrast and saturation; 1: as it is.
    """
    brightness, contrast, saturation = tf.unstack(factors[..., None, None], axis=1)
    luma = tf.constant(_LUMA)[:, None]
    mean = tf.matmul(tf.reduce_mean(pixels[:, ::8, ::8], axis=[1, 2])[:, None], luma)
    to_luma = tf.tile(luma, [1, 3])
    matrix = brightness * contrast * (saturation * tf.eye(3) + (1 - saturation) * to_luma)
    # Not a product of matrices: three columns are too narrow for it.
    changed = tf.add_n([pixels[..., i, None] * matrix[:, None, i, None] for i in range(3)])
    return changed + (brightness * (1 - contrast) * mean)[..., None]


def inside(draws: tf.Tensor, size: int) -> tf.Tensor:
    """Returns which pixels of posters of side `size` lie in a rectangle: bool [B, S, S, 1].

    `draws`, float32 [B, 4 or more], begin with top, left, height and width in pixels.
    """
    top, left, height, width = (side[:, None] for side in _rectangle(draws))
    position = tf.range(size)
    rows = (position >= top) & (position < top + height)
    columns = (position >= left) & (position < left + width)
    return rows[:, :, None, None] & columns[:, None, :, None]


def _flip(image: tf.Tensor, draw: tf.Tensor) -> tf.Tensor:
    return tf.cond(draw[0] < 0.5, lambda: tf.reverse(image, [1]), lambda: image)


def _crop(image: tf.Tensor, draw: tf.Tensor) -> tf.Tensor:
    size = image.shape[0]
    top, left, height, width = _rectangle(draw)
    cropped = tf.cast(image[top : top + height, left : left + width], tf.float32)
    return tf.image.resize(cropped, (size, size), method="bilinear")


def _crop_batch(images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    top, left, height, width = _rectangle(draws)
    pixels = _interpolate(images, top, height, axis=1)
    return _interpolate(pixels, left, width, axis=2)


def _interpolate(images: tf.Tensor, start: tf.Tensor, length: tf.Tensor, axis: int) -> tf.Tensor:
    """Stretches a part of an axis to the whole, bilinearly, with half-pixel centres.

    The part of each of [B, S, S, 3] begins at `start` and is `length` long, int32 [B]. It gives
    float32.
    """
    size = images.shape[axis]
    last = tf.cast(length - 1, tf.float32)[:, None]
    scale = tf.cast(length, tf.float32)[:, None] / size
    # Beyond the centres of the first and the last pixel are these themselves.
    position = tf.clip_by_value((tf.range(size, dtype=tf.float32) + 0.5) * scale - 0.5, 0.0, last)
    low = tf.floor(position)
    index = start[:, None] + tf.cast(low, tf.int32)
    after = start[:, None] + tf.cast(tf.minimum(low + 1, last), tf.int32)
    here, there = (
        tf.cast(tf.gather(images, i, axis=axis, batch_dims=1), tf.float32) for i in (index, after)
    )
    share = tf.expand_dims(position - low, 3 - axis)[..., None]
    return here + (there - here) * share


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
    top, left, height, width = _rectangle(draw)

    def erased() -> tf.Tensor:
        band = image[top : top + height]
        grey = tf.fill([height, width, 3], tf.constant(_ERASED_LEVEL, tf.uint8))
        band = tf.concat([band[:, :left], grey, band[:, left + width :]], axis=1)
        return tf.ensure_shape(
            tf.concat([image[:top], band, image[top + height :]], axis=0), image.shape
        )

    return tf.cond(draw[4] < 0.5, erased, lambda: image)


def _erase_batch(images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    is_erased = inside(draws, images.shape[1]) & (draws[:, 4, None, None, None] < 0.5)
    return tf.where(is_erased, tf.constant(_ERASED_LEVEL, tf.uint8), images)


def _rectangle(draws: tf.Tensor) -> list[tf.Tensor]:
    """Returns top, left, height and width of rectangles, int32 [...], from draws [..., 5]."""
    return tf.unstack(tf.cast(draws[..., :4], tf.int32), axis=-1)


def _with_rectangle(size: int, draws: tf.Tensor, areas: tuple, aspects: tuple) -> tf.Tensor:
    """Makes rectangles in a square of numbers from 0 to 1, [B, 5]; the last of each stays."""
    area = areas[0] + (areas[1] - areas[0]) * draws[:, 0]
    aspect = aspects[0] * (aspects[1] / aspects[0]) ** draws[:, 1]
    sides = tf.sqrt(area[:, None] * tf.stack([1 / aspect, aspect], axis=1))
    lengths = tf.clip_by_value(tf.round(size * sides), 1, size)
    corners = tf.minimum(tf.floor(draws[:, 2:4] * (size - lengths + 1)), size - lengths)
    return tf.concat([corners, lengths, draws[:, 4:]], axis=1)
