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
_EPSILON = 1e-7
_BLOCK = 1 << 12  # Posters at a time: what is made of them stays in the processor's caches.


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
    occurring = np.flatnonzero(labels.any(axis=0))
    of_genres = [average_precision(labels[:, g], logits[:, g]) for g in occurring]
    return {
        "loss": float(np.mean(poster_losses(labels, logits))),
        "label_accuracy": float(np.mean((logits > 0) == labels)),
        "macro_ap": float(np.mean(of_genres)) if of_genres else math.nan,
        "micro_ap": average_precision(labels, logits),
        "lrap": float(np.mean(_ranking_precisions(labels, logits))),
    }


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


def poster_losses(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Returns the binary cross-entropy of each poster in nats, float64 [N], the mean over genres.

    Args:
        labels: [N, G], 0 or 1.
        logits: float [N, G].
    """

    def of_block(labels, logits):
        logits = np.asarray(logits, np.float64)
        # -y log s(x) - (1 - y) log(1 - s(x)), without overflow; `logaddexp` takes 8 times as long.
        softplus = np.maximum(logits, 0) + np.log1p(np.exp(-np.abs(logits)))
        return np.mean(softplus - labels * logits, axis=1)

    return _in_blocks(of_block, labels, logits)


def _ranking_precisions(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Returns the label ranking average precision of each poster, float64 [N]."""

    def of_block(labels, logits):
        posters, genres = np.nonzero(labels)
        is_as_high = logits[posters] >= logits[posters, genres][:, None]
        precisions = (is_as_high & labels[posters]).sum(axis=1) / is_as_high.sum(axis=1)
        num_genres = labels.sum(axis=1)
        sums = np.bincount(posters, precisions, len(labels))
        return np.where(num_genres > 0, sums / np.maximum(num_genres, 1), 1.0)

    return _in_blocks(of_block, labels, logits)


def _in_blocks(function, labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Returns what a function gives for each poster, called with some posters at a time."""
    starts = range(0, len(labels), _BLOCK)
    return np.concatenate(
        [function(labels[i : i + _BLOCK], logits[i : i + _BLOCK]) for i in starts]
    )


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
    rates = np.clip(base_rates, _EPSILON, 1 - _EPSILON)
    logits = np.broadcast_to(np.log(rates / (1 - rates)), labels.shape)
    return {
        "loss": constant_loss(base_rates, shares),
        "label_accuracy": float(1 - np.mean(shares)),
        # Of posters that all score the same, any number has a genre's share of positives.
        "macro_ap": float(np.mean(shares[shares > 0])) if labels.any() else math.nan,
        "micro_ap": average_precision(labels, logits),
        "lrap": math.fsum(_ranking_precisions(labels, logits)) / len(labels),
    }


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
