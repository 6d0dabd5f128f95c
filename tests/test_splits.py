"""Every row in one split: the reference's, its Id's or its group's, or where its genres are few."""

import collections
import csv
import json

import numpy as np
import pytest
import sklearn.model_selection

from poster_tfds import description, faults, poster_tfds_dataset_builder, source, splits

NUM_POSTERS = 150
# Share of the posters that have each genre.
GENRES = {"Comedy": 0.4, "Drama": 0.6, "Heist": 0.06, "Noir": 0.1}
FRACTIONS = {"train": 0.6, "validation": 0.2, "test": 0.2}
SETTINGS = {"validation_fraction": 0.2, "test_fraction": 0.2}


def records():
    """Returns Id, film and genres of each poster; some films have several, some no name."""
    rng = np.random.default_rng(0)
    labels = rng.random((NUM_POSTERS, len(GENRES))) < list(GENRES.values())
    genres = [[g for g, one in zip(GENRES, row, strict=True) if one] for row in labels]
    films = [f"Film, {i}" if i % 5 else "" for i in rng.integers(0, 60, NUM_POSTERS)]
    return [(f"p{i}", *rest) for i, rest in enumerate(zip(films, genres, strict=True))]


def write_rows(path, header, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def write_columns(path):
    rows = [[i, *(int(g in genres) for g in GENRES), film] for i, film, genres in records()]
    write_rows(path, ["Id", *GENRES, "Film"], rows)


def write_list(path):
    write_rows(path, ["Film", "Id", "Genre"], [[f, i, "|".join(g)] for i, f, g in records()])


def write_row_for_each_genre(path):
    rows = [[i, genre, film] for i, film, genres in records() for genre in genres or [""]]
    # Those that complete a poster come last.
    first = {poster_id: genres[:1] for poster_id, _, genres in records()}
    rows.sort(key=lambda row: first[row[0]] not in ([], [row[1]]))
    write_rows(path, ["Id", "Genre", "Film"], rows)


def write_json_lines(path):
    rows = [{"Id": i, "Film": film or None, "Genre": genres} for i, film, genres in records()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


FORMS = {
    "train.csv": write_columns,
    "list.csv": write_list,
    "rows.csv": write_row_for_each_genre,
    "films.jsonl": write_json_lines,
}


def make_folder(directory, form="train.csv"):
    """Writes annotations, and image files that are empty: splitting opens none."""
    (directory / "Images").mkdir(parents=True)
    for poster_id, *_ in records():
        (directory / "Images" / f"{poster_id}.jpg").touch()
    FORMS[form](directory / form)
    return directory


@pytest.fixture
def posters(tmp_path):
    return make_folder(tmp_path / "posters")


@pytest.fixture(scope="module")
def kept_posters(tmp_path_factory):
    """The same, which is not to be changed."""
    return make_folder(tmp_path_factory.mktemp("splits") / "posters")


def open_source(posters, **settings):
    config = poster_tfds_dataset_builder.PosterConfig(name="mine", **{**SETTINGS, **settings})
    return source.PosterSource(posters, config)


def rows_of(opened):
    """Returns split -> the rows in it."""
    rows = collections.defaultdict(list)
    for split, row in opened.rows_with_split():
        rows[split].append(row)
    assert {split: len(of_split) for split, of_split in rows.items()} == opened.num_rows
    return rows


def ids_of(opened):
    return {split: {row.poster_id for row in rows} for split, rows in rows_of(opened).items()}


def split_of_ids(opened):
    return {row.poster_id: split for split, row in opened.rows_with_split()}


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


def test_a_poster_keeps_its_split_when_rows_are_added_and_moved(posters):
    before = ids_of(open_source(posters))
    header, *rows = (posters / "train.csv").read_text().splitlines()
    for i in range(20):
        (posters / "Images" / f"new{i}.jpg").touch()
    new = [f"new{i},1,0,0,0," for i in range(20)]
    (posters / "train.csv").write_text("\n".join([header, *new, *rows[::-1]]) + "\n")
    after = ids_of(open_source(posters))
    assert sum(map(len, before.values())) == NUM_POSTERS
    for split, poster_ids in before.items():
        assert poster_ids == {i for i in after[split] if i.startswith("p")}


@pytest.mark.parametrize("split", ["reference", "hashed"])
def test_repeated_ids_are_kept_dropped_or_refused(split, posters):
    path = posters / "train.csv"
    lines = path.read_text().splitlines()
    contrary = f"p0,{','.join(str(int(g not in records()[0][2])) for g in GENRES)},"
    path.write_text("\n".join([*lines, lines[5], contrary]) + "\n")
    for drop in (True, False):
        opened = open_source(posters, split=split, drop_duplicates=drop)
        rows = [row for of_split in rows_of(opened).values() for row in of_split]
        assert len(rows) == NUM_POSTERS + 2 - drop
        assert opened.num_repeated == drop
        (fault,) = [row for row in rows if isinstance(row, faults.Fault)]
        assert fault.line == NUM_POSTERS + 3
        assert fault.reason == "its Id is on line 2 with other genres"


@pytest.mark.slow
def test_the_genres_shares_of_the_real_posters_are_close(real_posters):
    """Within 2 standard errors of a random draw, for every genre and split."""
    (config,) = [
        c for c in poster_tfds_dataset_builder.Builder.BUILDER_CONFIGS if c.name == "imdb_clean"
    ]
    opened = source.PosterSource(real_posters, config)
    counts = {
        split: np.bincount([g for row in rows for g in row.genres], minlength=len(opened.genres))
        for split, rows in rows_of(opened).items()
    }
    total = sum(counts.values())
    for split, count in counts.items():
        fraction = opened.num_rows[split] / sum(opened.num_rows.values())
        standard_error = np.sqrt(total * fraction * (1 - fraction))
        assert (np.abs(count - total * fraction) <= 2 * standard_error + 1).all(), split


@pytest.mark.parametrize("split", ["hashed", "stratified"])
@pytest.mark.parametrize("form", FORMS)
def test_no_group_is_in_two_splits(form, split, tmp_path):
    opened = open_source(make_folder(tmp_path / "posters", form), split=split, group_column="Film")
    found = split_of_ids(opened)
    assert len(found) == NUM_POSTERS
    assert collections.Counter(found.values()) == opened.num_rows
    splits_of_film = collections.defaultdict(set)
    for poster_id, film, _ in records():
        if film:
            splits_of_film[film].add(found[poster_id])
    assert max(map(len, splits_of_film.values())) == 1
    assert set.union(*splits_of_film.values()) == set(FRACTIONS)
    alone = [found[poster_id] for poster_id, film, _ in records() if not film]
    assert set(alone) == set(FRACTIONS)
    line = "  rows of one `Film` are in one split"
    assert line in description.in_words(description.describe(opened))


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


def shares(ids):
    """Returns genre -> split -> share of the genre's posters."""
    return {
        genre: {
            split: np.mean([i in ids.get(split, ()) for i, _, names in records() if genre in names])
            for split in FRACTIONS
        }
        for genre in GENRES
    }


def distances(ids):
    return [
        abs(share - FRACTIONS[split])
        for of_genre in shares(ids).values()
        for split, share in of_genre.items()
    ]


def count_of(genre):
    return sum(genre in genres for *_, genres in records())


@pytest.mark.parametrize("seed", range(-1, 4))
def test_stratified_genres_are_nearer_to_their_shares_than_with_a_hash(seed, kept_posters):
    stratified, hashed = (
        distances(ids_of(open_source(kept_posters, split=split, split_seed=seed)))
        for split in ("stratified", "hashed")
    )
    assert max(stratified) < max(hashed)
    assert np.mean(stratified) < 0.5 * np.mean(hashed)


def test_a_stratified_split_has_its_size_and_every_genre_within_a_poster(kept_posters):
    ids = ids_of(open_source(kept_posters, split="stratified"))
    assert sum(map(len, ids.values())) == NUM_POSTERS
    for split, of_split in ids.items():
        assert len(of_split) / NUM_POSTERS == pytest.approx(FRACTIONS[split], abs=0.02)
    for genre, of_genre in shares(ids).items():
        assert of_genre == pytest.approx(FRACTIONS, abs=1 / count_of(genre))


def test_a_row_for_each_genre_is_split_as_columns_are(kept_posters, tmp_path):
    other = make_folder(tmp_path / "posters", "rows.csv")
    columns = open_source(kept_posters, split="stratified")
    grouped = open_source(other, split="stratified")
    assert grouped.is_grouped
    assert ids_of(grouped) == ids_of(columns)


def test_repeated_rows_are_in_the_split_of_the_first_and_faults_in_train(posters):
    lines = (posters / "train.csv").read_text().splitlines()
    lines = [line.split(",")[:5] for line in lines]
    contrary = [[*line[:4], str(1 - int(line[4]))] for line in lines[1:21]]
    faulty = [["nowhere", "1", "0", "0", "0"]] * 20
    write_rows(posters / "train.csv", lines[0], [*lines[1:], *lines[1:61], *contrary, *faulty])
    kept = open_source(posters, split="stratified", drop_duplicates=False)
    rows = rows_of(kept)
    found = [row for of_split in rows.values() for row in of_split if isinstance(row, faults.Fault)]
    assert len(found) == 40
    assert not any(isinstance(row, faults.Fault) for row in rows["validation"] + rows["test"])
    ids = ids_of(kept)
    repeated = {f"p{i}" for i in range(20)}  # Whose contradictions are faults in `train`.
    assert not (ids["train"] - repeated) & (ids["validation"] | ids["test"])
    assert not ids["validation"] & ids["test"]
    dropped = open_source(posters, split="stratified")
    assert dropped.num_repeated == 60
    assert sum(dropped.num_rows.values()) == NUM_POSTERS + 40


def test_the_genre_farthest_from_its_share_is_told(kept_posters):
    opened = open_source(kept_posters, split="stratified")
    ids = ids_of(opened)
    facts = description.describe(opened)
    told = facts["farthest_share"]
    assert told["got"] == pytest.approx(shares(ids)[told["genre"]][told["split"]])
    assert abs(told["got"] - told["wanted"]) == pytest.approx(max(distances(ids)))
    assert told["wanted"] == pytest.approx(FRACTIONS[told["split"]])
    assert told["num_posters"] == count_of(told["genre"])
    (line,) = [line for line in description.in_words(facts) if "farth" in line]
    assert told["genre"] in line
    assert f"{told['wanted']:.1%} wanted, {told['got']:.1%} got" in line
    assert description.describe(open_source(kept_posters))["farthest_share"] is None
