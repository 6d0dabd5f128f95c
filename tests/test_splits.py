"""Every row in one split, the reference's or its Id's."""

import numpy as np
import pytest
import sklearn.model_selection

from poster_tfds import poster_tfds_dataset_builder, source, splits, synthetic
from tests import conftest

NUM_POSTERS = 60


@pytest.mark.parametrize("num_rows", [7, 100, 7254])
def test_the_reference_split_is_scikit_learns(num_rows):
    _, test = sklearn.model_selection.train_test_split(
        range(num_rows), random_state=0, test_size=0.15
    )
    np.testing.assert_array_equal(
        np.flatnonzero(splits.reference_test_rows(num_rows)), sorted(test)
    )


def test_a_hashed_split_has_the_shares_asked_for():
    names = [splits.hashed_split(f"tt{i:07d}", 0, 0.15, 0.1) for i in range(20000)]
    shares = [names.count(name) / len(names) for name in ("train", "validation", "test")]
    assert shares == pytest.approx([0.75, 0.15, 0.1], abs=0.01)
    other_seed = [splits.hashed_split(f"tt{i:07d}", 1, 0.15, 0.1) for i in range(20000)]
    assert np.mean(np.array(names) != np.array(other_seed)) > 0.3


@pytest.fixture
def posters(tmp_path):
    synthetic.ensure_posters(tmp_path / "posters", count=NUM_POSTERS)
    return tmp_path / "posters"


def open_source(posters, **settings):
    config = poster_tfds_dataset_builder.PosterConfig(name="mine", **settings)
    return source.PosterSource(posters, config)


def ids(posters, **settings):
    opened = open_source(posters, **settings)
    return {split: {row.poster_id for row in opened.rows(split)} for split in opened.num_rows}


def test_a_poster_keeps_its_split_when_rows_are_added_and_moved(posters):
    before = ids(posters)
    header, *rows = (posters / "train.csv").read_text().splitlines()
    new = [row.replace("synthetic", "another") for row in rows[:20]]
    (posters / "train.csv").write_text("\n".join([header, *new, *rows[::-1]]) + "\n")
    after = ids(posters)
    assert sum(map(len, before.values())) == NUM_POSTERS
    for split, poster_ids in before.items():
        assert poster_ids == {i for i in after[split] if i.startswith("synthetic")}


@pytest.mark.parametrize(
    ("num_megabytes", "num_examples", "num_shards"),
    [(1, 5, 5), (1, 600, 16), (2048, 60_000, 16), (2049, 60_000, 17), (320_000, 10**7, 2500)],
)
def test_the_number_of_shards_follows_the_size(num_megabytes, num_examples, num_shards):
    """At least 16 where there are as many examples, and none over 128 MB."""
    shard_config = poster_tfds_dataset_builder._ShardConfig()
    assert shard_config.get_number_shards(num_megabytes << 20, num_examples) == num_shards


@pytest.mark.parametrize("split", ["reference", "hashed"])
def test_the_number_of_rows_is_known_before_they_are_read(split, posters):
    opened = open_source(posters, split=split)
    for name, num_rows in opened.num_rows.items():
        assert len(list(opened.rows(name))) == num_rows
    assert sum(opened.num_rows.values()) == NUM_POSTERS


def test_a_split_without_rows_is_left_out(posters):
    assert "test" not in open_source(posters, test_fraction=0.0).num_rows


@pytest.mark.parametrize("split", ["reference", "hashed"])
def test_repeated_ids_are_kept_dropped_or_refused(split, posters):
    path = posters / "train.csv"
    lines = path.read_text().splitlines()
    same, other = lines[5], lines[9].replace(lines[9].split(",")[0], lines[1].split(",")[0])
    path.write_text("\n".join([*lines, same, other]) + "\n")
    for drop in (True, False):
        opened = open_source(posters, split=split, drop_duplicates=drop)
        rows = list(opened.rows(*source.SPLITS))
        assert len(rows) == sum(opened.num_rows.values()) == NUM_POSTERS + 2 - drop
        for name, num_rows in opened.num_rows.items():
            assert len(list(opened.rows(name))) == num_rows
        assert opened.num_repeated == drop
        (fault,) = [row for row in rows if not hasattr(row, "genres")]
        assert fault.line == NUM_POSTERS + 3
        assert fault.reason == "its Id is on line 2 with other genres"


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ({"split": "random"}, "split is 'random'"),
        ({"on_error": "ignore"}, "on_error is 'ignore'"),
        ({"test_fraction": 0.9}, "must leave a part for train"),
        ({"test_fraction": -0.1}, "must leave a part for train"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_by_name(setting, complaint):
    with pytest.raises(ValueError, match=complaint):
        poster_tfds_dataset_builder.PosterConfig(name="mine", **setting)


def test_the_genres_shares_of_the_real_posters_are_close(real_posters):
    """Within 2 standard errors of a random draw, for every genre and split."""
    (config,) = [
        c for c in poster_tfds_dataset_builder.Builder.BUILDER_CONFIGS if c.name == "imdb_clean"
    ]
    opened = source.PosterSource(conftest.REAL_POSTERS, config)
    counts = {
        split: np.bincount(
            [genre for row in opened.rows(split) for genre in row.genres],
            minlength=len(opened.genres),
        )
        for split in opened.num_rows
    }
    total = sum(counts.values())
    for split, count in counts.items():
        fraction = opened.num_rows[split] / sum(opened.num_rows.values())
        standard_error = np.sqrt(total * fraction * (1 - fraction))
        assert (np.abs(count - total * fraction) <= 2 * standard_error + 1).all(), split
