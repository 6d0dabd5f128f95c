"""Whether a built dataset is whole: every record read, decoded and compared with what was built."""

import concurrent.futures
import itertools

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
import tqdm
from etils import epath
from google.protobuf import message

from poster_tfds import machine
from poster_tfds.built import counts as counts_lib, record_files


def verify(builder: tfds.core.DatasetBuilder) -> list[str]:
    """Reads and decodes every record of a built dataset, on all cores.

    It compares records and bytes with `dataset_info.json`, and posters and genres with what the
    build has counted in `metadata.json`.

    Returns:
        A line for each problem, which names the file.
    """
    num_genres = builder.info.features["genres"].feature.num_classes
    problems = []
    infos = builder.info.splits.values()
    total = sum(info.num_examples for info in infos)
    with (
        concurrent.futures.ThreadPoolExecutor(machine.num_cores()) as pool,
        tqdm.tqdm(total=total, unit="img", leave=False, disable=None) as bar,
    ):
        for info in infos:
            same = (itertools.repeat(value) for value in (num_genres, bar))
            shards = pool.map(_read_shard, info.filepaths, info.shard_lengths, *same)
            found, sizes, together = zip(*shards, strict=True)
            found = [*itertools.chain(*found)]
            if not found and sum(sizes) != info.num_bytes:
                found.append(
                    f"{info.name}: the examples have {sum(sizes)} bytes, dataset_info.json says "
                    f"{int(info.num_bytes)}"
                )
            counted = counts_lib.describe(info, sum(together))
            kept = builder.info.metadata[counts_lib.KEY][info.name]
            if not found and kept != counted:
                wrong = ", ".join(name for name in counted if kept.get(name) != counted[name])
                found.append(
                    f"{info.name}: metadata.json says something else of the examples: {wrong}"
                )
            problems += found
    return problems


def _read_shard(
    path: str, expected: int, num_genres: int, bar: tqdm.tqdm
) -> tuple[list[str], int, np.ndarray]:
    """Returns problems, bytes of the examples, and how many have both of two genres, int [G, G]."""
    problems, num_bytes, count = [], 0, 0
    together = np.zeros((num_genres, num_genres), int)
    if not epath.Path(path).exists():
        return [f"{path} is missing"], num_bytes, together
    try:
        for number, position, content in record_files.read_records(path):
            poster_id, genres, reason = _examine(content, num_genres)
            if reason:
                where = f"record {number}, at byte {position}"
                of_id = f" (Id {poster_id})" if poster_id else ""
                problems.append(f"{path}: {where}{of_id}: {reason}")
            else:
                together[np.ix_(genres, genres)] += 1
            count, num_bytes = number + 1, num_bytes + len(content)
            bar.update()
    except record_files.DamageError as error:
        problems.append(f"{path}: {error}; what is behind it was not read")
    else:
        if count != expected:
            problems.append(f"{path}: it contains {count} records and was built with {expected}")
    return problems, num_bytes, together


def _examine(record: bytes, num_genres: int) -> tuple[str, list[int], str]:
    """Returns Id and genres of an example, and what is wrong with it; empty if nothing is."""
    try:
        features = tf.train.Example.FromString(record).features.feature
        (image,) = features["image"].bytes_list.value
        poster_id = features["poster_id"].bytes_list.value[0].decode()
    except (message.DecodeError, ValueError, IndexError):
        return "", [], "it is no example of this dataset"
    genres = list(features["genres"].int64_list.value)
    if not poster_id:
        return poster_id, genres, "it has no Id"
    if not all(0 <= genre < num_genres for genre in genres):
        return poster_id, genres, "it has an index that is of no genre"
    if len(set(genres)) < len(genres):
        return poster_id, genres, "it has a genre twice"
    try:  # As in training.
        tf.io.decode_jpeg(image, channels=3, dct_method="INTEGER_ACCURATE")
    except tf.errors.OpError:
        return poster_id, genres, "its JPEG does not decode"
    return poster_id, genres, ""
