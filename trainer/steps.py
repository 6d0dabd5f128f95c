"""What is done with a batch: a step of training, a step of evaluation, on any replicas."""

from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from trainer.models import losses, optimizer as optimizer_lib


class Computation(NamedTuple):
    """How a training step is computed; up to rounding and batch normalization it is the same.

    Attributes:
        jit_compile: whether XLA compiles it: on one replica, a batch at once.
        accumulate_steps: parts that a batch goes through the model in, one after the other, so
            that there is memory for the activations of one part alone.
        timed: whether a step tells how long it waited for its batch. It looks at a clock, which
            TensorFlow does not allow where operations must be deterministic.
    """

    jit_compile: bool = False
    accumulate_steps: int = 1
    timed: bool = False


_PLAIN = Computation()


def make_train_step(
    model: keras.Model,
    optimizer,
    strategy: tf.distribute.Strategy,
    loss: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] = losses.binary_crossentropy,
    average: optimizer_lib.WeightAverage | None = None,
    computation: Computation = _PLAIN,
    augment: Callable[[dict[str, tf.Tensor]], dict[str, tf.Tensor]] | None = None,
):
    """Returns a compiled function that trains on the next global batches of an iterator.

    It gives, for each step, `loss` float32 [steps], the mean binary cross-entropy of what was
    trained on, whatever loss is minimized; `finite` bool [steps], whether the loss and its
    gradients were finite on all replicas; and `waited` float64 [steps], the seconds until the batch
    was there, 0 if steps are not timed. Where the loss is scaled for float16, gradients may
    overflow: then the step is skipped and the scale halved, and it is the scale that must not have
    fallen under 1.

    Args:
        model: the model.
        optimizer: its optimizer.
        strategy: where the replicas are; each has an equal part of a batch.
        loss: function of labels and logits [B, G] to losses [B].
        average: a running average of the weights to keep up.
        computation: how it is computed.
        augment: function of a batch to the `image` and `genres` to train on.
    """
    num_replicas, num_parts = strategy.num_replicas_in_sync, computation.accumulate_steps

    def differentiate(batch, divisor):
        """Returns gradients, and a replica's share [2] of the loss and of what is not finite."""
        changed = augment(batch) if augment else batch
        with tf.GradientTape() as tape:
            logits = tf.cast(model(changed["image"], training=True), tf.float32)
            mean_loss = tf.reduce_sum(loss(changed["genres"], logits)) / divisor
            scaled_loss = optimizer.scale_loss(mean_loss)
        gradients = tape.gradient(scaled_loss, model.trainable_variables)
        shown = losses.binary_crossentropy(changed["genres"], logits)
        is_broken = tf.cast(~tf.math.is_finite(mean_loss), tf.float32)
        return gradients, tf.stack([tf.reduce_sum(shown) / divisor, is_broken])

    def update(gradients):
        """Returns [2], as `differentiate`, whether the gradients were not finite."""
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            context = tf.distribute.get_replica_context()
            optimizer.apply(_agree_on_overflow(gradients, context), model.trainable_variables)
            # It is doubled every 2000 steps; so small it is only where every step is skipped.
            is_finite = tf.convert_to_tensor(optimizer.dynamic_scale) >= 1
        else:
            is_finite = _all_finite(gradients)
            optimizer.apply(gradients, model.trainable_variables)
        return tf.stack([0.0, tf.cast(~is_finite, tf.float32)])

    def replica_step(batch):
        gradients, outcome = differentiate(batch, _size(batch) * num_replicas)
        return outcome + update(gradients)

    if computation.jit_compile:
        replica_step = tf.function(replica_step, jit_compile=True)

    def on_replicas(function, *arguments):
        outcome = strategy.run(function, args=arguments)
        return strategy.reduce(tf.distribute.ReduceOp.SUM, outcome, axis=None)

    def take_whole(batch):
        return on_replicas(replica_step, batch)

    if num_parts > 1:
        sums = _make_sums(model.trainable_variables, strategy)

    def add_part(batch, i):
        size = tf.shape(batch["genres"])[0] // num_parts
        part = {name: value[i * size : (i + 1) * size] for name, value in batch.items()}
        gradients, outcome = differentiate(part, _size(batch) * num_replicas)
        for total, gradient in zip(sums, gradients, strict=True):
            total.assign_add(gradient)
        return outcome

    def update_by_sums():
        outcome = update([tf.convert_to_tensor(total) for total in sums])
        for total in sums:
            total.assign(tf.zeros_like(total))
        return outcome

    def take_in_parts(batch):
        outcome = tf.zeros([2])
        for i in tf.range(num_parts):
            outcome += on_replicas(add_part, batch, i)
        return outcome + on_replicas(update_by_sums)

    take_batch = take_whole if num_parts == 1 else take_in_parts

    @tf.function
    def step(iterator):
        batch, waited = _next_timed(iterator, computation.timed)
        loss, num_broken = tf.unstack(take_batch(batch))
        if average:
            average.update(optimizer.iterations.value)
        return {"loss": loss, "finite": num_broken == 0, "waited": waited}

    @tf.function
    def take_steps(iterator, num_steps):
        arrays = {
            "loss": tf.TensorArray(tf.float32, num_steps, element_shape=[]),
            "finite": tf.TensorArray(tf.bool, num_steps, element_shape=[]),
            "waited": tf.TensorArray(tf.float64, num_steps, element_shape=[]),
        }
        for i in tf.range(num_steps):
            outputs = step(iterator)
            arrays = {name: array.write(i, outputs[name]) for name, array in arrays.items()}
        return {name: array.stack() for name, array in arrays.items()}

    def train(iterator, num_steps: int = 1):
        if num_steps > 1:
            return take_steps(iterator, tf.constant(num_steps))
        return {name: value[None] for name, value in step(iterator).items()}

    return train


def make_eval_step(model, strategy: tf.distribute.Strategy):
    """Returns a compiled function that predicts the next batch of an iterator.

    It gives `labels` and `logits` [B, G] and `weight` [B] of all replicas together.
    """

    def replica_step(batch):
        logits = model(batch["image"], training=False)
        return {"labels": batch["genres"], "logits": logits, "weight": batch["weight"]}

    @tf.function
    def step(iterator):
        outputs = strategy.run(replica_step, args=(next(iterator),))
        if strategy.num_replicas_in_sync == 1:
            return outputs
        return {name: strategy.gather(value, axis=0) for name, value in outputs.items()}

    return step


def collect(outputs: list[dict[str, tf.Tensor]]) -> tuple[np.ndarray, np.ndarray]:
    """Joins what evaluation steps returned, without what only filled up a batch (weight 0).

    Returns:
        labels and logits, float32 [N, G].
    """
    joined = {
        key: tf.concat([output[key] for output in outputs], axis=0).numpy()
        for key in ("labels", "logits", "weight")
    }
    real = joined["weight"] > 0
    return joined["labels"][real], joined["logits"][real]


def _make_sums(variables: list[keras.Variable], strategy: tf.distribute.Strategy):
    """Returns a variable for each of others, of which each replica has its own, at 0."""
    with strategy.scope():
        return [
            tf.Variable(
                tf.zeros(variable.shape, variable.dtype),
                trainable=False,
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.SUM,
            )
            for variable in variables
        ]


def _next_timed(iterator, is_timed: bool) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
    """Returns the next batch, and how many seconds it was waited for, float64 [], if timed."""
    if not is_timed:
        return next(iterator), tf.zeros([], tf.float64)
    with tf.device("CPU:0"):  # A GPU has no clock.
        asked = tf.timestamp()
    with tf.control_dependencies([asked]):
        batch = next(iterator)
    there = tf.nest.flatten(batch, expand_composites=True)
    with tf.control_dependencies(there), tf.device("CPU:0"):
        return batch, tf.timestamp() - asked


def _size(batch: dict[str, tf.Tensor]) -> tf.Tensor:
    return tf.cast(tf.shape(batch["genres"])[0], tf.float32)


def _agree_on_overflow(gradients: list[tf.Tensor], context) -> list[tf.Tensor]:
    """Makes gradients non-finite on every replica if they are on any.

    Keras's LossScaleOptimizer looks at its own replica's gradients before they are
    summed, and would apply the sum with another replica's infinity in it.
    """
    overflows = tf.cast(~_all_finite(gradients), tf.float32)
    overflows = context.all_reduce(tf.distribute.ReduceOp.SUM, overflows)
    poison = tf.where(overflows > 0, np.nan, 0.0)
    return [gradients[0] + tf.cast(poison, gradients[0].dtype), *gradients[1:]]


def _all_finite(tensors: list[tf.Tensor]) -> tf.Tensor:
    # A sum is finite only if its terms are; it takes one pass and no copy.
    return tf.math.is_finite(tf.add_n([tf.cast(tf.reduce_sum(t), tf.float32) for t in tensors]))
