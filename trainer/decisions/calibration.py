"""Probabilities that are shares of posters: two numbers a genre, after Platt."""

import numpy as np


def fit(labels: np.ndarray, logits: np.ndarray) -> tuple[float, float]:
    """Fits the probability of a label to its logit z: 1 / (1 + exp(-(slope * z + intercept))).

    The targets are those of Platt 1999 ("Probabilistic outputs for support vector machines"): not
    quite 0 and 1, so that the likelihood has a maximum also where a logit divides the labels.

    Args:
        labels: bool [N].
        logits: float [N].

    Returns:
        Slope and intercept.
    """
    from sklearn import linear_model  # It takes a second, which a training need not wait for.

    num_positives, num_negatives = labels.sum(), (~labels).sum()
    targets = np.where(labels, (num_positives + 1) / (num_positives + 2), 1 / (num_negatives + 2))
    # A target between 0 and 1 is both labels, with these weights.
    model = linear_model.LogisticRegression(C=np.inf, tol=1e-9, max_iter=1000)
    model.fit(
        np.tile(np.float64(logits), 2)[:, None],
        np.repeat([1, 0], len(labels)),
        np.concatenate([targets, 1 - targets]),
    )
    return float(model.coef_[0, 0]), float(model.intercept_[0])
