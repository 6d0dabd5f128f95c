"""TFRecords -> batches of uint8 posters with their genres.

A pipeline lives through the whole run: making a new iterator each epoch costs up to
twenty seconds where tf.data's autotuning is on, and throws away what was prefetched.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from trainer import augmentation, batching, datasets, preprocessing, runtime

_MEMORY_SHARE_FOR_CACHE = 0.5


class Cache(NamedTuple):
    """What is kept of a split after its first epoch, and why."""

    name: str
    reason: str


def choose_cache(
    name: str, builder: tfds.core.DatasetBuilder, split: str, image_size: int
) -> Cache:
    """Resolves `--cache`: with `auto`, to what fits in half of the memory that is free.

    A cache that is asked for by name is given up only if it does not fit at all: the
    system would kill the run.

    Args:
        name: of `--cache`.
        builder: an open dataset.
        split: the split to keep.
        image_size: side of the decoded posters, in pixels.
    """
    free = runtime.available_memory()
    sizes = {
        "decoded": datasets.num_examples(builder, split) * image_size**2 * 3,
        "encoded": datasets.num_bytes(builder, split),
    }
    if name not in ("auto", *sizes):
        return Cache(name, f"as --cache={name} says")
    if name == "auto":
        room, memory = (
            free * _MEMORY_SHARE_FOR_CACHE,
            f"half of the {free / 1e9:.1f} GB of free memory",
        )
        choices = list(sizes)
    else:
        room, memory = free, f"the {free / 1e9:.1f} GB of free memory"
        choices = list(sizes)[list(sizes).index(name) :]
    chosen = next((choice for choice in choices if sizes[choice] <= room), "none")
    if chosen == name:
        return Cache(name, f"as --cache={name} says")
    reasons = [
        f"{sizes[choice] / 1e9:.2f} GB of {choice} posters "
        + (f"fit in {memory}" if choice == chosen else f"do not fit in {memory}")
        for choice in choices[: choices.index(chosen) + 1 if chosen in choices else None]
    ]
    if chosen == "none":
        reasons.append(f"--cache=disk keeps {sizes['decoded'] / 1e9:.2f} GB on disk")
    warning = "" if name == "auto" else f"WARNING, not --cache={name}: "
    return Cache(chosen, warning + "; ".join(reasons))


def train_dataset(
    builder: tfds.core.DatasetBuilder,
    split: str,
    *,
    image_size: int,
    batch_size: int,
    cache: str,
    shuffle_buffer: int,
    seed: int,
    start_step: int = 0,
    augment: Sequence[str] = (),
    cache_file: str = "",
    context: tf.distribute.InputContext = batching.WHOLE,
) -> tf.data.Dataset:
    """Returns endless shuffled batches: epoch after epoch, each example once in each.

    The replicas of all workers together see the global batches that one device would,
    each a slice of every batch. The last batch of an epoch may be smaller, and a
    replica's part of it empty.

    Args:
        builder: an open dataset.
        split: the split to read.
        image_size: side S of the posters, in pixels.
        batch_size: global batch size, which the number of replicas must divide.
        cache: decoded, encoded, disk or none.
        shuffle_buffer: examples to draw from.
        seed: together with the epoch's number, gives the order and the changes.
        start_step: batches that an interrupted run has trained on.
        augment: random changes, of `config.AUGMENTATIONS`.
        cache_file: where to keep decoded posters, for `disk`; a file that is not there yet.
        context: which worker this is, of how many, and the number of replicas.

    Yields:
        For one replica after the other, `image` uint8 [B, S, S, 3] and `genres` float32
        [B, G], multi-hot, where B is the batch size divided by the replicas.
    """
    load = _loader(builder, image_size, with_key=bool(augment))
    examples = datasets.read(builder, split)
    keeps_decoded = cache in ("decoded", "disk")
    if keeps_decoded:
        examples = batching.map_parallel(examples, load)
    if cache != "none":
        examples = examples.cache(cache_file if cache == "disk" else "")

    def prepare(chosen, epoch):
        loaded = chosen if keeps_decoded else batching.map_parallel(chosen, load)
        return _augmented(loaded, augment, seed, epoch)

    return batching.train_batches(
        examples,
        datasets.num_examples(builder, split),
        batching.empty_batch([image_size, image_size, 3], len(datasets.genre_names(builder))),
        prepare,
        batch_size=batch_size,
        shuffle_buffer=shuffle_buffer,
        seed=seed,
        start_step=start_step,
        context=context,
    )


def service_dataset(
    builder: tfds.core.DatasetBuilder,
    split: str,
    *,
    service: str,
    image_size: int,
    batch_size: int,
    shuffle_buffer: int,
    seed: int,
    start_step: int = 0,
    augment: Sequence[str] = (),
    context: tf.distribute.InputContext = batching.WHOLE,
) -> tf.data.Dataset:
    """Returns what `train_dataset` does, but read, decoded and changed by a tf.data service.

    Each training worker has an equal range of the split, whose shards the workers of the
    service divide among them. Each example comes once an epoch, in the order in which they
    are ready: what is left of an epoch that was interrupted is made up of other examples.

    Args:
        builder: an open dataset, on storage that the service's workers reach.
        split: the split to read.
        service: the dispatcher, `grpc://host:port`.
        image_size: side S of the posters, in pixels.
        batch_size: global batch size, which the number of replicas must divide.
        shuffle_buffer: examples that a worker of the service draws from.
        seed: together with the epoch's number, gives the changes.
        start_step: batches that an interrupted run has trained on.
        augment: random changes, of `config.AUGMENTATIONS`.
        context: which worker this is, of how many, and the number of replicas.

    Yields:
        As `train_dataset`.
    """
    size = datasets.num_examples(builder, split)
    steps_per_epoch = math.ceil(size / batch_size)
    share = batching.Share(batch_size, context)
    empty = batching.empty_batch([image_size, image_size, 3], len(datasets.genre_names(builder)))
    start_epoch, start_batch = divmod(start_step, steps_per_epoch)
    load = _loader(builder, image_size, with_key=bool(augment))
    ours = tfds.even_splits(split, context.num_input_pipelines)[context.input_pipeline_id]
    num_ours = datasets.num_examples(builder, ours)
    num_batches = math.ceil(num_ours / share.per_replica)
    examples = datasets.read(builder, ours, in_parts=True)

    def one_epoch(epoch):
        order = batching.shuffled(examples, shuffle_buffer, seed, epoch)
        loaded = batching.map_parallel(order, load)
        batches = _augmented(loaded, augment, seed, epoch).batch(share.per_replica)
        batches = batches.apply(
            tf.data.experimental.service.distribute(
                tf.data.experimental.service.ShardingPolicy.DYNAMIC, service
            )
        )
        # Each worker of the service ends with a smaller batch.
        batches = batches.rebatch(share.per_replica)
        batches = batches.apply(tf.data.experimental.assert_cardinality(num_batches))
        return share.fill_up(batches, num_ours, size, empty)

    batches = tf.data.Dataset.counter(start_epoch).flat_map(one_epoch)
    return batching.endless(batches.skip(start_batch * share.num_replicas))


def poster_ids_of_step(
    builder: tfds.core.DatasetBuilder,
    split: str,
    *,
    step: int,
    batch_size: int,
    shuffle_buffer: int,
    seed: int,
) -> list[str]:
    """Returns the Ids of the posters that `train_dataset` gives in a step, counted from 1."""
    size = datasets.num_examples(builder, split)
    epoch, batch = divmod(step - 1, math.ceil(size / batch_size))
    examples = datasets.read(builder, split)
    epoch = tf.constant(epoch, tf.int64)
    order = batching.shuffled(examples, shuffle_buffer, seed, epoch)
    of_step = batching.finish(order.skip(batch * batch_size).take(batch_size))
    return [example["poster_id"].decode() for example in of_step.as_numpy_iterator()]


def eval_dataset(
    builder: tfds.core.DatasetBuilder,
    split: str,
    *,
    image_size: int,
    batch_size: int,
    cached: bool,
    context: tf.distribute.InputContext = batching.WHOLE,
) -> tf.data.Dataset:
    """Returns endless passes over a split, in a fixed order, in batches of one size.

    A pass is `ceil(num_examples / batch_size)` global batches. The last is filled up with
    black posters of weight 0, so that every example counts exactly once.

    Args:
        builder: an open dataset.
        split: the split to read.
        image_size: side S of the posters, in pixels.
        batch_size: global batch size, which the number of replicas must divide.
        cached: whether to keep the encoded posters in memory.
        context: which worker this is, of how many, and the number of replicas.

    Yields:
        For one replica after the other, `image` uint8 [B, S, S, 3], `genres` float32
        [B, G] and `weight` float32 [B], where B is the batch size divided by the replicas.
    """
    examples = datasets.read(builder, split)

    def prepare(chosen):
        chosen = chosen.cache() if cached else chosen
        return batching.map_parallel(chosen, _loader(builder, image_size))

    return batching.eval_batches(
        examples,
        datasets.num_examples(builder, split),
        batching.empty_batch([image_size, image_size, 3], len(datasets.genre_names(builder))),
        prepare,
        batch_size=batch_size,
        context=context,
    )


def example_variants(
    builder: tfds.core.DatasetBuilder,
    split: str,
    *,
    image_size: int,
    seed: int,
    augment: Sequence[str],
    count: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the split's first poster and what `augment` makes of it in the first epochs.

    Returns:
        uint8 [S, S, 3] and uint8 [count, S, S, 3].
    """
    example = next(
        iter(datasets.read(builder, split).map(_loader(builder, image_size, with_key=True)))
    )
    variants = [
        _changer(augment, seed, tf.constant(epoch, tf.int64))(example)["image"]
        for epoch in range(count)
    ]
    return example["image"].numpy(), np.stack(variants)


def _loader(builder: tfds.core.DatasetBuilder, image_size: int, with_key: bool = False):
    num_genres = len(datasets.genre_names(builder))

    def load(example):
        loaded = {
            "image": preprocessing.decode_and_resize(example["image"], image_size),
            "genres": datasets.multi_hot(example["genres"], num_genres),
        }
        if with_key:
            loaded["key"] = tf.strings.to_hash_bucket_fast(example["poster_id"], tf.int64.max)
        return loaded

    return load


def _augmented(
    examples: tf.data.Dataset, augment: Sequence[str], seed: int, epoch: tf.Tensor
) -> tf.data.Dataset:
    return batching.map_parallel(examples, _changer(augment, seed, epoch)) if augment else examples


def _changer(augment: Sequence[str], seed: int, epoch: tf.Tensor):
    """Returns a function that makes of a loaded example, with its key, what the model sees."""

    def change(example):
        image = augmentation.augment(example["image"], augment, seed, epoch, example["key"])
        return {"image": image, "genres": example["genres"]}

    return change
