"""TFDS builder: a CSV of genres and a folder of JPEG posters -> sharded TFRecords."""

import collections
import csv
import dataclasses
import functools
import io
import itertools
import re
import sys
from collections.abc import Iterator

import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import writer as writer_lib
from tensorflow_datasets.core.utils import shard_utils

from poster_tfds import (
    directory_lock,
    faults,
    first_seen,
    posters,
    source as source_lib,
    synthetic,
    user_errors,
)

if "tensorflow_datasets.scripts.cli.main" in sys.modules:  # This is imported by `tfds build`.
    user_errors.install()

_DESCRIPTION = """\
Movie posters and their genres, for multi-label image classification. A poster has any number of
genres; the genres are the columns of the CSV from which the dataset is built.
"""
_MIN_SHARDS = 16
_MAX_SHARD_BYTES = 128 << 20
# Types of settings, as they are called in JSON.
_KINDS = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}


@dataclasses.dataclass(eq=False)
class PosterConfig(tfds.core.BuilderConfig):
    """How a CSV and its posters become a dataset; every attribute can be given as JSON.

    `tfds build poster_tfds --config='{"name": "mine", "split_seed": 1}'` builds the posters
    of `--manual_dir` as `poster_tfds/mine`.

    Attributes:
        name: the dataset is then `poster_tfds/<name>`.
        split: "hashed" (train, validation and test by a hash of the Id) or "reference"
            (train and test as in the tutorial).
        split_seed: changes which posters a hashed split takes.
        validation_fraction: share of the posters in a hashed `validation`.
        test_fraction: share of the posters in a hashed `test`.
        drop_duplicates: leave out rows whose Id or whose poster's bytes came before.
        on_error: "fail" (name every fault and build nothing) or "skip" (build the rest
            and write `rejected.csv`).
        on_damage: "fail" (a JPEG of which libjpeg says that data are missing or wrong inside has a
            fault) or "keep" (it is taken, and counted).
        max_side: larger posters are reduced until their longer side has so many pixels; 0: none is.
        num_synthetic: how many posters to draw; 0 reads them from `--manual_dir`.
    """

    name: str = ""
    split: str = "hashed"
    split_seed: int = 0
    validation_fraction: float = 0.15
    test_fraction: float = 0.15
    drop_duplicates: bool = True
    on_error: str = "fail"
    on_damage: str = "fail"
    max_side: int = 0
    num_synthetic: int = 0

    def __new__(cls, *_, **settings):
        """Checks the names of the settings, which TFDS takes from the JSON as they are.

        Raises:
            faults.UserError: there is no setting of this name.
        """
        for name in settings.keys() - {field.name for field in dataclasses.fields(cls)}:
            raise faults.UserError(
                f"--config: there is no setting {name!r}; there are "
                f"{', '.join(cls.__annotations__)}."
            )
        return super().__new__(cls)

    def __post_init__(self):
        """Checks the values.

        Raises:
            faults.UserError: a value cannot be used; the message names it.
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type in _KINDS and not self._is_of_kind(value, field.type):
                raise faults.UserError(
                    f"--config: {field.name} is {value!r}; it must be {_KINDS[field.type]}."
                )
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise faults.UserError(
                f"--config: name is {self.name!r}; it must be of letters, digits, '_', '-' and '.'."
            )
        for name, choices in (
            ("split", ("hashed", "reference")),
            ("on_error", ("fail", "skip")),
            ("on_damage", ("fail", "keep")),
        ):
            if getattr(self, name) not in choices:
                raise faults.UserError(
                    f"--config: {name} is {getattr(self, name)!r}, not of {choices}."
                )
        if self.max_side < 0:
            raise faults.UserError(
                f"--config: max_side is {self.max_side}; give pixels, or 0 for none."
            )
        fractions = (self.validation_fraction, self.test_fraction)
        if not (min(fractions) >= 0 and sum(fractions) < 1):
            raise faults.UserError(
                "--config: validation_fraction and test_fraction must leave a part for train; "
                f"they are {fractions}."
            )

    @staticmethod
    def _is_of_kind(value, kind: type) -> bool:
        if isinstance(value, bool):  # Which is an int too.
            return kind is bool
        return isinstance(value, (int, float) if kind is float else kind)


class Builder(tfds.core.GeneratorBasedBuilder):
    """Posters with their genres."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
Fetch the posters and name their folder with --manual_dir:

  git clone https://github.com/laxmimerit/Movies-Poster_Dataset
  tfds build poster_tfds --config=imdb --manual_dir=Movies-Poster_Dataset

The folder holds `train.csv` (columns Id, Genre and a 0/1 column for each genre) and
`Images/<Id>.jpg`.
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
            faults.PosterDataError: the CSV or the posters have faults; it names them.
            faults.UserError: there are no posters, or another process is building this
                configuration.
        """
        build = functools.partial(
            super().download_and_prepare, download_config=download_config, **kwargs
        )
        if self.is_prepared() and not (
            download_config and download_config.download_mode.overwrite_dataset
        ):
            return build()
        directory = epath.Path(self.data_path).parent
        with directory_lock.hold(directory) as held:
            # Where nothing is held they may be those of a build that is at work.
            for leftover in directory.glob("incomplete.*") if held else ():
                leftover.rmtree()
            build()

    def _create_builder_config(self, builder_config, version):
        try:
            return super()._create_builder_config(builder_config, version)
        except ValueError as error:
            name = getattr(builder_config, "name", None)  # Of one that JSON describes.
            problem = f"{name!r} is one of its own" if name else f"there is no {builder_config!r}"
            raise faults.UserError(
                f"The configurations of {self.name} are {', '.join(self.builder_configs)}; "
                f"{problem}. Posters of your own take any other name: "
                """--config='{"name": "mine"}'."""
            ) from error

    def _download_and_prepare(self, dl_manager, download_config):
        self._rejected: list[faults.Fault] = []
        self._counts = collections.Counter()
        super()._download_and_prepare(dl_manager, _SizedShards(**vars(download_config)))
        if download_config.max_examples_per_split == 0:  # Then TFDS opens no source.
            return
        self.info.metadata.update(
            rejected=len(self._rejected),
            duplicates=self._counts["duplicates"] + self._source.num_repeated,
            converted=self._counts["converted"],
            damaged=self._counts["damaged"],
            max_side=self.builder_config.max_side,
        )
        if self.builder_config.on_error == "skip":
            (self.data_path / "rejected.csv").write_text(_rejected_csv(self._rejected))

    def _generate_splits(self, dl_manager, download_config):
        if not (download_config.beam_options or download_config.beam_runner):
            return super()._generate_splits(dl_manager, download_config)
        from poster_tfds import beam_engine  # Slow to import, and seldom wanted.

        self._open_source(dl_manager)
        outcome = beam_engine.build(
            self._source,
            self.builder_config,
            beam_engine.Storage(
                self.info.features,
                self._example_writer(),
                download_config.get_shard_config(),
                {split: self._get_filename_template(split) for split in self._source.num_rows},
            ),
            download_config,
        )
        if outcome.faults and self.builder_config.on_error == "fail":
            raise faults.PosterDataError(self._source.csv_path, outcome.faults)
        self._rejected, self._counts = outcome.faults, outcome.counts
        for split in self._source.num_rows:
            if split not in outcome.splits:
                raise self._empty_split(split)
        return list(outcome.splits.values())

    def _example_writer(self):
        return _DeterministicWriter(self.info.file_format)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        self._open_source(dl_manager)
        seen = first_seen.FirstSeen()
        return {
            split: _Sized(self._generate_examples(split, seen), num_rows)
            for split, num_rows in self._source.num_rows.items()
        }

    def _generate_examples(
        self, split: str, seen: first_seen.FirstSeen
    ) -> Iterator[tuple[str, dict]]:
        """Yields the examples of a split.

        At the first fault, unless faults are skipped, nothing more is yielded: what
        remains, the later splits included, is checked as well, and one error names it all.
        """
        source, config = self._source, self.builder_config
        checked = posters.read_checked(source.rows(split), source.images_dir, config)
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
            yield source_lib.make_example(row, poster.jpeg)
        if empty:
            raise self._empty_split(split)

    def _empty_split(self, split: str) -> faults.UserError:
        return faults.UserError(
            f"No poster is left for split {split!r} of {self._source.csv_path}."
        )

    def _open_source(self, dl_manager) -> None:
        directory = self._source_dir(dl_manager)
        if not (directory / "train.csv").exists():
            raise faults.UserError(
                f"No {directory / 'train.csv'}.\n{self.MANUAL_DOWNLOAD_INSTRUCTIONS}"
            )
        self._source = source_lib.PosterSource(directory, self.builder_config)
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
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "Id", "reason"])
    writer.writerows(sorted(rejected))
    return text.getvalue()


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
