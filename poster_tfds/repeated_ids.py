"""Rows whose Id came before: the same again, another genre of the poster, or a contradiction."""

import enum

from poster_tfds import faults, first_seen
from poster_tfds.annotations import Annotation


class Kind(enum.IntEnum):
    """What a row is beside the first with its Id."""

    FAULTY = 0  # It has no Id that could be compared.
    FIRST = 1
    SAME = 2  # The first row's genres again.
    PART = 3  # One more genre of a poster that has a row for each.
    CONTRARY = 4  # Other genres than the first row's.


class RepeatedIds:
    """The first row of each Id, in a temporary file: memory does not grow with rows.

    Posters may have a row for each of their genres if `may_group`; `is_grouped` says whether some
    have.
    """

    def __init__(self, may_group: bool):
        self.is_grouped = False
        self._may_group = may_group
        self._rows = first_seen.FirstSeen()

    def add(self, row: Annotation | faults.Fault) -> Kind:
        """Takes a row in, in the file's order, and returns what it is."""
        if isinstance(row, faults.Fault):
            return Kind.FAULTY
        packed = _pack(row.line, row.genres)
        line, genres = _unpack(self._rows.setdefault(row.poster_id, packed))
        if line == row.line:
            return Kind.FIRST
        if genres == row.genres:
            return Kind.SAME
        if not self._may_group:
            return Kind.CONTRARY
        self.is_grouped = True
        if set(row.genres) <= set(genres):
            return Kind.SAME
        together = sorted({*genres, *row.genres})
        self._rows.replace(row.poster_id, _pack(line, together))
        return Kind.PART

    def complete(self, kind: Kind, row: Annotation | faults.Fault) -> Annotation | faults.Fault:
        """Returns a row, once all are in, with all genres of its poster or with its fault."""
        if kind == Kind.FIRST and self.is_grouped:
            _, genres = _unpack(self._rows.get(row.poster_id))
            return row._replace(genres=genres)
        if kind == Kind.CONTRARY:
            line, _ = _unpack(self._rows.get(row.poster_id))
            reason = f"its Id is on line {line} with other genres"
            return faults.Fault(row.line, row.poster_id, reason)
        return row


def _pack(line: int, genres) -> str:
    return " ".join(map(str, (line, *genres)))


def _unpack(packed: str) -> tuple[int, tuple[int, ...]]:
    line, *genres = map(int, packed.split())
    return line, tuple(genres)
