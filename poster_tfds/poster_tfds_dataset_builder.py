"""TFDS builder: anyone's annotations and a folder of posters -> sharded TFRecords."""

import collections
import dataclasses
import functools
import itertools
import sys
from collections.abc import Iterator

import numpy as np
import pandas as pd
import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import writer as writer_lib
from tensorflow_datasets.core.utils import shard_utils

from poster_tfds import (
    description,
    directory_lock,
    faults,
    first_seen,
    object_stores,
    origin,
    posters,
    source as source_lib,
    synthetic,
    user_errors,
)
from poster_tfds.annotations import folder
from poster_tfds.built import counts
from poster_tfds.settings import PosterConfig

if "tensorflow_datasets.scripts.cli.main" in sys.modules:  # This is imported by `tfds build`.
    user_errors.install()

_DESCRIPTION = """\
Movie posters and their genres, for multi-label image classification. A poster has any number of
genres; the genres are the columns of the CSV from which the dataset is built.
"""
_MIN_SHARDS = 16
_MAX_SHARD_BYTES = 128 << 20


class Builder(tfds.core.GeneratorBasedBuilder):
    """Posters with their genres."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
Fetch the posters and name their folder with --manual_dir:

  git clone https://github.com/laxmimerit/Movies-Poster_Dataset
  tfds build poster_tfds --config=imdb --manual_dir=Movies-Poster_Dataset

The folder holds `train.csv`, which names a poster and its genres in each row, and
`Images/<Id>.jpg`. What else can be read: python -m poster_tfds.look FOLDER
"""
    BUILDER_CONFIGS = [  # noqa: RUF012
        PosterConfig(
            name="imdb",
            description="7254 movie posters, 25 genres, the reference split (repeated rows kept).",
            split="reference",
            drop_duplicates=False,
        ),
        PosterConfig(
            name="imdb_clean",
            description="The movie posters without duplicates, split 70/15/15 by their Id.",
            # Of seeds 0 to 2999, the one whose splits share every genre most evenly.
            split_seed=497,
        ),
        PosterConfig(
            name="synthetic",
            description="600 drawn posters, 8 genres, each visible as a coloured sign.",
            split="reference",
            num_synthetic=600,
        ),
    ]

    def __init__(self, *, config=None, **kwargs):
        """As TFDS's, for a configuration's name or a `PosterConfig`.

        Raises:
            faults.UserError: there is no such configuration, or its name is a built-in one's, or
                the dataset is on an object store that is not read.
        """
        object_stores.check_readable(kwargs.get("data_dir") or "", "--data_dir")
        builtin = {known.name: known for known in self.BUILDER_CONFIGS}
        if isinstance(config, str) and config.partition(":")[0] not in builtin:
            raise faults.UserError(
                f"--config: there is no configuration {config!r}, only {', '.join(builtin)}. Give "
                f"""one of your own as JSON, --config='{{"name": "{config}"}}'."""
            )
        if isinstance(config, PosterConfig) and config is not builtin.get(config.name, config):
            raise faults.UserError(
                f'--config: "{config.name}" is a built-in configuration with settings of its own. '
                f"""Give yours another name, as --config='{{"name": "my_{config.name}"}}'."""
            )
        super().__init__(config=config, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        # The package's README is a reference, not a description.
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            citation=self.get_metadata().citation,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                    # The names are those of the CSV's columns, set while building.
                    "genres": tfds.features.Sequence(tfds.features.ClassLabel()),
                    "poster_id": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "genres"),
            homepage="https://github.com/laxmimerit/Movies-Poster_Dataset",
            metadata=tfds.core.MetadataDict(),
        )

    def download_and_prepare(self, *, download_config=None, **kwargs):
        """Builds the dataset, as TFDS does, after clearing away what a killed build left.

        One that is built already is left as it is, unless it is to be overwritten.

        Raises:
            faults.PosterDataError: the annotations or the posters have faults; it names them.
            faults.UserError: the annotations cannot be understood, or what is built already is
                from others; or another process is building this configuration.
        """
        if download_config:
            object_stores.check_readable(download_config.manual_dir or "", "--manual_dir")
        build = functools.partial(
            super().download_and_prepare, download_config=download_config, **kwargs
        )
        if self.is_prepared() and not (
            download_config and download_config.download_mode.overwrite_dataset
        ):
            if download_config and download_config.manual_dir:
                origin.check_unchanged(self, epath.Path(download_config.manual_dir).expanduser())
            return build()
        directory = epath.Path(self.data_path).parent
        with directory_lock.hold(directory) as held:
            # Where nothing is held they may be those of a build that is at work.
            for leftover in directory.glob("incomplete.*") if held else ():
                leftover.rmtree()
            build()

    def _download_and_prepare(self, dl_manager, download_config):
        self._rejected: list[faults.Fault] = []
        self._counts = collections.Counter()
        self._together: dict[str, np.ndarray] = {}  # Of each split, posters with both genres.
        self._download_config = _SizedShards(**vars(download_config))
        super()._download_and_prepare(dl_manager, self._download_config)
        if download_config.max_examples_per_split == 0:  # Then TFDS opens no source.
            return
        if not self._together:  # Beam's workers have made the examples.
            num_genres = len(self._source.genres)
            for name, split in self.info.splits.items():
                self._together[name] = counts.count_together(split, num_genres)
        of_splits = {
            name: counts.describe(split, self._together[name])
            for name, split in self.info.splits.items()
        }
        self.info.metadata.update(
            rejected=len(self._rejected),
            duplicates=self._counts["duplicates"] + self._source.num_repeated,
            converted=self._counts["converted"],
            damaged=self._counts["damaged"],
            max_side=self.builder_config.max_side,
            origin=origin.describe(self._source_dir(dl_manager), self.builder_config),
            **{counts.KEY: of_splits},
        )
        if self.builder_config.on_error == "skip":
            (self.data_path / "rejected.csv").write_text(_rejected_csv(self._rejected))

    def _example_writer(self):
        return _DeterministicWriter(self.info.file_format)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        self._open_source(dl_manager)
        if self._download_config.beam_options or self._download_config.beam_runner:
            return self._beam_generators()
        seen = first_seen.FirstSeen()
        return {
            split: _Sized(self._generate_examples(split, seen), num_rows)
            for split, num_rows in self._source.num_rows.items()
        }

    def _beam_generators(self) -> dict:
        from poster_tfds import beam_pipeline  # Slow to import, and seldom wanted.

        source, config = self._source, self.builder_config
        found = beam_pipeline.check(source, config, self.data_path, self._download_config)
        if found.faults and config.on_error == "fail":
            raise faults.PosterDataError(source.csv_path, found.faults)
        self._rejected, self._counts = found.faults, found.counts
        left_out = found.dropped | {fault.line for fault in found.faults}
        generators = {}
        for split in source.num_rows:
            rows = [row for row in source.rows(split) if row.line not in left_out]
            if not rows:
                raise self._empty_split(split)
            generators[split] = beam_pipeline.examples(rows, source.images_dir, config)
        return generators

    def _generate_examples(
        self, split: str, seen: first_seen.FirstSeen
    ) -> Iterator[tuple[str, dict]]:
        """Yields the examples of a split.

        At the first fault, unless faults are skipped, nothing more is yielded: what
        remains, the later splits included, is checked as well, and one error names it all.
        """
        source, config = self._source, self.builder_config
        checked = posters.read_checked(source.rows(split), source.images_dir, config)
        num_genres = len(source.genres)
        together = self._together[split] = np.zeros((num_genres, num_genres), int)
        empty = True
        for row, poster in checked:
            if isinstance(poster, faults.Fault):
                if config.on_error == "skip":
                    self._rejected.append(poster)
                    continue
                splits = list(source.num_rows)
                later = source.rows(*splits[splits.index(split) + 1 :])
                rest = itertools.chain(
                    checked, posters.read_checked(later, source.images_dir, config)
                )
                found = [poster, *(other for _, other in rest if isinstance(other, faults.Fault))]
                raise faults.PosterDataError(source.csv_path, found)
            if config.drop_duplicates:
                digest = source_lib.poster_digest(poster.jpeg)
                if seen.setdefault(digest, row.line) != row.line:
                    self._counts["duplicates"] += 1
                    continue
            empty = False
            self._counts.update(converted=poster.converted, damaged=poster.damaged)
            together[np.ix_(row.genres, row.genres)] += 1
            yield source_lib.make_example(row, poster.jpeg)
        if empty:
            raise self._empty_split(split)

    def _empty_split(self, split: str) -> faults.UserError:
        return faults.UserError(
            f"No poster is left for split {split!r} of {self._source.csv_path}."
        )

    def _open_source(self, dl_manager) -> None:
        try:
            directory = self._source_dir(dl_manager)
            self._source = source_lib.PosterSource(directory, self.builder_config)
        except folder.NoAnnotationsError as error:
            message = f"{error}\n{self.MANUAL_DOWNLOAD_INSTRUCTIONS}"
            raise faults.UserError(message) from None
        print("\n".join(description.in_words(description.describe(self._source))), flush=True)
        self.info.features["genres"].feature.names = self._source.genres

    def _source_dir(self, dl_manager) -> epath.Path:
        if not self.builder_config.num_synthetic:
            try:
                return dl_manager.manual_dir
            except AssertionError as error:  # The folder is missing or empty; TFDS says so.
                raise faults.UserError(str(error)) from error
        directory = dl_manager.download_dir / f"poster_tfds_{self.builder_config.name}"
        synthetic.ensure_posters(directory, self.builder_config.num_synthetic)
        return directory


class _DeterministicWriter(writer_lib.ExampleWriter):
    """Writes examples whose bytes are the same whichever process serialized them.

    The features of a `tf.train.Example` are a map, which protobuf otherwise writes in an
    order that differs between processes.
    """

    def write(self, path, examples):
        return super().write(
            path,
            (
                (key, tf.train.Example.FromString(example).SerializeToString(deterministic=True))
                for key, example in examples
            ),
        )


class _Sized:
    """An iterator whose length is known, up to what is left out: for TFDS's progress bar."""

    def __init__(self, iterator: Iterator, length: int):
        self._iterator = iterator
        self._length = length

    def __iter__(self) -> Iterator:
        return self._iterator

    def __len__(self) -> int:
        return self._length


def _rejected_csv(rejected: list[faults.Fault]) -> str:
    rows = pd.DataFrame(sorted(rejected), columns=["row", "Id", "reason"])
    return rows.to_csv(index=False, lineterminator="\n")


@dataclasses.dataclass
class _SizedShards(tfds.download.DownloadConfig):
    """TFDS's own settings, with a number of shards that follows a split's size.

    TFDS ignores `--max_shard_size_mb` and makes two shards of 240 MB; parallel readers
    and several workers want more.
    """

    def get_shard_config(self) -> shard_utils.ShardConfig:
        return _ShardConfig(num_shards=self.num_shards)


class _ShardConfig(shard_utils.ShardConfig):
    def get_number_shards(
        self, total_size: int, num_examples: int, uses_precise_sharding: bool = True
    ) -> int:
        del uses_precise_sharding
        wanted = self.num_shards or max(_MIN_SHARDS, -(-total_size // _MAX_SHARD_BYTES))
        return min(wanted, num_examples)
