"""Built datasets: opening one, and its splits, each with all there is to know of it."""

import collections
import contextlib
import dataclasses
import functools
import os
import re
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

import poster_tfds  # noqa: F401  (registers the dataset)
from poster_tfds import directory_lock, faults, machine, object_stores
from poster_tfds.built import counts as counts_lib, record_files
from trainer import config as config_lib

READ_BUFFER = 1 << 20  # Bytes, of a shard that is read; TensorFlow Datasets' own is 8 MB.
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
        config.UsageError: the dataset is unknown, not built or on an object store that is not read.
    """
    try:
        object_stores.check_readable(data_dir, "--data_dir")
    except faults.UserError as error:
        raise config_lib.UsageError(str(error)) from None
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
                "where FOLDER has the posters and their annotations; look at it first with\n\n"
                "  python -m poster_tfds.look FOLDER"
            )
        try:
            builder.download_and_prepare()
        except directory_lock.HeldError as error:
            raise config_lib.UsageError(f"--dataset={name} is not built yet. {error}") from error
    return builder


def open_split(dataset: str, data_dir: str, name: str) -> "Split":
    return Split(open_dataset(dataset, data_dir), name)


class Piece(NamedTuple):
    """Records of a shard that follow each other."""

    path: str  # Of the shard.
    skip: int  # How many records are before them.
    take: int  # How many they are.


@dataclasses.dataclass(frozen=True)
class Split:
    """An open split of a built dataset, or a part of one, as `train[:85%]`."""

    builder: tfds.core.DatasetBuilder
    name: str  # As TFDS writes it.

    def __post_init__(self):
        full_name = self.builder.info.full_name
        try:
            info = self.builder.info.splits[self.name]
        except (KeyError, ValueError) as error:
            raise config_lib.UsageError(
                f"{full_name} has no split {self.name!r}; it has "
                f"{', '.join(self.builder.info.splits)}, and parts of them as 'train[:85%]'."
            ) from error
        if not info.num_examples:
            raise config_lib.UsageError(f"{full_name}: no example is in {self.name!r}.")

    def __str__(self) -> str:
        return self.name

    @property
    def genres(self) -> list[str]:
        """In the order of the model's outputs."""
        return self.builder.info.features["genres"].feature.names

    @functools.cached_property
    def num_examples(self) -> int:
        return self.builder.info.splits[self.name].num_examples

    @property
    def num_bytes(self) -> int:
        """Size of the encoded posters; of a part of a split, its share."""
        return self._whole.num_bytes * self.num_examples // self._whole.num_examples

    @functools.cached_property
    def genre_counts(self) -> np.ndarray:
        """Posters of each genre, int [G].

        The build has counted those of a split. Of a part of one the records are read.

        Raises:
            config.UsageError: a shard is damaged.
        """
        if built := counts_lib.read(self.builder, self.name):
            return np.diag(built["together"])
        counts = np.zeros(len(self.genres), int)
        with self.damage_named():
            return (
                self._read_labels()
                .reduce(counts, lambda total, genres: total + tf.cast(genres, tf.int64))
                .numpy()
            )

    @property
    def base_rates(self) -> np.ndarray:
        """Each genre's share of the posters, float64 [G]: what the constant predictor answers."""
        return self.genre_counts / self.num_examples

    def read_labels(self) -> np.ndarray:
        """Returns the genres of all posters, float32 [N, G], multi-hot; no poster is decoded.

        Raises:
            config.UsageError: a shard is damaged.
        """
        with self.damage_named():
            return np.stack(list(self._read_labels().as_numpy_iterator()))

    def _read_labels(self) -> tf.data.Dataset:
        num_genres = len(self.genres)
        return self._read_part({"genres": True}).map(
            lambda example: multi_hot(example["genres"], num_genres)
        )

    def _read_part(self, features: dict[str, bool]) -> tf.data.Dataset:
        return self.builder.as_dataset(
            self.name,
            decoders=tfds.decode.PartialDecoding(features),
            read_config=tfds.ReadConfig(try_autocache=False, override_buffer_size=READ_BUFFER),
        )

    def pieces(self) -> list[Piece]:
        """Returns where its examples are, in order."""
        return [
            Piece(os.fspath(part.filename), part.skip, part.take)
            for part in self.builder.info.splits[self.name].file_instructions
        ]

    def read_ids(self) -> list[str]:
        """Returns the Ids of all posters, in order."""
        read = self._read_part({"poster_id": True})
        return [example["poster_id"].decode() for example in read.as_numpy_iterator()]

    def parse(self, record: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the example that a record of a shard is, as `read` does."""
        return self.builder.info.features.deserialize_example(
            record, decoders={"image": tfds.decode.SkipDecoding()}
        )

    def read(self, in_parts: bool = False) -> tf.data.Dataset:
        """Yields `image` (JPEG bytes), `genres` (indices) and `poster_id`.

        Unless only the first of them are taken (`in_parts`), the dataset fails if a shard contains
        fewer records than were built, which a file that is cut between two records would hide.
        """
        parallelism = machine.num_cores() + 1
        return self.builder.as_dataset(
            self.name,
            decoders={"image": tfds.decode.SkipDecoding()},
            read_config=tfds.ReadConfig(
                try_autocache=False,
                assert_cardinality=not in_parts,
                override_buffer_size=READ_BUFFER,
                num_parallel_calls_for_decode=parallelism,
                num_parallel_calls_for_interleave_files=parallelism,
            ),
        )

    def overlaps(self, other: "Split") -> bool:
        found = collections.defaultdict(list)
        for piece in self.pieces():
            found[piece.path].append(piece)
        return any(
            ours.skip < theirs.skip + theirs.take and theirs.skip < ours.skip + ours.take
            for theirs in other.pieces()
            for ours in found[theirs.path]
        )

    @contextlib.contextmanager
    def damage_named(self):
        """Says which shard is damaged where reading the split has failed.

        Raises:
            config.UsageError: a shard is damaged.
        """
        try:
            yield
        except tf.errors.OpError as error:
            # Looked for, in all of the data, only where the failure may be the data's.
            if not isinstance(error, _ERRORS_OF_DATA) or not (damage := self.find_damage()):
                raise
            raise config_lib.UsageError(
                f"{self.builder.info.full_name} is damaged:\n{damage}\nBuild it again with "
                "`tfds build`; the run goes on from its last checkpoint."
            ) from error

    def find_damage(self) -> str:
        """Reads the shards and returns a line for each damaged one; empty if all is well.

        It has the file, what TensorFlow says and the byte at which the first bad record begins.
        """
        faults = []
        shards = zip(self._whole.filepaths, self._whole.shard_lengths, strict=True)
        for path, expected in shards:
            try:
                found = sum(1 for _ in record_files.read_records(path))
            except record_files.DamageError as error:
                faults.append(f"  {path}: {error}")
            else:
                if found != expected:
                    faults.append(f"  {path}: holds {found} records, was built with {expected}")
        return "\n".join(faults)

    @property
    def _whole(self) -> tfds.core.SplitInfo:
        """The split of which this is a part, or this one."""
        return self.builder.info.splits[re.split(r"[\[+]", self.name)[0]]


def multi_hot(indices: tf.Tensor, num_genres: int) -> tf.Tensor:
    """Returns float32 [G], 1 at the indices and 0 elsewhere."""
    return tf.reduce_sum(tf.one_hot(indices, num_genres), axis=0)
