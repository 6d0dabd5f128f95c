"""TFRecords -> batches of uint8 posters with their genres.

A pipeline lives through the whole run: making a new iterator each epoch costs up to
twenty seconds where tf.data's autotuning is on, and throws away what was prefetched.
The order of an epoch depends on the seed and the epoch's number alone, so a run that is
resumed sees what an uninterrupted one would have seen.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

import poster_tfds  # noqa: F401  (registers the dataset)
from trainer import augmentation, config as config_lib, preprocessing, runtime

# tf.data's default pool has one thread a core, and threads that wait for a decoded
# poster take part of it: 2 cores stood 27% idle. More threads than cores keep all busy.
_THREADS_PER_CORE = 8
_SHUFFLE_BUFFERS = {"none": 4096, "disk": 1024}  # Of encoded posters, and of decoded ones.
_MEMORY_SHARE_FOR_CACHE = 0.5


def open_dataset(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """Opens a built dataset; `poster_tfds/synthetic` is built if need be.

    Raises:
        config.UsageError: the dataset is unknown or not built; the message has the
            command that builds it.
    """
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise config_lib.UsageError(
            f"--dataset={name}: there is no such dataset in {data_dir} ({error})"
        ) from error
    if not builder.is_prepared():
        if not getattr(builder.builder_config, "num_synthetic", 0):
            package, _, builder_config = name.partition("/")
            raise config_lib.UsageError(
                f"--dataset={name} is not built in --data_dir={data_dir}. Build it with\n\n"
                f"  tfds build {package} --config={builder_config or 'imdb'} "
                f"--manual_dir=FOLDER --data_dir={data_dir}\n\n"
                "where FOLDER holds train.csv and Images/."
            )
        builder.download_and_prepare()
    return builder


def genre_names(builder: tfds.core.DatasetBuilder) -> list[str]:
    """Returns the genres of a dataset, in the order of the model's outputs."""
    return builder.info.features["genres"].feature.names


def num_examples(builder: tfds.core.DatasetBuilder, split: str) -> int:
    """Returns the size of a split.

    Raises:
        config.UsageError: the dataset has no such split.
    """
    if split not in builder.info.splits:
        raise config_lib.UsageError(
            f"{builder.info.full_name} has no split {split!r}; it has "
            f"{', '.join(builder.info.splits)}."
        )
    return builder.info.splits[split].num_examples


class Cache(NamedTuple):
    """What is kept of a split after its first epoch, and why."""

    name: str
    reason: str


def choose_cache(
    name: str, builder: tfds.core.DatasetBuilder, split: str, image_size: int
) -> Cache:
    """Resolves `--cache=auto`: what fits in half of the memory that is free.

    Args:
        name: of `--cache`.
        builder: an open dataset.
        split: the split to keep.
        image_size: side of the decoded posters, in pixels.
    """
    if name != "auto":
        return Cache(name, f"as --cache={name} says")
    free = runtime.available_memory()
    room = free * _MEMORY_SHARE_FOR_CACHE
    decoded = num_examples(builder, split) * image_size**2 * 3
    encoded = builder.info.splits[split].num_bytes
    memory = f"half of the {free / 1e9:.1f} GB of free memory"
    if decoded <= room:
        return Cache("decoded", f"{decoded / 1e9:.2f} GB of decoded posters fit in {memory}")
    if encoded <= room:
        return Cache(
            "encoded",
            f"{decoded / 1e9:.2f} GB of decoded posters do not fit in {memory}, "
            f"{encoded / 1e9:.2f} GB of encoded ones do",
        )
    return Cache(
        "none",
        f"{encoded / 1e9:.2f} GB of encoded posters do not fit in {memory}; --cache=disk keeps "
        f"{decoded / 1e9:.2f} GB of decoded ones on disk",
    )


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
) -> tf.data.Dataset:
    """Returns endless shuffled batches: epoch after epoch, each example once in each.

    Args:
        builder: an open dataset.
        split: the split to read.
        image_size: side S of the posters, in pixels.
        batch_size: global batch size B; an epoch's last batch may be smaller.
        cache: decoded, encoded, disk or none.
        shuffle_buffer: examples to draw from; 0: the whole split where it is in memory.
        seed: together with the epoch's number, gives the order and the changes.
        start_step: batches that an interrupted run has trained on.
        augment: random changes, of `config.AUGMENTATIONS`.
        cache_file: where to keep decoded posters, for `disk`; a file that is not there yet.

    Yields:
        `image` uint8 [B, S, S, 3] and `genres` float32 [B, G], multi-hot.
    """
    size = num_examples(builder, split)
    steps_per_epoch = math.ceil(size / batch_size)
    load = _loader(builder, image_size)
    examples = read(builder, split)
    if augment:
        # An example's place tells it from the others in each epoch.
        examples = examples.enumerate().map(lambda index, example: {**example, "index": index})
    keeps_decoded = cache in ("decoded", "disk")
    if keeps_decoded:
        examples = _map(examples, load)
    if cache != "none":
        examples = examples.cache(cache_file if cache == "disk" else "")
    buffer = shuffle_buffer or _SHUFFLE_BUFFERS.get(cache, size)

    def one_epoch(epoch):
        def change(example):
            index = example.pop("index")
            image = augmentation.augment(example["image"], augment, seed, epoch, index)
            return {**example, "image": image}

        loaded = examples.shuffle(
            min(buffer, size), seed=seed * 1_000_003 + epoch, reshuffle_each_iteration=False
        )
        if not keeps_decoded:
            loaded = _map(loaded, load)
        if augment:
            loaded = _map(loaded, change)
        return loaded.batch(batch_size)

    start_epoch, start_batch = divmod(start_step, steps_per_epoch)
    batches = tf.data.Dataset.counter(start_epoch).flat_map(one_epoch).skip(start_batch)
    # Known to be endless, it spares tf.distribute a look for replicas without a batch.
    return finish(
        batches.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
    )


def eval_dataset(
    builder: tfds.core.DatasetBuilder, split: str, *, image_size: int, batch_size: int, cache: str
) -> tf.data.Dataset:
    """Returns endless passes over a split, in a fixed order, in batches of one size.

    A pass is `ceil(num_examples / batch_size)` batches. The last one is filled up with
    black posters of weight 0, so that every example counts exactly once.

    Yields:
        `image` uint8 [B, S, S, 3], `genres` float32 [B, G] and `weight` float32 [B].
    """
    examples = read(builder, split)
    if cache == "encoded":
        examples = examples.cache()
    examples = _map(examples, _loader(builder, image_size))
    if cache == "decoded":
        examples = examples.cache()

    def fill_up(batch):
        missing = batch_size - tf.shape(batch["image"])[0]
        weight = tf.ones(tf.shape(batch["image"])[:1])
        padded = tf.nest.map_structure(
            lambda x: tf.pad(x, [[0, missing]] + [[0, 0]] * (x.shape.rank - 1)),
            {**batch, "weight": weight},
        )
        return tf.nest.map_structure(
            lambda x: tf.ensure_shape(x, [batch_size, *x.shape[1:]]), padded
        )

    return finish(examples.batch(batch_size).map(fill_up).repeat())


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
    image = next(iter(read(builder, split).map(_loader(builder, image_size))))["image"]
    index = tf.constant(0, tf.int64)
    variants = [
        augmentation.augment(image, augment, seed, tf.constant(epoch, tf.int64), index)
        for epoch in range(count)
    ]
    return image.numpy(), np.stack(variants)


def base_rates(builder: tfds.core.DatasetBuilder, split: str) -> np.ndarray:
    """Returns each genre's share of the posters of a split, float64 [G].

    They are what the constant predictor answers. Posters are not decoded.
    """
    num_genres = len(genre_names(builder))
    dataset = builder.as_dataset(
        split,
        decoders=tfds.decode.PartialDecoding({"genres": True}),
        read_config=tfds.ReadConfig(try_autocache=False),
    )
    counts = dataset.map(lambda example: _multi_hot(example["genres"], num_genres)).reduce(
        np.zeros(num_genres), lambda total, genres: total + tf.cast(genres, tf.float64)
    )
    return counts.numpy() / num_examples(builder, split)


def read(builder: tfds.core.DatasetBuilder, split: str) -> tf.data.Dataset:
    """Yields `image` (JPEG bytes), `genres` (indices) and `poster_id`."""
    parallelism = num_threads()
    return builder.as_dataset(
        split,
        decoders={"image": tfds.decode.SkipDecoding()},
        read_config=tfds.ReadConfig(
            try_autocache=False,
            num_parallel_calls_for_decode=parallelism,
            num_parallel_calls_for_interleave_files=parallelism,
        ),
    )


def _loader(builder: tfds.core.DatasetBuilder, image_size: int):
    num_genres = len(genre_names(builder))

    def load(example):
        loaded = {
            "image": preprocessing.decode_and_resize(example["image"], image_size),
            "genres": _multi_hot(example["genres"], num_genres),
        }
        if "index" in example:
            loaded["index"] = example["index"]
        return loaded

    return load


def _multi_hot(indices: tf.Tensor, num_genres: int) -> tf.Tensor:
    return tf.reduce_sum(tf.one_hot(indices, num_genres), axis=0)


def _map(dataset: tf.data.Dataset, function) -> tf.data.Dataset:
    return dataset.map(function, num_parallel_calls=num_threads())


def finish(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Returns a dataset with the options and the prefetch that every pipeline here has."""
    options = tf.data.Options()
    # Parallelism is explicit; an iterator that autotunes blocks when it is destroyed,
    # until its optimizer thread wakes: 10 s and more.
    options.autotune.enabled = False
    options.threading.private_threadpool_size = num_threads()
    # Several workers each take their part of every global batch.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.prefetch(2).with_options(options)


def num_threads() -> int:
    """Returns the threads that a pipeline runs on, and its calls in parallel."""
    return _THREADS_PER_CORE * runtime.num_cores()
