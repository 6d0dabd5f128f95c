"""The CSV of annotations, read row by row and checked.

The CSV is UTF-8 with the columns `Id`, `Genre` and one column of 0 and 1 a genre:

    Id,Genre,Action,Comedy
    tt0086425,"['Comedy']",0,1

Rows are never held together: a CSV may be larger than memory.
"""

import ast
import csv
from collections.abc import Iterator
from typing import NamedTuple

from etils import epath

from poster_tfds import faults

ID_COLUMN = "Id"
GENRE_COLUMN = "Genre"
_BYTE_ORDER_MARK = "\ufeff"


class Annotation(NamedTuple):
    """One row of the CSV.

    Attributes:
        line: line of the CSV on which the row begins; the header is line 1.
        poster_id: name of the poster's JPEG, without the extension.
        genres: indices into the genres of the CSV, ascending.
    """

    line: int
    poster_id: str
    genres: tuple[int, ...]


def read_genres(path: epath.PathLike) -> list[str]:
    """Returns the names of the genre columns, in the CSV's order.

    Raises:
        faults.PosterDataError: the header is missing or cannot be used.
    """
    with epath.Path(path).open("rb") as file:
        header = _read_header(csv.reader(_decoded_lines(file), strict=True), path)
    return [name for name in header if name not in (ID_COLUMN, GENRE_COLUMN)]


def read_annotations(path: epath.PathLike) -> Iterator[Annotation | faults.Fault]:
    """Yields an `Annotation` or a `Fault` for each row, in the CSV's order.

    Raises:
        faults.PosterDataError: the header cannot be used, or no row follows it.
    """
    with epath.Path(path).open("rb") as file:
        reader = csv.reader(_decoded_lines(file), strict=True)
        header = _read_header(reader, path)
        empty = True
        while True:
            line = reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                row = faults.Fault(line, "", f"not a well-formed CSV row ({error})")
            else:
                if not row:  # The csv module gives an empty line as an empty row.
                    continue
                row = _parse_row(header, row, line)
            empty = False
            yield row
    if empty:
        raise faults.PosterDataError(path, [faults.Fault(2, "", "no row follows the header")])


def _decoded_lines(file) -> Iterator[str]:
    """Yields lines of text; bytes that are not UTF-8 become surrogates, found again later."""
    for number, line in enumerate(file):
        text = line.decode("utf-8", errors="surrogateescape")
        yield text.removeprefix(_BYTE_ORDER_MARK) if number == 0 else text


def _is_utf8(text: str) -> bool:
    return not any("\udc80" <= character <= "\udcff" for character in text)


def _read_header(reader, path) -> list[str]:
    try:
        header = next(reader, [])
        problems = _header_problems(header)
    except csv.Error as error:
        problems = [f"not a well-formed CSV row ({error})"]
    if problems:
        expected = f"; expected {ID_COLUMN},{GENRE_COLUMN},<genre>,<genre>,..."
        raise faults.PosterDataError(
            path, [faults.Fault(1, "", problem + expected) for problem in problems]
        )
    return header


def _header_problems(header: list[str]) -> list[str]:
    if not header:
        return ["the file is empty"]
    if len(header) == 1 and ";" in header[0]:
        return ["the columns are separated by semicolons, not commas"]
    if not all(map(_is_utf8, header)):
        return ["the header is not UTF-8"]
    problems = [
        f"the column `{name}` is missing"
        for name in (ID_COLUMN, GENRE_COLUMN)
        if name not in header
    ]
    problems += [
        f"the column `{name}` stands there {header.count(name)} times"
        for name in sorted(set(header))
        if header.count(name) > 1
    ]
    problems += [
        f"the column name {name!r} is empty, has a line break, or begins or ends with white space"
        for name in header
        if not name or name != name.strip() or len(name.splitlines()) > 1
    ]
    if not problems and len(header) < 3:
        problems.append("there is no genre column")
    return problems


def _parse_row(header: list[str], row: list[str], line: int) -> Annotation | faults.Fault:
    if not all(map(str.isascii, row)) and not all(map(_is_utf8, row)):
        return faults.Fault(line, "", "not UTF-8; save the CSV as UTF-8")
    if len(row) != len(header):
        return faults.Fault(line, "", f"{len(row)} fields, the header has {len(header)}")
    values = dict(zip(header, row, strict=True))
    poster_id = values.pop(ID_COLUMN)
    genre_text = values.pop(GENRE_COLUMN)
    if problem := _id_problem(poster_id):
        return faults.Fault(line, poster_id, problem)
    for name, value in values.items():
        if value not in ("0", "1"):
            return faults.Fault(line, poster_id, f"`{name}` is {value!r}; it must be 0 or 1")
    marked = [name for name, value in values.items() if value == "1"]
    listed = _parse_genre_list(genre_text)
    if listed is None:
        return faults.Fault(
            line, poster_id, f"`{GENRE_COLUMN}` is {genre_text!r}, not a list such as ['Drama']"
        )
    if sorted(listed) != sorted(marked):
        return faults.Fault(
            line, poster_id, f"`{GENRE_COLUMN}` says {listed}, the genre columns say {marked}"
        )
    return Annotation(
        line, poster_id, tuple(i for i, value in enumerate(values.values()) if value == "1")
    )


def _id_problem(poster_id: str) -> str | None:
    """Returns why an Id cannot name a file in the images' folder, if it cannot."""
    if not poster_id.strip():
        return "`Id` is empty"
    if poster_id != poster_id.strip():
        return f"`Id` {poster_id!r} begins or ends with white space"
    if any(c in poster_id for c in "/\\\0") or poster_id.startswith("."):
        return f"`Id` {poster_id!r} is not a plain file name"
    return None


def _parse_genre_list(text: str) -> list[str] | None:
    simple = text.removeprefix("['").removesuffix("']")
    if len(simple) == len(text) - 4 and "\\" not in simple and '"' not in simple:
        names = simple.split("', '")
        if not any("'" in name for name in names):
            return names  # What the slower parser would give, for nearly every row.
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return value
    return None
