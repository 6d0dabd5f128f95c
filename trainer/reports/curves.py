"""Pictures of a run: its learning curves, what augmentation does, posters with their answers."""

import io
import textwrap
from collections.abc import Sequence

import matplotlib.figure
import numpy as np
import pandas as pd
from PIL import Image

from poster_tfds.pages import rendering
from trainer.reports import scores

NUM_VARIANTS = 11  # Of a poster, beside itself in two rows.
_NUM_SHOWN = 3  # Most probable genres under a poster.
_MANY_TIMES = 50  # Between speeds that one linear scale does not show.


def draw_learning_curves(records: pd.DataFrame) -> bytes:
    """Draws loss, label accuracy, macro AP, learning rate, speed and waiting over the epochs.

    Args:
        records: of `directory.RunDirectory.read_history`.

    Returns:
        A PNG: train against test, with the constant predictor's score as a line, and a line
        between the training of a head and what follows it.
    """
    figure = matplotlib.figure.Figure(figsize=(13, 7), layout="constrained")
    ends = records.groupby("phase")["epoch"].max().tolist()[:-1]
    above, below = figure.subplots(2, 3)
    for axes, metric in zip(above, ("loss", "label_accuracy", "macro_ap"), strict=True):
        for split, of_split in records.dropna(subset=[metric]).groupby("split", sort=False):
            (line,) = axes.plot(of_split["epoch"], of_split[metric], marker="o", label=split)
            constant = of_split[f"constant.{metric}"].iloc[-1]
            axes.axhline(
                constant, color=line.get_color(), linestyle="--", label=f"constant, {split}"
            )
        axes.set_title(scores.HEADINGS[metric])
    trained = records.dropna(subset=["learning_rate"])
    titles = {
        "learning_rate": "learning rate",
        "images_per_second": "images/s in training",
        "share_waited": "share of the time waiting for posters",
    }
    for axes, (column, title) in zip(below, titles.items(), strict=True):
        axes.set_title(title)
        axes.plot(trained["epoch"], trained[column], marker="o", color="black", label="train")
        # A head on features is some hundred times as fast as what comes after it.
        if trained[column].min() > 0 and np.ptp(np.log(trained[column])) > np.log(_MANY_TIMES):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
        else:
            axes.set_ylim(bottom=0)
    below[2].set_ylim(0, 1)
    for axes in (*above, *below):
        for end in ends:
            axes.axvline(end + 0.5, color="gray", linestyle=":", label="the head alone before")
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    return rendering.save(figure, "png")


def draw_lr_sweep(
    rates: np.ndarray, losses: np.ndarray, smoothed: np.ndarray, proposed: float
) -> bytes:
    """Draws the loss over rising learning rates.

    Args:
        rates: [S], one a step.
        losses: [S], of the steps' batches.
        smoothed: [S], their running mean.
        proposed: the rate to point out.

    Returns:
        A PNG.
    """
    figure = matplotlib.figure.Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses, color="0.8", label="of a batch")
    axes.plot(rates, smoothed, label="smoothed")
    axes.axvline(proposed, color="black", linestyle="--", label=f"proposed: {proposed:.1e}")
    # Where it diverges it would flatten all the rest.
    axes.set_ylim(0.9 * np.nanmin(losses), 1.5 * smoothed[0])
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")  # `rendering` shows text as it is, powers too.
    axes.set_title("loss in training")
    axes.set_xlabel("learning rate")
    axes.grid(alpha=0.3)
    axes.legend()
    return rendering.save(figure, "png")


def draw_variants(image: np.ndarray, variants: np.ndarray) -> bytes:
    """Draws a poster as it is, and in two rows what augmentation makes of it, epoch by epoch.

    Args:
        image: uint8 [S, S, 3].
        variants: uint8 [NUM_VARIANTS, S, S, 3].

    Returns:
        A PNG.
    """
    tiles = np.pad(
        np.stack([image, *variants]),
        [(0, 0), (0, 8), (0, 8), (0, 0)],
        mode="constant",
        constant_values=255,
    )
    rows = [np.concatenate(list(row), axis=1) for row in np.split(tiles, 2)]
    picture = io.BytesIO()
    Image.fromarray(np.concatenate(rows)).save(picture, "PNG")
    return picture.getvalue()


def draw_answers(
    images: np.ndarray, labels: np.ndarray, logits: np.ndarray, genres: Sequence[str]
) -> bytes:
    """Draws posters, each under its genres and the most probable ones with their scores.

    Args:
        images: uint8 [N, S, S, 3].
        labels: [N, G], 0 or 1.
        logits: float [N, G].
        genres: their names.

    Returns:
        A PNG.
    """
    titles = []
    for i in range(len(images)):
        its_own = ", ".join(genres[g] for g in np.flatnonzero(labels[i])) or "no genre"
        best = np.argsort(-logits[i], kind="stable")[:_NUM_SHOWN]
        found = [f"{genres[g]} {1 / (1 + np.exp(-logits[i, g])):.2f}" for g in best]
        titles.append("\n".join([textwrap.fill(its_own, 28), "", *found]))
    figure = matplotlib.figure.Figure(figsize=(2.2 * len(images), 2.6), layout="constrained")
    for axes, image, title in zip(
        figure.subplots(1, len(images), squeeze=False).flat, images, titles, strict=True
    ):
        axes.imshow(image)
        axes.set_title(title, fontsize=9)
        axes.axis("off")
    return rendering.save(figure, "png")
