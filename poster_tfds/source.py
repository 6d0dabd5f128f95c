"""A folder of posters with its annotations, as the rows of each split: what a build reads."""

import collections
import hashlib
from collections.abc import Iterator

import numpy as np
from etils import epath

from poster_tfds import (
    annotations as annotations_lib,
    faults,
    first_seen,
    image_files,
    repeated_ids,
    splits,
)
from poster_tfds.annotations import folder, rows as rows_lib, tables, understanding
from poster_tfds.repeated_ids import Kind

SPLITS = ("train", "validation", "test")


class PosterSource:
    """The rows of a file of annotations, each in its split.

    The file is gone through once to tell which column is what and once to count rows; after that
    rows are read as they are needed. Ids are in a temporary file: memory does not grow with rows.

    Attributes:
        table: the annotations.
        understanding: which column is what.
        images: the images.
        genres: names, in the order of the 0/1 columns, else sorted.
        genre_counts: how many posters of each genre there are.
        num_rows: split -> rows in it, repeated Ids left out if they are to be; splits
            without rows are missing.
        farthest_share: of a genre in a stratified split, where it is farthest from the one wanted.
        num_repeated: rows left out because their Id came before.
        kind_counts: `Kind` -> rows of it.
    """

    def __init__(self, directory: epath.Path, config):
        """Goes through the annotations; a `faults.UserError` says why it cannot."""
        try:
            self.table = tables.open_table(
                folder.find_annotations(directory, config.csv), config.encoding, config.separator
            )
            self.images = image_files.ImageFiles(folder.find_images(directory, config.images))
            self.understanding = understanding.understand(self.table, config, self.images)
        except OSError as error:
            raise faults.UserError(f"{error.filename}: {error.strerror}.") from None
        self.genres = list(self.understanding.genres)
        self._config = config
        self._reader = rows_lib.RowReader(self.table, self.understanding, self.images)
        self.farthest_share: splits.Share | None = None
        self._ids = repeated_ids.RepeatedIds(may_group=self.understanding.single)
        self._count()

    @property
    def is_grouped(self) -> bool:
        return self._ids.is_grouped

    @property
    def csv_path(self) -> epath.Path:
        return self.table.path

    @property
    def images_dir(self) -> epath.Path:
        return self.images.directory

    def rows(self, *wanted: str) -> Iterator[annotations_lib.Annotation | faults.Fault]:
        """Yields the rows of some splits, in the file's order."""
        return (row for split, row in self.rows_with_split() if split in wanted)

    def rows_with_split(self) -> Iterator[tuple[str, annotations_lib.Annotation | faults.Fault]]:
        """Yields each row after its split, in the file's order."""
        for number, kind, row in self._kept():
            yield self._split_of(number, row), self._ids.complete(kind, row)

    def _count(self) -> None:
        """Finds rows whose Id came before, and counts rows and genres."""
        rows = collections.Counter()  # By kind and split.
        genres = {kind: collections.Counter() for kind in Kind}
        self._kinds = bytearray()  # Of each row.
        is_hashed = self._config.split == "hashed"
        for row in self._reader.read():
            kind = self._ids.add(row)
            self._kinds.append(kind)
            if kind != Kind.FAULTY:
                genres[kind].update(row.genres)
            if is_hashed:
                rows[kind, self._split_of(0, row)] += 1
        self._left_out, self._numbered = set(), set(Kind)
        if self.is_grouped:
            self._left_out = {Kind.SAME, Kind.PART}
            self._numbered -= self._left_out
        elif self._config.drop_duplicates:
            self._left_out = {Kind.SAME}
        if not is_hashed:
            rows = self._count_numbered(np.frombuffer(self._kinds, np.uint8))
        counts, self.kind_counts = collections.Counter(), collections.Counter()
        for (kind, split), count in rows.items():
            counts[split] += count * (kind not in self._left_out)
            self.kind_counts[kind] += count
        self.num_rows = {name: counts[name] for name in SPLITS if counts[name]}
        self.num_repeated = self.kind_counts[Kind.SAME] * (Kind.SAME in self._left_out)
        counted = [genres[kind] for kind in {*Kind} - self._left_out - {Kind.CONTRARY}]
        counted += [genres[Kind.PART]] * self.is_grouped
        self.genre_counts = [sum(c[i] for c in counted) for i in range(len(self.genres))]

    def _count_numbered(self, kinds: np.ndarray) -> collections.Counter:
        """Returns how many rows there are of each kind and split, and keeps the split."""
        numbered = kinds[np.isin(kinds, list(self._numbered))]
        if self._config.split == "reference":
            is_test = splits.reference_test_rows(len(numbered))
            self._split_of_row = is_test * np.uint8(SPLITS.index("test"))
        else:
            self._split_of_row = self._stratify(len(numbered))
        rows = collections.Counter()
        for i, split in enumerate(SPLITS):
            for kind, count in enumerate(np.bincount(numbered[self._split_of_row == i]).tolist()):
                rows[Kind(kind), split] += count
        return rows

    def _stratify(self, num_rows: int) -> np.ndarray:
        """Returns the index of each numbered row's split; needs the labels of all at once.

        Faults are in `train`: another split could be left with nothing else.
        """
        config = self._config
        labels = np.zeros((num_rows, len(self.genres)), bool)
        groups = np.full(num_rows, -1)  # The number of a group's first row.
        first_rows = first_seen.FirstSeen()
        for number, kind, row in self._kept():
            row = self._ids.complete(kind, row)
            if not isinstance(row, faults.Fault):
                labels[number, list(row.genres)] = True
                groups[number] = first_rows.setdefault(_split_name(row), number)
        is_sound = groups >= 0
        labels, groups = labels[is_sound], groups[is_sound]
        fractions = (
            1 - config.validation_fraction - config.test_fraction,
            config.validation_fraction,
            config.test_fraction,
        )
        chosen = splits.stratified_splits(labels, groups, fractions, config.split_seed)
        self.farthest_share = splits.farthest_share(labels, chosen, fractions)
        split_of_row = np.zeros(num_rows, np.uint8)
        split_of_row[is_sound] = chosen
        return split_of_row

    def _kept(self) -> Iterator[tuple[int, Kind, annotations_lib.Annotation | faults.Fault]]:
        """Yields number (from 0), kind and content of each row that is not left out."""
        number = 0
        for kind, row in zip(self._kinds, self._reader.read(), strict=True):
            if kind not in self._left_out:
                yield number, kind, row
            number += kind in self._numbered

    def _split_of(self, number: int, row: annotations_lib.Annotation | faults.Fault) -> str:
        """Returns the split of row `number` (from 0)."""
        config = self._config
        if config.split != "hashed":
            return SPLITS[self._split_of_row[number]]
        return splits.hashed_split(
            _split_name(row),
            config.split_seed,
            config.validation_fraction,
            config.test_fraction,
        )


def make_example(row: annotations_lib.Annotation, image: bytes) -> tuple[str, dict]:
    """Returns a row as TFDS takes it: a key and the example's features."""
    # An Id may be repeated, a line cannot.
    return f"{row.line}:{row.poster_id}", {
        "image": image,
        "genres": row.genres,
        "poster_id": row.poster_id,
    }


def _split_name(row: annotations_lib.Annotation | faults.Fault) -> str:
    """Returns what is in one split: the row's group, or its poster."""
    return row.poster_id if isinstance(row, faults.Fault) else row.group or row.poster_id


def poster_digest(image: bytes) -> bytes:
    """Returns what tells posters apart by their bytes."""
    return hashlib.blake2b(image, digest_size=16).digest()
