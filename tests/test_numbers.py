"""The numbers of a built dataset are those of its CSV and its JPEGs."""

import collections
import csv
import itertools

import PIL.Image
import pytest
import sklearn.model_selection
import tensorflow_datasets as tfds

import poster_tfds  # noqa: F401
from poster_tfds import synthetic
from poster_tfds.built import numbers


@pytest.fixture(scope="module")
def found(data_dir):
    return numbers.collect(tfds.builder("poster_tfds/synthetic", data_dir=data_dir))


@pytest.fixture(scope="module")
def rows(synthetic_posters):
    """What the files say, split by split: Id, names of genres and path of each poster."""
    with (synthetic_posters / "train.csv").open(newline="") as file:
        read = [
            (
                row["Id"],
                [genre for genre in synthetic.GENRES if row[genre] == "1"],
                synthetic_posters / "Images" / f"{row['Id']}.jpg",
            )
            for row in csv.DictReader(file)
        ]
    train, test = sklearn.model_selection.train_test_split(read, random_state=0, test_size=0.15)
    return {"train": train, "test": test}


def test_splits_have_their_posters_bytes_and_genres(found, rows):
    splits = numbers.describe_splits(found)
    assert list(splits.index) == ["train", "test"]
    for split, of_split in rows.items():
        row = splits.loc[split]
        assert row["posters"] == len(of_split)
        assert row["MB"] * 1e6 == pytest.approx(sum(path.stat().st_size for *_, path in of_split))
        num_genres = [len(genres) for _, genres, _ in of_split]
        assert row["genres a poster"] == pytest.approx(sum(num_genres) / len(of_split))
        posters = found.posters[found.posters["split"] == split]
        assert collections.Counter(posters["num_genres"]) == collections.Counter(num_genres)
        assert set(zip(posters["width"], posters["height"], strict=True)) == {
            PIL.Image.open(path).size for *_, path in of_split
        }


def test_genres_are_counted_alone_and_together(found, rows):
    pairs = collections.Counter()
    shares = numbers.genre_shares(found)
    for split, of_split in rows.items():
        alone = collections.Counter(genre for _, genres, _ in of_split for genre in genres)
        assert dict(found.counts[split]) == alone
        for genre, count in alone.items():
            expected = pytest.approx(count / len(of_split))
            assert shares.loc[genre, f"share of {split}"] == expected
        for _, genres, _ in of_split:
            pairs.update(itertools.product(genres, genres))
    for a, b in itertools.product(synthetic.GENRES, repeat=2):
        assert found.together.loc[a, b] == pairs[a, b]
    assert shares["posters"].is_monotonic_decreasing


def test_samples_are_posters_with_their_genres(found, rows):
    for split, of_split in rows.items():
        expected = {path.read_bytes(): genres for _, genres, path in of_split}
        assert len(found.samples[split]) == 12
        for jpeg, genres in found.samples[split]:
            assert genres == expected[jpeg]
