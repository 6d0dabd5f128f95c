"""Annotations in every form that people have give the rows of the plain CSV, or one message.

They are of five posters: `a` is Noir, `b` Noir and Heist, `c` Heist, `d` nothing and `e` Noir.
"""

import gzip
import json
import shutil
import unicodedata
import warnings

import pandas as pd
import pytest
from etils import epath
from PIL import Image

from poster_tfds import faults, image_files, posters as posters_lib, source
from poster_tfds.poster_tfds_dataset_builder import PosterConfig
from tests import conftest
from tests.test_dataset_builder import read_split

CASES = conftest.REAL_POSTERS.parent / "cases"
FILES = ("a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg")
EXPECTED = {"a": {"Noir"}, "b": {"Noir", "Heist"}, "c": {"Heist"}, "d": set(), "e": {"Noir"}}
PLAIN = """Id,Genre,Noir,Heist
a,['Noir'],1,0
b,"['Noir', 'Heist']",1,1
c,['Heist'],0,1
d,[],0,0
e,['Noir'],1,0
"""


def with_genres(both, noir, heist, none, quote='"'):
    """A file with one column of genres, written as in these four cells."""
    cells = (noir, both, heist, none, noir)
    rows = [f"{name},{quote}{cell}{quote}" for name, cell in zip("abcde", cells, strict=True)]
    return "\n".join(["Id,Genre", *rows]) + "\n"


def with_labels(one, zero, separator=","):
    """A file of 0/1 columns, of these two values."""
    rows = [(one, zero), (one, one), (zero, one), (zero, zero), (one, zero)]
    rows = [("Id", "Noir", "Heist"), *((i, *row) for i, row in zip("abcde", rows, strict=True))]
    return "".join(separator.join(row) + "\n" for row in rows)


def separated_by(separator):
    """The plain file with another separator, its lists without quotes."""
    lists = PLAIN.replace(",", separator).replace(f"'Noir'{separator} ", "'Noir', ")
    return lists.replace('"', "")


def with_ids(*ids):
    rows = PLAIN.splitlines()
    lines = [f"{i}{row[1:]}" for i, row in zip(ids, rows[1:], strict=True)]
    return "\n".join([rows[0], *lines]) + "\n"


def json_lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


RECORDS = [{"Id": name, "Genre": sorted(genres)} for name, genres in EXPECTED.items()]
MOVIE_DATABASE = """adult,genres,id,imdb_id,title,video
False,"[{'id': 80, 'name': 'Noir'}]",862,a,One,False
False,"[{'id': 80, 'name': 'Noir'}, {'id': 81, 'name': 'Heist'}]",863,b,"Two, again",True
True,"[{'id': 81, 'name': 'Heist'}]",864,c,Three,False
False,[],865,d,"Four
and a half",False
False,"[{'id': 80, 'name': 'Noir'}]",866,e,Five,False
"""

# Form -> content of train.csv; text is UTF-8.
CSV_FORMS = {
    "plain": PLAIN,
    "0/1 columns alone": with_labels("1", "0"),
    "labels 1.0 and 0.0": with_labels("1.0", "0.0"),
    "labels True and False": with_labels("True", "False"),
    "labels TRUE and FALSE": with_labels("TRUE", "FALSE"),
    "labels yes and no": with_labels("yes", "no"),
    "ones and blanks": with_labels("1", ""),
    "ones with decimals and blanks": with_labels("1.0", ""),
    "decimal commas": with_labels("1,0", "0,0", ";"),
    "genres between bars": with_genres("Noir|Heist", "Noir", "Heist", ""),
    "genres between commas": with_genres("Noir, Heist", "Noir", "Heist", ""),
    "genres between semicolons": with_genres("Noir;Heist", "Noir", "Heist", ""),
    "Python's lists": with_genres("['Noir', 'Heist']", "['Noir']", "['Heist']", "[]"),
    "Python's tuples": with_genres("('Noir', 'Heist')", "('Noir',)", "('Heist',)", "()"),
    "Python's sets": with_genres("{'Noir', 'Heist'}", "{'Noir'}", "{'Heist'}", "[]"),
    "NumPy's print": with_genres("['Noir' 'Heist']", "['Noir']", "['Heist']", "[]"),
    "NumPy's name": with_genres(
        "array(['Noir', 'Heist'], dtype=object)", "array(['Noir'], dtype='<U4')",
        "array(['Heist'])", "array([], dtype=object)",
    ),
    "JSON lists": with_genres('[""Noir"", ""Heist""]', '[""Noir""]', '[""Heist""]', "[]"),
    "JSON objects": with_genres(
        '[{""id"": 1, ""name"": ""Noir""}, {""id"": 2, ""name"": ""Heist""}]',
        '[{""id"": 1, ""name"": ""Noir""}]', '[{""id"": 2, ""name"": ""Heist""}]', "[]",
    ),
    "lists without quotes": with_genres("[Noir, Heist]", "[Noir]", "[Heist]", "[]"),
    "no genre as nan": with_genres("Noir|Heist", "Noir", "Heist", "nan"),
    "no genre as MovieLens says it": with_genres(
        "Noir|Heist", "Noir", "Heist", "(no genres listed)"
    ),
    "a separator at the end": with_genres("Noir|Heist|", "Noir|", "Heist|", ""),
    "a row for each genre": "Id,Genre\na,Noir\nb,Noir\nb,Heist\nc,Heist\nd,\ne,Noir\n",
    "a row for each genre, in any order": (
        "Id,Genre\nb,Heist\nc,Heist\nd,\ne,Noir\nb,Noir\nb,Heist\na,Noir\n"
    ),
    "bars beside columns": PLAIN.replace("\"['Noir', 'Heist']\"", "Noir|Heist")
    .replace("['Noir']", "Noir").replace("['Heist']", "Heist").replace("[]", ""),
    "a database of films": MOVIE_DATABASE,
    "an index without a name": "".join(
        f"{'' if i == 0 else i - 1},{line}\n" for i, line in enumerate(PLAIN.splitlines())
    ),
    "an index called Unnamed: 0": "".join(
        f"{'Unnamed: 0' if i == 0 else i - 1},{line}\n" for i, line in enumerate(PLAIN.splitlines())
    ),
    "other columns": "".join(
        f"{line},{'Title,Year,Rating' if i == 0 else f'Film {i},199{i},{i}'}\n"
        for i, line in enumerate(PLAIN.splitlines())
    ),
    "names in small letters": PLAIN.replace("Id,Genre,Noir,Heist", "id,genre,noir,heist"),
    "columns called filename and labels": PLAIN.replace("Id,Genre", "filename,labels"),
    "columns called imdbId and genres": PLAIN.replace("Id,Genre", "imdbId,genres"),
    "a column of Ids that only the images tell": PLAIN.replace("Id,Genre", "movie,Genre"),
    "semicolons": separated_by(";"),
    "tabs": separated_by("\t"),
    "Excel's line of the separator": "sep=;\n" + with_labels("1", "0", ";"),
    "a byte order mark": "\ufeff" + PLAIN,
    "UTF-16": PLAIN.encode("utf-16"),
    "UTF-16 without a mark": PLAIN.encode("utf-16-le"),
    "CRLF": PLAIN.replace("\n", "\r\n"),
    "CR alone": PLAIN.replace("\n", "\r"),
    "no line end at the end": PLAIN.rstrip(),
    "spaces after commas": PLAIN.replace(",", ", ").replace(",  ", ", "),
    "spaces before commas": with_labels(" 1 ", "0  ", " , "),
    "empty columns at the end": PLAIN.replace("\n", ",,\n"),
    "empty fields at the end of rows": PLAIN.replace("0\n", "0,,\n"),
    "empty rows at the end": PLAIN + ",,,\n,,,\n\n",
    "empty lines before and between": "\n\n" + PLAIN.replace("\nc,", "\n\n\nc,"),
    "quoted line breaks": PLAIN.replace("['Noir', ", "['Noir',\n"),
    "everything quoted": "\n".join(
        ",".join(f'"{cell}"' for cell in row) for row in (
            ("Id", "Noir", "Heist"), ("a", 1, 0), ("b", 1, 1), ("c", 0, 1), ("d", 0, 0), ("e", 1, 0)
        )
    ),
    "Ids with the extension": with_ids(*FILES),
    "Ids as paths": with_ids(*(f"Images/{name}" for name in FILES)),
    "Ids as Windows's paths": with_ids(*(f"Images\\{name}" for name in FILES)),
    "Ids with ./": with_ids(*(f"./{name}" for name in FILES)),
}  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    directory = tmp_path_factory.mktemp("images")
    for i, name in enumerate(FILES):
        Image.new("RGB", (60, 90), (50 * i, 90, 120)).save(directory / name)
    return directory


@pytest.fixture
def posters(images, tmp_path):
    """A folder with the images, without annotations."""
    shutil.copytree(images, tmp_path / "posters" / "Images")
    return tmp_path / "posters"


def read(posters):
    """What is read of a folder: genres, Id -> genres and image, and Id -> what is wrong."""
    opened = source.PosterSource(epath.Path(posters), PosterConfig(name="mine"))
    found, wrong = {}, {}
    for row in opened.rows(*source.SPLITS):
        if isinstance(row, faults.Fault):
            wrong[row.poster_id] = row.reason
            continue
        assert row.poster_id not in found
        image = image_files.poster_path(opened.images_dir, row).read_bytes()
        found[row.poster_id] = ({opened.genres[i] for i in row.genres}, image)
    return opened.genres, found, wrong


def assert_expected(posters, ids="abcde", files=FILES, order=None):
    genres, found, wrong = read(posters)
    assert not wrong
    assert genres == order if order else sorted(genres) == ["Heist", "Noir"]
    assert found == {
        poster_id: (EXPECTED[name], (posters / "Images" / file).read_bytes())
        for poster_id, name, file in zip(ids, "abcde", files, strict=True)
    }


@pytest.mark.parametrize("form", CSV_FORMS)
def test_a_csv_of_any_form_gives_the_plain_ones_rows(form, posters):
    content = CSV_FORMS[form]
    content = content if isinstance(content, bytes) else content.encode()
    (posters / "train.csv").write_bytes(content)
    assert_expected(posters)


@pytest.mark.parametrize("form", ["a database of films", "a row for each genre, in any order"])
def test_what_is_read_is_built(form, posters, tmp_path):
    (posters / "train.csv").write_text(CSV_FORMS[form])
    config = {"name": "mine", "validation_fraction": 0, "test_fraction": 0}
    conftest.build(posters, tmp_path / "data", config, num_shards=1)
    rows = read_split("poster_tfds/mine", "train", tmp_path / "data")
    _, found, _ = read(posters)
    assert {poster_id: (set(genres), image) for poster_id, genres, image in rows} == found
    assert len(rows) == 5


def write_parquet(path):
    pd.DataFrame(RECORDS).set_index("Id").to_parquet(path)


# Name of the file -> what writes it.
OTHER_FILES = {
    "films.csv": lambda path: path.write_text(PLAIN),
    "films.tsv": lambda path: path.write_text(with_labels("1", "0", "\t")),
    "films.csv.gz": lambda path: path.write_bytes(gzip.compress(PLAIN.encode())),
    "films.jsonl": lambda path: path.write_text(json_lines(RECORDS)),
    "labels.jsonl": lambda path: path.write_text(
        json_lines({"id": name, **dict.fromkeys(genres, 1)} for name, genres in EXPECTED.items())
    ),
    "films.parquet": write_parquet,
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_other_files_give_the_plain_ones_rows(name, posters):
    OTHER_FILES[name](posters / name)
    assert_expected(posters)


def test_genres_are_in_the_columns_order_else_sorted(posters):
    (posters / "train.csv").write_text(PLAIN)
    assert_expected(posters, order=["Noir", "Heist"])
    (posters / "train.csv").write_text(CSV_FORMS["genres between bars"])
    assert_expected(posters, order=["Heist", "Noir"])


# Ids of posters that are refused, of those that are converted, and of those taken as they are.
CASES_OF_IMAGES = {
    "odd-jpegs": ({"half", "no_eoi", "empty"}, {"cmyk", "exif6"}, {"extraneous", "mpo", "grey"}),
    "damaged-inside": ({"cut_ended", "lost_middle"}, set(), {"whole"}),
}
CASE_NAMES = sorted({path.name for path in CASES.glob("*/")} - {"tables"})


@pytest.mark.parametrize("name", CASE_NAMES or ["none"])
def test_the_cases_that_people_have_are_read(name):
    if name == "none":
        message = f"NOT TESTED: {CASES} is not there"
        warnings.warn(message, stacklevel=1)
        pytest.skip(message)
    config = PosterConfig(name="mine")
    opened = source.PosterSource(epath.Path(CASES / name), config)
    checked = [
        (row, posters_lib.read_one(row, opened.images_dir, config))
        for row in opened.rows(*source.SPLITS)
    ]
    refused = {row.poster_id for row, poster in checked if isinstance(poster, faults.Fault)}
    sound = {
        row.poster_id: (row, poster) for row, poster in checked if row.poster_id not in refused
    }
    if name in CASES_OF_IMAGES:
        converted = {i for i, (_, poster) in sound.items() if poster.converted}
        assert (refused, converted, sound.keys() - converted) == CASES_OF_IMAGES[name]
        return
    ids = list(pd.read_csv(CASES / "semicolons" / "train.csv", sep=";")["Id"])
    ids = {
        "cp1252": ["café", *ids[1:]],
        "id-float": ["114709", "113497", "113228", "114885", "113041"],
        "subfolders": [f"2018/Top view/{i}" for i in ids],
    }.get(name, ids)
    found = {i: {opened.genres[g] for g in row.genres} for i, (row, _) in sound.items()}
    assert found == dict(zip(ids, EXPECTED.values(), strict=True))


# Ids and files that belong together, and the Ids of the dataset.
ID_FORMS = {
    "any case of the extension": (
        "abcde", ["a.JPG", "b.jpeg", "c.Jpg", "d.JPEG", "e.jpg"], "abcde"
    ),
    "whole floats": (
        ["1.0", "2.0", "3.0", "4.0", "5.0"], ["1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg"], "12345"
    ),
    "lost leading zeros": (
        "12345", ["001.jpg", "02.jpg", "3.jpg", "0004.jpg", "5.jpg"],
        ["001", "02", "3", "0004", "5"],
    ),
    "paths in subfolders": (
        ["x/a", "x/b", "y/z/c", "d", "y/e"],
        ["x/a.jpg", "x/b.jpg", "y/z/c.jpg", "d.jpg", "y/e.jpg"],
        ["x/a", "x/b", "y/z/c", "d", "y/e"],
    ),
    "names of files in subfolders": (
        ["a", "b.jpg", "c", "d", "e"], ["x/a.jpg", "x/b.jpg", "y/z/c.jpg", "d.jpg", "y/e.jpg"],
        ["x/a", "x/b", "y/z/c", "d", "y/e"],
    ),
    "other Unicode forms": (
        [unicodedata.normalize("NFC" if i < 3 else "NFD", f"é{i}") for i in range(5)],
        [unicodedata.normalize("NFD" if i < 3 else "NFC", f"é{i}.jpg") for i in range(5)],
        [unicodedata.normalize("NFD" if i < 3 else "NFC", f"é{i}") for i in range(5)],
    ),
    "files that differ in the extension alone": (
        ["a.jpg", "a.jpeg", "b.jpg", "c", "d"],
        ["a.jpg", "a.jpeg", "b.jpg", "c.jpg", "d.jpg"],
        ["a.jpg", "a.jpeg", "b", "c", "d"],
    ),
}  # fmt: skip


def rename(posters, files):
    """Gives the five images other names."""
    (posters / "Images").rename(posters / "old")
    for old, new in zip(FILES, files, strict=True):
        (posters / "Images" / new).parent.mkdir(parents=True, exist_ok=True)
        (posters / "old" / old).rename(posters / "Images" / new)
    (posters / "old").rmdir()


@pytest.mark.parametrize("form", ID_FORMS)
def test_ids_of_any_form_find_their_files(form, posters):
    ids, files, expected = ID_FORMS[form]
    rename(posters, files)
    (posters / "train.csv").write_text(with_ids(*ids))
    assert_expected(posters, expected, files)


def test_an_id_that_fits_several_files_or_none_is_told_what_is_there(posters):
    files = ["x/a.jpg", "y/a.jpg", "01.jpg", "001.jpg", "e.jpg"]
    rename(posters, files)
    (posters / "Images" / "e.png").write_bytes(b"")
    (posters / "outside.jpg").write_bytes((posters / "Images" / "e.jpg").read_bytes())
    (posters / "train.csv").write_text(with_ids("a", "1", "e", "E.jpg", "../outside"))
    _, _, found = read(posters)
    assert "`a` fits x/a.jpg and y/a.jpg" in found["a"]
    assert "`1` fits 001.jpg and 01.jpg" in found["1"]
    assert "`e` fits e.jpg and e.png" in found["e"]
    assert "there is e.jpg and e.png" in found["E.jpg"]
    assert "is not the name of a file in" in found["../outside"]


def test_two_ids_of_one_file_are_the_same_poster(posters):
    (posters / "train.csv").write_text(with_labels("1", "0") + "a.jpg,1,0\nImages/e,0,1\n")
    assert read(posters)[2] == {"e": "its Id is on line 6 with other genres"}
    (posters / "train.csv").write_text(with_labels("1", "0") + "a.jpg,1,0\n")
    assert_expected(posters)


def test_nothing_outside_the_images_folder_is_ever_named(posters):
    outside = posters / "outside.jpg"
    outside.write_bytes((posters / "Images" / "a.jpg").read_bytes())
    for name in ("../outside", "../outside.jpg", "Images/../../outside.jpg", str(outside)):
        (posters / "train.csv").write_text(PLAIN.replace("\na,", f"\n{name},"))
        assert list(read(posters)[2]) == [name]


def test_a_folder_that_links_to_itself_is_listed_once(posters):
    (posters / "Images" / "again").symlink_to(posters / "Images")
    (posters / "train.csv").write_text(PLAIN)
    assert_expected(posters)
