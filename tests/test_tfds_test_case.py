"""TFDS's own checks: each config is built from a few drawn posters and read back.

`poster_tfds/dummy_data/` holds ten drawn posters, of which one's row stands there twice and
one's picture under a second Id.
"""

import tempfile

import tensorflow_datasets as tfds

from poster_tfds import Builder
from poster_tfds.poster_tfds_dataset_builder import PosterConfig


class ImdbTest(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = Builder
    BUILDER_CONFIG_NAMES_TO_TEST = ("imdb",)
    SPLITS = {"train": 10, "test": 2}  # noqa: RUF012


class ImdbCleanTest(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = Builder
    BUILDER_CONFIG_NAMES_TO_TEST = ("imdb_clean",)
    SPLITS = {"train": 7, "validation": 2, "test": 1}  # noqa: RUF012


class CustomTest(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = Builder
    BUILDER_CONFIG_NAMES_TO_TEST = (
        PosterConfig(name="mine", split="reference", drop_duplicates=False, on_error="skip"),
    )
    SPLITS = {"train": 10, "test": 2}  # noqa: RUF012


_DRAWN = tempfile.TemporaryDirectory()
