"""Adam as the settings ask for it, and a running average of the weights that it trains."""

from collections.abc import Iterator

import keras
import tensorflow as tf

from trainer import config as config_lib

_NOT_DECAYED = ["bias", "gamma", "beta"]


def create_optimizer(
    config: config_lib.Config, precision: str, steps_per_epoch: int
) -> keras.optimizers.Optimizer:
    """Returns Adam as the settings ask for, which scales the loss where gradients are float16."""
    learning_rate = config.learning_rate
    if config.learning_rate_schedule == "cosine":
        warmup = round(config.warmup_epochs * steps_per_epoch)
        learning_rate = keras.optimizers.schedules.CosineDecay(
            0.0 if warmup else learning_rate,
            max(config.epochs * steps_per_epoch - warmup, 1),
            warmup_target=learning_rate if warmup else None,
            warmup_steps=warmup,
        )
    settings = {"learning_rate": learning_rate, "weight_decay": config.weight_decay or None}
    if config.clip_norm:
        optimizer = ClippedAdam(config.clip_norm, **settings)
    else:
        optimizer = keras.optimizers.Adam(**settings)
    optimizer.exclude_from_weight_decay(var_names=_NOT_DECAYED)
    if precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


class ClippedAdam(keras.optimizers.Adam):
    """Adam on gradients that are clipped by the norm of all of them together.

    It is that of their sum over replicas: Keras's `global_clipnorm` clips each replica's before.
    """

    def __init__(self, clip_norm: float, **settings):
        super().__init__(**settings)
        self._clip_norm = clip_norm

    def apply(self, grads, trainable_variables=None):
        context = tf.distribute.get_replica_context()
        summed = context.all_reduce(tf.distribute.ReduceOp.SUM, list(grads))
        clipped, _ = tf.clip_by_global_norm(summed, self._clip_norm)
        # Keras sums them over replicas once more.
        shares = [gradient / context.num_replicas_in_sync for gradient in clipped]
        super().apply(shares, trainable_variables)


class WeightAverage:
    """A running average of a model's weights, normalization statistics included, in another model.

    Layers that are frozen and whole numbers, as of positions, have no part in it: there the other
    model has the weights themselves. It begins with a short memory, which grows with the steps up
    to the momentum, as `tf.train.ExponentialMovingAverage` with `num_updates`.
    """

    def __init__(self, average: keras.Model, model: keras.Model, momentum: float):
        """Averages the weights of `model` in `average`, which has the same layers.

        `momentum` is the share of the average that a step keeps, in the end.
        """
        frozen = {id(weight) for weight in _frozen_weights(model)}
        self._pairs = []
        for mean, weight in zip(average.weights, model.weights, strict=True):
            if id(weight) in frozen or keras.backend.is_int_dtype(weight.dtype):
                mean.assign(weight)
            else:
                self._pairs.append((mean.value, weight.value))
        self._momentum = momentum

    def update(self, step: tf.Tensor) -> None:
        """Takes the weights after a step into the average; outside of replicas."""
        step = tf.cast(step, tf.float32)
        momentum = tf.minimum(self._momentum, (1 + step) / (10 + step))
        for mean, weight in self._pairs:
            mean.assign(mean + (1 - momentum) * (weight - mean))


def _frozen_weights(model: keras.Model) -> Iterator[keras.Variable]:
    for layer in model.layers:
        if not layer.trainable:
            yield from layer.weights
        elif isinstance(layer, keras.Model):
            yield from _frozen_weights(layer)
