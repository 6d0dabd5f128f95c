"""Random mutations of annotations end in a right reading or in one message for the user.

A label of a row that is read is what Python's own `csv` finds in that row's cells.
"""

import ast
import collections
import csv
import io
import random
import re

import pytest
from etils import epath

from poster_tfds import faults, source
from poster_tfds.poster_tfds_dataset_builder import PosterConfig

IDS = [f"p{i}" for i in range(8)]
GENRES = ["Noir", "Heist", "N/A"]
TRUE, FALSE = {"1", "1.0", "true", "yes"}, {"0", "0.0", "false", "no"}
CELLS = [
    *("0", "1", "", " ", "1.0", "0.0", "2", "-1", "True", "no", "x", "nan", "[]", "['Noir']", "p1"),
    *("Noir", "Noir|Heist", "Noir, Heist", "['Noir' 'Heist']", "('Heist',)", '["N/A"]', "noir"),
    *("[{'name': 'Noir'}]", "a\nb", "é", '"', "''", "N/A", "NA", "Noir/Heist", "../p1", "p1.jpg"),
]
BYTES = [bytes([byte]) for byte in b",;\t\"'\n\r\0\xe9\xff1|[ "]


def tables(rng):
    """Returns a sound table of one of the usual forms."""
    labels = [[rng.randrange(2) for _ in GENRES] for _ in IDS]
    names = [[g for g, one in zip(GENRES, row, strict=True) if one] for row in labels]
    form = rng.randrange(5)
    if form == 0:
        columns = [["Id", *IDS], ["Genre", *map(str, names)]]
    elif form == 1:
        columns = [["Id", *IDS], ["Genre", *map("|".join, names)]]
    else:
        columns = [["Id", *IDS]]
        if form == 2:
            columns.append(["Genre", *map(str, names)])
        one, zero = rng.choice([("1", "0"), ("1.0", "0.0"), ("True", "False"), ("1", "")])
        for i, genre in enumerate(GENRES):
            columns.append([genre, *(one if row[i] else zero for row in labels)])
        if form == 4:
            columns.insert(rng.randrange(4), ["Title", *(f"A, {i}" for i in range(len(IDS)))])
    return [list(row) for row in zip(*columns, strict=True)]


def mutated(rng):
    """Returns a table with up to four things done to its cells, rows or bytes."""
    rows = tables(rng)
    for _ in range(rng.randrange(3)):
        row = rng.choice(rows)
        change = rng.randrange(5)
        if change == 0:
            row[rng.randrange(len(row))] = rng.choice(CELLS)
        elif change == 1:
            row.insert(rng.randrange(len(row) + 1), rng.choice(CELLS))
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
        content = content[:position] + rng.choice([b"", *BYTES]) + content[cut:]
    return content


def check(opened):
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
            if name in label_columns and value in TRUE | FALSE:
                assert (name.casefold() in found) == (value in TRUE), (row, cell)
        names = (
            names_of_id[cell[id_column]] if opened.is_grouped else [listed(cell.get(list_column))]
        )
        if None not in names:
            assert {n.casefold() for n in set().union(*names)} == found, (row, cell, opened.genres)
    return len(rows)


def independent_cells(opened):
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


def listed(text):
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


@pytest.mark.filterwarnings("ignore::SyntaxWarning")  # About what stands in lists.
@pytest.mark.parametrize("count", [300, pytest.param(5_000, marks=pytest.mark.slow)])
def test_mutations_end_in_a_right_reading_or_one_message(count, tmp_path):
    rng = random.Random(count)
    folder = epath.Path(tmp_path)
    (folder / "Images").mkdir()
    for name in IDS:
        (folder / "Images" / f"{name}.jpg").touch()
    outcomes = collections.Counter()
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
    assert min(outcomes["read"], outcomes["refused"], outcomes["rows"]) > count / 15
