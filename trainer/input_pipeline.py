"""TFRecords -> batches of uint8 posters with their genres.

A pipeline lives through the whole run: making a new iterator each epoch costs up to
twenty seconds where tf.data's autotuning is on, and throws away what was prefetched.
The order of an epoch depends on the seed and the epoch's number alone, so a run that is
resumed sees what an uninterrupted one would have seen.
"""

import math

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

import poster_tfds  # noqa: F401  (registers the dataset)
from trainer import config as config_lib, preprocessing, runtime

# tf.data's default pool has one thread a core, and threads that wait for a decoded
# poster take part of it: 2 cores stood 27% idle. More threads than cores keep all busy.
_THREADS_PER_CORE = 8
_SHUFFLE_BUFFER_UNCACHED = 4096
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


def choose_cache(name: str, decoded_bytes: int) -> str:
    """Resolves `--cache=auto`: decoded if that takes at most half of the free memory."""
    if name != "auto":
        return name
    fits = decoded_bytes <= _MEMORY_SHARE_FOR_CACHE * runtime.available_memory()
    return "decoded" if fits else "none"


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
) -> tf.data.Dataset:
    """Returns endless shuffled batches: epoch after epoch, each example once in each.

    Args:
        builder: an open dataset.
        split: the split to read.
        image_size: side S of the posters, in pixels.
        batch_size: global batch size B; an epoch's last batch may be smaller.
        cache: decoded, encoded or none.
        shuffle_buffer: examples to draw from; 0: the whole split where it is cached.
        seed: together with the epoch's number, gives the order.
        start_step: batches that an interrupted run has trained on.

    Yields:
        `image` uint8 [B, S, S, 3] and `genres` float32 [B, G], multi-hot.
    """
    size = num_examples(builder, split)
    steps_per_epoch = math.ceil(size / batch_size)
    load = _loader(builder, image_size)
    examples = _read(builder, split)
    if cache == "decoded":
        examples = _map(examples, load).cache()
    elif cache == "encoded":
        examples = examples.cache()
    buffer = shuffle_buffer or (_SHUFFLE_BUFFER_UNCACHED if cache == "none" else size)

    def one_epoch(epoch):
        shuffled = examples.shuffle(
            min(buffer, size), seed=seed * 1_000_003 + epoch, reshuffle_each_iteration=False
        )
        loaded = shuffled if cache == "decoded" else _map(shuffled, load)
        return loaded.batch(batch_size)

    start_epoch, start_batch = divmod(start_step, steps_per_epoch)
    batches = tf.data.Dataset.counter(start_epoch).flat_map(one_epoch).skip(start_batch)
    # Known to be endless, it spares tf.distribute a look for replicas without a batch.
    return _finish(
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
    examples = _read(builder, split)
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

    return _finish(examples.batch(batch_size).map(fill_up).repeat())


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


def _read(builder: tfds.core.DatasetBuilder, split: str) -> tf.data.Dataset:
    """Yields `image` (JPEG bytes), `genres` (indices) and `poster_id`."""
    parallelism = _threads()
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
        return {
            "image": preprocessing.decode_and_resize(example["image"], image_size),
            "genres": _multi_hot(example["genres"], num_genres),
        }

    return load


def _multi_hot(indices: tf.Tensor, num_genres: int) -> tf.Tensor:
    return tf.reduce_sum(tf.one_hot(indices, num_genres), axis=0)


def _map(dataset: tf.data.Dataset, function) -> tf.data.Dataset:
    return dataset.map(function, num_parallel_calls=_threads())


def _finish(dataset: tf.data.Dataset) -> tf.data.Dataset:
    options = tf.data.Options()
    # Parallelism is explicit; an iterator that autotunes blocks when it is destroyed,
    # until its optimizer thread wakes: 10 s and more.
    options.autotune.enabled = False
    options.threading.private_threadpool_size = _threads()
    # Several workers each take their part of every global batch.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.prefetch(2).with_options(options)


def _threads() -> int:
    return _THREADS_PER_CORE * runtime.num_cores()
