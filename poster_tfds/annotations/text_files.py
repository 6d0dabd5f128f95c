"""Text as spreadsheets write it: its encoding, its separator, its lines."""

import codecs
import csv
import gzip
import hashlib
import io
import itertools
import re
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from etils import epath

from poster_tfds import faults

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_BLOCK = 1 << 20
_SAMPLE_LINES = 100
# The line with which Excel says what separates columns.
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
_NOT_DECODED = re.compile("[\ud800-\udfff]")


def open_bytes(path: epath.Path) -> BinaryIO:
    """Opens a file, decompressed if it is called `.gz`."""
    file = path.open("rb")
    return gzip.GzipFile(fileobj=file) if path.name.lower().endswith(".gz") else file


def digest(path: epath.Path) -> str:
    """Returns the BLAKE2b digest of a file's content, decompressed."""
    found = hashlib.blake2b(digest_size=16)
    for block in _blocks(path):
        found.update(block)
    return found.hexdigest()


def find_encoding(path: epath.Path) -> str:
    """Returns the encoding of a text.

    By its mark, else UTF-8; a text that is not UTF-8 anywhere is Windows-1252. One that is UTF-8
    in one place and not in another is damaged: it is taken for UTF-8, and `is_decoded` tells the
    damaged places.

    Raises:
        faults.UserError: the file cannot be decompressed, or is UTF-16 that cannot be decoded.
    """
    with open_bytes(path) as file:
        start = _guarded(lambda: file.read(_BLOCK), path)
    if start.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    # Text of mostly Latin letters has a zero in every second byte.
    utf_16 = {
        "utf-16": start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)),
        "utf-16-le": start[1::2].count(0) > len(start) // 4,
        "utf-16-be": start[::2].count(0) > len(start) // 4,
    }
    for encoding in (encoding for encoding, fits in utf_16.items() if fits):
        check_encoding(path, encoding)
        return encoding
    characters = set()
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    for block in itertools.chain(_blocks(path), [b""]):
        text = decoder.decode(block, final=not block)
        if not text.isascii():
            characters |= set(text)
    undecoded = "".join(filter(_NOT_DECODED.match, characters))
    others = any(c > "\x7f" and not _NOT_DECODED.match(c) for c in characters)
    if not undecoded or others:
        return "utf-8"
    try:
        undecoded.encode("ascii", "surrogateescape").decode("windows-1252")
    except UnicodeDecodeError:
        return "utf-8"
    return "windows-1252"


def check_encoding(path: epath.Path, encoding: str) -> None:
    """Checks that a whole text is of this encoding.

    Raises:
        faults.UserError: it is not, or there is no such encoding.
    """
    try:
        decoder = codecs.getincrementaldecoder(encoding)()
        for block in itertools.chain(_blocks(path), [b""]):
            decoder.decode(block, final=not block)
    except LookupError:
        raise faults.UserError(f'--config: there is no encoding "{encoding}".') from None
    except UnicodeError as error:
        raise faults.UserError(
            f"{path} is not {encoding} ({error}). Save it as UTF-8, or name what it is by "
            '"encoding" in --config.'
        ) from None


def is_decoded(text: str) -> bool:
    """Returns whether nothing of a text that `lines` gave failed to be decoded."""
    return text.isascii() or not _NOT_DECODED.search(text)


def lines(path: epath.Path, encoding: str) -> Iterator[str]:
    """Yields the lines of a text with their ends, which may be LF, CRLF or CR."""
    errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
    with open_bytes(path) as file:
        yield from io.TextIOWrapper(
            io.BufferedReader(_Readable(file), _BLOCK), encoding, errors, newline=""
        )


def find_separator(path: epath.Path, encoding: str, is_id_name, given="") -> tuple[str, int]:
    """Returns what separates the columns of a table, and how many lines come before its header.

    Raises:
        faults.UserError: more than one separator is possible, or none.
    """
    sample = list(itertools.islice(lines(path, encoding), _SAMPLE_LINES))
    before = next((i for i, line in enumerate(sample) if line.strip()), 0)
    if sample and (match := _SEPARATOR_LINE.fullmatch(sample[before])):
        return given or match[1], before + 1
    if given:
        return given, before
    tables = {separator: _read_sample(sample[before:], separator) for separator in SEPARATORS}
    tables = {s: rows for s, rows in tables.items() if rows and len(rows[0]) > 1}
    named = {s: rows for s, rows in tables.items() if any(map(is_id_name, rows[0]))}
    regular = {s: rows for s, rows in tables.items() if len(set(map(len, rows))) == 1}
    for possible in (named, named.keys() & regular.keys(), regular):
        if len(possible) == 1:
            return next(iter(possible)), before
    if not tables:
        return ",", before
    possible = sorted(named or regular or tables)
    raise faults.UserError(
        f"{path}: the columns may be separated by {' or by '.join(SEPARATORS[s] for s in possible)}"
        f'.\n  line {before + 1}: {sample[before].rstrip()}\nSay which by "separator" in --config, '
        f'as "separator": "{possible[0]}".'
    )


def _read_sample(sample: list[str], separator: str) -> list[list[str]]:
    try:
        rows = list(csv.reader(sample, delimiter=separator, skipinitialspace=True))
    except csv.Error:
        return []
    # The last row may go on after the sample.
    return [row for row in (rows[:-1] if len(sample) == _SAMPLE_LINES else rows) if any(row)]


def _blocks(path: epath.Path) -> Iterator[bytes]:
    with open_bytes(path) as file:
        while block := _guarded(lambda: file.read(_BLOCK), path):
            yield block


def _guarded(read, path: epath.Path) -> bytes:
    try:
        return read()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise faults.UserError(f"{path} cannot be decompressed ({error}).") from None


class _Readable(io.RawIOBase):
    """What Python's own text layer needs of a file, whichever file system it is of."""

    def __init__(self, file: BinaryIO):
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
