"""How good a model is: every example counted once, beside the constant predictor.

Label accuracy alone says little here: most genres are absent from most posters, so
answering "none" is right for 0.9077 of the reference test split's labels.
"""

import numpy as np
from sklearn import metrics as sklearn_metrics

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
    """
    labels = np.asarray(labels) > 0.5
    logits = np.asarray(logits, np.float64)
    occurring = labels.any(axis=0)
    nan = float("nan")
    average_precision = sklearn_metrics.average_precision_score
    return {
        # -y log s(x) - (1 - y) log(1 - s(x)), without overflow.
        "loss": float(np.mean(np.logaddexp(0, logits) - labels * logits)),
        "label_accuracy": float(np.mean((logits > 0) == labels)),
        "macro_ap": float(average_precision(labels[:, occurring], logits[:, occurring]))
        if occurring.any()
        else nan,
        "micro_ap": float(average_precision(labels, logits, average="micro"))
        if occurring.any()
        else nan,
        "lrap": float(sklearn_metrics.label_ranking_average_precision_score(labels, logits)),
    }


def compute_constant_metrics(labels: np.ndarray, base_rates: np.ndarray) -> dict[str, float]:
    """Scores the constant predictor, which answers the same for every poster.

    Its probabilities are the genres' shares of the train split. For label accuracy it
    answers "none", which is the best constant unless a genre is on most posters.

    Args:
        labels: [N, G], 0 or 1.
        base_rates: float [G], probabilities.
    """
    rates = np.clip(base_rates, _EPSILON, 1 - _EPSILON)
    logits = np.broadcast_to(np.log(rates / (1 - rates)), labels.shape)
    return {
        **compute_metrics(labels, logits),
        "label_accuracy": float(np.mean(np.asarray(labels) < 0.5)),
    }


def constant_loss(base_rates: np.ndarray) -> float:
    """Returns the constant predictor's binary cross-entropy where genres have just these shares.

    Args:
        base_rates: float [G], probabilities.

    Returns:
        Nats, the mean over the genres.
    """
    rates = np.clip(base_rates, _EPSILON, 1 - _EPSILON)
    return float(-np.mean(rates * np.log(rates) + (1 - rates) * np.log1p(-rates)))
