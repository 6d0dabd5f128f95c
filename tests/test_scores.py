"""Scores agree with their definitions."""

import numpy as np
import pytest
import tensorflow as tf
from sklearn import metrics as sklearn_metrics

from trainer import steps
from trainer.reports import scores


@pytest.fixture
def predictions():
    rng = np.random.default_rng(0)
    labels = (rng.random((200, 6)) < [0.5, 0.2, 0.1, 0.05, 0.3, 0]).astype(np.float32)
    logits = rng.normal(size=(200, 6)) + labels
    return labels, logits


def test_metrics_agree_with_scikit_learn(predictions):
    labels, logits = predictions
    probabilities = 1 / (1 + np.exp(-logits))
    metrics = scores.compute_metrics(labels, logits)
    assert metrics["loss"] == pytest.approx(
        sklearn_metrics.log_loss(labels.ravel(), probabilities.ravel()), rel=1e-6
    )
    assert metrics["label_accuracy"] == pytest.approx(
        sklearn_metrics.accuracy_score(labels.ravel(), probabilities.ravel() > 0.5)
    )
    per_genre = [
        sklearn_metrics.average_precision_score(labels[:, g], probabilities[:, g]) for g in range(5)
    ]
    # The sixth genre never occurs and is left out.
    assert metrics["macro_ap"] == pytest.approx(np.mean(per_genre))
    assert metrics["micro_ap"] == pytest.approx(
        sklearn_metrics.average_precision_score(labels.ravel(), probabilities.ravel())
    )
    assert metrics["lrap"] == pytest.approx(
        sklearn_metrics.label_ranking_average_precision_score(labels, probabilities)
    )


def test_huge_logits_give_a_finite_loss():
    labels = np.array([[1.0, 0.0]])
    assert scores.compute_metrics(labels, np.array([[-800.0, 800.0]]))["loss"] == 800


def test_without_any_genre_average_precision_is_not_a_number():
    metrics = scores.compute_metrics(np.zeros((3, 2)), np.zeros((3, 2)))
    assert np.isnan(metrics["macro_ap"])
    assert np.isnan(metrics["micro_ap"])


def test_the_constant_predictor_scores_what_constants_can(predictions):
    labels, _ = predictions
    rates = labels.mean(axis=0)
    metrics = scores.compute_constant_metrics(labels, rates)
    occurring = rates[rates > 0]
    entropy = -(occurring * np.log(occurring) + (1 - occurring) * np.log1p(-occurring)).sum()
    assert metrics["loss"] == pytest.approx(entropy / labels.shape[1], abs=1e-5)
    # A constant ranks all posters alike: its precision is the genre's share.
    assert metrics["macro_ap"] == pytest.approx(occurring.mean())
    # It answers "none", also for a genre that just over half of the posters have.
    assert metrics["label_accuracy"] == pytest.approx((labels == 0).mean())


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
