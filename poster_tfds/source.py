"""A folder of posters with its CSV, as the rows of each split: what both engines read."""

import array
import hashlib
from collections.abc import Iterator

import numpy as np
from etils import epath

from poster_tfds import annotations as annotations_lib, faults, splits

SPLITS = ("train", "validation", "test")


class PosterSource:
    """The rows of a CSV, each in its split.

    The CSV is gone through once to count rows and to find Ids that stand there again,
    which takes some 80 bytes a row; after that rows are read as they are needed.

    Attributes:
        csv_path: the CSV.
        images_dir: the folder of the JPEGs.
        genres: names of the genre columns, in the CSV's order.
        num_rows: split -> rows in it, repeated Ids left out if they are to be; splits
            without rows are missing.
        num_repeated: rows left out because their Id came before.
    """

    def __init__(self, directory: epath.Path, config):
        """Goes through the CSV.

        Args:
            directory: holds `train.csv` and `Images/`.
            config: a `PosterConfig`.

        Raises:
            faults.PosterDataError: the header cannot be used, or no row follows it.
        """
        self.csv_path = directory / "train.csv"
        self.images_dir = directory / "Images"
        self.genres = annotations_lib.read_genres(self.csv_path)
        self._config = config
        lines, ids, genres = array.array("Q"), array.array("Q"), array.array("Q")
        splits_of_rows = array.array("b")
        for row in annotations_lib.read_annotations(self.csv_path):
            lines.append(row.line)
            faulty = isinstance(row, faults.Fault)
            # A faulty row repeats nothing: its line makes it unlike all others.
            ids.append(_hash(f"{row.line}:" if faulty else f":{row.poster_id}"))
            genres.append(0 if faulty else _hash(repr(row.genres)))
            if config.split == "hashed":
                splits_of_rows.append(SPLITS.index(self._hashed_split(row)))
        lines, ids, genres = (np.frombuffer(column, np.uint64) for column in (lines, ids, genres))
        if config.split == "reference":
            self._is_test = splits.reference_test_rows(len(lines))
            split_numbers = np.where(self._is_test, SPLITS.index("test"), SPLITS.index("train"))
        else:
            split_numbers = np.frombuffer(splits_of_rows, np.int8)
        repeated, self._first_line_of_conflict = _find_repeated(lines, ids, genres)
        self._left_out = frozenset(lines[repeated].tolist()) if config.drop_duplicates else ()
        self.num_repeated = len(self._left_out)
        kept = ~repeated if config.drop_duplicates else np.ones(len(lines), bool)
        counts = np.bincount(split_numbers[kept], minlength=len(SPLITS))
        self.num_rows = {
            name: int(count) for name, count in zip(SPLITS, counts, strict=True) if count
        }

    def rows(self, *wanted: str) -> Iterator[annotations_lib.Annotation | faults.Fault]:
        """Yields the rows of some splits, in the CSV's order."""
        for number, row in enumerate(annotations_lib.read_annotations(self.csv_path)):
            if self.split_of(number, row) not in wanted or row.line in self._left_out:
                continue
            first_line = self._first_line_of_conflict.get(row.line)
            if first_line is not None:
                reason = f"its Id stands on line {first_line} with other genres"
                row = faults.Fault(row.line, row.poster_id, reason)
            yield row

    def split_of(self, number: int, row: annotations_lib.Annotation | faults.Fault) -> str:
        """Returns the split of row `number` (from 0)."""
        if self._config.split == "reference":
            return "test" if self._is_test[number] else "train"
        return self._hashed_split(row)

    def _hashed_split(self, row) -> str:
        config = self._config
        return splits.hashed_split(
            row.poster_id, config.split_seed, config.validation_fraction, config.test_fraction
        )


def make_example(row: annotations_lib.Annotation, image: bytes) -> tuple[str, dict]:
    """Returns a row as TFDS takes it: a key and the example's features."""
    # An Id may be repeated, a line cannot.
    return f"{row.line}:{row.poster_id}", {
        "image": image,
        "genres": row.genres,
        "poster_id": row.poster_id,
    }


def poster_digest(image: bytes) -> bytes:
    """Returns what tells posters apart by their bytes."""
    return hashlib.blake2b(image, digest_size=16).digest()


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _find_repeated(
    lines: np.ndarray, ids: np.ndarray, genres: np.ndarray
) -> tuple[np.ndarray, dict[int, int]]:
    """Finds rows whose Id came before.

    Returns:
        bool [N], the rows that repeat an Id with the same genres; and, for the rows
        that repeat it with other genres, their line -> the line where it first stands.
    """
    _, first, group = np.unique(ids, return_index=True, return_inverse=True)
    first_of_row = first[group]
    again = first_of_row != np.arange(len(ids))
    conflict = again & (genres != genres[first_of_row])
    conflicts = zip(lines[conflict].tolist(), lines[first_of_row[conflict]].tolist(), strict=True)
    return again & ~conflict, dict(conflicts)
