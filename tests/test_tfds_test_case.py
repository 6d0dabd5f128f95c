"""TFDS's own checks: each config is built from a few drawn posters and read back."""

import pathlib
import tempfile

import tensorflow_datasets as tfds

from poster_tfds import Builder, source, synthetic
from poster_tfds.poster_tfds_dataset_builder import PosterConfig

NUM_POSTERS = 20


def num_examples(name):
    """What a config makes of the drawn posters, counted without TFDS."""
    (config,) = [config for config in Builder.BUILDER_CONFIGS if config.name == name]
    return source.PosterSource(DUMMY_DATA, config).num_rows


_TEMPORARY = tempfile.TemporaryDirectory()
DUMMY_DATA = pathlib.Path(_TEMPORARY.name) / "dummy_data"
synthetic.ensure_posters(DUMMY_DATA, NUM_POSTERS)


class ImdbTest(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = Builder
    EXAMPLE_DIR = str(DUMMY_DATA)
    BUILDER_CONFIG_NAMES_TO_TEST = ("imdb",)
    SPLITS = {"train": 17, "test": 3}  # noqa: RUF012


class ImdbCleanTest(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = Builder
    EXAMPLE_DIR = str(DUMMY_DATA)
    BUILDER_CONFIG_NAMES_TO_TEST = ("imdb_clean",)
    SPLITS = num_examples("imdb_clean")


class CustomTest(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = Builder
    EXAMPLE_DIR = str(DUMMY_DATA)
    BUILDER_CONFIG_NAMES_TO_TEST = (
        PosterConfig(name="mine", split="reference", drop_duplicates=False, on_error="skip"),
    )
    SPLITS = {"train": 17, "test": 3}  # noqa: RUF012


class SyntheticTest(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = Builder
    EXAMPLE_DIR = str(DUMMY_DATA)
    BUILDER_CONFIG_NAMES_TO_TEST = ("synthetic",)
    SPLITS = {"train": 510, "test": 90}  # noqa: RUF012
