"""What is wrong with a poster data set, told all at once."""

from collections.abc import Iterable
from typing import NamedTuple

_FAULTS_SHOWN = 20


class UserError(ValueError):
    """What the user can put right; its message says what is wrong and what to do."""


class Fault(NamedTuple):
    """One thing wrong with one row of the CSV.

    Attributes:
        line: line of the CSV on which the row begins; the header is line 1.
        poster_id: the row's `Id`, empty where it could not be read.
        reason: what is wrong, in words.
    """

    line: int
    poster_id: str
    reason: str

    def __str__(self) -> str:
        name = f" ({self.poster_id})" if self.poster_id else ""
        return f"line {self.line}{name}: {self.reason}"


class PosterDataError(UserError):
    """The CSV or the posters cannot be made into a dataset.

    Attributes:
        csv_path: the CSV.
        faults: every fault found, in the order of the CSV.
    """

    def __init__(self, csv_path, faults: Iterable[Fault]):
        self.csv_path = csv_path
        self.faults = sorted(faults)
        lines = [f"  {fault}" for fault in self.faults[:_FAULTS_SHOWN]]
        if len(self.faults) > _FAULTS_SHOWN:
            lines.append(f"  ... and {len(self.faults) - _FAULTS_SHOWN} more")
        count = f"{len(self.faults)} fault{'s' if len(self.faults) != 1 else ''}"
        super().__init__(
            "\n".join([f"{count} in {csv_path}; nothing was built.", *lines])
            + "\nMend or remove these rows and posters, then build again; or leave them out with "
            '"on_error": "skip" in --config.'
        )

    def __reduce__(self):
        # `tfds build --num_processes` hands exceptions from process to process.
        return type(self), (self.csv_path, self.faults)
