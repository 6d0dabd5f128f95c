"""How good a model is: every example counted once, beside the constant predictor.

Label accuracy alone says little here: most genres are absent from most posters, so
answering "none" is right for 0.9077 of the reference test split's labels.
"""

import math

import numpy as np

# Names of metrics, as records have them, and as people read them.
HEADINGS = {
    "loss": "loss",
    "label_accuracy": "label accuracy",
    "macro_ap": "macro AP",
    "micro_ap": "micro AP",
    "lrap": "LRAP",
}
METRICS = tuple(HEADINGS)
# Those that others publish, and that need thresholds: in the report alone.
MORE_HEADINGS = {
    "roc_auc": "ROC-AUC",
    "r_precision": "R-precision",
    "calibration_error": "calibration error",
    "calibrated_error": "the same, calibrated",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "sample_f1": "sample F1",
    "subset_accuracy": "subset accuracy",
}
_CALIBRATION_BINS = 15
_EPSILON = 1e-7
_BLOCK = 1 << 12  # Posters at a time: what is made of their labels stays in the processor's caches.


def compute_metrics(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Scores predictions.

    Args:
        labels: [N, G], 0 or 1.
        logits: float [N, G].

    Returns:
        loss: binary cross-entropy in nats, the mean over all labels.
        label_accuracy: share of labels on the right side of probability 0.5.
        macro_ap: average precision, the mean over the genres that occur.
        micro_ap: average precision over all (poster, genre) pairs.
        lrap: label ranking average precision; a poster without genres counts as 1.
        Average precision is NaN where no genre occurs.

    Raises:
        ValueError: a logit is not finite.
    """
    labels, logits = np.asarray(labels) > 0.5, np.asarray(logits)
    if not np.isfinite(logits).all():
        raise ValueError("The model's answers are not finite.")
    return {
        "loss": float(np.mean(poster_losses(labels, logits))),
        "label_accuracy": float(np.mean((logits > 0) == labels)),
        "macro_ap": macro_ap(labels, logits),
        "micro_ap": average_precision(labels, logits),
        "lrap": float(np.mean(ranking_precisions(labels, logits))),
    }


def macro_ap(labels: np.ndarray, logits: np.ndarray) -> float:
    """Returns average precision, the mean over the genres that occur; NaN if none does.

    Args:
        labels: [N, G], 0 or 1.
        logits: float [N, G].
    """
    labels = np.asarray(labels) > 0.5
    occurring = np.flatnonzero(labels.any(axis=0))
    of_genres = [average_precision(labels[:, g], logits[:, g]) for g in occurring]
    return float(np.mean(of_genres)) if of_genres else math.nan


def average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """Returns the area under the steps of the curve of precision against recall.

    It is the mean, over all positives, of the precision among what scores at least as high
    as they do; scikit-learn's `average_precision_score` gives the same.

    Args:
        labels: bool, of any shape.
        scores: numbers of the same shape.

    Returns:
        0 to 1; NaN without positives.
    """
    if not labels.any():
        return math.nan
    positives, negatives = scores[labels], scores[~labels]
    positives.sort()
    negatives.sort()
    true_positives = len(positives) - np.searchsorted(positives, positives)
    false_positives = len(negatives) - np.searchsorted(negatives, positives)
    return float(np.mean(true_positives / (true_positives + false_positives)))


def compute_more_metrics(
    labels: np.ndarray, logits: np.ndarray, calibrated: np.ndarray, predicted: np.ndarray
) -> dict[str, float]:
    """Scores what the epochs of a run are not scored by.

    Args:
        labels: [N, G], 0 or 1.
        logits: float [N, G].
        calibrated: float [N, G], probabilities.
        predicted: bool [N, G], which genres the posters are taken to have.

    Returns:
        roc_auc: area under the curve of true against false positives, the mean over the genres
            that some posters have and some have not.
        r_precision: of as many genres as a poster has, those with the highest scores, the share
            that are its own; the mean over the posters that have any.
        calibration_error: how far the model's probabilities are from shares, the mean over 15
            equal bins weighed by what is in them (ECE of https://arxiv.org/abs/1706.04599).
        calibrated_error: the same of the calibrated probabilities.
        macro_f1: F1, the mean over the genres that occur.
        micro_f1: F1 over all (poster, genre) pairs.
        sample_f1: F1 of each poster's genres, the mean; no genre seen where there is none is 1.
        subset_accuracy: share of the posters of which every label is right.
        Where nothing can be counted, a score is NaN.
    """
    labels, logits = np.asarray(labels) > 0.5, np.asarray(logits)
    probabilities = 1 / (1 + np.exp(-np.clip(np.float64(logits), -500, 500)))
    occurring = labels.any(axis=0)
    is_mixed = np.flatnonzero(occurring & ~labels.all(axis=0))
    areas = [roc_auc(labels[:, g], logits[:, g]) for g in is_mixed]
    of_genres = _f1(labels, predicted, axis=0)[occurring]
    return {
        "roc_auc": float(np.mean(areas)) if areas else math.nan,
        "r_precision": _r_precision(labels, logits),
        "calibration_error": _calibration_error(labels, probabilities),
        "calibrated_error": _calibration_error(labels, calibrated),
        "macro_f1": float(np.mean(of_genres)) if occurring.any() else math.nan,
        "micro_f1": float(_f1(labels, predicted, axis=None)),
        "sample_f1": float(np.mean(_f1(labels, predicted, axis=1))),
        "subset_accuracy": float(np.mean((predicted == labels).all(axis=1))),
    }


def roc_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Returns the share of pairs of a positive and a negative in order; half, where alike.

    Args:
        labels: bool [N].
        scores: numbers [N].

    Returns:
        0 to 1; NaN without positives or without negatives.
    """
    if labels.all() or not labels.any():
        return math.nan
    positives, negatives = scores[labels], np.sort(scores[~labels])
    below = np.searchsorted(negatives, positives) + np.searchsorted(negatives, positives, "right")
    return float(np.mean(below) / (2 * len(negatives)))


def _r_precision(labels: np.ndarray, logits: np.ndarray) -> float:
    counts = labels.sum(axis=1)
    if not counts.any():
        return math.nan
    best_first = np.take_along_axis(labels, np.argsort(-logits, axis=1, kind="stable"), axis=1)
    num_right = (best_first & (np.arange(labels.shape[1]) < counts[:, None])).sum(axis=1)
    return float(np.mean(num_right[counts > 0] / counts[counts > 0]))


def _calibration_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
    bins = np.minimum((probabilities * _CALIBRATION_BINS).astype(int), _CALIBRATION_BINS - 1)
    differences = np.bincount(bins.ravel(), (probabilities - labels).ravel(), _CALIBRATION_BINS)
    return float(np.abs(differences).sum() / labels.size)


def _f1(labels: np.ndarray, predicted: np.ndarray, axis: int | None) -> np.ndarray:
    """Returns F1 along an axis, or of all; where there is nothing to find or found, it is 1."""
    either = labels.sum(axis=axis) + predicted.sum(axis=axis)
    return np.where(either, 2 * (labels & predicted).sum(axis=axis) / np.maximum(either, 1), 1.0)


def poster_losses(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Returns the binary cross-entropy of each poster in nats, float64 [N], the mean over genres.

    Args:
        labels: [N, G], 0 or 1.
        logits: float [N, G].
    """
    logits = np.asarray(logits, np.float64)
    # -y log s(x) - (1 - y) log(1 - s(x)), without overflow; `logaddexp` takes 8 times as long.
    softplus = np.maximum(logits, 0) + np.log1p(np.exp(-np.abs(logits)))
    return np.mean(softplus - labels * logits, axis=1)


def ranking_precisions(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Returns the label ranking average precision of each poster, float64 [N].

    Args:
        labels: bool [N, G].
        logits: float [N, G].
    """
    precisions = []
    for first in range(0, len(labels), _BLOCK):
        of_block, scores = labels[first : first + _BLOCK], logits[first : first + _BLOCK]
        posters, genres = np.nonzero(of_block)
        is_as_high = scores[posters] >= scores[posters, genres][:, None]
        of_labels = (is_as_high & of_block[posters]).sum(axis=1) / is_as_high.sum(axis=1)
        counts = of_block.sum(axis=1)
        sums = np.bincount(posters, of_labels, len(of_block))
        precisions.append(np.where(counts > 0, sums / np.maximum(counts, 1), 1.0))
    return np.concatenate(precisions)


def compute_constant_metrics(labels: np.ndarray, base_rates: np.ndarray) -> dict[str, float]:
    """Scores the constant predictor, which answers the same for every poster.

    Its probabilities are the genres' shares of the train split. For label accuracy it
    answers "none", which is the best constant unless a genre is on most posters.

    The order of the posters does not change a bit of the scores.

    Args:
        labels: [N, G], 0 or 1.
        base_rates: float [G], probabilities.
    """
    labels = np.asarray(labels) > 0.5
    shares = labels.mean(axis=0)
    logits = constant_logits(base_rates, len(labels))
    lrap = math.fsum(ranking_precisions(labels, logits)) / len(labels)
    return {
        "loss": constant_loss(base_rates, shares),
        "label_accuracy": float(1 - np.mean(shares)),
        # Of posters that all score the same, any number has a genre's share of positives.
        "macro_ap": float(np.mean(shares[shares > 0])) if shares.any() else math.nan,
        "micro_ap": average_precision(labels, logits),
        "lrap": lrap,
    }


def constant_logits(base_rates: np.ndarray, num_posters: int) -> np.ndarray:
    """Returns what the constant predictor answers for some posters, float64 [N, G]."""
    rates = np.clip(base_rates, _EPSILON, 1 - _EPSILON)
    return np.broadcast_to(np.log(rates / (1 - rates)), (num_posters, len(rates)))


def constant_loss(base_rates: np.ndarray, shares: np.ndarray) -> float:
    """Returns the constant predictor's binary cross-entropy.

    Args:
        base_rates: float [G], its probabilities.
        shares: float [G], each genre's share of the posters that it answers for.

    Returns:
        Nats, the mean over the genres.
    """
    rates = np.clip(base_rates, _EPSILON, 1 - _EPSILON)
    return float(-np.mean(shares * np.log(rates) + (1 - shares) * np.log1p(-rates)))
