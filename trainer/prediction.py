"""What a model answers for every example of a split."""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from trainer import report, steps


class Predicted(NamedTuple):
    """Answers for a split."""

    labels: np.ndarray  # float32 [N, G], multi-hot.
    outputs: np.ndarray  # float32 [N, ...]: logits, or whatever the model gives.
    images_per_second: float


def predict(
    eval_step: Callable[[Iterator], dict],
    batches: Iterator,
    num_steps: int,
    title: str,
    should_stop: Callable[[], bool],
) -> Predicted | None:
    """Goes once through a split, with a progress bar.

    Args:
        eval_step: of `steps.make_eval_step`.
        batches: what it takes.
        num_steps: batches of one pass.
        title: for the progress bar.
        should_stop: asked after each batch.

    Returns:
        The answers, or None if it was told to stop.
    """
    outputs = []
    start = time.perf_counter()
    with report.Progress(title, num_steps) as progress:
        while len(outputs) < num_steps:
            outputs.append(eval_step(batches))
            progress.update(len(outputs[-1]["weight"]))
            if should_stop():
                return None
    labels, values = steps.collect(outputs)
    return Predicted(labels, values, len(labels) / (time.perf_counter() - start))
