"""What has two readings, or none, is refused with the setting that settles it; then it is read."""

import json

import pytest
from etils import epath

from poster_tfds import faults, inspection, settings as settings_lib, source
from poster_tfds.poster_tfds_dataset_builder import Builder, PosterConfig
from tests import conftest
from tests.test_annotation_forms import (  # noqa: F401
    PLAIN,
    images,
    posters,
    with_genres,
    with_labels,
)

EXPECTED = {"a": "Noir", "b": "Heist Noir", "c": "Heist", "d": "", "e": "Noir"}


def read(posters, content, **settings):  # noqa: F811
    """Id -> its genres, sorted, in one string; or the error."""
    (posters / "train.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    opened = source.PosterSource(epath.Path(posters), PosterConfig(name="mine", **settings))
    rows = list(opened.rows(*source.SPLITS))
    assert not [row for row in rows if isinstance(row, faults.Fault)], rows
    return {row.poster_id: " ".join(sorted(opened.genres[i] for i in row.genres)) for row in rows}


TWO_NAMES = "".join(
    f"{line},{'file' if i == 0 else 'bcdea'[i - 1]}\n" for i, line in enumerate(PLAIN.splitlines())
)
TWO_LISTS = "".join(
    f"{line},{'labels' if i == 0 else 'x'}\n"
    for i, line in enumerate(with_genres("Noir|Heist", "Noir", "Heist", "").splitlines())
)
OTHER_COLUMNS = with_labels("1", "0").replace("Noir,Heist", "is_noir,is_heist")
OTHER_COLUMNS = "".join(
    f"{line},{kind}\n"
    for line, kind in zip(
        OTHER_COLUMNS.splitlines(),
        ["Genre", "Noir", "Noir|Heist", "Heist", "", "Noir"],
        strict=True,
    )
)
# What is refused, what the message has, and the settings with which it is read.
AMBIGUOUS = {
    "two columns name images": (
        TWO_NAMES, "more than one column names images", {"id_column": "Id"},
    ),
    "two columns list genres": (
        TWO_LISTS, "more than one column may list the genres", {"genre_column": "Genre"},
    ),
    "a list and columns of other names": (
        OTHER_COLUMNS, "are none of the 0/1 columns", {"genre_column": "Genre"},
    ),
    "labels called label": (
        with_labels("1", "0").replace("Noir", "label"), "`label` has 0 and 1", None,
    ),
    "two separators of genres": (
        with_genres("Noir|Heist", "Noir", "Heist", "").replace("e,", 'e,"x, y"\n#'),
        "separated by | and by ,", None,
    ),
    "a genre that may be two": (
        with_genres("Noir/Heist", "Noir", "Heist", ""), "its parts alone too",
        {"genre_separator": "/"},
    ),
    "no column of genres by name": (
        with_genres("Noir|Heist", "Noir", "Heist", "").replace("Genre", "Kind"),
        "there is no genre column", {"genre_column": "Kind"},
    ),
    "two separators of columns": (
        "Film,0;Kind,1\na,0;Noir,1\nb,0;Noir|Heist,1\nc,0;Heist,1\nd,0;,1\ne,0;Noir,1\n",
        "may be separated by commas or by semicolons",
        None,
    ),
    "another encoding": (
        PLAIN.replace("Noir", "ノワール").encode("shift_jis") + "ö".encode(), "is not UTF-8", None,
    ),
    "capitals": (
        with_genres("Noir|heist", "Noir", "Heist", ""), "differ in capitals alone", None,
    ),
    "a title that is no CSV": (b"PK\x03\x04rest", "is a workbook", None),
}  # fmt: skip


@pytest.mark.parametrize("form", AMBIGUOUS)
def test_what_has_two_readings_is_refused_with_its_setting(form, posters):  # noqa: F811
    content, message, settings = AMBIGUOUS[form]
    with pytest.raises(faults.UserError) as error:
        read(posters, content)
    assert message in str(error.value)
    assert str(posters / "train.csv") in str(error.value)
    if settings:
        assert next(iter(settings)) in str(error.value)
        assert read(posters, content, **settings) == EXPECTED


def test_a_list_and_columns_that_disagree_are_refused_and_either_can_be_chosen(posters):  # noqa: F811
    content = PLAIN.replace("a,['Noir'],1,0", "a,['Heist'],1,0")
    with pytest.raises(AssertionError, match=r"`Genre` says \['Heist'\], the genre columns say"):
        read(posters, content)
    assert read(posters, content, genre_columns=["Noir", "Heist"]) == EXPECTED
    assert read(posters, content, genre_column="Genre") == {**EXPECTED, "a": "Heist"}


def test_genre_columns_leave_out_what_is_0_or_1_and_no_genre(posters):  # noqa: F811
    content = with_labels("1", "0").replace("\n", ",1\n").replace("Heist,1", "Heist,Seen")
    assert "Seen" in read(posters, content)["a"]
    assert read(posters, content, genre_columns=["Noir", "Heist"]) == EXPECTED


def test_an_encoding_can_be_named(posters):  # noqa: F811
    content = with_genres("ノワール|Heist", "ノワール", "Heist", "").encode("shift_jis")
    assert read(posters, content, encoding="shift_jis")["a"] == "ノワール"
    for settings, message in (
        ({"encoding": "nonsense"}, "no encoding"),
        ({"encoding": "ascii"}, "is not ascii"),
        ({"id_column": "Nothing"}, "Its columns: `Id`, `Genre`"),
    ):
        with pytest.raises(faults.UserError, match=message):
            read(posters, PLAIN.replace("Noir", "ノワール"), **settings)


def test_the_file_of_annotations_and_the_images_folder_are_found_or_asked_for(posters):  # noqa: F811
    for name in ("one.csv", "two.tsv"):
        (posters / name).write_text(PLAIN)
    config = PosterConfig(name="mine")
    with pytest.raises(faults.UserError, match=r'one.csv and two.tsv.*`"csv": "one.csv"`'):
        source.PosterSource(epath.Path(posters), config)
    config.csv = "one.csv"
    assert source.PosterSource(epath.Path(posters), config).csv_path.name == "one.csv"
    (posters / "Images").rename(posters / "pictures")
    assert source.PosterSource(epath.Path(posters), config).images_dir.name == "pictures"
    (posters / "more").mkdir()
    (posters / "more" / "f.jpg").write_bytes(b"")
    with pytest.raises(faults.UserError, match=r'images in more and in pictures.*"images": "more"'):
        source.PosterSource(epath.Path(posters), config)
    config.images = "pictures"
    assert source.PosterSource(epath.Path(posters), config).images.num_files == 5
    config.images = "."
    assert source.PosterSource(epath.Path(posters), config).images.num_files == 6
    config.images = "nothing"
    with pytest.raises(faults.UserError, match=r"has more/, one\.csv, pictures/, two.tsv"):
        source.PosterSource(epath.Path(posters), config)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "mine", "splt": "hashed"}, 'no setting "splt". Did you mean "split"?'),
        ({"name": "mine", "drop_duplicates": "false"}, "true or false, without quotes"),
        ({"name": "mine", "drop_duplicates": 0}, "true or false, without quotes"),
        ({"name": "mine", "split_seed": "1"}, "a whole number, without quotes"),
        ({"name": "mine", "split_seed": True}, "a whole number, without quotes"),
        ({"name": "mine", "test_fraction": "0.1"}, "a number, without quotes"),
        ({"name": "mine", "test_fraction": float("nan")}, "a number, without quotes"),
        ({"name": "mine", "split": 1}, '"split" is 1; it must be a string'),
        (
            {"name": "mine", "genre_columns": "Noir"},
            'a list of strings, as "genre_columns": ["Noir',
        ),
        ({"name": "mine/two"}, '"name" is "mine/two"; it must be one of letters'),
        ({"name": "1.0.0"}, '"name" is "1.0.0"'),
        ({"name": 7}, '"name" is 7'),
        ({"name": ""}, '"name" is missing'),
        ({"split": "hashed"}, '"name" is missing'),
        ({}, '"name" is missing'),
        ({"name": "mine", "separator": "||"}, "not one character"),
        ({"name": "mine", "split": "random"}, "split is 'random'"),
        ({"name": "mine", "on_error": "ignore"}, "on_error is 'ignore'"),
        ({"name": "mine", "test_fraction": 0.9}, "must leave a part for train"),
        ({"name": "mine", "test_fraction": -0.1}, "must leave a part for train"),
    ],
)
def test_a_setting_that_can_be_misread_is_refused_with_the_right_form(given, message):
    with pytest.raises(faults.UserError) as error:
        PosterConfig(**given)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_text_that_is_no_json_object_is_refused_with_the_right_form():
    for text in ("{'name': 'mine'}", '{"name": "mine"', "[]", "mine"):
        with pytest.raises(faults.UserError, match=r"is not JSON.*Write it as --config='.\"name\""):
            settings_lib.parse(text)
    assert settings_lib.parse('{"name": "mine"}') == {"name": "mine"}


def test_a_configuration_of_a_built_in_or_of_no_name_is_refused(tmp_path):
    with pytest.raises(faults.UserError, match='"imdb" is a built-in configuration'):
        Builder(config=PosterConfig(name="imdb"), data_dir=tmp_path)
    with pytest.raises(faults.UserError, match="no configuration 'mine', only imdb, imdb_clean"):
        Builder(config="mine", data_dir=tmp_path)


def build(posters, **settings):  # noqa: F811
    return conftest.build(posters, posters.parent / "data", {"name": "mine", **settings})


def test_a_dataset_whose_annotations_images_or_settings_changed_is_not_left_in_silence(posters):  # noqa: F811
    (posters / "train.csv").write_text(PLAIN)
    path = build(posters).data_path
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    build(posters)
    # Read from disk without its settings, as tools do, nothing is compared.
    Builder(
        config=PosterConfig(name="mine"), data_dir=posters.parent / "data"
    ).download_and_prepare()
    (posters / "train.csv").write_text(PLAIN.replace("e,['Noir'],1,0", "e,[],0,0"))
    with pytest.raises(faults.UserError, match=r"train.csv has changed.*\n.*--overwrite"):
        build(posters)
    (posters / "train.csv").write_text(PLAIN)
    image = posters / "Images" / "a.jpg"
    content = image.read_bytes()
    image.write_bytes(content + b"x")
    with pytest.raises(faults.UserError, match=r"5 images of [0-9]+ bytes are now 5 images of"):
        build(posters)
    image.write_bytes(content)
    with pytest.raises(faults.UserError, match="split_seed was 0 and is 3"):
        build(posters, split_seed=3)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_the_look_tells_what_a_build_would_do(posters):  # noqa: F811
    rows = with_labels("1", "0").replace("\n", ",x\n").replace("Heist,x", "Heist,Title")
    (posters / "train.csv").write_text(rows + "a,1,0,x\nz,1,0,x\ny,2,0,x\n")
    (posters / "Images" / "y.png").write_bytes(b"\x89PNG")
    (posters / "Images" / "c.jpg").write_bytes(b"\x89PNG")
    facts = inspection.inspect_folder(posters, {})
    assert json.loads(json.dumps(facts)) == facts
    expected = {
        "separator": ",", "encoding": "utf-8", "id_column": "Id", "genre_column": None,
        "genre_columns": ["Noir", "Heist"], "left_out": ["Title"], "rows": 8, "repeated": 1,
        "images": 6, "genres": {"Noir": 3, "Heist": 2}, "found": 5, "missing": 1, "converted": 1,
        "cannot_be_learned": ["Noir", "Heist"], "learned_poorly": [], "commonest_over_rarest": 1.5,
    }  # fmt: skip
    assert {name: facts[name] for name in expected} == expected
    assert [fault.split(":")[0] for fault in facts["faults"]] == ["line 8 (z)", "line 9 (y)"]
    printed = inspection.in_words(facts)
    assert facts["command"] in printed
    assert "5 posters found, 1 images missing, 1 to be converted; 1 rows repeated" in printed
    assert "left out: Title" in printed


def test_the_look_names_what_it_does_not_understand(tmp_path):
    (tmp_path / "films.csv").write_text("movie,kind\nAlien,Horror\n")
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(faults.UserError) as error:
        inspection.inspect_folder(tmp_path, {})
    for part in ("closest form: Id,Genre", "the header:   movie,kind", '"id_column": "movie"'):
        assert part in str(error.value)
