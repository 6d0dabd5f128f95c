"""Batches of a split that neither memory nor disk hold decoded: read anew in each epoch.

The shards come in an order of (seed, epoch), each worker has its own. Some at a time are
interleaved and their records shuffled, before they are decoded; then come the next ones. So
records that were trained on are passed over by whole windows of shards, and in one undecoded.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from trainer import config as config_lib
from trainer.data import pipeline, splits

_SHARDS_AT_A_TIME = 4
_RECORDS_AHEAD = 256  # Read before they are asked for; JPEGs.
_Service = tf.data.experimental.service


def steps_per_epoch(split: splits.Split, batch_size: int, num_workers: int) -> int:
    """Returns the steps of an epoch: those that each worker's shards have batches for.

    Raises:
        config.UsageError: the shards do not divide over the workers.
    """
    sizes = sorted(piece.take for piece in split.pieces())
    if len(sizes) % num_workers:
        numbers = [n for n in range(2, len(sizes) + 1) if len(sizes) % n == 0]
        raise config_lib.UsageError(
            f"--cache=none: {split} has {len(sizes)} shards, which do not divide over "
            f"{num_workers} workers. Take {', '.join(map(str, numbers)) or 'one'} of them, or have "
            "each worker keep all posters (--cache=memory or disk)."
        )
    return sum(sizes[: len(sizes) // num_workers]) // (batch_size // num_workers)


def train_batches(
    split: splits.Split,
    spec: pipeline.TrainSpec,
    shuffle_buffer: int,
    context: tf.distribute.InputContext = pipeline.WHOLE,
    start_step: int = 0,
    service: str = "",
) -> tf.data.Dataset:
    """Returns endless batches, of a worker's own shards.

    Args:
        split: to read.
        spec: of the training.
        shuffle_buffer: records to draw from; they are JPEGs.
        context: which worker this is, of how many, and the number of replicas.
        start_step: steps that an interrupted run has taken.
        service: dispatcher of a tf.data service that reads, `grpc://host:port`; its workers divide
            the shards, and each example comes once an epoch, in the order in which they are ready.

    Yields:
        As `rows.train_batches`.
    """
    share = pipeline.Share.of(spec.batch_size, context)
    num_steps = steps_per_epoch(split, spec.batch_size, context.num_input_pipelines)
    per_step = share.per_replica * share.num_replicas
    start_epoch, start_batch = divmod(start_step, num_steps)
    of_window = _reader(split, spec.seed, shuffle_buffer)
    num_shards = len(split.pieces())
    takes = tf.constant([piece.take for piece in split.pieces()], tf.int64)
    load = pipeline.loader(split, spec.image_size)

    @tf.autograph.experimental.do_not_convert
    def one_epoch(epoch):
        shards = tf.random.experimental.stateless_shuffle(
            tf.range(num_shards, dtype=tf.int64),
            tf.stack([tf.constant(spec.seed, tf.int64), epoch]),
        )[context.input_pipeline_id :: context.num_input_pipelines]
        trained_on = tf.where(
            epoch == start_epoch, tf.constant(start_batch * per_step, tf.int64), 0
        )
        starts = tf.range(0, num_shards // context.num_input_pipelines, _SHARDS_AT_A_TIME, tf.int64)
        ends = tf.concat([[0], tf.cumsum(tf.gather(takes, shards))], 0)
        window = tf.searchsorted(tf.gather(ends, starts), trained_on[None], "right")[0] - 1
        passed = 0 if service else tf.gather(ends, starts[window])
        windows = tf.data.Dataset.from_tensor_slices(starts if service else starts[window:])
        records = windows.flat_map(
            lambda start: of_window(shards[start : start + _SHARDS_AT_A_TIME], epoch, start)
        )
        if service:
            examples = records.map(_parse_and(load, split), pipeline.num_threads(split))
            examples = examples.apply(_Service.distribute(_Service.ShardingPolicy.DYNAMIC, service))
            return examples.take(num_steps * per_step).skip(trained_on)
        records = records.skip(trained_on - passed).take(num_steps * per_step - trained_on)
        return records.prefetch(_RECORDS_AHEAD)

    examples = tf.data.Dataset.counter(start_epoch).flat_map(one_epoch)
    if not service:
        examples = pipeline.map_parallel(examples, _parse_and(load, split), split)
    batches = examples.batch(share.per_replica, drop_remainder=True)

    @tf.autograph.experimental.do_not_convert
    def with_draws(i, batch):
        step, replica = i // share.num_replicas, i % share.num_replicas
        return spec.with_draws(batch, step, share.place(replica))

    if spec.is_augmented:
        batches = batches.enumerate(start_step * share.num_replicas).map(with_draws, 4)
    return pipeline.endless(batches, split)


def eval_batches(
    split: splits.Split,
    image_size: int,
    batch_size: int,
    context: tf.distribute.InputContext = pipeline.WHOLE,
) -> tf.data.Dataset:
    """Returns endless passes over a split in its order, as `rows.eval_batches` does."""
    share = pipeline.Share.of(batch_size, context)
    decode = pipeline.loader(split, image_size)
    num_steps = pipeline.num_eval_steps(split.num_examples, batch_size)
    black = tf.io.encode_jpeg(tf.zeros([1, 1, 3], tf.uint8))
    filling = {"image": black, "genres": tf.zeros([0], tf.int64), "weight": 0.0}

    def is_ours(position, example):
        del example
        place = position % batch_size - share.first
        return (place >= 0) & (place < share.per_replica * share.num_replicas)

    @tf.autograph.experimental.do_not_convert
    def load(example):
        return {**decode(example), "weight": example["weight"]}

    examples = split.read().map(
        lambda example: {"image": example["image"], "genres": example["genres"], "weight": 1.0}
    )
    missing = num_steps * batch_size - split.num_examples
    filled = tf.data.Dataset.from_tensors(filling).repeat(missing)
    filled = filled.map(lambda x: x)
    examples = examples.concatenate(filled)
    if context.num_input_pipelines > 1:
        examples = examples.enumerate().filter(is_ours).map(lambda position, example: example)
    batches = pipeline.map_parallel(examples, load, split).batch(share.per_replica, True)
    return pipeline.finish(batches.repeat(), split)


def _parse_and(load: Callable, split: splits.Split) -> Callable:
    @tf.autograph.experimental.do_not_convert
    def parse(record):
        return load(split.parse(record))

    return parse


def _reader(split: splits.Split, seed: int, shuffle_buffer: int) -> Callable:
    """Returns a function of shards' numbers, an epoch and a window to their shuffled records."""
    pieces = split.pieces()
    paths = tf.constant([piece.path for piece in pieces])
    skips, takes = (
        tf.constant(np.array([getattr(piece, name) for piece in pieces]), tf.int64)
        for name in ("skip", "take")
    )

    @tf.autograph.experimental.do_not_convert
    def read(number):
        records = tf.data.TFRecordDataset(paths[number], buffer_size=splits.READ_BUFFER)
        records = records.skip(skips[number]).take(takes[number])
        # Fails where there are fewer, as in a file that is cut between two records.
        return records.apply(tf.data.experimental.assert_cardinality(takes[number]))

    @tf.autograph.experimental.do_not_convert
    def of_window(numbers, epoch, window):
        records = tf.data.Dataset.from_tensor_slices(numbers).interleave(
            read, cycle_length=_SHARDS_AT_A_TIME, num_parallel_calls=_SHARDS_AT_A_TIME
        )
        seed_of_window = seed * 1_000_003 + epoch * (1 << 20) + window + 1
        return records.shuffle(shuffle_buffer, seed=seed_of_window, reshuffle_each_iteration=False)

    return of_window
