"""What a model's answers say, genre by genre and poster by poster."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from trainer.reports import answers as answers_lib, intervals, scores as scores_lib

MIN_TO_LEARN = 50  # Posters of a genre in the train split.
# Average precision is a mean over a genre's posters: with fewer, one of them counts for
# more than a tenth of it.
MIN_TO_MEASURE = 10


def score_genres(
    genres: Sequence[str], labels: np.ndarray, logits: np.ndarray, train_counts: np.ndarray
) -> pd.DataFrame:
    """Scores each genre, the one with most posters in the train split first.

    Args:
        genres: names [G].
        labels: [N, G], 0 or 1.
        logits: float [N, G].
        train_counts: int [G], posters of each genre in the train split.

    Returns:
        A row a genre: `num_train` and `num_evaluated`, its posters; `average_precision`, NaN
        if no poster has it; `constant`, the constant predictor's, which is the genre's share
        of the split; `remark`, whether it has too few posters, in words.
    """
    counts = labels.sum(axis=0).astype(int)
    labels = labels > 0.5
    scores = pd.DataFrame(
        {
            "num_train": np.asarray(train_counts),
            "num_evaluated": counts,
            "average_precision": [
                scores_lib.average_precision(labels[:, i], logits[:, i]) for i in range(len(genres))
            ],
            "constant": counts / len(labels),
            "remark": [_remark(*both) for both in zip(train_counts, counts, strict=True)],
        },
        index=pd.Index(list(genres), name="genre"),
    )
    return scores.sort_values("num_train", ascending=False, kind="stable")


def _remark(num_train: int, num_evaluated: int) -> str:
    remarks = []
    if num_train < MIN_TO_LEARN:
        remarks.append("too few to learn")
    if num_evaluated < MIN_TO_MEASURE:
        remarks.append("too few to measure" if num_evaluated else "none to measure")
    return ", ".join(remarks)


class Scores(NamedTuple):
    """Metrics of `scores` over some posters, beside the constant predictor's."""

    num_posters: int
    model: dict[str, float]
    constant: dict[str, float]


def score_with_and_without(
    labels: np.ndarray, logits: np.ndarray, leaked: np.ndarray, base_rates: np.ndarray
) -> tuple[Scores, Scores | None]:
    """Scores all posters, and those that are not in the train split too.

    Args:
        labels: [N, G], 0 or 1.
        logits: float [N, G].
        leaked: bool [N], whether a poster is in the train split too.
        base_rates: float [G], of the train split.

    Returns:
        Both; the second is None if no poster is left.
    """

    def score(chosen):
        return Scores(
            int(chosen.sum()),
            scores_lib.compute_metrics(labels[chosen], logits[chosen]),
            scores_lib.compute_constant_metrics(labels[chosen], base_rates),
        )

    return score(np.ones(len(labels), bool)), None if leaked.all() else score(~leaked)


def score_with_intervals(
    answers: answers_lib.Answers,
    decided: tuple[np.ndarray, np.ndarray],
    base_rates: np.ndarray,
    target_precision: float,
) -> pd.DataFrame:
    """Scores all posters by all metrics, each with its interval and the constant predictor's.

    A constant predictor can only see a genre in every poster or in none. It sees it where that is
    as precise as it should be: without a target everywhere, which is its best F1.

    Args:
        answers: for the posters.
        decided: calibrated probabilities [N, G] and predicted genres [N, G].
        base_rates: float [G], of the train split.
        target_precision: with which the predicted genres were chosen; 0: for the best F1.

    Returns:
        A row a metric: `score`, `low` and `high` of `intervals.bootstrap`, and `constant`.
    """
    labels, logits = answers

    def score(rows):
        more = scores_lib.compute_more_metrics(
            labels[rows], logits[rows], *(array[rows] for array in decided)
        )
        return scores_lib.compute_metrics(labels[rows], logits[rows]) | more

    constants = (
        scores_lib.constant_logits(base_rates, len(labels)),
        np.broadcast_to(base_rates, labels.shape),
        np.broadcast_to(base_rates >= target_precision, labels.shape),
    )
    of_constant = scores_lib.compute_constant_metrics(labels, base_rates)
    of_constant |= scores_lib.compute_more_metrics(labels, *constants)
    scores = score(np.arange(len(labels)))
    low, high = intervals.bootstrap(lambda rows: [*score(rows).values()], len(labels))
    table = pd.DataFrame({"score": scores, "constant": of_constant})
    return table.assign(low=low, high=high)[["score", "low", "high", "constant"]]


def false_positives(labels: np.ndarray, logits: np.ndarray, genre: int, count: int) -> np.ndarray:
    """Returns which posters without a genre have its highest scores, int [count or fewer]."""
    without = np.flatnonzero(labels[:, genre] == 0)
    return without[np.argsort(-logits[without, genre], kind="stable")[:count]]


def top_genres(logits: np.ndarray, count: int = 3) -> list[tuple[int, float]]:
    """Returns the most probable genres of a poster, indices with scores, from logits [G]."""
    best = np.argsort(-logits, kind="stable")[:count]
    return [(int(i), float(1 / (1 + np.exp(-np.float64(logits[i]))))) for i in best]
