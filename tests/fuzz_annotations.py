"""Reads random mutations of annotations.

    python -m tests.fuzz_annotations --mutations=20000

Fails if a mutation ends in anything but a reading or one message for the user, or if a label of a
row that is read is not what Python's own `csv` finds in that row's cells.
"""

import argparse
import ast
import collections
import csv
import io
import random
import re
import tempfile
import warnings

from etils import epath

from poster_tfds import faults, source
from poster_tfds.poster_tfds_dataset_builder import PosterConfig

_IDS = [f"p{i}" for i in range(8)]
_GENRES = ["Noir", "Heist", "N/A"]
_TRUE, _FALSE = {"1", "1.0", "true", "yes"}, {"0", "0.0", "false", "no"}
_CELLS = [
    *("0", "1", "", " ", "1.0", "0.0", "2", "-1", "True", "no", "x", "nan", "[]", "['Noir']", "p1"),
    *("Noir", "Noir|Heist", "Noir, Heist", "['Noir' 'Heist']", "('Heist',)", '["N/A"]', "noir"),
    *("[{'name': 'Noir'}]", "a\nb", "é", '"', "''", "N/A", "NA", "Noir/Heist", "../p1", "p1.jpg"),
]
_BYTES = [
    b",",
    b";",
    b"\t",
    b'"',
    b"'",
    b"\n",
    b"\r",
    b"\0",
    b"\xe9",
    b"\xff",
    b"1",
    b"|",
    b"[",
    b" ",
]


def tables(rng: random.Random) -> list[list[str]]:
    """Returns a sound table of one of the usual forms."""
    labels = [[rng.randrange(2) for _ in _GENRES] for _ in _IDS]
    names = [[g for g, one in zip(_GENRES, row, strict=True) if one] for row in labels]
    form = rng.randrange(5)
    if form == 0:
        columns = [["Id", *_IDS], ["Genre", *map(str, names)]]
    elif form == 1:
        columns = [["Id", *_IDS], ["Genre", *map("|".join, names)]]
    else:
        columns = [["Id", *_IDS]]
        if form == 2:
            columns.append(["Genre", *map(str, names)])
        one, zero = rng.choice([("1", "0"), ("1.0", "0.0"), ("True", "False"), ("1", "")])
        for i, genre in enumerate(_GENRES):
            columns.append([genre, *(one if row[i] else zero for row in labels)])
        if form == 4:
            columns.insert(rng.randrange(4), ["Title", *(f"A, {i}" for i in range(len(_IDS)))])
    return [list(row) for row in zip(*columns, strict=True)]


def mutated(rng: random.Random) -> bytes:
    """Returns a table with up to four things done to its cells, rows or bytes."""
    rows = tables(rng)
    for _ in range(rng.randrange(3)):
        row = rng.choice(rows)
        change = rng.randrange(5)
        if change == 0:
            row[rng.randrange(len(row))] = rng.choice(_CELLS)
        elif change == 1:
            row.insert(rng.randrange(len(row) + 1), rng.choice(_CELLS))
        elif change == 2 and len(row) > 1:
            row.pop(rng.randrange(len(row)))
        elif change == 3:
            rows.insert(rng.randrange(len(rows) + 1), list(rng.choice(rows)))
        elif len(rows) > 1:
            rows.remove(row)
    text = io.StringIO()
    separator, end = rng.choice(",,,;\t"), rng.choice(["\n", "\n", "\r\n", "\r"])
    csv.writer(text, delimiter=separator, lineterminator=end).writerows(rows)
    content = text.getvalue().encode(
        rng.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16", "cp1252"])
    )
    for _ in range(rng.choice([0, 0, 1, 2])):
        position = rng.randrange(len(content) + 1)
        cut = position + rng.randrange(2)
        content = content[:position] + rng.choice([b"", *_BYTES]) + content[cut:]
    return content


def check(opened: source.PosterSource) -> int:
    """Compares the rows that are read with Python's reading of their cells; returns how many."""
    cells = independent_cells(opened)
    columns, understood = opened.table.columns, opened.understanding
    id_column = columns[understood.id_column]
    label_columns = {columns[position] for position in understood.genre_columns}
    list_column = None if understood.genre_column is None else columns[understood.genre_column]
    names_of_id = collections.defaultdict(list)
    for row in cells.values():
        names_of_id[row.get(id_column)].append(listed(row.get(list_column)))
    rows = [r for r in opened.rows(*source.SPLITS) if not isinstance(r, faults.Fault)]
    for row in rows:
        found = {opened.genres[i].casefold() for i in row.genres}
        cell = cells[row.line]
        assert row.poster_id in cell[id_column], (row, cell)
        for name, text in cell.items():
            value = text.strip().lower()
            if name in label_columns and value in _TRUE | _FALSE:
                assert (name.casefold() in found) == (value in _TRUE), (row, cell)
        names = (
            names_of_id[cell[id_column]] if opened.is_grouped else [listed(cell.get(list_column))]
        )
        if None not in names:
            assert {n.casefold() for n in set().union(*names)} == found, (row, cell, opened.genres)
    return len(rows)


def independent_cells(opened: source.PosterSource) -> dict[int, dict[str, str]]:
    """Returns line -> {name of the column: cell}."""
    table = opened.table
    text = table.path.read_bytes().decode(table.encoding, "surrogateescape")
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=table.separator, skipinitialspace=True)
    found, header = {}, None
    line = 1
    for row in reader:
        if header is None and any(row):
            header = [name.strip() for name in row]
        elif header:
            found[line] = dict(zip(header, row, strict=False))
        line = reader.line_num + 1
    return found


def listed(text: str | None) -> set[str] | None:
    """Returns the genres of a cell; None where this simple reading does not know."""
    if text is None:
        return None
    text = text.strip()
    if text.lower() in ("", "nan"):
        return set()
    if re.fullmatch(r"\['[^']*'(\s*'[^']*')+\]", text):
        return set(re.findall("'([^']*)'", text))
    if text[0] not in "[(":
        return (
            set(filter(None, map(str.strip, re.split("[|,;]", text)))) if "/" not in text else None
        )
    try:
        value = ast.literal_eval(text)
        names = [item["name"] if isinstance(item, dict) else item for item in value]
        return {name.strip() for name in names} - {""}
    except (ValueError, SyntaxError, TypeError, AttributeError, KeyError):
        return None


def read_mutations(count: int, seed: int) -> collections.Counter:
    """Reads mutations; returns how many were read and refused, and the rows that were checked."""
    rng = random.Random(seed)
    outcomes = collections.Counter()
    with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of Python, about what stands in lists.
        folder = epath.Path(directory)
        (folder / "Images").mkdir()
        for name in _IDS:
            (folder / "Images" / f"{name}.jpg").touch()
        for number in range(count):
            content = mutated(rng)
            (folder / "train.csv").write_bytes(content)
            config = PosterConfig(name="mine", drop_duplicates=rng.random() < 0.5)
            try:
                outcomes["rows"] += check(source.PosterSource(folder, config))
                outcomes["read"] += 1
            except faults.UserError:
                outcomes["refused"] += 1
            except Exception:
                print(f"mutation {number}: {content!r}")
                raise
    return outcomes


def main() -> None:
    """Reads all mutations and prints what came of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutations", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    outcomes = read_mutations(arguments.mutations, arguments.seed)
    print(
        f"{arguments.mutations} mutations: {outcomes['read']} read, {outcomes['refused']} refused "
        f"with a message; {outcomes['rows']} rows, every label as Python's csv has it"
    )


if __name__ == "__main__":
    main()
