"""Any file of annotations as chunks of strings.

A delimited text is taken apart by Python's own `csv`, which names the line of a row that is not
well-formed; pandas's reader fills short rows up and takes stray quotes, without a word.
"""

import csv
import dataclasses
import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pandas as pd
from etils import epath

from poster_tfds import faults
from poster_tfds.annotations import names, text_files

_CHUNK = 1 << 11  # Rows that are held at a time.
_WORKBOOK = b"PK\x03\x04"


class Chunk(NamedTuple):
    """Some rows of a table.

    Attributes:
        cells: strings, a column for each of the table's, by its position; the index is the lines
            on which the rows begin.
        broken: line -> why its row could not be read; its cells are empty.
    """

    cells: pd.DataFrame
    broken: dict[int, str]


@dataclasses.dataclass(frozen=True)
class Table:
    """A file of annotations.

    Attributes:
        path: the file.
        columns: their names.
        form: what kind of file it is, in words.
        encoding: of a text; empty for other files.
        separator: of the columns of a delimited text; empty for other files.
        header_line: the line of the names of a delimited text; 0 for other files.
    """

    path: epath.Path
    columns: list[str]
    form: str
    encoding: str = ""
    separator: str = ""
    header_line: int = 0

    def chunks(self) -> Iterator[Chunk]:
        """Yields all rows that have anything in them, in their order."""
        if self.separator:
            rows = self._delimited_rows()
        elif self.encoding:
            rows = self._json_rows()
        else:
            rows = _parquet_rows(self.path)
        held = []
        for row in rows:
            held.append(row)
            if len(held) == _CHUNK:
                yield self._chunk(held)
                held = []
        if held:
            yield self._chunk(held)

    def _chunk(self, rows: list[tuple[int, list[str] | str]]) -> Chunk:
        broken = {line: row for line, row in rows if isinstance(row, str)}
        empty = [""] * len(self.columns)
        cells = pd.DataFrame(
            [empty if line in broken else row for line, row in rows],
            index=[line for line, _ in rows],
            columns=range(len(self.columns)),
            dtype=object,
        )
        return Chunk(cells, broken)

    def _delimited_rows(self) -> Iterator[tuple[int, list[str] | str]]:
        """Yields (line, cells), or (line, what is wrong)."""
        for line, row in _read_delimited(self):
            if line <= self.header_line or not any(row):
                continue
            if isinstance(row, list):
                if len(row) > len(self.columns) and not any(row[len(self.columns) :]):
                    row = row[: len(self.columns)]
                if not text_files.is_decoded("".join(row)):
                    row = "not UTF-8; save the file as UTF-8"
                elif len(row) != len(self.columns):
                    row = f"{len(row)} fields, the header has {len(self.columns)}"
            yield line, row

    def _json_rows(self) -> Iterator[tuple[int, list[str] | str]]:
        for line, row in _read_json(self.path, self.encoding):
            if isinstance(row, dict):
                row = [text_of(row.get(name)) for name in self.columns]
                if not text_files.is_decoded("".join(row)):
                    row = "not UTF-8; save the file as UTF-8"
            if isinstance(row, str) or any(row):
                yield line, row


def open_table(path: epath.Path, encoding: str = "", separator: str = "") -> Table:
    """Finds out how a file of annotations is to be read.

    It is `.parquet`, `.jsonl` or any delimited text; `.gz` is decompressed.

    Raises:
        faults.UserError: it cannot be read as what its name says; the message says why.
    """
    name = path.name.lower()
    if name.endswith(".parquet"):
        with path.open("rb") as file:
            return Table(path, _parquet_file(file, path).schema_arrow.names, "Parquet")
    with text_files.open_bytes(path) as file:
        if file.read(len(_WORKBOOK)) == _WORKBOOK:
            raise faults.UserError(f"{path} is a workbook or an archive. Save it as CSV.")
    if encoding:
        text_files.check_encoding(path, encoding)
    encoding = encoding or text_files.find_encoding(path)
    if name.removesuffix(".gz").endswith((".jsonl", ".ndjson")):
        rows = (row for _, row in _read_json(path, encoding) if isinstance(row, dict))
        columns = list(dict.fromkeys(key for row in rows for key in row))
        if not text_files.is_decoded("".join(columns)):
            raise faults.UserError(f"{path}: a key is not UTF-8. Save the file as UTF-8.")
        return Table(path, columns, "JSON lines", encoding)
    separator, before = text_files.find_separator(path, encoding, names.is_id_name, separator)
    table = Table(path, [], "delimited text", encoding, separator, before)
    for line, row in _read_delimited(table):
        if line > before and row:
            return dataclasses.replace(table, columns=_header(row, path, line), header_line=line)
    raise faults.UserError(f"{path}: the file is empty; expected {names.EXPECTED_HEADER}")


def text_of(value: Any) -> str:
    """Returns a value as a cell of a CSV would have it; a list as JSON."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, dict | list | tuple | set) or getattr(value, "ndim", 0):
        return json.dumps(_plain(value), ensure_ascii=False, default=str)
    return "" if pd.isna(value) else str(value)


def _plain(value):
    if hasattr(value, "tolist"):
        value = value.tolist()
    return sorted(value) if isinstance(value, set) else value


def _read_delimited(table: Table) -> Iterator[tuple[int, list[str] | str]]:
    """Yields (line, cells) or (line, what is wrong), whatever the header says."""
    texts = text_files.lines(table.path, table.encoding)
    reader = csv.reader(texts, delimiter=table.separator, skipinitialspace=True, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            yield line, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            last = reader.line_num
            where = f", to line {last}" if last > line else ""
            yield line, f"not a well-formed CSV row{where} ({error})"


def _header(row: list[str] | str, path: epath.Path, line: int) -> list[str]:
    if isinstance(row, str):
        raise faults.UserError(f"{path}, line {line}: {row}; expected {names.EXPECTED_HEADER}")
    if not all(map(text_files.is_decoded, row)):
        raise faults.UserError(
            f'{path}: the header is not UTF-8. Save the file as UTF-8, or name its "encoding" in '
            "--config."
        )
    return [name.strip() for name in row]


def _read_json(path: epath.Path, encoding: str) -> Iterator[tuple[int, dict | str]]:
    for line, text in enumerate(text_files.lines(path, encoding), 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            row = f"not JSON ({error})"
        else:
            if not isinstance(row, dict):
                row = 'not a JSON object such as {"Id": "a", "Genre": ["Noir"]}'
        yield line, row


def _parquet_file(file, path: epath.Path):
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError:
        raise faults.UserError(
            f"{path}: Parquet is read with pyarrow. Install it with pip install pyarrow, or save "
            "the annotations as CSV."
        ) from None
    try:
        return parquet.ParquetFile(file)
    except ArrowInvalid as error:
        raise faults.UserError(f"{path} is not a Parquet file ({error}).") from None


def _parquet_rows(path: epath.Path) -> Iterator[tuple[int, list[str]]]:
    """Yields rows numbered as the lines of the same table as CSV: the first is on line 2."""
    line = 1
    with path.open("rb") as file:
        for batch in _parquet_file(file, path).iter_batches(_CHUNK):
            columns: list[Iterable] = [column.to_pylist() for column in batch.columns]
            for values in zip(*columns, strict=True):
                line += 1
                row = list(map(text_of, values))
                if any(row):
                    yield line, row
