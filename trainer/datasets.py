"""Built datasets: opening one, its genres, sizes and records, and what may be wrong with them."""

import contextlib
import re

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

import poster_tfds  # noqa: F401  (registers the dataset)
from poster_tfds import directory_lock
from trainer import config as config_lib, runtime

# tf.data's default pool has one thread a core, and threads that wait for a decoded
# poster take part of it: 2 cores stood 27% idle. More threads than cores keep all busy.
_THREADS_PER_CORE = 8
# Of a TFRecord: 8 bytes of length, and 4 of checksum for the length and for the data.
_RECORD_OVERHEAD = 16
_ERRORS_OF_DATA = (
    tf.errors.DataLossError,
    tf.errors.InvalidArgumentError,
    tf.errors.NotFoundError,
    tf.errors.OutOfRangeError,
    tf.errors.PermissionDeniedError,
    tf.errors.FailedPreconditionError,
)


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
        try:
            builder.download_and_prepare()
        except directory_lock.HeldError as error:
            raise config_lib.UsageError(f"--dataset={name} is not built yet. {error}") from error
    return builder


def genre_names(builder: tfds.core.DatasetBuilder) -> list[str]:
    """Returns the genres of a dataset, in the order of the model's outputs."""
    return builder.info.features["genres"].feature.names


def split_info(builder: tfds.core.DatasetBuilder, split: str) -> tfds.core.SplitInfo:
    """Returns what is known of a split or of a part of one, as `train[:85%]`.

    Raises:
        config.UsageError: the dataset has no such split, or no example is in it.
    """
    try:
        info = builder.info.splits[split]
    except (KeyError, ValueError) as error:
        raise config_lib.UsageError(
            f"{builder.info.full_name} has no split {split!r}; it has "
            f"{', '.join(builder.info.splits)}, and parts of them as 'train[:85%]'."
        ) from error
    if not info.num_examples:
        raise config_lib.UsageError(f"{builder.info.full_name}: no example is in {split!r}.")
    return info


def num_examples(builder: tfds.core.DatasetBuilder, split: str) -> int:
    """Returns the size of a split.

    Raises:
        config.UsageError: the dataset has no such split.
    """
    return split_info(builder, split).num_examples


def num_bytes(builder: tfds.core.DatasetBuilder, split: str) -> int:
    """Returns the size of a split's encoded posters; of a part of a split, its share."""
    whole = builder.info.splits[re.split(r"[\[+]", split)[0]]
    return whole.num_bytes * num_examples(builder, split) // whole.num_examples


def validation_split(builder: tfds.core.DatasetBuilder, name: str) -> str:
    """Resolves `--validation_split=auto`: `validation` if there is such a split, or nothing."""
    if name != "auto":
        return name
    return "validation" if "validation" in builder.info.splits else ""


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
    counts = dataset.map(lambda example: multi_hot(example["genres"], num_genres)).reduce(
        np.zeros(num_genres), lambda total, genres: total + tf.cast(genres, tf.float64)
    )
    return counts.numpy() / num_examples(builder, split)


def read(builder: tfds.core.DatasetBuilder, split: str, in_parts: bool = False) -> tf.data.Dataset:
    """Yields `image` (JPEG bytes), `genres` (indices) and `poster_id`.

    Unless others read the rest (`in_parts`), the dataset fails if a shard holds fewer
    records than were built, which a file that is cut between two records would hide.
    """
    parallelism = num_threads()
    return builder.as_dataset(
        split,
        decoders={"image": tfds.decode.SkipDecoding()},
        read_config=tfds.ReadConfig(
            try_autocache=False,
            assert_cardinality=not in_parts,
            num_parallel_calls_for_decode=parallelism,
            num_parallel_calls_for_interleave_files=parallelism,
        ),
    )


def multi_hot(indices: tf.Tensor, num_genres: int) -> tf.Tensor:
    """Returns float32 [G], 1 at the indices and 0 elsewhere."""
    return tf.reduce_sum(tf.one_hot(indices, num_genres), axis=0)


@contextlib.contextmanager
def damage_named(builder: tfds.core.DatasetBuilder, split: str):
    """Says which shard of a split is damaged where reading it has failed.

    Raises:
        config.UsageError: a shard is damaged.
    """
    try:
        yield
    except tf.errors.OpError as error:
        # Looked for, in all of the data, only where the failure may be the data's.
        if not isinstance(error, _ERRORS_OF_DATA) or not (damage := find_damage(builder, split)):
            raise
        raise config_lib.UsageError(
            f"{builder.info.full_name} is damaged:\n{damage}\nBuild it again with `tfds build`; "
            "the run goes on from its last checkpoint."
        ) from error


def find_damage(builder: tfds.core.DatasetBuilder, split: str) -> str:
    """Reads the shards of a split one by one and describes what is wrong with them.

    Returns:
        A line for each damaged shard: its file and what TensorFlow says, with the byte
        at which its first bad record begins. Empty if all is well.
    """
    info = builder.info.splits[re.split(r"[\[+]", split)[0]]
    faults = []
    for path, expected in zip(info.filepaths, info.shard_lengths, strict=True):
        found = position = 0
        try:
            for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
                found += 1
                position += len(record) + _RECORD_OVERHEAD
        except tf.errors.OpError as error:
            what = (error.message or type(error).__name__).splitlines()[0]
            faults.append(f"  {path}: record {found}, at byte {position}: {what}")
        else:
            if found != expected:
                faults.append(f"  {path}: holds {found} records, was built with {expected}")
    return "\n".join(faults)


def num_threads() -> int:
    """Returns the threads that a pipeline runs on, and its calls in parallel."""
    return _THREADS_PER_CORE * runtime.num_cores()
