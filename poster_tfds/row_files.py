"""Rows that wait in files while a pipeline moves where they are."""

import collections
import dataclasses
import pickle
import uuid
from collections.abc import Callable, Hashable, Iterable, Iterator

from etils import epath

# Where some rows are: name of the file, first byte, number of bytes. Beam encodes a plain tuple
# in few bytes, one of a class of its own in many.
Part = tuple[str, int, int]


@dataclasses.dataclass(frozen=True)
class RowFiles:
    """Writes groups of rows and reads them again, in any process that reaches the directory.

    Attributes:
        directory: holds the files.
        num_buckets: into how many parts `bucket` divides hashes.
    """

    directory: epath.Path
    num_buckets: int

    def bucket(self, hashed: bytes) -> int:
        """Returns the number of a hash's bucket; buckets are in the order of the hashes."""
        return int.from_bytes(hashed[:4], "big") * self.num_buckets >> 32

    def write(self, rows: Iterable, key: Callable[..., Hashable]) -> list[tuple[Hashable, Part]]:
        """Writes rows into a new file; returns each key with where the rows that have it are."""
        groups = collections.defaultdict(list)
        for row in rows:
            groups[key(row)].append(row)
        parts = []
        # Under a name of its own: a runner may do the same work again, or twice at a time.
        name = uuid.uuid4().hex
        with (self.directory / name).open("wb") as file:
            start = 0
            for value, group in groups.items():
                packed = pickle.dumps(group)
                file.write(packed)
                parts.append((value, (name, start, len(packed))))
                start += len(packed)
        return parts

    def read(self, parts: Iterable[Part]) -> Iterator:
        """Yields the rows that are in some parts."""
        for name, start, num_bytes in parts:
            with (self.directory / name).open("rb") as file:
                file.seek(start)
                yield from pickle.loads(file.read(num_bytes))
