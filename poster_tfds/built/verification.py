"""Whether a built dataset is whole: every record read, decoded and compared with what was built."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
import tqdm
from etils import epath
from google.protobuf import message

from poster_tfds import images, machine
from poster_tfds.built import checksums, counts as counts_lib, record_files

# What is wrong with an example that decodes; the first is that nothing is.
_REASONS = (
    "",
    "it has no Id",
    "it has an index that is of no genre",
    "it has a genre twice",
)
_BATCH = 64
# What fails where an example is not sound; the second where TensorFlow's message quotes its bytes.
_ERRORS = (tf.errors.OpError, UnicodeDecodeError)


class Report(NamedTuple):
    """What was found.

    Attributes:
        problems: a line for each, which names the file.
        has_checksums: whether the build left the shards' checksums, with which they were compared.
    """

    problems: list[str]
    has_checksums: bool


def verify(builder: tfds.core.DatasetBuilder) -> Report:
    """Reads and decodes every record of a built dataset, on all cores.

    It compares the number of records and bytes with `dataset_info.json`, each shard with its
    checksum, and the genres with what the build counted. Only shards with a problem are read
    again, record by record, to name it.
    """
    sums = checksums.read(builder.data_path)
    kept = (builder.info.metadata or {}).get(counts_lib.KEY, {})
    features = builder.info.features
    problems = []
    infos = builder.info.splits.values()
    total = sum(info.num_examples for info in infos)
    with tqdm.tqdm(total=total, unit="img", leave=False, disable=None) as bar:
        for info in infos:
            problems += _verify_split(info, features, sums, kept.get(info.name), bar)
    return Report(problems, bool(sums))


def _verify_split(
    info: tfds.core.SplitInfo,
    features: tfds.features.FeaturesDict,
    sums: dict[str, str],
    kept: dict[str, Any] | None,
    bar: tqdm.tqdm,
) -> list[str]:
    paths = list(map(epath.Path, info.filepaths))
    there = [path for path in paths if path.exists()]
    counts, num_bytes, together = _count_sound(there, features, bar)
    digests = checksums.of_files(there) if sums or kept else {}
    problems = []
    for path, expected in zip(paths, info.shard_lengths, strict=True):
        if path not in there:
            problems.append(f"{path} is missing")
        elif counts[path.name] != expected:
            problems += _find_problems(path, expected, features)
        elif sums and digests[path.name] != sums.get(path.name):
            problems.append(
                f"{path}: every record is sound, but the file is not the one that was built "
                f"({checksums.FILE_NAME} has another checksum)"
            )
    if not problems and num_bytes != info.num_bytes:
        problems.append(
            f"{info.name}: the examples have {num_bytes} bytes, dataset_info.json says "
            f"{int(info.num_bytes)}"
        )
    found = counts_lib.describe(info, together, digests)
    if not problems and kept and kept != found:
        wrong = ", ".join(name for name in found if kept.get(name) != found[name])
        problems.append(f"{info.name}: metadata.json says something else of the examples: {wrong}")
    return problems


def _count_sound(
    paths: list[epath.Path], features: tfds.features.FeaturesDict, bar: tqdm.tqdm
) -> tuple[dict[str, int], int, np.ndarray]:
    """Returns what is counted of sound examples.

    Returns:
        How many each file contains, the size of all of them, and for two genres how many have
        both, int [G, G].
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    num_threads, num_genres = machine.num_cores(), features["genres"].feature.num_classes
    options.threading.private_threadpool_size = 8 * num_threads

    def read(number, path):
        return tf.data.TFRecordDataset(path).map(lambda record: (number, record))

    def check(number, record):
        example = _parse(record, features)
        genres = tf.reduce_sum(tf.one_hot(example["genres"], num_genres, dtype=tf.int64), axis=0)
        return number, tf.strings.length(record), genres, _what_is_wrong(example, features) == 0

    numbers = tf.range(len(paths), dtype=tf.int64)
    dataset = (
        tf.data.Dataset.from_tensor_slices((numbers, tf.constant(list(map(str, paths)), tf.string)))
        .flat_map(read)
        .ignore_errors()
        .map(check, num_parallel_calls=8 * num_threads, deterministic=False)
        .ignore_errors()
        .batch(_BATCH)
        .prefetch(2)
        .with_options(options)
    )
    counts = np.zeros(len(paths), int)
    num_bytes, together = 0, np.zeros((num_genres, num_genres), int)
    for numbers, sizes, genres, sound in dataset.as_numpy_iterator():
        counts += np.bincount(numbers[sound], minlength=len(paths))
        num_bytes += int(sizes.sum())
        together += genres[sound].T @ genres[sound]
        bar.update(len(numbers))
    names = [path.name for path in paths]
    return dict(zip(names, counts.tolist(), strict=True)), num_bytes, together


def _find_problems(
    path: epath.Path, expected: int, features: tfds.features.FeaturesDict
) -> Iterator[str]:
    """Yields what is wrong with a shard, record by record."""
    count = 0
    try:
        for record in record_files.read_records(path):
            count += 1
            if reason := _name_fault(record.content, features):
                where = f"record {record.number}, at byte {record.position}"
                yield f"{path}: {where}{_id_of(record.content)}: {reason}"
    except record_files.DamageError as error:
        content = record_files.read_unchecked(path, error.position, 2 * images.MAX_BYTES)
        yield f"{path}: {error}{_id_of(content)}; what is behind it was not read"
    else:
        if count != expected:
            yield f"{path}: it contains {count} records and was built with {expected}"


def _name_fault(record: bytes, features: tfds.features.FeaturesDict) -> str:
    """Returns what is wrong with an example; empty if nothing is."""
    try:
        example = _parse(record, features)
    except _ERRORS:
        return "it is no example of this dataset"
    try:
        return _REASONS[_what_is_wrong(example, features)]
    except _ERRORS:
        return "its JPEG does not decode"


def _parse(record, features: tfds.features.FeaturesDict) -> dict[str, tf.Tensor]:
    return features.deserialize_example(record, decoders={"image": tfds.decode.SkipDecoding()})


def _what_is_wrong(
    example: dict[str, tf.Tensor], features: tfds.features.FeaturesDict
) -> tf.Tensor:
    """Returns which of `_REASONS` there is first; fails if the JPEG does not decode."""
    # As in training.
    image = tf.io.decode_jpeg(example["image"], channels=3, dct_method="INTEGER_ACCURATE")
    genres = example["genres"]
    is_genre = (genres >= 0) & (genres < features["genres"].feature.num_classes)
    # The first says that nothing is wrong; what it depends on cannot be optimised away.
    checks = [
        tf.size(image) < 0,
        tf.strings.length(example["poster_id"]) == 0,
        ~tf.reduce_all(is_genre),
        tf.size(tf.unique(genres).y) < tf.size(genres),
    ]
    return tf.argmax(tf.cast(tf.stack(checks), tf.int32))


def _id_of(content: bytes) -> str:
    """Returns the Id of a record in words, if it can be read."""
    try:
        feature = tf.train.Example.FromString(content).features.feature["poster_id"]
        return f" (Id {feature.bytes_list.value[0].decode()})"
    except (message.DecodeError, IndexError, UnicodeDecodeError):
        return ""
