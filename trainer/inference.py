"""A split gone through once: what a model predicts for all of it."""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from trainer import progress as progress_lib, steps

_BATCHES_TAKEN = 64  # At a time, from the device.


class Predicted(NamedTuple):
    """Predictions for a split."""

    labels: np.ndarray  # float32 [N, G], multi-hot.
    outputs: np.ndarray  # float32 [N, ...]: logits, or whatever the model gives.
    images_per_second: float


def predict(
    eval_step: Callable[[Iterator], dict],
    batches: Iterator,
    num_steps: int,
    title: str,
    should_stop: Callable[[], bool] = lambda: False,
) -> Predicted | None:
    """Goes once through a split, with a progress bar.

    Args:
        eval_step: of `steps.make_eval_step`.
        batches: what it takes.
        num_steps: batches of one pass.
        title: for the progress bar.
        should_stop: asked after each batch.

    Returns:
        The predictions, or None if it was told to stop.
    """
    start = time.perf_counter()
    stopped = False

    def stop() -> bool:
        nonlocal stopped
        stopped = should_stop()
        return stopped

    found = list(parts(eval_step, batches, num_steps, title, stop))
    if stopped:
        return None
    labels, outputs = map(np.concatenate, zip(*found, strict=True))
    return Predicted(labels, outputs, len(labels) / (time.perf_counter() - start))


def parts(
    eval_step: Callable[[Iterator], dict],
    batches: Iterator,
    num_steps: int,
    title: str,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Does what `predict` does, and yields labels and predictions, some batches at a time."""
    pending = []
    with progress_lib.Progress(title, num_steps) as progress:
        for step in range(1, num_steps + 1):
            pending.append(eval_step(batches))
            progress.update(len(pending[-1]["weight"]))
            if should_stop():
                return
            if len(pending) == _BATCHES_TAKEN or step == num_steps:
                yield steps.collect(pending)
                pending = []
