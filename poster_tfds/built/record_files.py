"""TFRecord files, read record by record, so that what is damaged can be named."""

import re
from collections.abc import Iterator
from typing import NamedTuple

import tensorflow as tf
from etils import epath

# Of a record: 8 bytes of length and 4 of its checksum before the data, 4 of their checksum behind.
_BEFORE, _BEHIND = 12, 4
_NAMES_OF_OPS = re.compile(r"\{\{.*?\}\} |\s*\[Op:.*", re.DOTALL)


class Record(NamedTuple):
    """A record and its place in the file.

    Attributes:
        number: of the record, from 0.
        position: the byte at which it begins.
        content: what was written.
    """

    number: int
    position: int
    content: bytes


class DamageError(Exception):
    """A file cannot be read, or not to its end.

    Attributes:
        position: the byte at which the first record begins that cannot be read.
    """

    def __init__(self, number: int, position: int, what: str):
        self.position = position
        super().__init__(f"record {number}, at byte {position}: {what}")


def read_records(path: epath.PathLike) -> Iterator[Record]:
    """Yields the records of a file; their checksums are compared.

    A file that is cut between two records has fewer, which only their number tells.

    Raises:
        DamageError: the next record cannot be read; what is behind it is not looked at.
    """
    number = position = 0
    try:
        for content in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            yield Record(number, position, content)
            number += 1
            position += _BEFORE + len(content) + _BEHIND
    except tf.errors.OpError as error:
        what = _NAMES_OF_OPS.sub("", error.message) or type(error).__name__
        raise DamageError(number, position, what) from error


def read_unchecked(path: epath.PathLike, position: int, max_bytes: int) -> bytes:
    """Returns the content of a record whose checksum is wrong, or what there is of it."""
    with epath.Path(path).open("rb") as file:
        file.seek(position)
        length = int.from_bytes(file.read(8), "little")
        file.seek(position + _BEFORE)
        return file.read(min(length, max_bytes))
