"""The posters that a report shows: how right the model is of them, and how wrong."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from trainer.reports import analysis, scores as scores_lib
from trainer.reports.report import Report

_NUM_WORST, _NUM_BEST, _NUM_DOUBTED = 24, 12, 12
_NUM_COMMON_GENRES, _NUM_FALSE_POSITIVES = 4, 6


class Gallery(NamedTuple):
    """Posters with what they have in common."""

    heading: str
    words: str
    posters: Sequence[dict[str, Any]]  # Each `jpeg` and what is said of it.


def choose(report: Report) -> list[Gallery]:
    """Returns the galleries: the worst posters, the best, doubted labels, false positives."""
    labels, logits = report.evaluated.labels, report.evaluated.logits
    losses = scores_lib.poster_losses(labels, logits)
    by_loss = np.argsort(-losses, kind="stable")
    doubted = analysis.probably_mislabelled(labels, report.calibrated)[:_NUM_DOUBTED]
    # Heading, words, posters and what is said of each.
    chosen = [
        (
            "Largest losses",
            "A poster's loss, in italics its genres, then the three most probable; in bold those "
            "that are right.",
            by_loss[:_NUM_WORST],
            [],
        ),
        ("Smallest losses", "", by_loss[::-1][:_NUM_BEST], []),
        (
            "Probably mislabelled",
            "The model is surer that these have a genre more, or one less, than it is of most "
            "posters that are labelled so (confident learning). Look before you believe it, or "
            "the annotations.",
            doubted[:, 0],
            [_describe_doubt(report, *doubt) for doubt in doubted],
        ),
    ]
    for genre in np.argsort(-labels.sum(axis=0), kind="stable")[:_NUM_COMMON_GENRES]:
        name = report.evaluated.facts["genres"][genre]
        of_genre = analysis.false_positives(labels, logits, genre, _NUM_FALSE_POSITIVES)
        chosen.append((f"Most probably {name}, and labelled otherwise", "", of_genre, []))
    jpegs = report.evaluated.read_posters(np.concatenate([posters for _, _, posters, _ in chosen]))
    return [
        Gallery(
            heading,
            words,
            [
                {"jpeg": jpegs[int(i)], "remark": remark, **_describe_poster(report, losses, i)}
                for i, remark in itertools.zip_longest(posters, remarks, fillvalue="")
            ],
        )
        for heading, words, posters, remarks in chosen
        if len(posters)
    ]


def _describe_doubt(report: Report, poster: int, genre: int) -> str:
    name = report.evaluated.facts["genres"][genre]
    if report.evaluated.labels[poster, genre]:
        return f"not {name}?"
    return f"{name} too?"


def _describe_poster(report: Report, losses: np.ndarray, i: int) -> dict[str, Any]:
    evaluated = report.evaluated
    genres = evaluated.facts["genres"]
    return {
        "id": evaluated.poster_ids[i],
        "loss": losses[i],
        "is_leaked": evaluated.leaked[i],
        "genres": evaluated.genres_of(i),
        "answers": [
            {"genre": genres[g], "score": score, "is_right": bool(evaluated.labels[i, g])}
            for g, score in analysis.top_genres(evaluated.logits[i])
        ],
    }
