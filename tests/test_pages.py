"""A dataset's page has the numbers of its CSV and JPEGs; it escapes them and asks nobody.

Pages of runs are made by the same templates.
"""

import base64
import collections
import csv
import hashlib
import itertools
import re

import numpy as np
import pandas as pd
import PIL.Image
import pytest
import sklearn.model_selection
import tensorflow_datasets as tfds

import poster_tfds  # noqa: F401
from poster_tfds import synthetic
from poster_tfds.built import numbers, page as page_lib
from poster_tfds.pages import rendering
from tests import conftest
from tests.test_dataset_builder import read_split

HOSTILE = ["<b>Noir</b>", 'R$B$ & "Co"', "\u9ed1\u8272\u7535\u5f71"]


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
        assert len(found.samples[split]) == min(12, len(of_split))
        for jpeg, genres in found.samples[split]:
            assert genres == expected[jpeg]


def test_the_page_tells_what_the_dataset_holds(found, rows, data_dir):
    builder = tfds.builder("poster_tfds/synthetic", data_dir=data_dir)
    printed = page_lib.describe(builder, found)
    counts = collections.Counter(g for of in rows.values() for _, genres, _ in of for g in genres)
    for genre, count in counts.items():
        assert re.search(rf"^{re.escape(genre)} +{count} ", printed, re.MULTILINE)
    assert re.search(rf"^train +{conftest.NUM_TRAIN} ", printed, re.MULTILINE)
    text = page_lib.render(builder, found)
    shown = sum(min(12, len(of_split)) for of_split in rows.values())
    assert text.count("<figure>") == shown
    assert text.count("<svg") + text.count("data:image/svg") >= 4
    assert not re.search(r'(src|href)="(?!data:)', text)


def test_leaks_and_repeats_are_counted(synthetic_posters, tmp_path):
    """The reference split of a CSV with each row twice has most posters in both splits."""
    posters = tmp_path / "posters"
    (posters / "Images").mkdir(parents=True)
    header, *lines = (synthetic_posters / "train.csv").read_text().splitlines()[:31]
    (posters / "train.csv").write_text("\n".join([header, *lines, *lines]) + "\n")
    for path in (synthetic_posters / "Images").iterdir():
        (posters / "Images" / path.name).symlink_to(path)
    found = numbers.collect(conftest.build(posters, tmp_path, "imdb"))
    train, test = (
        [poster for poster, _, _ in read_split("poster_tfds/imdb", split, tmp_path)]
        for split in ("train", "test")
    )
    shared = len(set(train) & set(test))
    assert shared > 0
    assert numbers.find_leaks(found).loc["train and test"].tolist() == [shared, shared]
    repeated = numbers.describe_splits(found)["repeated posters"]
    assert repeated["train"] == len(train) - len(set(train))


@pytest.fixture(scope="module")
def page():
    """The dataset's page, with genres that are no plain names."""
    table = pd.DataFrame({"posters": [3, 2, 1], "share": [0.5, np.nan, 0.25]}, index=HOSTILE)
    bars = rendering.plot(lambda axes: axes.barh(HOSTILE, [3, 2, 1]), (6, 3), "svg")
    return rendering.render(
        "dataset.html",
        title="<script>alert(1)</script>",
        description=HOSTILE[1],
        tables={"Genres & more": table},
        plots=[("Bars", bars)],
        samples={"train": [{"jpeg": b"\xff\xd8", "genres": HOSTILE[0]}]},
    )


def test_what_a_page_is_given_reaches_it_escaped(page):
    assert page.count("<script") == 1 and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<b>" not in page
    assert page.count("&lt;b&gt;Noir&lt;/b&gt;") == 3  # In the table, as caption and in words.
    assert "R$B$ &amp; &#34;Co&#34;" in page
    assert "<h2>Genres &amp; more</h2>" in page


def test_a_page_runs_its_own_script_and_no_other(page):
    """By its digest, as browsers compute it."""
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'\"" in page


def test_a_page_asks_nobody_for_anything(page):
    assert not re.search(r'(src|href)="(?!data:)|@import|https?://', page)


def test_a_table_has_headings_for_rows_and_columns_and_a_dash_for_nothing(page):
    assert '<th scope="col">posters</th>' in page
    assert '<th scope="row">' + HOSTILE[2] + "</th>" in page
    assert re.findall(r"<td>(.*?)</td>", page) == ["3", "0.5000", "2", "-", "1", "0.2500"]


def test_a_plot_shows_any_name_as_it_is():
    """As text, in the reader's fonts, with a dollar that is no formula."""
    svg = rendering.plot(lambda axes: axes.barh(HOSTILE, [3, 2, 1]), (6, 3), "svg").decode()
    assert "R$B$ &amp; " in svg and "&lt;b&gt;Noir" in svg and HOSTILE[2] in svg
    assert rendering.plot(lambda axes: axes.barh(HOSTILE, [3, 2, 1]), (6, 3), "svg").decode() == svg
