"""MixUp and CutMix: each poster of a batch mixed with the next one, and their genres with them.

MixUp (https://arxiv.org/abs/1710.09412, section 2) trains on a weighted mean of two posters, CutMix
(https://arxiv.org/abs/1905.04899, section 3.1) on one with a rectangle of the other in it. The
genres get the same weights. An epoch's order is random, so that the next poster of a replica's
part of a batch is a random partner.

The numbers are drawn from (seed, step), as in `augmentation`.
`keras.layers.MixUp` and `CutMix` draw from a generator with a state of their own, which a run that
is resumed would not have, and the same on each replica.
"""

import tensorflow as tf

from trainer.data import augmentation


def draw(size: int, mixup: float, cutmix: float, seed: tf.Tensor, count: int) -> tf.Tensor:
    """Draws how posters of side `size` are mixed with their partners.

    Args:
        size: S, in pixels.
        mixup: a of the distribution Beta(a, a) of a poster's own share; 0: no MixUp.
        cutmix: the same for CutMix; each has half of the posters if both are chosen.
        seed: int64 [2].
        count: of posters, B.

    Returns:
        float32 [B, 5]: the poster's own share, 0 to 1, and, for CutMix, top, left, height and width
        in pixels of what it has of its partner.
    """
    of_uniform, of_gamma = tf.unstack(tf.random.experimental.stateless_split(seed))
    draws = tf.random.stateless_uniform([count, 3], of_uniform)
    is_cut = draws[:, 0] < (cutmix > 0) / ((mixup > 0) + (cutmix > 0))
    # Two gamma variates give one of the beta distribution.
    alpha = tf.where(is_cut, float(cutmix), float(mixup))
    own, other = tf.unstack(tf.random.stateless_gamma([2, count], of_gamma, alpha))
    share = tf.math.divide_no_nan(own, own + other)
    half = size * tf.sqrt(1 - share)[:, None] / 2
    middle = size * draws[:, 1:]
    begin, end = (
        tf.round(tf.clip_by_value(edge, 0.0, size)) for edge in (middle - half, middle + half)
    )
    height_and_width = end - begin
    # Of what is left of the rectangle within the poster.
    share_beside = 1 - tf.reduce_prod(height_and_width, axis=1) / size**2
    cut = tf.concat([share_beside[:, None], begin, height_and_width], axis=1)
    return tf.where(is_cut[:, None], cut, tf.pad(share[:, None], [[0, 0], [0, 4]]))


def mix_batch(
    images: tf.Tensor, genres: tf.Tensor, draws: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mixes each poster and its genres with the next one's, the last with the first's.

    Args:
        images: uint8 [B, S, S, 3].
        genres: float32 [B, G], 0 to 1.
        draws: float32 [B, 5], of `draw`.
    """
    share, rectangle = draws[:, 0], draws[:, 1:]
    is_cut = tf.reduce_prod(rectangle[:, 2:], axis=1) > 0
    outside = tf.cast(~augmentation.inside(rectangle, images.shape[1]), tf.float32)
    own = tf.where(is_cut[:, None, None, None], outside, share[:, None, None, None])
    pixels = _mix(tf.cast(images, tf.float32), own)
    return augmentation.to_levels(pixels), _mix(genres, share[:, None])


def _mix(values: tf.Tensor, own: tf.Tensor) -> tf.Tensor:
    partners = tf.concat([values[1:], values[:1]], axis=0)
    return partners + own * (values - partners)
