"""Thresholds and calibration are the best there are."""

import json

import numpy as np
import pytest
from sklearn import calibration as sklearn_calibration, metrics as sklearn_metrics

from trainer.decisions import decision


def make_answers(num_posters, decimals=None, seed=0):
    """Returns labels and logits; the last genre is rare, and with `decimals` many are equal."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((num_posters, 3)) < [0.5, 0.2, 0]).astype(np.float32)
    labels[:4, 2] = 1
    logits = rng.normal(size=labels.shape) + 2 * labels - 1
    return labels, logits if decimals is None else logits.round(decimals)


def each_threshold(logits):
    """Returns each logit, and one above all."""
    return [*np.unique(logits), logits.max() + 1]


@pytest.mark.parametrize(("decimals", "seed"), [(None, 0), (None, 1), (0, 0)])
def test_no_other_threshold_has_a_better_f1(decimals, seed):
    labels, logits = make_answers(80, decimals, seed)
    chosen = decision.choose_thresholds(labels, logits)

    def best(labels, logits):
        return max(
            sklearn_metrics.f1_score(labels, logits >= t, zero_division=0)
            for t in each_threshold(logits)
        )

    for genre in range(2):
        found = sklearn_metrics.f1_score(labels[:, genre], logits[:, genre] >= chosen[genre])
        assert found == pytest.approx(best(labels[:, genre], logits[:, genre]), rel=1e-12)
    # Of four posters: the threshold that is best for all genres together.
    of_all = sklearn_metrics.f1_score(labels.ravel(), logits.ravel() >= chosen[2])
    assert of_all == pytest.approx(best(labels.ravel(), logits.ravel()), rel=1e-12)


@pytest.mark.parametrize("decimals", [None, 1])
def test_no_lower_threshold_is_as_precise_as_it_should_be(decimals):
    labels, logits = make_answers(150, decimals)
    chosen = decision.choose_thresholds(labels, logits, target_precision=0.8)
    for genre in range(2):
        of_genre, found = labels[:, genre] > 0, logits[:, genre] >= chosen[genre]
        recalls = [
            sklearn_metrics.recall_score(of_genre, logits[:, genre] >= t)
            for t in each_threshold(logits[:, genre])
            if sklearn_metrics.precision_score(of_genre, logits[:, genre] >= t, zero_division=0)
            >= 0.8
        ]
        assert sklearn_metrics.precision_score(of_genre, found) >= 0.8
        assert sklearn_metrics.recall_score(of_genre, found) == max(recalls)


def test_a_precision_that_cannot_be_had_leaves_a_genre_out():
    labels, logits = make_answers(150)
    logits[:, 1] = -0.5 * labels[:, 1]  # Wrong way round.
    chosen = decision.choose("abc", labels, logits, target_precision=0.9, split="validation")
    assert chosen.table.loc["b", "threshold"] == decision.NEVER
    assert "never predicted" in chosen.table.loc["b", "remark"]
    assert "calibrated as all genres together" in chosen.table.loc["b", "remark"]
    assert not chosen.predict(logits)[:, 1].any()
    assert chosen.predict(logits)[:, 0].any()
    assert chosen.how.startswith(
        "Chosen on 150 posters of validation: for each genre the threshold"
    )
    assert "precision of at least 0.9" in chosen.how


def test_scores_that_fall_with_all_labels_keep_their_order():
    labels, logits = make_answers(300)
    chosen = decision.choose("abc", labels, -logits)
    assert chosen.table["remark"].tolist()[:2] == ["calibrated not at all"] * 2
    taken = -logits >= decision.choose_thresholds(labels, -logits)
    np.testing.assert_array_equal(chosen.predict(-logits), taken)


def test_calibration_is_platts():
    labels, logits = make_answers(400)
    expected = sklearn_calibration._SigmoidCalibration().fit(logits[:, 0], labels[:, 0])
    slope, intercept = decision.fit_calibration(labels[:, 0] > 0, logits[:, 0])
    # There the signs are Platt's.
    assert (slope, intercept) == pytest.approx((-expected.a_, -expected.b_), abs=1e-4)
    separated = decision.fit_calibration(np.arange(20) >= 10, np.arange(20.0))
    assert np.isfinite(separated).all()


def test_calibrated_scores_are_shares_where_scores_were_not():
    labels, logits = make_answers(4000)
    logits = 3 * logits + 2
    chosen = decision.choose("abc", labels, logits)
    probabilities = chosen.calibrate(logits)
    np.testing.assert_allclose(probabilities.mean(axis=0)[:2], labels.mean(axis=0)[:2], atol=2e-3)
    predicted = probabilities >= chosen.table["threshold"].to_numpy()
    of_logits = logits >= decision.choose_thresholds(labels, logits)
    np.testing.assert_array_equal(predicted, of_logits)
    # The rare genre has what is right for all genres together.
    together = decision.fit_calibration(labels.ravel() > 0, logits.ravel())
    assert tuple(chosen.table.loc["c", ["slope", "intercept"]]) == pytest.approx(together)
    assert chosen.table["posters"].tolist() == labels.sum(axis=0).tolist()
    assert chosen.table["remark"].tolist() == ["", "", "4 posters: as for all genres together"]


def test_a_decision_is_read_as_it_was_written_and_of_what_it_is(tmp_path):
    labels, logits = make_answers(200)
    path = tmp_path / "thresholds.json"
    assert decision.read(path, step=7) is None
    for written in (
        decision.choose("abc", labels, logits, split="validation"),
        decision.undecided("abc", "There was nothing to choose by."),
    ):
        decision.write(path, written, step=7, tta="none")
        found = decision.read(path, step=7, tta="none")
        assert found.how == written.how
        np.testing.assert_array_equal(found.calibrate(logits), written.calibrate(logits))
        np.testing.assert_array_equal(found.predict(logits), written.predict(logits))
        assert decision.read(path, step=8) is decision.read(path, tta="mirror") is None
    assert json.loads(path.read_text())["genres"][1]["genre"] == "b"
    np.testing.assert_array_equal(found.predict(logits), logits >= 0)
