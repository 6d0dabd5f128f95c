"""Scores agree with their definitions."""

import numpy as np
import pytest
import tensorflow as tf
from sklearn import metrics as sklearn_metrics

from trainer import steps
from trainer.reports import scores


def make_predictions(num_posters=200, decimals=None):
    """Returns labels and logits; with `decimals`, many logits are equal."""
    rng = np.random.default_rng(0)
    # The last genre never occurs.
    labels = (rng.random((num_posters, 6)) < [0.5, 0.2, 0.1, 0.05, 0.3, 0]).astype(np.float32)
    labels[0], labels[1, :5] = 0, 1
    logits = rng.normal(size=labels.shape) + labels
    return labels, logits if decimals is None else logits.round(decimals)


@pytest.fixture
def predictions():
    return make_predictions()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "case", [{}, {"decimals": 1}, {"decimals": 0}, {"num_posters": scores._BLOCK + 1}]
)
def test_metrics_agree_with_scikit_learn(case, dtype):
    labels, logits = make_predictions(**case)
    logits = logits.astype(dtype)
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    metrics = scores.compute_metrics(labels, logits)
    average_precision = sklearn_metrics.average_precision_score
    assert metrics == pytest.approx(
        {
            "loss": sklearn_metrics.log_loss(labels.ravel(), probabilities.ravel()),
            "label_accuracy": sklearn_metrics.accuracy_score(labels.ravel(), logits.ravel() > 0),
            "macro_ap": np.mean([average_precision(labels[:, g], logits[:, g]) for g in range(5)]),
            "micro_ap": average_precision(labels.ravel(), logits.ravel()),
            "lrap": sklearn_metrics.label_ranking_average_precision_score(labels, logits),
        },
        rel=1e-12,
    )


@pytest.mark.parametrize("case", [{}, {"decimals": 0}])
def test_further_metrics_agree_with_scikit_learn(case):
    labels, logits = make_predictions(**case)
    labels = np.float64(labels)
    labels[7] = 0  # Nothing to find, and nothing found.
    logits[7] = -9
    is_taken = logits >= np.array([0.4, 0.5, 1.0, 1.5, 0.0, 0.5])
    probabilities, calibrated = (1 / (1 + np.exp(-z)) for z in (logits, logits / 2 - 1))
    counts = labels.sum(axis=1).astype(int)
    right = [
        row[np.argsort(-of_row, kind="stable")[:count]].mean()
        for row, of_row, count in zip(labels, logits, counts, strict=True)
        if count
    ]

    def error(probabilities):
        wanted, found = labels.ravel(), probabilities.ravel()
        binned = np.minimum(np.floor(found * 15), 14)
        return sum(
            (binned == i).mean() * abs(found[binned == i].mean() - wanted[binned == i].mean())
            for i in np.unique(binned)
        )

    occurring = slice(0, 5)
    f1 = sklearn_metrics.f1_score
    assert scores.compute_more_metrics(labels, logits, calibrated, is_taken) == pytest.approx(
        {
            "roc_auc": sklearn_metrics.roc_auc_score(labels[:, occurring], logits[:, occurring]),
            "r_precision": np.mean(right),
            "calibration_error": error(probabilities),
            "calibrated_error": error(calibrated),
            "macro_f1": f1(labels[:, occurring], is_taken[:, occurring], average="macro"),
            "micro_f1": f1(labels, is_taken, average="micro"),
            "sample_f1": f1(labels, is_taken, average="samples", zero_division=1),
            "subset_accuracy": sklearn_metrics.accuracy_score(labels, is_taken),
        },
        rel=1e-12,
    )


def test_huge_logits_give_a_finite_loss():
    labels = np.array([[1.0, 0.0]])
    assert scores.compute_metrics(labels, np.array([[-800.0, 800.0]]))["loss"] == 800


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_an_answer_that_is_not_finite_has_no_scores(predictions, wrong):
    labels, logits = predictions
    logits[7, 0] = wrong
    with pytest.raises(ValueError, match="not finite"):
        scores.compute_metrics(labels, logits)


def test_without_any_genre_average_precision_is_not_a_number():
    metrics = scores.compute_metrics(np.zeros((3, 2)), np.zeros((3, 2)))
    assert np.isnan(metrics["macro_ap"])
    assert np.isnan(metrics["micro_ap"])
    nothing = np.zeros((3, 2))
    more = scores.compute_more_metrics(nothing, nothing, nothing, nothing > 0)
    assert np.isnan([more["roc_auc"], more["r_precision"], more["macro_f1"]]).all()
    assert more["sample_f1"] == more["subset_accuracy"] == 1


def test_the_constant_predictor_scores_what_constants_can(predictions):
    labels, _ = predictions
    rates = np.array([0.5, 0.2, 0.2, 0.05, 0.3, 0])  # Two genres alike.
    logits = np.tile(np.log(rates.clip(1e-7) / (1 - rates)), (len(labels), 1))
    expected = scores.compute_metrics(labels, logits)
    # It answers "none", also for a genre that just over half of the posters have.
    expected["label_accuracy"] = (labels == 0).mean()
    constant = scores.compute_constant_metrics(labels, rates)
    assert constant == pytest.approx(expected, rel=1e-12)
    # A constant ranks all posters alike: its precision is the genre's share.
    assert constant["macro_ap"] == pytest.approx(labels[:, :5].mean())
    shares = labels.mean(axis=0, dtype=np.float64)
    assert scores.constant_loss(rates, shares) == pytest.approx(expected["loss"], rel=1e-12)


def test_the_order_of_the_posters_does_not_change_a_bit_of_the_constant_predictors_scores():
    labels, _ = make_predictions(5000)
    rates = labels.mean(axis=0)
    expected = scores.compute_constant_metrics(labels, rates)
    rng = np.random.default_rng(1)
    for _ in range(20):
        shuffled = rng.permutation(labels)
        assert scores.compute_constant_metrics(shuffled, rates) == expected


def test_a_filled_up_batch_counts_only_what_is_real():
    outputs = [
        {"labels": tf.eye(3), "logits": tf.fill((3, 3), 7.0), "weight": tf.ones(3)},
        {
            "labels": tf.fill((3, 3), 2.0),
            "logits": tf.fill((3, 3), 9.0),
            "weight": tf.constant([1.0, 0, 0]),
        },
    ]
    labels, logits = steps.collect(outputs)
    np.testing.assert_array_equal(labels, [*np.eye(3), [2, 2, 2]])
    np.testing.assert_array_equal(logits[:, 0], [7, 7, 7, 9])
