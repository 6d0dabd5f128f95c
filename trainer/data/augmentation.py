"""Random changes to training posters, drawn from (seed, epoch, example).

The same seed, epoch and example give the same change, whatever was drawn before, so that
a run can be repeated and resumed. Each change has its own numbers: choosing one more
leaves the others as they were.

The numbers are drawn with the examples, on the CPU. The posters are changed there too, one by
one (`augment`), or on the device that trains, a batch at a time (`augment_batch`).
"""

from collections.abc import Sequence

import tensorflow as tf

DRAWS = (4, 5)  # What is drawn for a poster: a row for each change.
MIXING, RAND_AUGMENT = range(2)  # Streams of draws for the changes of other modules.
_CROPPED_AREA = (0.6, 1.0)  # Share of the poster that a crop keeps.
_CROPPED_ASPECT = (3 / 4, 4 / 3)
_COLOR = (0.75, 1.25)  # Factors of brightness, contrast and saturation.
_ERASED_AREA = (0.02, 0.2)
_ERASED_ASPECT = (1 / 2, 2)
_ERASED_LEVEL = 128
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in JPEG.


def draw(size: int, seed: int, epoch: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    """Draws an epoch's changes to a poster of side `size`, in pixels.

    `epoch` and `key`, which tells the poster from others, are int64 scalars.

    Returns:
        float32 [4, 5]: for flip, crop, color and erase, five numbers from 0 to 1, of which crop
        and erase have top, left, height and width of a rectangle, in pixels, for the first four.
    """
    draws = tf.random.stateless_uniform(DRAWS, stateless_seed(seed, epoch, key))
    flip, crop, color, erase = tf.unstack(draws)
    # Here, since another device may round the last digit otherwise, and with it to a whole pixel.
    crop = _with_rectangle(size, crop, _CROPPED_AREA, _CROPPED_ASPECT)
    erase = _with_rectangle(size, erase, _ERASED_AREA, _ERASED_ASPECT)
    return tf.stack([flip, crop, color, erase])


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


def draw_variant(count: int, seed: int, epoch: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    """Returns which of `count` variants of a poster, each as likely, an epoch has: int32 scalar."""
    return tf.random.stateless_uniform(
        [], stateless_seed(seed, epoch, key), 0, count, dtype=tf.int32
    )


def stateless_seed(
    seed: int, epoch: tf.Tensor, key: tf.Tensor, stream: int | None = None
) -> tf.Tensor:
    """Returns the seed, int64 [2], of what an epoch draws for an example.

    `stream` tells draws for one kind of change from those for others, as `MIXING`.
    """
    of_example = tf.stack([seed * 1_000_003 + epoch, key])
    if stream is None:
        return of_example
    return tf.random.experimental.stateless_fold_in(of_example, stream)


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


def _with_rectangle(size: int, draw: tf.Tensor, areas: tuple, aspects: tuple) -> tf.Tensor:
    """Makes a rectangle in a square of five numbers from 0 to 1; the last stays."""
    area = areas[0] + (areas[1] - areas[0]) * draw[0]
    aspect = aspects[0] * (aspects[1] / aspects[0]) ** draw[1]
    sides = tf.sqrt(area * tf.stack([1 / aspect, aspect]))
    lengths = tf.cast(tf.clip_by_value(tf.round(size * sides), 1, size), tf.int32)
    corner = tf.cast(draw[2:4] * tf.cast(size - lengths + 1, tf.float32), tf.int32)
    rectangle = tf.concat([tf.minimum(corner, size - lengths), lengths], axis=0)
    return tf.concat([tf.cast(rectangle, tf.float32), draw[4:]], axis=0)
