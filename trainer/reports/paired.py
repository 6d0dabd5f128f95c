"""Intervals of runs' mean scores, and of differences between them, on the same posters."""

from collections.abc import Sequence

import numpy as np

from trainer.reports import intervals, scores as scores_lib
from trainer.reports.answers import Answers

METRICS = ("macro_ap", "micro_ap", "loss", "lrap")


def are_comparable(answers: Sequence[Answers | None]) -> bool:
    """Returns whether all answers are there, and for the same posters.

    Of a dataset that was built anew in between they are not.
    """
    first, *others = answers
    return all(answers) and all(np.array_equal(each.labels, first.labels) for each in others)


def macro_ap_interval(answers: Sequence[Answers]) -> np.ndarray:
    """Returns the ends [2] of the interval of the mean macro AP of several runs' answers."""
    labels = answers[0].labels

    def mean(rows):
        each = [scores_lib.macro_ap(labels[rows], logits[rows]) for _, logits in answers]
        return [np.mean(each)]

    return intervals.bootstrap(mean, len(labels))[:, 0]


def difference(first: Sequence[Answers], second: Sequence[Answers]) -> np.ndarray:
    """Returns by how much the means of some runs' scores are above those of others.

    Each resample of the posters is drawn for both alike (paired bootstrap), so that what is hard in
    it is hard for both.

    Args:
        first: answers of one run or of several that differ in their seed alone.
        second: those of others, for the same posters.

    Returns:
        Float64 [3, M]: the differences of METRICS, and the ends of their intervals.
    """
    labels = first[0].labels

    def differences(rows):
        means = [
            np.mean([_scores(labels[rows], logits[rows]) for _, logits in answers], axis=0)
            for answers in (first, second)
        ]
        return means[0] - means[1]

    ends = intervals.bootstrap(differences, len(labels), lowest=-np.inf)
    return np.stack([differences(np.arange(len(labels))), *ends])


def _scores(labels: np.ndarray, logits: np.ndarray) -> list[float]:
    scores = scores_lib.compute_metrics(labels, logits)
    return [scores[name] for name in METRICS]
