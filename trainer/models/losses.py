"""Losses of logits against genres, for genres that most posters lack."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from trainer import config as config_lib

# Powers that turn down the loss of what is right already, for present and for absent
# genres, and the probability below which an absent genre costs nothing: equations 5 to 8
# of https://arxiv.org/abs/2009.14119, of which the focal loss
# (https://arxiv.org/abs/1708.02002) is the symmetric case.
_FOCUS = {"focal": (2.0, 2.0, 0.0), "asymmetric": (0.0, 4.0, 0.05)}


def binary_crossentropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns the mean over genres, float32 [B], of labels and logits [B, G]."""
    return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels, logits), axis=-1)


def make_loss(
    config: config_lib.Config, base_rates: np.ndarray
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Returns the loss that the settings ask for.

    It is a function of labels and logits, float32 [B, G], to losses [B]: the mean over the genres,
    in nats. `base_rates` [G] are each genre's share of the train split.
    """
    prior = tf.constant(base_rates, tf.float32)

    def loss(labels, logits):
        if config.label_smoothing:
            labels += config.label_smoothing * (prior - labels)
        if config.loss == "binary_crossentropy":
            losses = tf.nn.sigmoid_cross_entropy_with_logits(labels, logits)
        else:
            losses = asymmetric_loss(labels, logits, *_FOCUS[config.loss])
        return tf.reduce_mean(losses, axis=-1)

    return loss


def asymmetric_loss(
    labels: tf.Tensor,
    logits: tf.Tensor,
    positive_power: float,
    negative_power: float,
    margin: float,
) -> tf.Tensor:
    """Returns the asymmetric loss, https://arxiv.org/abs/2009.14119, of each label.

    With a probability p it is -(1 - p)^positive_power log(p) where the genre is present
    and -q^negative_power log(1 - q) where it is absent, q being p - margin, at least 0.
    Labels are 0 to 1, both float32 [..., G].
    """
    p = tf.sigmoid(logits)
    q = tf.maximum(p - margin, 0.0)
    # With a margin 1 - q is never less than it; without one, log(1 - p) wants more care.
    log_absent = tf.math.log(1 - q) if margin else tf.math.log_sigmoid(-logits)
    present = tf.math.log_sigmoid(logits)
    if positive_power:  # The gradient of 0 ** 0 is not finite.
        present *= (1 - p) ** positive_power
    return -(labels * present + (1 - labels) * q**negative_power * log_absent)
