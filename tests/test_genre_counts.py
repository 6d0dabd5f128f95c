"""Base rates are those of the records, which are read for them once at most."""

import json
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from poster_tfds.built import checksums
from tests.test_dataset_builder import read_split
from trainer.data import splits

NAME, PART = "poster_tfds/synthetic", "train[10%:85%]"


@pytest.fixture
def copied(data_dir, tmp_path):
    """A data directory of its own, without what other tests' runs have counted."""
    left_out = shutil.ignore_patterns("downloads", "genre_counts-*")
    return shutil.copytree(data_dir, tmp_path / "data", ignore=left_out)


def folder(data_dir):
    return data_dir / NAME / "1.0.0"


def expected(data_dir, split):
    """The share of the posters that have each genre, by NumPy."""
    names = tfds.builder(NAME, data_dir=data_dir).info.features["genres"].feature.names
    posters = read_split(NAME, split, data_dir)
    return np.mean([[name in genres for name in names] for _, genres, _ in posters], axis=0)


def base_rates(data_dir, split="train", keep_in=""):
    return splits.open_split(NAME, str(data_dir), split, keep_in).base_rates


def remove_records(data_dir):
    for shard in folder(data_dir).glob("*tfrecord*"):
        shard.unlink()


def forget_counts(data_dir):
    """Makes the metadata those of a dataset that was built without counting."""
    path = folder(data_dir) / "metadata.json"
    metadata = json.loads(path.read_text())
    del metadata["splits"]
    path.write_text(json.dumps(metadata))


def test_no_record_of_a_split_is_read(copied):
    rates = expected(copied, "train")
    remove_records(copied)
    np.testing.assert_array_equal(base_rates(copied), rates)
    assert not list(folder(copied).glob("genre_counts*"))


@pytest.mark.parametrize("split", [PART, "train", "train+test"])
def test_what_the_build_has_not_counted_is_counted_once(copied, split):
    if split == "train":
        forget_counts(copied)
    rates = expected(copied, split)
    np.testing.assert_array_equal(base_rates(copied, split), rates)
    remove_records(copied)
    np.testing.assert_array_equal(base_rates(copied, split), rates)


def test_another_part_has_a_count_of_its_own(copied):
    base_rates(copied, PART)
    np.testing.assert_array_equal(
        base_rates(copied, "train[:10%]"), expected(copied, "train[:10%]")
    )


def test_counts_are_kept_in_the_run_where_the_dataset_cannot_be_written(copied, tmp_path):
    base_rates(copied, PART)
    (kept,) = folder(copied).glob("genre_counts*")
    kept.unlink()
    kept.mkdir()  # In the way.
    rates = expected(copied, PART)
    np.testing.assert_array_equal(base_rates(copied, PART, tmp_path / "run"), rates)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [kept.name]
    assert not list(folder(copied).glob("*incomplete*"))
    remove_records(copied)
    np.testing.assert_array_equal(base_rates(copied, PART, tmp_path / "run"), rates)


def test_where_nothing_can_be_written_they_are_counted_all_the_same(copied):
    base_rates(copied, PART)
    (kept,) = folder(copied).glob("genre_counts*")
    kept.unlink()
    kept.mkdir()
    np.testing.assert_array_equal(base_rates(copied, PART), expected(copied, PART))


def test_a_damaged_file_is_counted_anew(copied):
    rates = base_rates(copied, PART)
    (kept,) = folder(copied).glob("genre_counts*")
    for content in ("", "[1, 2]", "{}"):
        kept.write_text(content)
        np.testing.assert_array_equal(base_rates(copied, PART), rates)


@pytest.mark.parametrize("split", ["train", PART])
def test_counts_of_other_shards_are_not_believed(copied, split):
    base_rates(copied, split)
    sums = checksums.read(folder(copied))
    first, second = sorted(name for name in sums if "train" in name)[:2]
    (folder(copied) / first).write_bytes((folder(copied) / second).read_bytes())
    checksums.write(folder(copied), {**sums, first: sums[second]})
    np.testing.assert_array_equal(base_rates(copied, split), expected(copied, split))
