"""The CSV of annotations, read row by row and checked.

The CSV is UTF-8 with the columns `Id`, `Genre` and one column of 0 and 1 a genre:

    Id,Genre,Action,Comedy
    tt0086425,"['Comedy']",0,1
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
        header = _header(csv.reader(_decoded_lines(file), strict=True), path)
    return [name for name in header if name not in (ID_COLUMN, GENRE_COLUMN)]


def read_annotations(path: epath.PathLike) -> Iterator[Annotation | faults.Fault]:
    """Yields an `Annotation` or a `Fault` for each row, in the CSV's order.

    Raises:
        faults.PosterDataError: the file cannot be read on as a CSV.
    """
    with epath.Path(path).open("rb") as file:
        reader = csv.reader(_decoded_lines(file), strict=True)
        header = _header(reader, path)
        line = reader.line_num + 1
        rows = 0
        while (row := _next_row(reader, path, line)) is not None:
            if row:  # The csv module gives an empty line as an empty row.
                rows += 1
                yield _parse_row(header, row, line)
            line = reader.line_num + 1
        if not rows:
            raise faults.PosterDataError(
                path, [faults.Fault(line, "", "no row follows the header")]
            )


def _decoded_lines(file) -> Iterator[str]:
    for number, line in enumerate(file):
        text = line.decode("utf-8")
        yield text.removeprefix(_BYTE_ORDER_MARK) if number == 0 else text


def _next_row(reader, path, line: int) -> list[str] | None:
    try:
        return next(reader, None)
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 ({error.reason} at byte {error.start}); save the CSV as UTF-8"
    except csv.Error as error:
        reason = f"not a well-formed CSV row ({error})"
    raise faults.PosterDataError(path, [faults.Fault(line, "", reason)])


def _header(reader, path) -> list[str]:
    header = _next_row(reader, path, line=1)
    if not header:
        problems = ["the file is empty"]
    else:
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
            f"the column name {name!r} is empty or begins or ends with white space"
            for name in header
            if not name or name != name.strip()
        ]
        if not problems and len(header) < 3:
            problems.append("there is no genre column")
    if problems:
        expected = f"; expected {ID_COLUMN},{GENRE_COLUMN},<genre>,<genre>,..."
        raise faults.PosterDataError(
            path, [faults.Fault(1, "", problem + expected) for problem in problems]
        )
    return header


def _parse_row(header: list[str], row: list[str], line: int) -> Annotation | faults.Fault:
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
    named = [name for name, value in values.items() if value == "1"]
    listed = _parse_genre_list(genre_text)
    if listed is None:
        return faults.Fault(
            line, poster_id, f"`{GENRE_COLUMN}` is {genre_text!r}, not a list such as ['Drama']"
        )
    if sorted(listed) != sorted(named):
        return faults.Fault(
            line, poster_id, f"`{GENRE_COLUMN}` says {listed}, the genre columns say {named}"
        )
    return Annotation(
        line, poster_id, tuple(i for i, value in enumerate(values.values()) if value == "1")
    )


def _id_problem(poster_id: str) -> str | None:
    """Returns why an Id cannot name a file among the posters, if it cannot."""
    if not poster_id.strip():
        return "`Id` is empty"
    if poster_id != poster_id.strip():
        return f"`Id` {poster_id!r} begins or ends with white space"
    if any(c in poster_id for c in "/\\") or poster_id.startswith(".") or "\0" in poster_id:
        return f"`Id` {poster_id!r} is not a plain file name"
    return None


def _parse_genre_list(text: str) -> list[str] | None:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return value
    return None
