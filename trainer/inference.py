"""A split gone through once: what a model predicts for all of it."""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from trainer import steps
from trainer.reports import progress as progress_lib

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
    parts = []
    speed = go_through(
        eval_step, batches, num_steps, title, lambda *values: parts.append(values), should_stop
    )
    if speed is None:
        return None
    return Predicted(*map(np.concatenate, zip(*parts, strict=True)), speed)


def go_through(
    eval_step: Callable[[Iterator], dict],
    batches: Iterator,
    num_steps: int,
    title: str,
    take: Callable[[np.ndarray, np.ndarray], None],
    should_stop: Callable[[], bool],
) -> float | None:
    """Does what `predict` does, and hands the predictions on, some batches at a time.

    Args:
        take: takes labels, float32 [N, G], and what the model gives for them, [N, ...].

    Returns:
        Images a second, or None if it was told to stop.
    """
    pending, num_images = [], 0
    start = time.perf_counter()
    with progress_lib.Progress(title, num_steps) as progress:
        for step in range(1, num_steps + 1):
            pending.append(eval_step(batches))
            progress.update(len(pending[-1]["weight"]))
            if should_stop():
                return None
            if len(pending) == _BATCHES_TAKEN or step == num_steps:
                labels, outputs = steps.collect(pending)
                take(labels, outputs)
                pending, num_images = [], num_images + len(labels)
    return num_images / (time.perf_counter() - start)
