"""A data frame gives the dataset of the CSV that it would be written as, whatever its dtypes."""

import numpy as np
import pandas as pd
import pytest

import poster_tfds
from poster_tfds import faults
from tests import conftest
from tests.test_annotation_forms import EXPECTED, PLAIN, images, posters  # noqa: F401
from tests.test_dataset_builder import read_split, sha256_of_files

NOIR, HEIST = [1, 1, 0, 0, 1], [0, 1, 1, 0, 0]
LISTS = [["Noir"], ["Noir", "Heist"], ["Heist"], [], ["Noir"]]
FRAMES = {
    "integers": {"Noir": NOIR, "Heist": HEIST},
    "booleans": {"Noir": np.array(NOIR, bool), "Heist": np.array(HEIST, bool)},
    "floats": {"Noir": np.array(NOIR, float), "Heist": np.array(HEIST, float)},
    "ones and missing values": {
        "Noir": pd.array([1, 1, None, None, 1], "Int64"), "Heist": [np.nan, 1, 1, np.nan, np.nan],
    },
    "categories": {"Noir": pd.Categorical(NOIR), "Heist": pd.Categorical(HEIST)},
    "lists": {"Genre": LISTS},
    "tuples": {"Genre": list(map(tuple, LISTS))},
    "sets": {"Genre": list(map(set, LISTS))},
    "arrays": {"Genre": [np.array(names, object) for names in LISTS]},
    "objects": {"Genre": [[{"id": len(n), "name": n} for n in names] for names in LISTS]},
    "strings": {"Genre": ["Noir", "Noir|Heist", "Heist", None, "Noir"]},
    "lists beside columns": {"Genre": LISTS, "Noir": NOIR, "Heist": HEIST},
    "dates and other columns": {
        "Genre": LISTS, "Released": pd.date_range("1940-01-01", periods=5), "Pages": [{"a": 1}] * 5,
    },
}  # fmt: skip


def build_frame(frame, posters, **settings):  # noqa: F811
    settings = {"validation_fraction": 0, "test_fraction": 0, **settings}
    data_dir = posters.parent / "data"
    return poster_tfds.build(frame, posters / "Images", data_dir, "mine", **settings)


def assert_expected(builder, posters):  # noqa: F811
    rows = read_split("poster_tfds/mine", "train", posters.parent / "data")
    assert builder.info.splits.total_num_examples == len(rows) == 5
    assert {poster_id: (set(genres), image) for poster_id, genres, image in rows} == {
        poster_id: (genres, (posters / "Images" / f"{poster_id}.jpg").read_bytes())
        for poster_id, genres in EXPECTED.items()
    }


@pytest.mark.parametrize("form", FRAMES)
def test_a_frame_of_any_dtypes_gives_the_plain_csvs_examples(form, posters):  # noqa: F811
    frame = pd.DataFrame({"Id": list("abcde"), **FRAMES[form]})
    assert_expected(build_frame(frame, posters), posters)


def test_an_index_with_a_name_is_a_column(posters):  # noqa: F811
    frame = pd.DataFrame({"Id": list("abcde"), "Genre": LISTS}).set_index("Id")
    assert_expected(build_frame(frame, posters), posters)


def test_a_frame_and_its_csv_give_the_same_files(posters, tmp_path):  # noqa: F811
    (posters / "train.csv").write_text(PLAIN)
    config = {"name": "mine", "validation_fraction": 0, "test_fraction": 0}
    from_csv = sha256_of_files(conftest.build(posters, tmp_path / "csv", config).data_path)
    frame = pd.read_csv(posters / "train.csv")
    from_frame = sha256_of_files(build_frame(frame, posters).data_path)
    del from_csv["metadata.json"], from_frame["metadata.json"]  # Of differently written files.
    assert len(from_csv) > 5
    assert from_frame == from_csv


def test_another_frame_under_the_same_name_is_not_taken_for_built(posters):  # noqa: F811
    frame = pd.DataFrame({"Id": list("abcde"), "Genre": LISTS})
    build_frame(frame, posters)
    assert_expected(build_frame(frame, posters), posters)
    with pytest.raises(faults.UserError, match="has changed"):
        build_frame(frame[:4], posters)


def test_a_frame_that_cannot_be_understood_is_refused_by_line(posters):  # noqa: F811
    frame = pd.DataFrame({"Id": list("abcdx"), "Genre": LISTS})
    with pytest.raises(faults.PosterDataError, match=r"DataFrame.csv(.|\n)*line 6 \(x\): no x.jpg"):
        build_frame(frame, posters)
    with pytest.raises(faults.UserError, match="there is no genre column"):
        build_frame(frame[["Id"]], posters)
