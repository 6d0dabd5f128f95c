"""A split -> batches of uint8 posters with their genres.

A pipeline lives through the whole run: making a new iterator each epoch costs up to
twenty seconds where tf.data's autotuning is on, and throws away what was prefetched.
"""

import dataclasses
import functools
import math

import numpy as np
import tensorflow as tf

from trainer import runtime
from trainer.data import (
    augmentation,
    batching as batching_lib,
    mixing,
    order,
    preprocessing,
    rand_augment,
    splits,
)

_Service = tf.data.experimental.service


@dataclasses.dataclass(frozen=True)
class PipelineSpec:
    """What a pipeline needs to know."""

    split: splits.Split
    image_size: int  # Side S of the posters, in pixels.
    batch_size: int  # Of all replicas, whose number must divide it.
    seed: int = 0  # Together with the epoch's number, gives the order and the changes.
    shuffle_buffer: int = 1  # Examples to draw from.
    start_step: int = 0  # Batches that an interrupted run has trained on.
    augment: tuple[str, ...] = ()  # Random changes, of `config.AUGMENTATIONS`.
    augment_on_device: bool = False  # Whether the step makes them, of what is drawn here.
    randaugment: float = 0  # Magnitude of RandAugment, which the step makes; 0: none.
    mixup: float = 0  # Parameter of `mixing`, which is the step's too; 0: none.
    cutmix: float = 0  # Another.
    cache: str = "none"  # What is kept after the first epoch: decoded, encoded, disk or none.
    cache_file: str = ""  # For `disk`; a file that is not there yet.

    @property
    def batching(self) -> batching_lib.Batching:
        """The order of the examples and their batches."""
        return batching_lib.Batching(
            self.split.num_examples,
            self.batch_size,
            self.seed,
            self.shuffle_buffer,
            self.start_step,
        )

    @property
    def is_changed(self) -> bool:
        return bool(self.augment or self.drawn_for_step)

    @property
    def drawn_for_step(self) -> dict[str, tuple[int, ...]]:
        """What is drawn here for changes that are left to the training step: name -> its shape."""
        chosen = {
            "draws": (augmentation.DRAWS, self.augment and self.augment_on_device),
            "strengths": (rand_augment.DRAWS, self.randaugment),
            "mixing": (mixing.DRAWS, self.mixup or self.cutmix),
        }
        return {name: shape for name, (shape, is_chosen) in chosen.items() if is_chosen}

    def load(self, example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns an example's pixels and labels, and the key from which its changes are drawn."""
        loaded = {
            "image": preprocessing.decode_and_resize(example["image"], self.image_size),
            "genres": splits.multi_hot(example["genres"], len(self.split.genres)),
        }
        if self.is_changed:
            loaded["key"] = tf.strings.to_hash_bucket_fast(example["poster_id"], tf.int64.max)
        return loaded

    def load_record(self, record: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns what `load` does of a record of a shard."""
        return self.load(self.split.parse(record))

    def change(self, example: dict[str, tf.Tensor], epoch: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns a loaded example, changed as in an epoch (int64 scalar), and what is drawn."""
        of_example = {"seed": self.seed, "epoch": epoch, "key": example["key"]}
        size, image, genres = self.image_size, example["image"], example["genres"]
        drawn = {}
        if self.augment:
            drawn["draws"] = augmentation.draw(size, **of_example)
            if not self.augment_on_device:
                image = augmentation.augment(image, self.augment, drawn.pop("draws"))
        if self.randaugment:
            drawn["strengths"] = rand_augment.draw(self.randaugment, **of_example)
        if self.mixup or self.cutmix:
            drawn["mixing"] = mixing.draw(size, self.mixup, self.cutmix, **of_example)
        return {"image": image, "genres": genres, **drawn}

    def change_batch(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns the `image` and `genres` that the training step makes of a batch."""
        images, genres = batch["image"], batch["genres"]
        if "draws" in batch:
            images = augmentation.augment_batch(self.augment, images, batch["draws"])
        if "strengths" in batch:
            images = rand_augment.augment_batch(images, batch["strengths"])
        if "mixing" in batch:
            images, genres = mixing.mix_batch(images, genres, batch["mixing"])
        return {"image": images, "genres": genres}

    def changed(self, examples: tf.data.Dataset, epoch: tf.Tensor) -> tf.data.Dataset:
        """Returns loaded examples as the training step takes them in an epoch."""
        if not self.is_changed:
            return examples
        return batching_lib.map_parallel(examples, functools.partial(self.change, epoch=epoch))


def train_batches(
    spec: PipelineSpec, context: tf.distribute.InputContext = batching_lib.WHOLE
) -> tf.data.Dataset:
    """Returns endless shuffled batches: epoch after epoch, each example at most once in each.

    The replicas of all workers together see the global batches that one device would,
    each a slice of every batch. What does not fill a batch at the end of an epoch is left out; in
    another epoch, of another order, these are others.

    Yields:
        For one replica after the other, `image` uint8 [B, S, S, 3] and `genres` float32
        [B, G], multi-hot, where B is the batch size divided by the replicas; and what
        `change_batch` needs, float32 [B, ...], where something is left to it.
    """
    keeps_decoded = spec.cache in ("decoded", "disk")
    lanes = order.lanes(spec.split)
    share = batching_lib.Share(spec.batch_size, context, len(lanes))
    ours = lanes[share.lanes]

    def keep(records, section):
        if keeps_decoded:
            num_open = sum(lane.sections_at_a_time for lane in ours)
            threads = math.ceil(runtime.num_pipeline_threads() / num_open)
            records = records.map(spec.load_record, num_parallel_calls=threads)
        return records.cache(spec.cache_file and f"{spec.cache_file}-{section}")

    def prepare(chosen, epoch):
        loaded = chosen if keeps_decoded else batching_lib.map_parallel(chosen, spec.load_record)
        return spec.changed(loaded, epoch)

    in_order = order.in_order(ours, spec.batching, keep if spec.cache != "none" else None)
    return batching_lib.train_batches(in_order, spec.batching, prepare, share)


def service_batches(
    spec: PipelineSpec,
    service: str,
    context: tf.distribute.InputContext = batching_lib.WHOLE,
) -> tf.data.Dataset:
    """Returns what `train_batches` does, but read, decoded and changed by a tf.data service.

    Each training worker has an equal range of the split, whose shards, in an order of the epoch's
    own, the workers of the service divide among them. Each example comes at most once an epoch, in
    the order in which they are ready: what is left of an epoch that was interrupted is made up of
    other examples.

    The dataset is on storage that the workers of `service`, `grpc://host:port`, reach.
    """
    batching = spec.batching
    share = batching_lib.Share(spec.batch_size, context)
    start_epoch, start_batch = batching.start
    ours = spec.split.shares(context.num_input_pipelines)[context.input_pipeline_id]
    in_order = order.divisible(ours, batching)

    def one_epoch(epoch):
        loaded = batching_lib.map_parallel(in_order(epoch), spec.load_record)
        batches = spec.changed(loaded, epoch).batch(share.per_replica)
        batches = batches.apply(_Service.distribute(_Service.ShardingPolicy.DYNAMIC, service))
        # Each worker of the service ends with a smaller batch.
        batches = batches.rebatch(share.per_replica, drop_remainder=True)
        num_batches = ours.num_examples // share.per_replica
        batches = batches.apply(tf.data.experimental.assert_cardinality(num_batches))
        return share.whole(batches, tf.constant(batching.steps_per_epoch, tf.int64))

    batches = tf.data.Dataset.counter(start_epoch).flat_map(one_epoch)
    return batching_lib.endless(batches.skip(start_batch * share.num_replicas))


def eval_batches(
    spec: PipelineSpec, context: tf.distribute.InputContext = batching_lib.WHOLE
) -> tf.data.Dataset:
    """Returns endless passes over a split, in a fixed order, in batches of one size.

    The cache is `encoded` or `none`. A pass is `spec.batching.steps_per_pass` batches; the last is
    filled up with black posters of weight 0, so that every example counts exactly once.

    Yields:
        For one replica after the other, `image` uint8 [B, S, S, 3], `genres` float32
        [B, G] and `weight` float32 [B], where B is the batch size divided by the replicas.
    """

    def prepare(chosen):
        chosen = chosen if spec.cache == "none" else chosen.cache()
        return batching_lib.map_parallel(chosen, spec.load)

    return batching_lib.eval_batches(spec.split.read(), spec.batching, prepare, context)


def example_variants(spec: PipelineSpec, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns a split's first poster, uint8 [S, S, 3], and what `count` epochs make of it."""
    examples = list(spec.split.read().take(2).map(spec.load))  # And a partner.
    variants = []
    for epoch in range(count):
        changed = [spec.change(example, tf.constant(epoch, tf.int64)) for example in examples]
        batch = tf.nest.map_structure(lambda *values: tf.stack(values), *changed)
        variants.append(spec.change_batch(batch)["image"][0])
    return examples[0]["image"].numpy(), np.stack(variants)


def first_posters(spec: PipelineSpec, count: int) -> np.ndarray:
    """Returns the first posters of a split, or all if there are fewer: uint8 [N, S, S, 3]."""
    examples = spec.split.read(in_parts=True).take(count).map(spec.load)
    return np.stack([example["image"] for example in examples.as_numpy_iterator()])
