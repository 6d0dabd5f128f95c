"""Examples -> batches, epoch after epoch, for the replicas of one worker of several.

The order of an epoch depends on the seed and the epoch's number alone. So a run that is
resumed sees what an uninterrupted one would have seen, and several workers that each
prepare their part of every batch together see what one would.
"""

import dataclasses
import math
from collections.abc import Callable

import tensorflow as tf

from trainer import runtime

WHOLE = tf.distribute.InputContext()


@dataclasses.dataclass(frozen=True)
class Batching:
    """How the examples of a split are put in order and into batches."""

    num_examples: int
    batch_size: int  # Of all replicas, whose number must divide it.
    seed: int = 0  # Together with the epoch's number, gives the order.
    shuffle_buffer: int = 1  # Examples to draw from.
    start_step: int = 0  # Batches that an interrupted run has trained on.

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch of training, which leaves the remainder of its examples out."""
        return self.num_examples // self.batch_size

    @property
    def steps_per_pass(self) -> int:
        """Batches of an evaluation, whose last is filled up."""
        return math.ceil(self.num_examples / self.batch_size)

    @property
    def start(self) -> tuple[int, int]:
        """The epoch and the batch in it with which to begin."""
        return divmod(self.start_step, self.steps_per_epoch)

    def epoch_seed(self, epoch: tf.Tensor) -> tf.Tensor:
        """Returns the seed of an epoch's order, int64 like its number."""
        return self.seed * 1_000_003 + epoch

    def shuffled(self, examples: tf.data.Dataset, epoch: tf.Tensor) -> tf.data.Dataset:
        """Returns examples in an order of an epoch (int64 scalar)."""
        return shuffled(examples, self.shuffle_buffer, self.epoch_seed(epoch))


def train_batches(
    in_order: Callable[[tf.Tensor], tf.data.Dataset],
    batching: Batching,
    prepare: Callable[[tf.data.Dataset, tf.Tensor], tf.data.Dataset],
    share: "Share",
) -> tf.data.Dataset:
    """Returns endless shuffled batches of what `prepare` makes of an epoch's examples.

    Args:
        in_order: function of an epoch's number (int64 scalar) to its examples, in its order:
            those of all workers, or of the lanes that are the worker's.
        batching: their batches.
        prepare: function of the worker's examples and of the number to `image` and `genres`.
        share: what the worker takes.
    """
    start_epoch, start_batch = batching.start

    def one_epoch(epoch):
        # Before they are decoded, pass over those that were trained on.
        num_passed = tf.where(epoch == start_epoch, tf.constant(start_batch, tf.int64), 0)
        chosen = share.of(in_order(epoch)).skip(num_passed * share.per_batch)
        batches = prepare(chosen, epoch).batch(share.per_replica, drop_remainder=True)
        return share.whole(batches, batching.steps_per_epoch - num_passed)

    return endless(tf.data.Dataset.counter(start_epoch).flat_map(one_epoch))


def eval_batches(
    examples: tf.data.Dataset,
    batching: Batching,
    prepare: Callable[[tf.data.Dataset], tf.data.Dataset],
    context: tf.distribute.InputContext = WHOLE,
) -> tf.data.Dataset:
    """Returns endless passes over what `prepare` makes of examples, in batches of one size.

    The last batch is filled up with zeros of weight 0.
    """
    share = Share(batching.batch_size, context)
    weighted = prepare(share.of(examples)).map(
        lambda example: {
            "image": example["image"],
            "genres": example["genres"],
            "weight": 1.0,
        }
    )
    blank = {name: tf.zeros(s.shape, s.dtype) for name, s in weighted.element_spec.items()}
    num_ours = share.num_examples(batching.num_examples)
    missing = batching.steps_per_pass * share.per_batch - num_ours
    filling = tf.data.Dataset.from_tensors(blank).repeat(missing)
    batches = weighted.concatenate(filling).batch(share.per_replica, drop_remainder=True)
    return finish(batches.repeat())


class Share:
    """The part of every global batch that a worker's replicas take.

    It is a slice of each batch. Where examples come from lanes in turns, and lanes can be divided
    evenly among the workers, it is what comes from some of the lanes: no other need be read.
    """

    def __init__(self, batch_size: int, context: tf.distribute.InputContext, num_lanes: int = 0):
        self._batch_size = batch_size
        workers, ours = context.num_input_pipelines, context.input_pipeline_id
        self.has_lanes = bool(num_lanes) and not num_lanes % workers and not batch_size % num_lanes
        self.lanes = slice(None)  # Those to read.
        if self.has_lanes:
            num_ours = num_lanes // workers
            self.lanes = slice(ours * num_ours, (ours + 1) * num_ours)
        self.num_replicas = context.num_replicas_in_sync // workers
        self.per_replica = batch_size // context.num_replicas_in_sync
        self.per_batch = self.per_replica * self.num_replicas
        self._first = ours * self.per_batch

    def of(self, examples: tf.data.Dataset) -> tf.data.Dataset:
        """Returns this worker's part of ordered examples."""
        if self.has_lanes or self.per_batch == self._batch_size:
            return examples

        def is_ours(position, example):
            del example
            place = position % self._batch_size
            return (place >= self._first) & (place < self._first + self.per_batch)

        return examples.enumerate().filter(is_ours).map(lambda position, example: example)

    def num_examples(self, size: int) -> int:
        """Returns how many of `size` ordered examples are this worker's."""
        batches, rest = divmod(size, self._batch_size)
        return batches * self.per_batch + min(max(rest - self._first, 0), self.per_batch)

    def whole(self, batches: tf.data.Dataset, num_steps: tf.Tensor) -> tf.data.Dataset:
        """Returns the batches of so many steps (int64 scalar), without those of the remainder.

        These are read and dropped: what is kept of examples is complete only at their end.
        """
        count = num_steps * self.num_replicas
        chosen = batches.enumerate().filter(lambda number, batch: number < count)
        return chosen.map(lambda number, batch: batch)


def shuffled(examples: tf.data.Dataset, buffer: int, seed: tf.Tensor) -> tf.data.Dataset:
    """Returns examples in the one order that a buffer and a seed (int64 scalar) give."""
    return examples.shuffle(buffer, seed=seed, reshuffle_each_iteration=False)


def endless(batches: tf.data.Dataset) -> tf.data.Dataset:
    """Returns batches that have no end as a finished pipeline."""
    # Known to be endless, it spares tf.distribute a look for replicas without a batch.
    return finish(
        batches.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
    )


def map_parallel(dataset: tf.data.Dataset, function) -> tf.data.Dataset:
    """Maps on all threads of the pipeline, in order."""
    return dataset.map(function, num_parallel_calls=runtime.num_pipeline_threads())


def finish(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Returns a dataset with the options and the prefetch that every pipeline here has."""
    options = tf.data.Options()
    # Parallelism is explicit; an iterator that autotunes blocks when it is destroyed,
    # until its optimizer thread wakes: 10 s and more.
    options.autotune.enabled = False
    options.threading.private_threadpool_size = runtime.num_pipeline_threads()
    return dataset.prefetch(2).with_options(options)
