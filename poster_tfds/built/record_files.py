"""TFRecord files, read record by record, so that what is damaged can be named."""

import os
import re
from collections.abc import Iterator

import tensorflow as tf

# Of a record: 8 bytes of length and 4 of its checksum before the data, 4 of their checksum behind.
_OVERHEAD = 16
_NAMES_OF_OPS = re.compile(r"\{\{.*?\}\} |\s*\[Op:.*", re.DOTALL)


class DamageError(Exception):
    """A file cannot be read, or not to its end."""


def read_records(path: os.PathLike | str) -> Iterator[tuple[int, int, bytes]]:
    """Yields number, first byte and content of each record; their checksums are compared.

    A file that is cut between two records has fewer, which only their number tells.

    Raises:
        DamageError: the next record cannot be read; what is behind it is not looked at.
    """
    number = position = 0
    try:
        for content in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            yield number, position, content
            number += 1
            position += len(content) + _OVERHEAD
    except tf.errors.OpError as error:
        what = _NAMES_OF_OPS.sub("", error.message) or type(error).__name__
        raise DamageError(f"record {number}, at byte {position}: {what}") from error
