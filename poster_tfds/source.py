"""A folder of posters with its CSV, as the rows of each split: what both engines read."""

import collections
import hashlib
from collections.abc import Iterator

import numpy as np
from etils import epath

from poster_tfds import annotations as annotations_lib, faults, first_seen, splits

SPLITS = ("train", "validation", "test")


class PosterSource:
    """The rows of a CSV, each in its split.

    The CSV is gone through once to count rows and to find Ids that stand there again; after
    that rows are read as they are needed. Only the numbers of those that repeat an Id are held.

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
        self._left_out, self._first_line_of_conflict = set(), {}
        ids = first_seen.FirstSeen()
        counts = collections.Counter()
        for number, row in enumerate(annotations_lib.read_annotations(self.csv_path)):
            if not isinstance(row, faults.Fault):
                self._compare_with_first(number, row, ids)
            if config.split == "hashed":
                counts[self._hashed_split(row)] += number not in self._left_out
        if config.split == "reference":
            self._is_test = splits.reference_test_rows(number + 1)
            is_test = np.delete(self._is_test, list(self._left_out))
            counts.update(train=int((~is_test).sum()), test=int(is_test.sum()))
        self.num_repeated = len(self._left_out)
        self.num_rows = {name: counts[name] for name in SPLITS if counts[name]}

    def rows(self, *wanted: str) -> Iterator[annotations_lib.Annotation | faults.Fault]:
        """Yields the rows of some splits, in the CSV's order."""
        for number, row in enumerate(annotations_lib.read_annotations(self.csv_path)):
            if number in self._left_out or self.split_of(number, row) not in wanted:
                continue
            first_line = self._first_line_of_conflict.get(number)
            if first_line is not None:
                reason = f"its Id stands on line {first_line} with other genres"
                row = faults.Fault(row.line, row.poster_id, reason)
            yield row

    def split_of(self, number: int, row: annotations_lib.Annotation | faults.Fault) -> str:
        """Returns the split of row `number` (from 0)."""
        if self._config.split == "reference":
            return "test" if self._is_test[number] else "train"
        return self._hashed_split(row)

    def _compare_with_first(self, number: int, row, ids: first_seen.FirstSeen) -> None:
        """Finds out whether row `number` is the first with its Id, and how it differs if not."""
        first = ids.setdefault(row.poster_id, f"{row.line} {row.genres}")
        first_line, first_genres = first.split(" ", 1)
        if int(first_line) == row.line:
            return
        if first_genres != str(row.genres):
            self._first_line_of_conflict[number] = int(first_line)
        elif self._config.drop_duplicates:
            self._left_out.add(number)

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
