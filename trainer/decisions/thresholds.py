"""From how high a score a poster is taken to have a genre."""

import numpy as np

MIN_TO_CHOOSE = 10  # Posters of a genre: with fewer, its threshold would be one poster's.


def choose_thresholds(
    labels: np.ndarray, logits: np.ndarray, target_precision: float = 0.0
) -> np.ndarray:
    """Chooses the threshold of each genre.

    A genre of fewer than `MIN_TO_CHOOSE` posters gets the threshold that is chosen for all
    (poster, genre) pairs together. Choose on other posters than those that are scored.

    Args:
        labels: [N, G], 0 or 1.
        logits: float [N, G].
        target_precision: 0: the threshold with the best F1; else the lowest whose precision is
            at least that.

    Returns:
        Logits, float64 [G]; a poster has a genre if its logit is at least as high. Infinite
        where no threshold has the precision.
    """
    labels, logits = np.asarray(labels) > 0.5, np.asarray(logits, np.float64)
    of_all = _choose(labels.ravel(), logits.ravel(), target_precision)
    return np.array(
        [
            _choose(labels[:, g], logits[:, g], target_precision)
            if count >= MIN_TO_CHOOSE
            else of_all
            for g, count in enumerate(labels.sum(axis=0))
        ]
    )


def _choose(labels: np.ndarray, logits: np.ndarray, target_precision: float) -> float:
    """Returns the middle between the lowest logit taken and the highest left out."""
    order = np.argsort(-logits, kind="stable")
    logits = logits[order]
    num_right, num_taken = np.cumsum(labels[order]), np.arange(1, len(logits) + 1)
    is_last_of_equals = np.append(logits[:-1] > logits[1:], True)
    if target_precision:
        is_precise = is_last_of_equals & (num_right >= target_precision * num_taken)
        if not is_precise.any():
            return np.inf
        last = int(np.flatnonzero(is_precise)[-1])
    else:
        f1 = 2 * num_right / (num_taken + labels.sum())
        last = int(np.argmax(np.where(is_last_of_equals, f1, -1.0)))
    return float(np.mean(logits[last : last + 2]))
