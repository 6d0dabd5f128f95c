"""What a model's answers say, genre by genre and poster by poster."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn import metrics

from trainer.reports import answers as answers_lib, intervals, scores as scores_lib

MIN_TO_LEARN = 50  # Posters of a genre in the train split.
# Average precision is a mean over a genre's posters: with fewer, one of them counts for
# more than a tenth of it.
MIN_TO_MEASURE = 10


def score_genres(
    genres: Sequence[str],
    answers: answers_lib.Answers,
    predicted: np.ndarray,
    train_counts: np.ndarray,
    num_resamples: int = intervals.NUM_RESAMPLES,
) -> pd.DataFrame:
    """Scores each genre, the one with most posters in the train split first.

    Args:
        genres: names [G].
        answers: for the posters.
        predicted: bool [N, G], which genres they are taken to have.
        train_counts: int [G], posters of each genre in the train split.
        num_resamples: of the posters, for the intervals.

    Returns:
        A row a genre: `num_train` and `num_evaluated`, its posters; `constant`, their share of the
        split, which is the constant predictor's average precision; `average_precision` with `low`
        and `high` of `intervals.bootstrap`, and `roc_auc`, NaN if no poster has it; `precision`,
        `recall` and `f1` of what is predicted, NaN where there is nothing to divide by; `remark`,
        whether it has too few posters, in words.
    """
    labels, logits = answers.labels > 0.5, answers.logits
    each = range(len(genres))

    def average_precisions(rows):
        chosen, scores = labels[rows], logits[rows]
        return [scores_lib.average_precision(chosen[:, g], scores[:, g]) for g in each]

    low, high = intervals.bootstrap(average_precisions, len(labels), num_resamples=num_resamples)
    counts = labels.sum(axis=0)
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
        labels, predicted, average=None, zero_division=np.nan
    )
    scores = pd.DataFrame(
        {
            "num_train": np.asarray(train_counts),
            "num_evaluated": counts,
            "constant": counts / len(labels),
            "average_precision": average_precisions(slice(None)),
            "low": low,
            "high": high,
            "roc_auc": [scores_lib.roc_auc(labels[:, g], logits[:, g]) for g in each],
            "precision": precision,
            "recall": recall,
            "f1": f1,
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
    """Scores all posters, and those that are not `leaked`; None if none is left.

    Args:
        labels: [N, G], 0 or 1.
        logits: float [N, G].
        leaked: bool [N], whether a poster is in the train split too.
        base_rates: float [G], of the train split.
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
    num_resamples: int = intervals.NUM_RESAMPLES,
) -> pd.DataFrame:
    """Scores all posters by all metrics, each with its interval and the constant predictor's.

    A constant predictor can only see a genre in every poster or in none. It sees it where that is
    as precise as it should be: without a target everywhere, which is its best F1.

    Args:
        answers: for the posters.
        decided: calibrated probabilities [N, G] and predicted genres [N, G].
        base_rates: float [G], of the train split.
        target_precision: with which the predicted genres were chosen; 0: for the best F1.
        num_resamples: of the posters, for the intervals.

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
    low, high = intervals.bootstrap(
        lambda rows: [*score(rows).values()], len(labels), num_resamples=num_resamples
    )
    table = pd.DataFrame({"score": scores, "constant": of_constant})
    return table.assign(low=low, high=high)[["score", "low", "high", "constant"]]


def false_positives(labels: np.ndarray, logits: np.ndarray, genre: int, count: int) -> np.ndarray:
    """Returns which posters without a genre have its highest scores, int [count or fewer]."""
    without = np.flatnonzero(labels[:, genre] == 0)
    return without[np.argsort(-logits[without, genre], kind="stable")[:count]]


def surest(
    labels: np.ndarray, logits: np.ndarray, is_right: bool, count: int
) -> list[tuple[int, int]]:
    """Returns the surest right or wrong answers of different genres, [N, G], the surest first.

    Returns:
        A poster's and a genre's number for each answer; fewer than `count` if there are not as many
        genres with such posters.
    """
    wanted = (labels > 0.5) == is_right
    posters = np.where(wanted, logits, -np.inf).argmax(axis=0)
    genres = np.flatnonzero(wanted.any(axis=0))
    order = np.argsort(-logits[posters[genres], genres], kind="stable")[:count]
    return [(int(posters[genre]), int(genre)) for genre in genres[order]]


def top_genres(logits: np.ndarray, count: int = 3) -> list[tuple[int, float]]:
    """Returns the most probable genres of a poster, indices with scores, from logits [G]."""
    best = np.argsort(-logits, kind="stable")[:count]
    return [(int(i), float(1 / (1 + np.exp(-np.float64(logits[i]))))) for i in best]


def calibration_bins(
    labels: np.ndarray, probabilities: np.ndarray, num_bins: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns mean probability, share of ones and number of pairs in equal bins of probability.

    They are of labels [N, G] and probabilities [N, G], a number a bin each; the first two are NaN
    where a bin is empty.
    """
    bins = np.minimum((probabilities * num_bins).astype(int), num_bins - 1).ravel()
    counts = np.bincount(bins, minlength=num_bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN.
        means, shares = (
            np.bincount(bins, values.ravel(), num_bins) / counts
            for values in (probabilities, labels)
        )
    return means, shares, counts


def mistaken_shares(labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Returns, of the posters with a genre and without another, in how many that is predicted.

    They are shares [G, G] of bool [N, G], the genre that they have first; NaN where there are no
    such posters.
    """
    has, has_not = labels.T.astype(float), (~labels).astype(float)
    with np.errstate(invalid="ignore"):
        return has @ (predicted & ~labels) / (has @ has_not)


def joint_shares(values: np.ndarray) -> np.ndarray:
    """Returns how many of the posters with a genre have another, float64 [G, G].

    Args:
        values: [N, G], 0 or 1, or probabilities, of which the expected numbers are taken.

    Returns:
        The genre that they have comes first; NaN where no poster has it, and on the diagonal.
    """
    values = np.float64(values)
    with np.errstate(invalid="ignore"):
        shares = values.T @ values / values.sum(axis=0)[:, None]
    np.fill_diagonal(shares, np.nan)
    return shares


def probably_mislabelled(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Finds posters that may lack a genre or have one that is not theirs.

    The rule is that of confident learning (Northcutt, Jiang and Chuang 2021,
    https://arxiv.org/abs/1911.00068), genre by genre: a label is doubted if the model is surer of
    its opposite than it is, on average, of posters that are labelled so.

    Returns:
        Int [M, 2], poster and genre of each doubted label of [N, G], the surest first.
    """
    labels = labels > 0.5
    sureness = np.where(labels, 1 - probabilities, probabilities)  # Of the opposite.
    with np.errstate(invalid="ignore"):
        of_with = (probabilities * labels).sum(axis=0) / labels.sum(axis=0)
        of_without = ((1 - probabilities) * ~labels).sum(axis=0) / (~labels).sum(axis=0)
    doubted = np.argwhere(sureness >= np.where(labels, of_without, of_with))
    # By how far it is over what it must be, as a missing genre is never as sure as a wrong one.
    needed = np.where(labels, of_without, of_with)
    excess = (sureness - needed)[tuple(doubted.T)] / (1 - needed)[tuple(doubted.T)]
    return doubted[np.argsort(-excess, kind="stable")]
