"""Which CSVs are read: accepted and right, or refused by name, row by row."""

import io
import itertools
import pathlib
import tempfile
import tokenize

import numpy as np
import pytest
from etils import epath

from poster_tfds import annotations, faults, source
from poster_tfds.annotations import cells
from poster_tfds.poster_tfds_dataset_builder import PosterConfig
from tests import test_posters

HEADER = "Id,Genre,Drama,N/A\n"
GOOD = "p1,['Drama'],1,0\n"


def read(tmp_path, content, **settings):
    """The genres and the rows of a CSV, beside which there is an image for each good Id."""
    (tmp_path / "Images").mkdir()
    for name in ("p", "p1", "p2", "the poster", "pöster"):
        (tmp_path / "Images" / f"{name}.jpg").touch()
    content = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "train.csv").write_bytes(content)
    config = PosterConfig(name="mine", split="reference", drop_duplicates=False, **settings)
    opened = source.PosterSource(epath.Path(tmp_path), config)
    return opened.genres, list(opened.rows("train", "test"))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("p1,['Drama'],1,0\n", ("p1", (0,))),
        ("p1,['Drama'],1,0", ("p1", (0,))),
        ("p1,['Drama'],1,0\r\n", ("p1", (0,))),
        ("p1,\"['N/A', 'Drama']\",1,1\n", ("p1", (0, 1))),
        ("p1,\"[\n'N/A',\n'Drama']\",1,1\n", ("p1", (0, 1))),
        ("p1,[],0,0\n", ("p1", ())),
        ("the poster,['N/A'],0,1\n", ("the poster", (1,))),
        ("pöster,['N/A'],0,1\n", ("pöster", (1,))),
    ],
    ids=["plain", "no line end", "CRLF", "two genres", "quoted newlines", "no genre", "a space in "
         "the Id", "UTF-8"],
)  # fmt: skip
def test_accepted_rows_are_right(row, expected, tmp_path):
    genres, rows = read(tmp_path, HEADER + row)
    assert genres == ["Drama", "N/A"]
    assert [row[1:3] for row in rows] == [expected]


def test_a_byte_order_mark_crlf_and_empty_lines_do_no_harm(tmp_path):
    text = (HEADER + GOOD + "\n" + GOOD.replace("p1", "p2")).replace("\n", "\r\n")
    genres, rows = read(tmp_path, b"\xef\xbb\xbf" + text.encode())
    assert genres == ["Drama", "N/A"]
    assert [(row.line, row.poster_id) for row in rows] == [(2, "p1"), (4, "p2")]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("p,['Drama'],2,0\n", "`Drama` is '2'; it must be 0 or 1"),
        ("p,['Drama'],-1,0\n", "`Drama` is '-1'"),
        ("p,['Drama'],1.5,0\n", "`Drama` is '1.5'"),
        ("p,['Drama'],1,\n", "`N/A` is ''"),
        ("p,['Drama'],0,1\n", r"`Genre` says \['Drama'\], the genre columns say \['N/A'\]"),
        ("p,\"['Drama', 'Drama']\",1,0\n", r"`Genre` says \['Drama', 'Drama'\]"),
        ("p,['Drama',1,0\n", r"`Genre` is \"\['Drama'\", not a list"),
        ("p,Crime,1,0\n", "no genre column is called 'Crime'"),
        ("p,['Drama'],1\n", "3 fields, the header has 4"),
        (",['Drama'],1,0\n", "`Id` is empty"),
        ("../p,['Drama'],1,0\n", "is not the name of a file in"),
        ("/etc/p,['Drama'],1,0\n", "is not the name of a file in"),
        ("..,['Drama'],1,0\n", "is not the name of a file in"),
        ("a\\b,['Drama'],1,0\n", r"no a\\b.jpg"),
        (b"p\xe9,\"['Drama']\",1,0\n", "no p\xe9.jpg"),  # All of it is Windows-1252 then.
        ("pö".encode() + b"\xe9,['Drama'],1,0\n", "not UTF-8"),
        ("p,\"['Drama']\"x,1,0\n", "not a well-formed CSV row"),
    ],
)
def test_a_bad_row_is_named_and_its_neighbours_are_read(row, reason, tmp_path):
    row = row if isinstance(row, bytes) else row.encode()
    _, rows = read(tmp_path, (HEADER + GOOD).encode() + row + GOOD.encode())
    before, fault, after = rows
    assert before == annotations.Annotation(2, "p1", (0,))
    assert after == annotations.Annotation(4, "p1", (0,))
    assert isinstance(fault, faults.Fault)
    assert fault.line == 3
    with pytest.raises(ValueError, match=reason):
        raise ValueError(fault.reason)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "the file is empty"),
        ("\n\n", "the file is empty"),
        (HEADER, "no row follows the header"),
        ("Id,Drama\n" + GOOD, "4 fields, the header has 2"),
        ("Name,Genre\nx,Drama\n", "the column `Id` is missing"),
        ("Id,Title\np1,x\n", "there is no genre column"),
        ("Id,Genre,Drama,Drama\n" + GOOD, "the column `Drama` is there 2 times"),
        ("Id,Genre,,N/A\n" + GOOD, "column 3 has no name"),
        ('Id,Genre,"Dra"ma,N/A\n' + GOOD, "not a well-formed CSV row"),
        (HEADER.replace(",", ";") + GOOD, "1 fields, the header has 4"),
        ("Id,Genre,Com\xe9die,ö\n".encode("latin-1") + "ö".encode(), "the header is not UTF-8"),
    ],
)
def test_a_csv_that_cannot_be_read_at_all_is_refused(content, reason, tmp_path):
    with pytest.raises(faults.UserError, match=reason):
        read(tmp_path, content)


def has_neighbouring_strings(text):
    """Whether Python joins strings in a text, of which NumPy and this project make two."""
    tokens = [
        token.type
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in (tokenize.NL, tokenize.NEWLINE)
    ]
    return any(pair == (tokenize.STRING,) * 2 for pair in itertools.pairwise(tokens))


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
def test_the_quick_reading_of_genre_lists_is_pythons():
    rng = np.random.default_rng(0)
    pieces = ["'", '"', ", ", "[", "]", "Drama", "Sci-Fi", "\\", "N/A", "', '", "['", "']", " "]
    for _ in range(2000):
        text = "".join(rng.choice(pieces, rng.integers(1, 8)))
        for candidate in (f"[{text}]", f"['{text}']"):
            try:
                expected = eval(candidate, {"__builtins__": {}})
            except Exception:
                continue
            if has_neighbouring_strings(candidate) or "'''" in candidate or '"""' in candidate:
                continue
            is_list = isinstance(expected, list) and all(isinstance(x, str) for x in expected)
            expected = tuple(x.strip() for x in expected if x.strip()) if is_list else None
            assert cells.read_genres(candidate, None) == expected, candidate


def test_annotations_without_permission_are_named():
    with tempfile.TemporaryDirectory() as directory:  # tmp_path is closed to other users.
        folder = pathlib.Path(directory)
        folder.chmod(0o755)
        (folder / "Images").mkdir()
        (folder / "train.csv").write_text(HEADER + GOOD)
        (folder / "train.csv").chmod(0)
        with test_posters.as_nobody(), pytest.raises(faults.UserError, match="Permission denied"):
            source.PosterSource(epath.Path(directory), PosterConfig(name="mine"))
