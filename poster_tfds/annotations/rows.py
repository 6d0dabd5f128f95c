"""Rows of a table as annotations or faults."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from poster_tfds import faults, image_files
from poster_tfds.annotations import cells, tables, understanding as understanding_lib


class Annotation(NamedTuple):
    """What is known of one poster.

    Attributes:
        line: line of the file on which the row begins; the header is line 1.
        poster_id: path of its image in the images' folder, without the extension.
        genres: indices into the genres, ascending.
        extension: of its image.
        group: name of what is to be in one split; empty if the poster is alone.
    """

    line: int
    poster_id: str
    genres: tuple[int, ...]
    extension: str = ".jpg"
    group: str = ""


class RowReader:
    """Reads a table that has been understood.

    Attributes:
        table: the annotations.
        understanding: which column is what.
    """

    def __init__(
        self,
        table: tables.Table,
        understanding: understanding_lib.Understanding,
        images: image_files.ImageFiles,
    ):
        self.table, self.understanding, self._images = table, understanding, images
        self._index = {name.casefold(): i for i, name in enumerate(understanding.genres)}

    def read(self) -> Iterator[Annotation | faults.Fault]:
        """Yields an `Annotation` or a `Fault` for each row, in the file's order."""
        for chunk in self.table.chunks():
            ids = chunk.cells[self.understanding.id_column]
            columns = (self._marked(chunk), self._listed(chunk), self._groups(chunk))
            for line, text, *said in zip(chunk.cells.index, ids, *columns, strict=True):
                if line in chunk.broken:
                    yield faults.Fault(line, "", chunk.broken[line])
                else:
                    yield self._row(line, text.strip(), *said)

    def _row(
        self, line: int, text: str, marked: tuple[int, ...] | str | None, listed, group: str
    ) -> Annotation | faults.Fault:
        if not text:
            return faults.Fault(line, "", f"`{self._name(self.understanding.id_column)}` is empty")
        for problem in (marked, listed):
            if isinstance(problem, str):
                return faults.Fault(line, text, problem)
        if None not in (marked, listed) and marked != listed:
            return faults.Fault(line, text, self._contradiction(marked, listed))
        found = self._images.find(text)
        if len(found) != 1:
            return faults.Fault(line, text, self._images.explain(text))
        genres = marked if listed is None else tuple(sorted(set(listed)))
        return Annotation(line, found[0].poster_id, genres, found[0].extension, group)

    def _marked(self, chunk: tables.Chunk) -> Iterator[tuple[int, ...] | str | None]:
        """Yields what the 0/1 columns say of each row: genres, what is wrong, or nothing."""
        positions = self.understanding.genre_columns
        if not positions:
            yield from itertools.repeat(None, len(chunk.cells))
            return
        labels = np.empty((len(chunk.cells), len(positions)), np.uint8)
        for i, position in enumerate(positions):
            codes, texts = pd.factorize(chunk.cells[position])
            known = np.array([cells.read_label(text) for text in texts], np.uint8)
            if self.understanding.blank_is_absent[i]:
                known[known == cells.BLANK] = cells.ABSENT
            labels[:, i] = known[codes]
        # Bytes, which Python's garbage collector does not go through, unlike lists.
        width, packed = len(positions), labels.tobytes()
        for i in range(len(labels)):
            row = packed[i * width : (i + 1) * width]
            if max(row) <= cells.PRESENT:
                yield tuple(itertools.compress(range(width), row))
            else:
                first = next(j for j, label in enumerate(row) if label > cells.PRESENT)
                yield self._wrong_label(chunk.cells.iat[i, positions[first]], positions[first])

    def _groups(self, chunk: tables.Chunk) -> Iterator[str]:
        """Yields the name of each row's group; empty if there is none."""
        position = self.understanding.group_column
        if position is None:
            return itertools.repeat("", len(chunk.cells))
        texts = map(str.strip, chunk.cells[position])
        return ("" if cells.is_nothing(text) else text for text in texts)

    def _wrong_label(self, text: str, position: int) -> str:
        return (
            f"`{self._name(position)}` is {text!r}; it must be 0 or 1 (if it is no genre, name "
            'those that are by "genre_columns" in --config)'
        )

    def _listed(self, chunk: tables.Chunk) -> Iterator[tuple[int, ...] | str | None]:
        """Yields what the list of genres says of each row, as `_marked` does."""
        position = self.understanding.genre_column
        if position is None:
            return itertools.repeat(None, len(chunk.cells))
        codes, texts = pd.factorize(chunk.cells[position])
        found = [self._read_list(text, position) for text in texts]
        return (found[code] for code in codes)

    def _read_list(self, text: str, position: int) -> tuple[int, ...] | str:
        names = cells.read_genres(text, self.understanding.separator)
        if names is None:
            return f"`{self._name(position)}` is {text!r}, not a list such as ['Drama']"
        indices = [self._index.get(name.casefold()) for name in names]
        if None in indices:
            unknown = names[indices.index(None)]
            columns = [self._name(p) for p in self.understanding.genre_columns]
            return (
                f"`{self._name(position)}` says {list(names)}, and no genre column is called "
                f"{unknown!r}; they are {columns}"
            )
        return tuple(sorted(indices))

    def _contradiction(self, marked: tuple[int, ...], listed: tuple[int, ...]) -> str:
        genres = self.understanding.genres
        column = self._name(self.understanding.genre_column)
        return (
            f"`{column}` says {[genres[i] for i in listed]}, the genre columns say "
            f"{[genres[i] for i in marked]}"
        )

    def _name(self, position: int) -> str:
        return self.table.columns[position]
