"""What is in each column of a table."""

import dataclasses

import numpy as np
import pandas as pd

from poster_tfds import faults
from poster_tfds.annotations import cells, names, tables

MAX_TEXTS = 100_000  # Different cells of a column of genres.
_MAX_BROKEN = 10_000  # Rows that are named where none can be read.
_ID_SAMPLE = 1000  # Cells of a column that are looked at by themselves.


@dataclasses.dataclass(eq=False)
class Column:
    """What is in a column.

    Attributes:
        position: of the column.
        name: of the column.
        labels: how many cells are each of ABSENT, PRESENT, BLANK and OTHER.
        texts: different cells, if the column may list genres.
        sample: its first cells.
    """

    position: int
    name: str
    labels: np.ndarray
    texts: set[str] = dataclasses.field(default_factory=set)
    sample: list[str] = dataclasses.field(default_factory=list)

    @property
    def is_blank(self) -> bool:
        return self.labels[cells.BLANK] == self.labels.sum()

    @property
    def is_index(self) -> bool:
        """Whether it numbers the rows, as pandas does in a column without a name."""
        return names.is_index_name(self.name) and (self.position == 0 or self.name != "")

    @property
    def is_label(self) -> bool:
        """Whether most cells that say something say 0 or 1; the others are faults then."""
        known = self.labels[cells.ABSENT] + self.labels[cells.PRESENT]
        return known > 0 and known >= self.labels[cells.OTHER]

    @property
    def blank_is_absent(self) -> bool:
        return bool(self.labels[cells.ABSENT] == 0)


def survey(table: tables.Table, config) -> list[Column]:
    """Goes through a table and returns what is in each of its columns.

    Raises:
        faults.PosterDataError: no row follows the header, or none that can be read.
    """
    columns = [Column(i, name, np.zeros(4, int)) for i, name in enumerate(table.columns)]
    broken = {}
    for chunk in table.chunks():
        broken |= chunk.broken if len(broken) < _MAX_BROKEN else {}
        sound = chunk.cells.drop(index=list(chunk.broken))
        for column in columns:
            _add(column, sound[column.position], config)
    if not any(column.labels.any() for column in columns):
        broken = broken or {table.header_line + 1: "no row follows the header"}
        found = (faults.Fault(line, "", reason) for line, reason in broken.items())
        raise faults.PosterDataError(table.path, found)
    return columns


def _add(column: Column, texts: pd.Series, config) -> None:
    counts = texts.value_counts(sort=False)
    labels = np.array([cells.read_label(text) for text in counts.index], int)
    column.labels += np.bincount(labels, counts, 4).astype(int)
    if len(column.sample) < _ID_SAMPLE:
        column.sample += map(str.strip, texts[:_ID_SAMPLE])
    may_list = column.name == config.genre_column or names.is_genre_name(column.name)
    if may_list and len(column.texts) <= MAX_TEXTS:
        column.texts.update(map(str.strip, counts.index))
