"""A model's predictions for a split, and the file of those of a run's best model."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from trainer.run import directory


class Answers(NamedTuple):
    """What a model predicts for the posters of a split, and what would have been right."""

    labels: np.ndarray  # float32 [N, G], multi-hot.
    logits: np.ndarray  # float32 [N, G].


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
