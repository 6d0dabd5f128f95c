"""What is done with a batch: a step of training, a step of evaluation, on any replicas."""

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from trainer.models import layers, losses, optimizer as optimizer_lib


class Computation(NamedTuple):
    """How a training step is computed; up to rounding and batch normalization it is the same.

    Attributes:
        jit_compile: whether XLA compiles what a replica does; of several, its gradients alone.
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

    It gives the labels and the logits [B, G] of all replicas together, weights [B] of one,
    and `finite` [replicas]: whether the loss and its gradients were finite. Where the loss is
    scaled for float16, gradients may overflow: then the step is skipped and the scale halved,
    and it is the scale that must not have fallen under 1. `waited` [1] are the seconds until the
    batch was there, 0 if the step is not timed.

    Args:
        model: the model.
        optimizer: its optimizer.
        strategy: where the replicas are.
        loss: function of labels and logits [B, G] to losses [B].
        average: a running average of the weights to keep up.
        computation: how it is computed.
        augment: function of a batch to the `image` and `genres` to train on. The labels that
            are given back are still the posters' own, 0 or 1, as scores need them.
    """
    num_parts = computation.accumulate_steps
    # XLA cannot sum over replicas, nor over parts of different sizes.
    is_compiled_in_parts = computation.jit_compile and (
        strategy.num_replicas_in_sync > 1 or num_parts > 1
    )
    normalizations = []  # Those whose statistics `differentiate` gives, in order.

    def differentiate(batch, global_size):
        changed = augment(batch) if augment else batch
        put_off = []
        with contextlib.ExitStack() as stack:
            if is_compiled_in_parts:
                put_off = stack.enter_context(layers.statistics_put_off())
            tape = stack.enter_context(tf.GradientTape())
            logits = tf.cast(_predict(model, changed["image"]), tf.float32)
            mean_loss = tf.reduce_sum(loss(changed["genres"], logits)) / global_size
            scaled_loss = optimizer.scale_loss(mean_loss)
        gradients = tape.gradient(scaled_loss, model.trainable_variables)
        normalizations[:] = [layer for layer, _, _ in put_off]
        return logits, mean_loss, gradients, [statistics for _, *statistics in put_off]

    if is_compiled_in_parts:
        differentiate = tf.function(differentiate, jit_compile=True)

    def replica_gradients(batch, global_size):
        logits, mean_loss, gradients, statistics = differentiate(batch, global_size)
        for layer, (mean, variance) in zip(normalizations, statistics, strict=True):
            layer.record(mean, variance)
        outputs = {
            "labels": batch["genres"],
            "logits": logits,
            "weight": tf.ones_like(batch["genres"][:, 0]),
            "finite": _as_row(tf.math.is_finite(mean_loss)),
        }
        return gradients, outputs

    def replica_update(gradients):
        """Returns whether the gradients were finite, or the loss is not yet scaled to nothing."""
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            context = tf.distribute.get_replica_context()
            optimizer.apply(_agree_on_overflow(gradients, context), model.trainable_variables)
            # It is doubled every 2000 steps; so small it is only where every step is skipped.
            return _as_row(tf.convert_to_tensor(optimizer.dynamic_scale) >= 1)
        finite = _all_finite(gradients)
        optimizer.apply(gradients, model.trainable_variables)
        return _as_row(finite)

    def replica_step(batch):
        context = tf.distribute.get_replica_context()
        # The last batch of an epoch may be spread unevenly over the replicas, so the
        # mean is taken over the examples that there are.
        global_size = context.all_reduce(tf.distribute.ReduceOp.SUM, _size(batch))
        gradients, outputs = replica_gradients(batch, global_size)
        outputs["finite"] *= replica_update(gradients)
        return outputs

    after_step = (lambda: average.update(optimizer.iterations.value)) if average else None
    if num_parts > 1:
        take_batch = _accumulate(
            replica_gradients, replica_update, strategy, model.trainable_variables, num_parts
        )
    else:
        is_compiled_whole = computation.jit_compile and not is_compiled_in_parts
        take_batch = _on_replicas(replica_step, strategy, is_compiled_whole)

    def take_next(iterator):
        batch, waited = _next_timed(iterator, computation.timed)
        return {**take_batch(batch), "waited": waited}

    return _make_step(take_next, after_step)


def make_eval_step(model, strategy: tf.distribute.Strategy):
    """Returns a compiled function that predicts the next batch of an iterator.

    It gives `labels` and `logits` [B, G] and `weight` [B] of all replicas together.
    """

    def replica_step(batch):
        logits = model(batch["image"], training=False)
        return {"labels": batch["genres"], "logits": logits, "weight": batch["weight"]}

    take_batch = _on_replicas(replica_step, strategy)
    return _make_step(lambda iterator: take_batch(next(iterator)))


def _on_replicas(replica_step, strategy: tf.distribute.Strategy, jit_compile: bool = False):
    """Returns a function that takes a batch through all replicas and joins what they return.

    Args:
        replica_step: takes a replica's part of a batch and returns tensors whose first
            axis is the example's.
        strategy: where the replicas are.
        jit_compile: whether XLA compiles `replica_step`.
    """
    if jit_compile:
        replica_step = tf.function(replica_step, jit_compile=True)

    def take_batch(*arguments):
        outputs = strategy.run(replica_step, args=arguments)
        return _gather(outputs, strategy)

    return take_batch


def _accumulate(
    replica_gradients,
    replica_update,
    strategy: tf.distribute.Strategy,
    variables: list[keras.Variable],
    num_parts: int,
):
    """Returns a function that takes a batch through all replicas, part after part.

    The gradients of the parts are summed up: the batch's own, of which there is one update. The
    parts of a replica are of one size, give or take one example. No part is empty on all replicas.

    Args:
        replica_gradients: function of a part and of the batch's size to gradients and outputs.
        replica_update: takes the gradients and returns whether they were finite.
        strategy: where the replicas are.
        variables: what the gradients are of.
        num_parts: of a batch.
    """
    with strategy.scope():
        sums = [
            tf.Variable(
                tf.zeros(variable.shape, variable.dtype),
                trainable=False,
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.SUM,
            )
            for variable in variables
        ]

    def replica_part(batch, i, count, global_size):
        size = tf.shape(batch["genres"])[0]
        begin, end = size * i // count, size * (i + 1) // count
        part = {name: value[begin:end] for name, value in batch.items()}
        gradients, outputs = replica_gradients(part, global_size)
        for total, gradient in zip(sums, gradients, strict=True):
            total.assign_add(gradient)
        return outputs

    def replica_end():
        finite = replica_update([tf.convert_to_tensor(total) for total in sums])
        for total in sums:
            total.assign(tf.zeros_like(total))
        return {"finite": finite}

    take_part = tf.function(_on_replicas(replica_part, strategy))  # Traced once, called twice.
    end = _on_replicas(replica_end, strategy)

    def take_batch(batch):
        sizes = strategy.run(_size, args=(batch,))
        global_size = strategy.reduce(tf.distribute.ReduceOp.SUM, sizes, axis=None)
        count = tf.minimum(num_parts, tf.cast(global_size, tf.int32))
        outputs = _join(lambda i: take_part(batch, i, count, global_size), count)
        finite = tf.reduce_min(tf.reshape(outputs["finite"], [count, -1]), axis=0)
        return {**outputs, "finite": finite * end()["finite"]}

    return take_batch


def _next_timed(iterator, is_timed: bool) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
    """Returns the next batch, and how many seconds it was waited for, float64 [1], if timed."""
    if not is_timed:
        return next(iterator), tf.zeros([1], tf.float64)
    with tf.device("CPU:0"):  # A GPU has no clock.
        asked = tf.timestamp()
    with tf.control_dependencies([asked]):
        batch = next(iterator)
    there = tf.nest.flatten(batch, expand_composites=True)
    with tf.control_dependencies(there), tf.device("CPU:0"):
        return batch, (tf.timestamp() - asked)[None]


def _make_step(take_next, after_step: Callable[[], None] | None = None):
    """Returns a compiled function that takes an iterator's next batches.

    Args:
        take_next: function of the iterator to what is joined of several batches.
        after_step: what to do after each.

    Returns:
        Function of the iterator and of the number of batches, 1 unless said otherwise.
    """

    @tf.function
    def step(iterator):
        outputs = take_next(iterator)
        if after_step:
            after_step()
        return outputs

    @tf.function
    def steps(iterator, num_steps):
        return _join(lambda _: step(iterator), num_steps)

    def take_steps(iterator, num_steps: int = 1):
        return step(iterator) if num_steps == 1 else steps(iterator, tf.constant(num_steps))

    return take_steps


def _join(take, count: tf.Tensor) -> dict[str, tf.Tensor]:
    """Calls a function with 0, 1, ..., on the device, and joins the tensors that it returns."""
    outputs = take(tf.constant(0))
    # The last batch of an epoch may be smaller than the others.
    arrays = {
        name: tf.TensorArray(
            value.dtype, count, infer_shape=False, element_shape=[None, *value.shape[1:]]
        ).write(0, value)
        for name, value in outputs.items()
    }
    for i in tf.range(1, count):
        outputs = take(i)
        arrays = {name: array.write(i, outputs[name]) for name, array in arrays.items()}
    return {name: array.concat() for name, array in arrays.items()}


def _gather(outputs: dict, strategy: tf.distribute.Strategy) -> dict[str, tf.Tensor]:
    if strategy.num_replicas_in_sync == 1:
        return outputs
    return {name: strategy.gather(value, axis=0) for name, value in outputs.items()}


def _size(batch: dict[str, tf.Tensor]) -> tf.Tensor:
    return tf.cast(tf.shape(batch["genres"])[0], tf.float32)


def _as_row(finite: tf.Tensor) -> tf.Tensor:
    return tf.cast(finite, tf.float32)[None]  # Booleans cannot be gathered.


def collect(outputs: list[dict[str, tf.Tensor]]) -> tuple[np.ndarray, np.ndarray]:
    """Joins what steps returned, leaving out what only filled up a batch (weight 0).

    Returns:
        labels and logits, float32 [N, G].
    """
    joined = {
        key: tf.concat([output[key] for output in outputs], axis=0).numpy()
        for key in ("labels", "logits", "weight")
    }
    real = joined["weight"] > 0
    return joined["labels"][real], joined["logits"][real]


def _predict(model, images: tf.Tensor) -> tf.Tensor:
    """Returns what a model answers in training to a replica's part of a batch.

    Several replicas may have more of them than the last batch of an epoch has posters. One
    without any looks at a black poster, since oneDNN's kernels do not bear an empty batch. It
    counts nowhere but in the moving statistics of Keras's own normalization (`keras:NAME`).
    """
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return model(images, training=True)
    size = tf.shape(images)[0]
    missing = tf.maximum(1 - size, 0)
    images = tf.pad(images, [[0, missing], *[[0, 0]] * (images.shape.rank - 1)])
    with layers.statistics_weighted(tf.cast(1 - missing, tf.float32)):
        return model(images, training=True)[:size]


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
