"""What a model answers: all of it with its scores, or in a file of a run's best model."""

import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from trainer.reports import scores, tally
from trainer.run import directory

MOST_KEPT = 250_000  # Posters whose answers are kept; those of more are counted.


class Answers(NamedTuple):
    """What a model answered for the posters of a split, and what would have been right."""

    labels: np.ndarray  # float32 [N, G], multi-hot.
    logits: np.ndarray  # float32 [N, G].


class Kept:
    """Answers that are kept, and scored exactly."""

    def __init__(self, base_rates: np.ndarray):
        """Begins with no answers.

        Args:
            base_rates: float [G], what the constant predictor answers.
        """
        self._base_rates = base_rates
        self._parts = [Answers(*np.zeros((2, 0, len(base_rates)), np.float32))]

    def __len__(self) -> int:
        """Returns how many posters were answered for."""
        return sum(len(part.labels) for part in self._parts)

    def anew(self) -> "Kept":
        """Returns one without answers."""
        return Kept(self._base_rates)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What a checkpoint keeps: `labels` and `logits`, float32 [N, G]."""
        return self._all()._asdict()

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Takes the place of all answers with those of which `arrays` are."""
        self._parts = [Answers(**arrays)]

    def add(self, labels: np.ndarray, logits: np.ndarray) -> None:
        """Keeps more answers.

        Args:
            labels: [N, G], 0 or 1.
            logits: float [N, G].
        """
        self._parts.append(Answers(labels, logits))

    def first(self, count: int) -> Answers:
        """Returns those for the first posters, so many or fewer."""
        return Answers(*(array[:count] for array in self._all()))

    def compute_metrics(self) -> dict[str, float]:
        """Returns what `scores.compute_metrics` does."""
        return scores.compute_metrics(*self._all())

    def compute_constant_metrics(self) -> dict[str, float]:
        """Returns what `scores.compute_constant_metrics` does."""
        return scores.compute_constant_metrics(self._all().labels, self._base_rates)

    def _all(self) -> Answers:
        if len(self._parts) > 1:
            self._parts = [Answers(*map(np.concatenate, zip(*self._parts, strict=True)))]
        return self._parts[0]


Gathered = Kept | tally.Tally


def gather(num_posters: int, base_rates: np.ndarray) -> Gathered:
    """Returns what takes the answers for so many posters: the more are counted, not kept.

    Args:
        num_posters: of the split.
        base_rates: float [G], what the constant predictor answers.
    """
    return (Kept if num_posters <= MOST_KEPT else tally.Tally)(base_rates)


class Answered(NamedTuple):
    """Answers for a split, and how fast they came."""

    answers: Gathered
    images_per_second: float | None


def write(
    run: directory.RunDirectory, answers: Answers, poster_ids: Sequence[str], **facts: str | int
) -> None:
    """Writes `answers.npz`: `labels`, `logits`, `poster_ids` [N] and what they are of.

    Args:
        run: where to.
        answers: those of all posters of a split.
        poster_ids: the posters', in the same order.
        **facts: `split`, `step` and `tta`, by which `read` knows them.

    Raises:
        config.UsageError: it cannot be written; what was there before still is.
    """
    buffer = io.BytesIO()
    np.savez(buffer, poster_ids=np.array(poster_ids), **answers._asdict(), **facts)
    directory.write_atomically(run.answers, buffer.getvalue())


def read(run: directory.RunDirectory, **facts: str | int) -> Answers | None:
    """Returns the answers of a run, or None if its file is of other facts, or is not there."""
    if not run.answers.exists():
        return None
    with np.load(run.answers) as arrays:
        if any(arrays[name] != value for name, value in facts.items()):
            return None
        return Answers(arrays["labels"], arrays["logits"])
