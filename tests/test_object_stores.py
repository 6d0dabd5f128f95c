"""Paths of object stores: those that TensorFlow reads are taken, others refused by name."""

import pytest
import tensorflow_datasets as tfds

from poster_tfds import faults, object_stores, poster_tfds_dataset_builder
from tests import conftest
from trainer import config
from trainer.data import splits


@pytest.mark.parametrize("path", ["gs://bucket/data", "/data", "data", "file:///data", ""])
def test_what_tensorflow_reads_is_taken(path):
    object_stores.check_readable(path, "--data_dir")


def test_a_build_into_a_store_that_is_not_read_is_refused_in_words():
    refused = conftest.tfds_build("--config=synthetic", "--data_dir=s3://bucket/x", check=False)
    assert refused.returncode == 1
    assert "--data_dir=s3://bucket/x: TensorFlow" in refused.stderr
    assert "Mount the bucket" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_posters_in_a_store_that_is_not_read_are_refused(tmp_path):
    builder = poster_tfds_dataset_builder.Builder(config="imdb", data_dir=tmp_path)
    with pytest.raises(faults.UserError, match=r"--manual_dir=s3://bucket: TensorFlow .* no s3://"):
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(manual_dir="s3://bucket")
        )
    assert not list(tmp_path.iterdir())


def test_a_dataset_in_a_store_that_is_not_read_is_refused():
    with pytest.raises(config.UsageError, match=r"--data_dir=s3://bucket: TensorFlow .* no s3://"):
        splits.open_dataset("poster_tfds/synthetic", "s3://bucket")
