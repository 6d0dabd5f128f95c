"""Adam as the settings ask for it, and a running average of the weights that it trains."""

from collections.abc import Iterator, Sequence

import keras
import tensorflow as tf

from trainer import config as config_lib
from trainer.models import layer_groups

_NOT_DECAYED = ["bias", "gamma", "beta"]


def create_optimizer(
    config: config_lib.Config, precision: str, steps_per_epoch: int, model: keras.Model
) -> keras.optimizers.Optimizer:
    """Returns Adam as the settings ask for, which scales the loss where gradients are float16.

    Args:
        config: its settings of the optimization count, but for the batch's.
        precision: Keras dtype policy.
        steps_per_epoch: steps of an epoch, for what changes over the epochs.
        model: what it will train, all of its trainable variables together.
    """
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
    if config.layer_decay == 1 and not config.unfreeze_epochs and not config.clip_norm:
        optimizer = keras.optimizers.Adam(**settings)
    else:
        depths = _depths(model)
        steps_a_group = config.unfreeze_epochs * steps_per_epoch / max(1, *depths)
        optimizer = LayerwiseAdam(
            [config.layer_decay**depth for depth in depths],
            [round(depth * steps_a_group) for depth in depths],
            config.clip_norm,
            **settings,
        )
    optimizer.exclude_from_weight_decay(var_names=_NOT_DECAYED)
    if precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def _depths(model: keras.Model) -> list[int]:
    """Returns how many groups of layers are above each trainable variable's."""
    groups = layer_groups.from_the_top(model)
    depths = {id(weight): depth for depth, group in enumerate(groups) for weight in group}
    return [depths[id(weight)] for weight in model.trainable_variables]


class LayerwiseAdam(keras.optimizers.Adam):
    """Adam (AdamW with a weight decay) with learning rates of their own for layers.

    It clips gradients too. Its variables are Adam's.
    """

    def __init__(
        self,
        rate_factors: Sequence[float],
        first_steps: Sequence[int],
        clip_norm: float = 0.0,
        **settings,
    ):
        """Takes the settings.

        Args:
            rate_factors: of each variable that it is built with: what the learning rate, and with
                it the weight decay, is multiplied by.
            first_steps: of each variable: how many steps leave it as it is.
            clip_norm: what the norm of all gradients together is clipped to; 0: they are not.
            **settings: Adam's.
        """
        super().__init__(**settings)
        self._rate_factors = list(rate_factors)
        self._first_steps = list(first_steps)
        self._clip_norm = clip_norm

    def update_step(self, gradient, variable, learning_rate):
        """Lets a variable's own rate decay and move it."""
        index = self._get_variable_index(variable)
        rate = tf.cast(learning_rate, variable.dtype) * self._rate_factors[index]
        rate *= tf.cast(self.iterations >= self._first_steps[index], variable.dtype)
        if self.weight_decay and self._use_weight_decay(variable):
            variable.assign_sub(variable * self.weight_decay * rate)
        super().update_step(gradient, variable, rate)

    def _apply_weight_decay(self, variables):
        """Leaves it to `update_step`: Keras would take one rate for all."""

    def _all_reduce_sum_gradients(self, grads_and_vars):
        """Clips the sum over replicas: Keras's `global_clipnorm` clips before, each replica's."""
        summed = super()._all_reduce_sum_gradients(grads_and_vars)
        if not self._clip_norm:
            return summed
        gradients, variables = zip(*summed, strict=True)
        clipped, _ = tf.clip_by_global_norm(gradients, self._clip_norm)
        return list(zip(clipped, variables, strict=True))

    def get_config(self):
        """Returns all that it takes to make another like it."""
        return {
            **super().get_config(),
            "rate_factors": list(self._rate_factors),
            "first_steps": list(self._first_steps),
            "clip_norm": self._clip_norm,
        }


class WeightAverage:
    """A running average of a model's weights, normalization statistics included, in another model.

    Layers that are frozen and whole numbers, as of positions, have no part in it: there the other
    model has the weights themselves. It begins with a short memory, which grows with the steps up
    to the momentum, as `tf.train.ExponentialMovingAverage` with `num_updates`.
    """

    def __init__(self, average: keras.Model, model: keras.Model, momentum: float):
        """Names the models.

        Args:
            average: the model that has the average.
            model: what is averaged; it has the same layers.
            momentum: share of the average that a step keeps, in the end.
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
