"""What one cell says: a label, or some genres."""

import ast
import functools
import json
import re

# What a cell of a 0/1 column can be.
ABSENT, PRESENT, BLANK, OTHER = range(4)

GENRE_SEPARATORS = ("|", ";", ",")
_LABELS = dict.fromkeys(("0", "false", "no"), ABSENT) | dict.fromkeys(("1", "true", "yes"), PRESENT)
_FLOAT = re.compile(r"([01])[.,]0+")  # A comma where a spreadsheet's decimals have one.
# No genre, as pandas, databases and MovieLens write it.
_NOTHING = {"", "nan", "none", "null", "(no genres listed)"}
# What a list that is cut off has, and no name of a genre.
_NOT_IN_NAMES = re.compile(r"[\[\]{}\x00-\x1f]")
_STRING = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_NUMPY_ARRAY = re.compile(rf"\[\s*{_STRING}(?:\s+{_STRING})*\s*\]", re.DOTALL)
_NUMPY_NAME = re.compile(r"array\((\[.*\])(?:,\s*dtype=[^\]]*)?\)", re.DOTALL)
_NEIGHBOURS = re.compile(r"\0\s*\0")
_PLAIN_LIST = re.compile(r"\['[^'\"\\]+'(?:, '[^'\"\\]+')*\]")


def read_label(text: str) -> int:
    """Returns ABSENT, PRESENT, BLANK or OTHER."""
    text = text.strip().lower()
    if match := _FLOAT.fullmatch(text):
        text = match[1]
    return _LABELS.get(text, OTHER) if text else BLANK


def is_list(text: str) -> bool:
    return text.startswith(("[", "(", "{", "array("))


def is_nothing(text: str) -> bool:
    return text.lower() in _NOTHING


@functools.lru_cache(maxsize=1 << 16)
def read_genres(text: str, separator: str | None) -> tuple[str, ...] | None:
    """Returns the genres that a cell names, as they are written; None if it cannot be read.

    A list may be Python's, JSON's (of names, or of objects with a `name`) or NumPy's print. What is
    no list is taken apart at `separator`, if there is one.
    """
    text = text.strip()
    if is_nothing(text):
        return ()
    names = _read_list(text) if is_list(text) else _split(text, separator)
    return None if names is None else tuple(name for name in map(str.strip, names) if name)


def _split(text: str, separator: str | None) -> list[str] | None:
    if _NOT_IN_NAMES.search(text):
        return None
    return text.split(separator) if separator else [text]


def _read_list(text: str) -> list[str] | None:
    if _PLAIN_LIST.fullmatch(text):
        return text[2:-2].split("', '")  # What Python would give, for nearly every cell.
    if match := _NUMPY_NAME.fullmatch(text):
        text = match[1]
    for parse in (json.loads, _read_numpy, _read_python):
        try:
            return _names_of(parse(text))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    if text[0] + text[-1] == "[]" and not any(mark in text[1:-1] for mark in "[]'\"{}"):
        return text[1:-1].split(",")
    return None


def _read_numpy(text: str) -> list[str]:
    if not _NUMPY_ARRAY.fullmatch(text):
        raise ValueError(text)
    return [ast.literal_eval(string) for string in re.findall(_STRING, text, re.DOTALL)]


def _read_python(text: str):
    # Python joins neighbouring strings: what meant two genres would become one.
    if _NEIGHBOURS.search(re.sub(_STRING, "\0", text, flags=re.DOTALL)):
        raise ValueError(text)
    return ast.literal_eval(text)


def _names_of(value) -> list[str] | None:
    if not isinstance(value, list | tuple | set):
        return None
    names = [item.get("name") if isinstance(item, dict) else item for item in value]
    return names if all(isinstance(name, str) for name in names) else None
