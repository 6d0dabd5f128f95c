"""Rows of one group, such as a film's posters, are in one split."""

import collections
import csv
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import tensorflow_datasets as tfds

import poster_tfds  # noqa: F401
from poster_tfds import description, faults, poster_tfds_dataset_builder, source, splits, synthetic
from tests import conftest
from tests.test_build_robustness import build_with_beam
from tests.test_dataset_builder import sha256_of_files

NUM_POSTERS = 120
GENRES = ("Heist", "Noir", "Western")
SETTINGS = {"group_column": "Film", "validation_fraction": 0.25, "test_fraction": 0.25}


def records():
    """Returns Id, film and genres of each poster; some films have several, some no name."""
    rng = np.random.default_rng(0)
    films = [f"Film, {i}" if i % 5 else "" for i in rng.integers(0, 50, NUM_POSTERS)]
    has = rng.random((NUM_POSTERS, len(GENRES))) < (0.6, 0.3, 0.1)
    genres = [[g for g, one in zip(GENRES, row, strict=True) if one] for row in has]
    return [(f"p{i}", *rest) for i, rest in enumerate(zip(films, genres, strict=True))]


def write_rows(path, header, rows, **form):
    with path.open("w", newline="") as file:
        csv.writer(file, **form).writerows([header, *rows])


def write_columns(path):
    rows = [[i, *(int(g in genres) for g in GENRES), film] for i, film, genres in records()]
    write_rows(path, ["Id", *GENRES, "Film"], rows)


def write_list(path):
    write_rows(path, ["Film", "Id", "Genre"], [[f, i, "|".join(g)] for i, f, g in records()])


def write_row_for_each_genre(path):
    rows = [[i, genre, film] for i, film, genres in records() for genre in genres or [""]]
    write_rows(path, ["Id", "Genre", "Film"], rows)


def write_semicolons(path):
    rows = [[i, film, genres] for i, film, genres in records()]
    write_rows(path, ["Id", "Film", "Genre"], rows, delimiter=";")


def write_json_lines(path):
    rows = [{"Id": i, "Film": film or None, "Genre": genres} for i, film, genres in records()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_parquet(path):
    table = pd.DataFrame(records(), columns=["Id", "Film", "Genre"])
    table.replace({"Film": {"": None}}).to_parquet(path)


FORMS = {
    "train.csv": write_columns,
    "list.csv": write_list,
    "rows.csv": write_row_for_each_genre,
    "semicolons.csv": write_semicolons,
    "films.jsonl": write_json_lines,
    "films.parquet": write_parquet,
}


def make_folder(directory, form="train.csv"):
    """Writes annotations, and image files that are empty: splitting opens none."""
    (directory / "Images").mkdir(parents=True)
    for poster_id, *_ in records():
        (directory / "Images" / f"{poster_id}.jpg").touch()
    FORMS[form](directory / form)
    return directory


def open_source(folder, **settings):
    config = poster_tfds_dataset_builder.PosterConfig(name="mine", **{**SETTINGS, **settings})
    return source.PosterSource(folder, config)


def split_of_ids(opened):
    rows = list(opened.rows_with_split())
    assert collections.Counter(split for split, _ in rows) == opened.num_rows
    return {row.poster_id: split for split, row in rows}


@pytest.mark.parametrize("split", ["hashed", "stratified"])
@pytest.mark.parametrize("form", FORMS)
def test_no_group_is_in_two_splits(form, split, tmp_path):
    opened = open_source(make_folder(tmp_path / "posters", form), split=split)
    found = split_of_ids(opened)
    assert len(found) == NUM_POSTERS
    splits_of_film = collections.defaultdict(set)
    for poster_id, film, _ in records():
        if film:
            splits_of_film[film].add(found[poster_id])
    assert max(map(len, splits_of_film.values())) == 1
    assert set.union(*splits_of_film.values()) == {"train", "validation", "test"}
    alone = [found[poster_id] for poster_id, film, _ in records() if not film]
    assert set(alone) == {"train", "validation", "test"}
    line = "  rows of one `Film` are in one split"
    assert line in description.in_words(description.describe(opened))


def test_a_hashed_group_is_where_the_hash_of_its_name_is(tmp_path):
    found = split_of_ids(open_source(make_folder(tmp_path / "posters"), split_seed=3))
    for poster_id, film, _ in records():
        assert found[poster_id] == splits.hashed_split(film or poster_id, 3, 0.25, 0.25)


def test_stratified_groups_have_their_shares_of_the_genres(tmp_path):
    found = split_of_ids(open_source(make_folder(tmp_path / "posters"), split="stratified"))
    films = collections.defaultdict(set)
    for poster_id, film, genres in records():
        films[film or poster_id, found[poster_id]].update(genres)
    for genre in GENRES:
        counts = collections.Counter(
            split for (_, split), genres in films.items() if genre in genres
        )
        wanted = {"train": 0.5, "validation": 0.25, "test": 0.25}
        for split, share in wanted.items():
            assert counts[split] == pytest.approx(share * counts.total(), abs=1.5), (genre, split)


def test_a_group_column_of_0_and_1_is_no_genre(tmp_path):
    folder = make_folder(tmp_path / "posters")
    table = pd.read_csv(folder / "train.csv")
    table["Film"] = [i % 2 for i in range(NUM_POSTERS)]
    table.to_csv(folder / "train.csv", index=False)
    opened = open_source(folder, split_seed=2)
    assert opened.genres == list(GENRES)
    found = split_of_ids(opened)
    assert len({found[f"p{i}"] for i in range(0, NUM_POSTERS, 2)}) == 1
    assert "Film" in open_source(folder, group_column="").genres


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("Serie", "names `Serie`, of which .* has 0. Its columns: `Film`, `Id`, `Genre`"),
        ("Id", "names `Id` of .*names the posters or their genres.* columns: `Film`, `Id`"),
        ("Genre", "names `Genre` of .*names the posters or their genres"),
    ],
)
def test_a_column_that_cannot_name_groups_is_refused_with_those_there_are(
    column, message, tmp_path
):
    folder = make_folder(tmp_path / "posters", "list.csv")
    with pytest.raises(faults.UserError, match=message):
        open_source(folder, group_column=column)


def test_groups_are_refused_with_the_reference_split():
    with pytest.raises(faults.UserError, match='"group_column" needs "split": "hashed" or "strat'):
        poster_tfds_dataset_builder.PosterConfig(
            name="mine", split="reference", group_column="Film"
        )


def test_both_engines_build_the_same_stratified_groups(tmp_path, capsys):
    folder = tmp_path / "posters"
    synthetic.ensure_posters(folder, count=40)
    table = pd.read_csv(folder / "train.csv")
    table["Film"] = [f"film {i // 3}" if i % 4 else "" for i in range(40)]
    table.loc[7, "Genre"] = "['Crime']"  # A fault, which is left out.
    twin = table.iloc[[11]].assign(Id="twin")  # The bytes of another poster.
    shutil.copy(folder / "Images/synthetic0000011.jpg", folder / "Images/twin.jpg")
    pd.concat([table, twin]).to_csv(folder / "train.csv", index=False)
    config = {"name": "mine", "split": "stratified", "on_error": "skip", **SETTINGS}
    conftest.build(folder, tmp_path / "one", config)
    assert "stratified; the genre farthest from its share is " in capsys.readouterr().out
    build_with_beam(folder, tmp_path / "beam", config)
    one, beam = (sha256_of_files(tmp_path / d / "poster_tfds/mine/1.0.0") for d in ("one", "beam"))
    assert len(one) > 20
    assert one == beam
    builder = tfds.builder("poster_tfds/mine", data_dir=tmp_path / "one")
    film_of = dict(zip(table["Id"], table["Film"], strict=True))
    splits_of_film = collections.defaultdict(set)
    for split in builder.info.splits:
        for example in tfds.as_numpy(builder.as_dataset(split)):
            poster_id = example["poster_id"].decode()
            splits_of_film[film_of.get(poster_id) or poster_id].add(split)
    assert max(map(len, splits_of_film.values())) == 1
    assert set.union(*splits_of_film.values()) == {"train", "validation", "test"}
