"""From how high a score a poster is taken to have a genre."""

import numpy as np

MIN_TO_CHOOSE = 10  # Posters of a genre: with fewer, its threshold would be one poster's.
_FOLDS = 5


def choose_thresholds(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Chooses the threshold of each genre with which its F1 is best.

    A genre of fewer than `MIN_TO_CHOOSE` posters gets the threshold that is best for F1 over
    all (poster, genre) pairs. Choose on other posters than those that are scored.

    Args:
        labels: [N, G], 0 or 1.
        logits: float [N, G].

    Returns:
        Logits, float64 [G]; a poster has a genre if its logit is at least as high.
    """
    labels, logits = np.asarray(labels) > 0.5, np.asarray(logits, np.float64)
    of_all = _best_threshold(labels.ravel(), logits.ravel())
    return np.array(
        [
            _best_threshold(labels[:, g], logits[:, g]) if count >= MIN_TO_CHOOSE else of_all
            for g, count in enumerate(labels.sum(axis=0))
        ]
    )


def cross_fit_thresholds(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Chooses thresholds for posters by each other: a fifth of them by the other four.

    Args:
        labels: [N, G], 0 or 1.
        logits: float [N, G].

    Returns:
        Logits, float64 [N, G].
    """
    thresholds = np.empty(labels.shape)
    folds = np.arange(len(labels)) % _FOLDS
    for fold in range(_FOLDS):
        others = folds != fold
        thresholds[~others] = choose_thresholds(labels[others], logits[others])
    return thresholds


def _best_threshold(labels: np.ndarray, logits: np.ndarray) -> float:
    """Returns the middle between the lowest logit taken and the highest left out."""
    order = np.argsort(-logits, kind="stable")
    logits = logits[order]
    num_right, num_taken = np.cumsum(labels[order]), np.arange(1, len(logits) + 1)
    f1 = 2 * num_right / (num_taken + labels.sum())
    is_last_of_equals = np.append(logits[:-1] > logits[1:], True)
    last = int(np.argmax(np.where(is_last_of_equals, f1, -1.0)))
    return float(np.mean(logits[last : last + 2]))
