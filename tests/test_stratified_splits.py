"""Every genre shared out over the splits, on a small set with rare genres."""

import collections
import csv

import numpy as np
import pytest

from poster_tfds import description, faults, poster_tfds_dataset_builder, source, splits

FRACTIONS = {"train": 0.6, "validation": 0.2, "test": 0.2}
SETTINGS = {"validation_fraction": 0.2, "test_fraction": 0.2}
# Share of the posters that have each genre.
SKEWED = {"Comedy": 0.4, "Drama": 0.6, "Heist": 0.06, "Noir": 0.1}
NUM_POSTERS = 150


def write_posters(directory, form="columns"):
    """Writes annotations, and image files that are empty: splitting opens none."""
    rng = np.random.default_rng(0)
    labels = rng.random((NUM_POSTERS, len(SKEWED))) < list(SKEWED.values())
    genres = [[g for g, has in zip(SKEWED, row, strict=True) if has] for row in labels]
    (directory / "Images").mkdir(parents=True)
    for i in range(NUM_POSTERS):
        (directory / "Images" / f"p{i}.jpg").touch()
    with (directory / "train.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        if form == "columns":
            writer.writerow(["Id", *SKEWED])
            writer.writerows([f"p{i}", *row.astype(int)] for i, row in enumerate(labels))
        elif form == "a row for each genre":
            writer.writerow(["Id", "Genre"])
            rows = [(f"p{i}", genre) for i, names in enumerate(genres) for genre in names or [""]]
            # The first row of each poster first, so that what is complete comes last.
            rows.sort(key=lambda row: genres[int(row[0][1:])][:1] not in ([], [row[1]]))
            writer.writerows(rows)
    return directory


@pytest.fixture(scope="module")
def posters(tmp_path_factory):
    return write_posters(tmp_path_factory.mktemp("stratified") / "posters")


def open_source(posters, **settings):
    settings = {"split": "stratified", **SETTINGS, **settings}
    config = poster_tfds_dataset_builder.PosterConfig(name="mine", **settings)
    return source.PosterSource(posters, config)


def rows_of(opened):
    """Returns split -> the rows in it."""
    rows = collections.defaultdict(list)
    for split, row in opened.rows_with_split():
        rows[split].append(row)
    return rows


def ids_of(opened):
    return {split: {row.poster_id for row in rows} for split, rows in rows_of(opened).items()}


def shares(posters, ids):
    """Returns genre -> split -> share of the genre's posters, as the CSV has them."""
    with (posters / "train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        genre: {
            split: np.mean([row["Id"] in ids.get(split, ()) for row in rows if row[genre] == "1"])
            for split in FRACTIONS
        }
        for genre in SKEWED
    }


def distances(posters, ids):
    return [
        abs(share - FRACTIONS[split])
        for of_genre in shares(posters, ids).values()
        for split, share in of_genre.items()
    ]


@pytest.mark.parametrize("seed", range(-1, 4))
def test_genres_are_nearer_to_their_shares_than_with_a_hash(seed, posters):
    stratified, hashed = (
        distances(posters, ids_of(open_source(posters, split=split, split_seed=seed)))
        for split in ("stratified", "hashed")
    )
    assert max(stratified) < max(hashed)
    assert np.mean(stratified) < 0.5 * np.mean(hashed)


def test_every_genre_is_within_a_poster_of_its_share(posters):
    for genre, of_genre in shares(posters, ids_of(open_source(posters))).items():
        assert of_genre == pytest.approx(FRACTIONS, abs=1 / column_of(posters, genre).count("1"))


def column_of(posters, genre):
    with (posters / "train.csv").open(newline="") as file:
        return [row[genre] for row in csv.DictReader(file)]


def test_all_posters_are_shared_out_as_asked_for(posters):
    opened = open_source(posters)
    sizes = {split: len(rows) for split, rows in rows_of(opened).items()}
    assert sizes == opened.num_rows
    assert sum(sizes.values()) == NUM_POSTERS
    for split, size in sizes.items():
        assert size / NUM_POSTERS == pytest.approx(FRACTIONS[split], abs=0.02)


def test_a_stratified_split_is_the_same_twice_and_another_with_another_seed(posters):
    first, second, other = (ids_of(open_source(posters, split_seed=seed)) for seed in (0, 0, 1))
    assert first == second
    assert len(first["test"] - other["test"]) > 10


@pytest.mark.parametrize("fractions", [(0.0, 0.2), (0.2, 0.0), (0.0, 0.0)])
def test_a_split_without_a_share_gets_no_row(fractions, posters):
    validation, test = fractions
    opened = open_source(posters, validation_fraction=validation, test_fraction=test)
    wanted = ["train"] + ["validation"] * (validation > 0) + ["test"] * (test > 0)
    assert list(opened.num_rows) == wanted


def test_few_posters_leave_splits_out(posters, tmp_path):
    few = write_posters(tmp_path / "posters")
    lines = (few / "train.csv").read_text().splitlines()
    (few / "train.csv").write_text("\n".join([lines[0], "p1,1,0,0,1"]) + "\n")
    assert open_source(few).num_rows == {"train": 1}


def test_a_row_for_each_genre_is_split_as_columns_are(posters, tmp_path):
    other = write_posters(tmp_path / "posters", "a row for each genre")
    columns, grouped = (open_source(folder) for folder in (posters, other))
    assert grouped.is_grouped
    assert ids_of(grouped) == ids_of(columns)


def test_repeated_rows_are_in_the_split_of_the_first_and_faults_in_train(tmp_path):
    folder = write_posters(tmp_path / "posters")
    lines = (folder / "train.csv").read_text().splitlines()
    contrary = [line[:-1] + str(1 - int(line[-1])) for line in lines[1:21]]
    faulty = ["nowhere,1,0,0,0"] * 20
    (folder / "train.csv").write_text("\n".join([*lines, *lines[1:61], *contrary, *faulty]) + "\n")
    kept = open_source(folder, drop_duplicates=False)
    rows = rows_of(kept)
    found = [row for of_split in rows.values() for row in of_split if isinstance(row, faults.Fault)]
    assert len(found) == 40
    assert not any(isinstance(row, faults.Fault) for row in rows["validation"] + rows["test"])
    ids = ids_of(kept)
    repeated = {f"p{i}" for i in range(20)}  # Whose contradictions are faults in `train`.
    assert not (ids["train"] - repeated) & (ids["validation"] | ids["test"])
    assert not ids["validation"] & ids["test"]
    dropped = open_source(folder)
    assert dropped.num_repeated == 60
    assert sum(dropped.num_rows.values()) == NUM_POSTERS + 40
    assert {split: len(rows) for split, rows in rows_of(dropped).items()} == dropped.num_rows


def test_the_genre_farthest_from_its_share_is_told(posters):
    opened = open_source(posters)
    found = shares(posters, ids_of(opened))
    told = description.describe(opened)["farthest_share"]
    share = found[told["genre"]][told["split"]]
    assert told["got"] == pytest.approx(share)
    assert abs(told["got"] - told["wanted"]) == pytest.approx(
        max(distances(posters, ids_of(opened)))
    )
    assert told["wanted"] == pytest.approx(FRACTIONS[told["split"]])
    assert told["num_posters"] == column_of(posters, told["genre"]).count("1")
    (line,) = [
        line for line in description.in_words(description.describe(opened)) if "farth" in line
    ]
    assert told["genre"] in line
    assert f"{told['wanted']:.1%} wanted, {told['got']:.1%} got" in line
    assert description.describe(open_source(posters, split="hashed"))["farthest_share"] is None


def test_without_a_genre_no_share_is_told():
    nothing = np.zeros((10, 2), bool)
    chosen = splits.stratified_splits(nothing, np.arange(10), (0.5, 0.3, 0.2), seed=0)
    assert np.bincount(chosen).tolist() == [5, 3, 2]
    assert splits.farthest_share(nothing, chosen, (0.5, 0.3, 0.2)) is None
