"""The build as an Apache Beam pipeline, for posters that one machine should not go through.

It writes the same shards, byte for byte, as the engine in the builder. Each poster is read
twice, to check it and by the worker that writes its shard. Rows wait in files beside the shards:
what Beam moves is where they are there, so that no runner has to shuffle images or rows, or to
hold them: it moves one part for each of a chunk's buckets, four for a thousand rows.
"""

import bisect
import collections
import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import example_serializer, hashing, utils, writer as writer_lib
from tensorflow_datasets.core.utils import shard_utils

from poster_tfds import (
    annotations as annotations_lib,
    faults,
    image_files,
    posters,
    row_files as row_files_lib,
    source as source_lib,
)
from poster_tfds.built import checksums

_FAULTS, _DUPLICATES = "faults", "duplicates"
_KEY_BYTES = 16  # TFDS hashes keys with MD5.
_ROWS_HELD = 1 << 14  # Rows that a worker holds at a time, more or less, of up to a million.
_ROWS_A_PART = 1 << 8  # Of more than that.
_MIN_CHUNKS = 64  # Enough for some workers to share them evenly.


@dataclasses.dataclass
class Storage:
    """How and where TFDS keeps a dataset's examples.

    Attributes:
        features: of an example.
        writer: writes the file of a shard.
        shard_config: gives the number of shards of a split.
        templates: split -> names of its shards' files.
    """

    features: tfds.features.FeaturesDict
    writer: writer_lib.ExampleWriter
    shard_config: shard_utils.ShardConfig
    templates: dict[str, tfds.core.ShardedFileTemplate]

    def serialize(self, example: dict[str, Any]) -> bytes:
        """Returns an example as TFDS stores it."""
        return self._serializer.serialize_example(self.features.encode_example(example))

    @functools.cached_property
    def _serializer(self) -> example_serializer.ExampleSerializer:
        return example_serializer.ExampleSerializer(self.features.get_serialized_info())


class Outcome(NamedTuple):
    """What a pipeline has found and built.

    Attributes:
        splits: split -> its shards; none if faults stopped the build.
        together: split -> int [G, G], posters with both genres.
        faults: of the rows and their posters.
        counts: `duplicates`, left out because their bytes came before, `converted`, `damaged`.
        checksums: the SHA-256 of each shard, by its name.
    """

    splits: dict[str, tfds.core.SplitInfo]
    together: dict[str, np.ndarray]
    faults: list[faults.Fault]
    counts: collections.Counter
    checksums: dict[str, str]


class _Layout(NamedTuple):
    """Where the examples of a split are, which are ordered by their hashed keys.

    Attributes:
        num_bytes: size of all examples, serialized.
        shard_ends: for each shard, how many examples are in it and those before it.
        bucket_starts: number of a bucket -> how many examples are in those before it.
        counts: of the examples that are `converted` and `damaged`.
        together: for two genres, the examples with both.
    """

    num_bytes: int
    shard_ends: list[int]
    bucket_starts: dict[int, int]
    counts: dict[str, int]
    together: list[list[int]]


class _Item(NamedTuple):
    """A sound row, without its poster.

    Attributes:
        split: of the row.
        row: of the CSV.
        digest: of the poster; empty if duplicates are kept.
        key: TFDS's hash of the example's key.
        num_bytes: size of the example, serialized.
        converted: whether the poster was made from another image.
        damaged: whether a part of it is lost.
    """

    split: str
    row: annotations_lib.Annotation
    digest: bytes
    key: bytes
    num_bytes: int
    converted: bool
    damaged: bool


def build(
    source: source_lib.PosterSource,
    config,
    storage: Storage,
    download_config: tfds.download.DownloadConfig,
) -> Outcome:
    """Runs the pipeline, which checks every row and writes the shards.

    Args:
        source: the rows.
        config: a `PosterConfig`.
        storage: where the examples go.
        download_config: gives Beam's runner and options.
    """
    directory = next(iter(storage.templates.values())).data_dir / "beam"
    directory.mkdir()
    num_rows = sum(source.num_rows.values())
    num_held = rows_held(num_rows)
    row_files = row_files_lib.RowFiles(directory, -(-num_rows // num_held))
    chunk = min(num_held, -(-num_rows // _MIN_CHUNKS))
    outcome_path = directory / "outcome.json"
    options = download_config.beam_options or beam.options.pipeline_options.PipelineOptions()
    # As TFDS does: Beam takes all outputs of a transform to be of one type.
    options.view_as(beam.options.pipeline_options.TypeOptions).pipeline_type_check = False
    with beam.Pipeline(runner=download_config.beam_runner, options=options) as pipeline:
        checked = (
            pipeline
            | "Rows" >> beam.Create(_write_rows(source, chunk, row_files))
            | "SpreadRows" >> beam.Reshuffle()
            | "Check"
            >> beam.FlatMap(_check, source.images_dir, storage, config, row_files).with_outputs(
                _FAULTS, main="sound"
            )
        )
        found = checked[_FAULTS] | "AllFaults" >> beam.combiners.ToList()
        sound = checked.sound
        num_duplicates = pipeline | "NoDuplicates" >> beam.Create([0])
        if config.drop_duplicates:
            first = (
                sound
                | "GroupDigests" >> beam.GroupByKey()
                | "KeepFirst"
                >> beam.FlatMap(_keep_first, row_files).with_outputs(_DUPLICATES, main="kept")
            )
            sound, num_duplicates = first.kept, first[_DUPLICATES]
        num_duplicates = num_duplicates | "AllDuplicates" >> beam.CombineGlobally(sum)

        # Buckets tell where each example is without sorting all of them in one place.
        buckets = sound | "GroupBuckets" >> beam.GroupByKey()
        layouts = (
            buckets
            | "Measure" >> beam.Map(_measure, row_files, len(source.genres))
            | "AllBuckets" >> beam.combiners.ToList()
            | "LayOut"
            >> beam.Map(_lay_out, beam.pvalue.AsSingleton(found), config.on_error, storage)
        )
        digests = (
            buckets
            | "FindShards"
            >> beam.FlatMap(_find_shards, beam.pvalue.AsSingleton(layouts), row_files)
            | "GroupShards" >> beam.GroupByKey()
            | "WriteShards"
            >> beam.Map(
                _write_shard,
                beam.pvalue.AsSingleton(layouts),
                source.images_dir,
                config,
                storage,
                row_files,
            )
            | "AllShards" >> beam.combiners.ToList()
        )
        _ = layouts | "WriteOutcome" >> beam.Map(
            _write_outcome,
            beam.pvalue.AsSingleton(found),
            beam.pvalue.AsSingleton(num_duplicates),
            beam.pvalue.AsSingleton(digests),
            outcome_path,
        )
    outcome = _collect_outcome(outcome_path, storage)
    directory.rmtree()
    return outcome


def rows_held(num_rows: int) -> int:
    """Returns how many rows a worker holds at a time, in a chunk of them and in a bucket.

    There are as many parts as chunks times buckets. For their number to grow with that of the rows
    and not with its square, chunks and buckets must grow with its square root.
    """
    return max(_ROWS_HELD, math.isqrt(num_rows * _ROWS_A_PART))


def _write_rows(
    source: source_lib.PosterSource, chunk: int, row_files: row_files_lib.RowFiles
) -> list[tuple[str, row_files_lib.Part]]:
    """Writes all rows where workers find them; returns each split with where some of it is."""
    rows = source.rows_with_split()
    parts = []
    for some in iter(lambda: list(itertools.islice(rows, chunk)), []):
        for split, part in row_files.write(some, lambda pair: pair[0]):
            parts.append((split, part))
    return parts


def _check(
    chunk,
    images_dir: epath.Path,
    storage: Storage,
    config,
    row_files: row_files_lib.RowFiles,
) -> Iterator:
    """Yields a fault for each row that has one, and where the others are, by their bucket."""
    split, rows = chunk
    hasher = hashing.Hasher(split)
    items = []
    for _, row in row_files.read([rows]):
        poster = posters.read_one(row, images_dir, config)
        if isinstance(poster, faults.Fault):
            yield beam.pvalue.TaggedOutput(_FAULTS, poster)
            continue
        name, example = source_lib.make_example(row, poster.jpeg)
        items.append(
            _Item(
                split,
                row,
                source_lib.poster_digest(poster.jpeg) if config.drop_duplicates else b"",
                hasher.hash_key(name).to_bytes(_KEY_BYTES, "big"),
                len(storage.serialize(example)),
                poster.converted,
                poster.damaged,
            )
        )
    if config.drop_duplicates:
        yield from row_files.write(items, lambda item: row_files.bucket(item.digest))
    else:
        yield from _into_buckets(items, row_files)


def _into_buckets(items: Iterable[_Item], row_files: row_files_lib.RowFiles) -> list:
    """Returns where items are by split and bucket of their key."""
    return row_files.write(items, lambda item: (item.split, row_files.bucket(item.key)))


def _keep_first(group, row_files: row_files_lib.RowFiles) -> Iterator:
    """Yields the rows of a bucket of digests, of those with one poster the first.

    It is the one that the other engine meets first. How many others there are is yielded too.
    """
    kept = {}
    num_items = 0
    for item in row_files.read(group[1]):
        num_items += 1
        kept[item.digest] = min(item, kept.get(item.digest, item), key=_order_of_reading)
    yield from _into_buckets(kept.values(), row_files)
    yield beam.pvalue.TaggedOutput(_DUPLICATES, num_items - len(kept))


def _order_of_reading(item: _Item) -> tuple[int, int]:
    return source_lib.SPLITS.index(item.split), item.row.line


def _measure(
    group, row_files: row_files_lib.RowFiles, num_genres: int
) -> tuple[str, int, collections.Counter, np.ndarray]:
    """Returns split and number of a bucket, what is counted of its examples, and their genres."""
    (split, bucket), parts = group
    counts = collections.Counter()
    together = np.zeros((num_genres, num_genres), int)
    for item in row_files.read(parts):
        counts.update(
            examples=1, bytes=item.num_bytes, converted=item.converted, damaged=item.damaged
        )
        together[np.ix_(item.row.genres, item.row.genres)] += 1
    return split, bucket, counts, together


def _lay_out(buckets, found, on_error: str, storage: Storage) -> dict[str, _Layout]:
    layouts = {}
    if found and on_error == "fail":
        return layouts
    for split in storage.templates:
        totals = collections.Counter()
        starts, together = {}, 0
        for _, bucket, counts, of_bucket in sorted(
            (b for b in buckets if b[0] == split), key=lambda b: b[1]
        ):
            starts[bucket] = totals["examples"]
            totals.update(counts)
            together = together + of_bucket
        num_examples, num_bytes = totals.pop("examples", 0), totals.pop("bytes", 0)
        if num_examples:
            num_shards = storage.shard_config.get_number_shards(num_bytes, num_examples)
            ends = shard_utils.get_shard_boundaries(num_examples, num_shards)
            layouts[split] = _Layout(num_bytes, list(ends), starts, totals, together.tolist())
    return layouts


def _find_shards(group, layouts: dict[str, _Layout], row_files: row_files_lib.RowFiles) -> Iterator:
    """Yields where the rows of a bucket are, by (split, number of the shard)."""
    (split, bucket), parts = group
    if split not in layouts:
        return
    layout = layouts[split]
    items = sorted(row_files.read(parts), key=_key)
    ranks = {item.key: rank for rank, item in enumerate(items, layout.bucket_starts[bucket])}
    yield from row_files.write(
        items, lambda item: (split, bisect.bisect_right(layout.shard_ends, ranks[item.key]))
    )


def _write_shard(
    group,
    layouts: dict[str, _Layout],
    images_dir: epath.Path,
    config,
    storage: Storage,
    row_files: row_files_lib.RowFiles,
) -> tuple[str, str]:
    """Writes a shard; returns its name and its SHA-256."""
    (split, shard), parts = group

    def examples():
        for item in sorted(row_files.read(parts), key=_key):
            _, example = source_lib.make_example(item.row, _read_again(item, images_dir, config))
            yield int.from_bytes(item.key, "big"), storage.serialize(example)

    path = storage.templates[split].sharded_filepath(
        shard_index=shard, num_shards=len(layouts[split].shard_ends)
    )
    # A runner may try a shard again, or twice at a time.
    with utils.incomplete_files(path) as temporary_path:
        storage.writer.write(temporary_path, examples())
        return path.name, checksums.of_file(temporary_path)


def _read_again(item: _Item, images_dir: epath.Path, config) -> bytes:
    """Returns the bytes of a poster that is known to be sound."""
    if item.converted:
        return posters.read_one(item.row, images_dir, config).jpeg
    return image_files.poster_path(images_dir, item.row).read_bytes()


def _key(item: _Item) -> bytes:
    return item.key


def _write_outcome(layouts, found, num_duplicates: int, digests, path: epath.Path) -> None:
    path.write_text(json.dumps([layouts, found, num_duplicates, dict(digests)]))


def _collect_outcome(path: epath.Path, storage: Storage) -> Outcome:
    layouts, found, num_duplicates, digests = json.loads(path.read_text())
    splits, genres, totals = {}, {}, collections.Counter(duplicates=num_duplicates)
    for split, (num_bytes, shard_ends, _, counts, together) in layouts.items():
        totals.update(counts)
        lengths = np.diff(shard_ends, prepend=0).tolist()
        splits[split] = tfds.core.SplitInfo(split, lengths, num_bytes, storage.templates[split])
        genres[split] = np.array(together)
    found = [faults.Fault(*fault) for fault in found]
    return Outcome(splits, genres, found, totals, digests)
