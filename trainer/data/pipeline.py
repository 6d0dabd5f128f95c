"""What all pipelines of batches share: the description of a training's input, workers' shares.

A pipeline lives through the whole run: making a new iterator each epoch costs up to
twenty seconds where tf.data's autotuning is on, and throws away what was prefetched.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from poster_tfds import machine
from trainer.data import augmentation, mixing, preprocessing, rand_augment, splits

WHOLE = tf.distribute.InputContext()
_VIEWS, _CROPS, _RAND_AUGMENT, _MIXING = range(4)  # Streams of random numbers.
_MOST_THREADS = 16  # Beside one a core: some wait for a batch, or for a file.
# What decoding takes, for a byte of a JPEG: 12 pixels' levels, and these in float32 for resizing.
_BYTES_DECODED = 60
_MEMORY_SHARE = 1 / 8


@dataclasses.dataclass(frozen=True)
class TrainSpec:
    """What a training step is fed with, made once for a run.

    Attributes:
        image_size: side S of the posters, in pixels.
        batch_size: examples of a step, over all replicas together, whose number must divide it.
        seed: together with the step's number, gives the order and the draws.
        augment: of `config.AUGMENTATIONS`.
        augment_on_device: whether the training step makes them, of what is drawn here.
        randaugment: magnitude of RandAugment, which the training step makes; 0: none.
        mixup: parameter of `mixing`, which the training step makes too; 0: none.
        cutmix: another.
        rows_on_device: whether the training step has the posters, and is sent their row numbers.
    """

    image_size: int
    batch_size: int
    seed: int = 0
    augment: tuple[str, ...] = ()
    augment_on_device: bool = False
    randaugment: float = 0
    mixup: float = 0
    cutmix: float = 0
    rows_on_device: bool = False

    @property
    def is_augmented(self) -> bool:
        return bool(self.augment or self.randaugment or self.mixup or self.cutmix)

    def draw_views(self, step: tf.Tensor, num_views: int) -> tf.Tensor:
        """Draws which view of each example a step has: int64 [B], 0 to V - 1."""
        return tf.random.stateless_uniform(
            [self.batch_size], self._seed(step, _VIEWS), 0, num_views, tf.int64
        )

    def draw(self, step: tf.Tensor) -> dict[str, tf.Tensor]:
        """Draws the augmentations of a global batch, float32 [B, ...], by name."""
        drawn = {}
        if self.augment:
            seed = self._seed(step, _CROPS)
            drawn["draws"] = augmentation.draw(self.image_size, seed, self.batch_size)
        if self.randaugment:
            seed = self._seed(step, _RAND_AUGMENT)
            drawn["strengths"] = rand_augment.draw(self.randaugment, seed, self.batch_size)
        if self.mixup or self.cutmix:
            seed, size = self._seed(step, _MIXING), self.image_size
            drawn["mixing"] = mixing.draw(size, self.mixup, self.cutmix, seed, self.batch_size)
        return drawn

    def with_draws(
        self, batch: Mapping[str, tf.Tensor], step: tf.Tensor, place: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Adds what is drawn for a replica's part of a batch, which begins at a place in it.

        Posters that are changed on the CPU are changed.
        """
        size = batch["genres"].shape[0]
        drawn = {name: value[place : place + size] for name, value in self.draw(step).items()}
        for value in drawn.values():
            value.set_shape([size, *value.shape[1:]])
        batch = dict(batch)
        if "draws" in drawn and not self.augment_on_device:
            # One by one: on a CPU that is seven times as fast as `augment_batch`.
            batch["image"] = tf.map_fn(
                lambda one: augmentation.augment(one[0], self.augment, one[1]),
                (batch["image"], drawn.pop("draws")),
                fn_output_signature=tf.TensorSpec(batch["image"].shape[1:], tf.uint8),
            )
        return {**batch, **drawn}

    def augment_batch(self, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns the `image` and `genres` that the training step makes of a batch."""
        images, genres = batch["image"], batch["genres"]
        if "draws" in batch:
            images = augmentation.augment_batch(self.augment, images, batch["draws"])
        if "strengths" in batch:
            images = rand_augment.augment_batch(images, batch["strengths"])
        if "mixing" in batch:
            images, genres = mixing.mix_batch(images, genres, batch["mixing"])
        return {"image": images, "genres": genres}

    def _seed(self, step: tf.Tensor, stream: int) -> tf.Tensor:
        seed = tf.stack([tf.constant(self.seed, tf.int64), tf.cast(step, tf.int64)])
        return tf.random.experimental.stateless_fold_in(seed, stream)


class Share(NamedTuple):
    """The part of every global batch that a worker's replicas take."""

    per_replica: int
    num_replicas: int  # Of this worker.
    first: int  # Place in the batch at which its part begins.

    @classmethod
    def of(cls, batch_size: int, context: tf.distribute.InputContext) -> "Share":
        per_replica = batch_size // context.num_replicas_in_sync
        num_replicas = context.num_replicas_in_sync // context.num_input_pipelines
        first = context.input_pipeline_id * num_replicas * per_replica
        return cls(per_replica, num_replicas, first)

    def place(self, replica: tf.Tensor) -> tf.Tensor:
        """Returns where the part of one of this worker's replicas begins in a batch."""
        return self.first + replica * self.per_replica


def num_eval_steps(num_examples: int, batch_size: int) -> int:
    """Returns the batches of a pass over a split, of which the last may be filled up."""
    return math.ceil(num_examples / batch_size)


def deal(
    steps: tf.data.Dataset,
    load: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], dict[str, tf.Tensor]],
    spec: TrainSpec,
    context: tf.distribute.InputContext,
) -> tf.data.Dataset:
    """Returns the batches of a worker's replicas, one after the other.

    Args:
        steps: of `order.steps`.
        load: function of a step, a place in its batch and the row numbers from there on, int64 [b],
            to a replica's batch.
        spec: of the training.
        context: which worker this is, of how many, and the number of replicas.
    """
    share = Share.of(spec.batch_size, context)

    @tf.autograph.experimental.do_not_convert
    def one_each(step, numbers):
        replicas = tf.range(share.num_replicas, dtype=tf.int64)
        return tf.data.Dataset.from_tensor_slices(
            (
                tf.repeat(step, share.num_replicas),
                replicas,
                tf.tile(numbers[None], [share.num_replicas, 1]),
            )
        )

    @tf.autograph.experimental.do_not_convert
    def load_one(step, replica, numbers):
        place = share.place(replica)
        ours = numbers[place : place + share.per_replica]
        ours.set_shape([share.per_replica])
        return load(step, place, ours)

    if share.num_replicas == 1:
        steps = steps.map(lambda step, numbers: (step, tf.zeros([], tf.int64), numbers))
    else:
        steps = steps.flat_map(one_each)
    # Batches beside each other, as one is made by one thread where posters are changed here.
    return endless(steps.map(load_one, num_parallel_calls=2 * machine.num_cores()))


def loader(
    split: splits.Split, image_size: int
) -> Callable[[dict[str, tf.Tensor]], dict[str, tf.Tensor]]:
    """Returns a function of an example that is read to its `image` and `genres`."""

    @tf.autograph.experimental.do_not_convert
    def load(example):
        return {
            "image": preprocessing.decode_and_resize(example["image"], image_size),
            "genres": splits.multi_hot(example["genres"], len(split.genres)),
        }

    return load


def num_threads(split: splits.Split | None = None) -> int:
    """Returns the threads of a pipeline: 16 more than cores, or fewer where posters are large."""
    cores = machine.num_cores()
    if split is None:
        return cores + _MOST_THREADS
    of_one = _BYTES_DECODED * split.num_bytes // split.num_examples
    return int(
        min(cores + _MOST_THREADS, max(cores, _MEMORY_SHARE * machine.available_memory() // of_one))
    )


def map_parallel(
    dataset: tf.data.Dataset, function: Callable, split: splits.Split
) -> tf.data.Dataset:
    """Maps on all threads of the pipeline, in order."""
    return dataset.map(function, num_parallel_calls=num_threads(split))


def endless(batches: tf.data.Dataset, split: splits.Split | None = None) -> tf.data.Dataset:
    """Returns batches that have no end as a finished pipeline."""
    # Known to be endless, it spares tf.distribute a look for replicas without a batch.
    return finish(
        batches.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)), split
    )


def finish(dataset: tf.data.Dataset, split: splits.Split | None = None) -> tf.data.Dataset:
    """Returns a dataset with the options and the prefetch that every pipeline here has."""
    options = tf.data.Options()
    # Parallelism is explicit; an iterator that autotunes blocks when it is destroyed,
    # until its optimizer thread wakes: 10 s and more.
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    # A map and the batch after it become one, whose batches a GPU can copy from. Rows have no such
    # pair, and a graph that is rewritten would have a second copy of them.
    options.experimental_optimization.map_and_batch_fusion = split is not None
    options.threading.private_threadpool_size = num_threads(split)
    return dataset.prefetch(2).with_options(options)


def example_views(
    split: splits.Split, spec: TrainSpec, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the split's first poster and what the first steps would make of it.

    Returns:
        uint8 [S, S, 3] and uint8 [count, S, S, 3].
    """
    load = loader(split, spec.image_size)
    examples = list(split.read(in_parts=True).take(2).map(load))  # And a partner.
    batch = tf.nest.map_structure(lambda *values: tf.stack(values), *examples)
    spec = dataclasses.replace(spec, batch_size=len(examples))
    views = [
        spec.augment_batch(spec.with_draws(batch, tf.constant(step, tf.int64), 0))["image"][0]
        for step in range(count)
    ]
    return examples[0]["image"].numpy(), np.stack(views)


def first_posters(split: splits.Split, image_size: int, count: int) -> np.ndarray:
    """Returns the first posters of a split, or all if there are fewer: uint8 [N, S, S, 3]."""
    examples = split.read(in_parts=True).take(count).map(loader(split, image_size))
    return np.stack([example["image"] for example in examples.as_numpy_iterator()])
