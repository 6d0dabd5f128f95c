"""A run for people: progress, tables, pictures."""

import io
import pathlib
import shutil
import sys
import time

import matplotlib.figure
import numpy as np
import tensorflow as tf
import tqdm

from trainer import evaluation

HEADINGS = {
    "loss": "loss",
    "label_accuracy": "label accuracy",
    "macro_ap": "macro AP",
    "micro_ap": "micro AP",
    "lrap": "LRAP",
}
_SECONDS_BETWEEN_LINES = 30
NUM_VARIANTS = 11  # Of a poster, beside itself in two rows.


class Progress:
    """Images a second and time left: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, name: str, num_steps: int, done: int = 0):
        """Begins to count.

        Args:
            name: of what is going on.
            num_steps: how many steps it has.
            done: how many of them an interrupted run has done.
        """
        self._name = name
        self._num_steps = num_steps - done
        self._done = done
        self._steps = self._images = 0
        self._start = self._last_line = time.monotonic()
        self._bar = tqdm.tqdm(
            total=num_steps,
            initial=done,
            desc=name,
            unit="step",
            leave=False,
            disable=not sys.stderr.isatty(),
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception) -> None:
        self._bar.close()

    def update(self, images: int, steps: int = 1) -> None:
        """Counts more steps, which took `images` posters."""
        self._steps += steps
        self._images += images
        now = time.monotonic()
        rate = f"{self._images / (now - self._start):.0f} img/s"
        self._bar.set_postfix_str(rate, refresh=False)
        self._bar.update(steps)
        if self._bar.disable and now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            left = (self._num_steps - self._steps) * (now - self._start) / self._steps
            steps, of = self._done + self._steps, self._done + self._num_steps
            print(f"{self._name}: step {steps}/{of}, {rate}, {left:.0f} s left")
            sys.stdout.flush()


def format_records(records: list[dict]) -> str:
    """Returns records of `metrics.jsonl` as a table, each above the constant predictor's."""
    rows = [(" " * 20, [HEADINGS[name] for name in evaluation.METRICS])]
    for record in records:
        for title, scores in ((record["split"], record), ("  constant", record["constant"])):
            rows.append((title, [f"{scores[name]:.4f}" for name in evaluation.METRICS]))
    return "\n".join(
        f"{title:<20}" + "".join(f"{cell:>16}" for cell in cells) for title, cells in rows
    )


def write_tensorboard(directory: pathlib.Path, records: list[dict], anew: bool = False) -> None:
    """Writes the scores of an epoch, the constant predictor's as runs of their own.

    Args:
        directory: for TensorBoard.
        records: records of `metrics.jsonl`.
        anew: whether to replace what is there, so that each step stands there once.
    """
    if anew:
        shutil.rmtree(directory, ignore_errors=True)
    for record in records:
        for name, scores in (
            (record["split"], record),
            (f"constant_{record['split']}", record["constant"]),
        ):
            with tf.summary.create_file_writer(str(directory / name)).as_default(record["step"]):
                for metric in scores.keys() & {*evaluation.METRICS, "images_per_second"}:
                    if scores[metric] is not None:
                        tf.summary.scalar(metric, scores[metric])


def draw_learning_curves(records: list[dict]) -> bytes:
    """Draws loss, label accuracy and macro AP over the epochs.

    Args:
        records: the records of `metrics.jsonl`.

    Returns:
        A PNG: train against test, with the constant predictor's score as a line.
    """
    figure = matplotlib.figure.Figure(figsize=(13, 4), layout="constrained")
    for axes, metric in zip(
        figure.subplots(1, 3), ("loss", "label_accuracy", "macro_ap"), strict=True
    ):
        for split in dict.fromkeys(record["split"] for record in records):
            chosen = [record for record in records if record["split"] == split]
            epochs = [record["epoch"] for record in chosen]
            values = [_number(record[metric]) for record in chosen]
            (line,) = axes.plot(epochs, values, marker="o", label=split)
        constant = _number(chosen[-1]["constant"][metric])
        axes.axhline(constant, color=line.get_color(), linestyle="--", label="constant, " + split)
        axes.set_title(HEADINGS[metric])
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=100)
    return png.getvalue()


def draw_variants(image: np.ndarray, variants: np.ndarray) -> bytes:
    """Draws a poster and what augmentation makes of it, epoch by epoch.

    Args:
        image: uint8 [S, S, 3].
        variants: uint8 [NUM_VARIANTS, S, S, 3].

    Returns:
        A PNG.
    """
    figure = matplotlib.figure.Figure(figsize=(13, 5), layout="constrained")
    titles = ["as it is", *(f"epoch {epoch + 1}" for epoch in range(len(variants)))]
    panels = figure.subplots(2, (NUM_VARIANTS + 1) // 2).flat
    for axes, title, picture in zip(panels, titles, [image, *variants], strict=True):
        axes.imshow(picture)
        axes.set_title(title)
        axes.axis("off")
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=100)
    return png.getvalue()


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
