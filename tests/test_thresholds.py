"""Thresholds are the best there are, on posters that are not scored by them; intervals cover."""

import itertools

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from trainer.reports import analysis, answers, intervals, thresholds
from trainer.run import directory


def make_answers(num_posters, decimals=None, seed=0):
    """Returns labels and logits; the last genre is rare, and with `decimals` many are equal."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((num_posters, 3)) < [0.5, 0.2, 0]).astype(np.float32)
    labels[:4, 2] = 1
    logits = rng.normal(size=labels.shape) + 2 * labels - 1
    return labels, logits if decimals is None else logits.round(decimals)


@pytest.mark.parametrize("decimals", [None, 0])
def test_no_other_threshold_has_a_better_f1(decimals):
    labels, logits = make_answers(150, decimals)
    chosen = thresholds.choose_thresholds(labels, logits)

    def best(labels, logits):
        # Each logit, and one above all.
        each = [*np.unique(logits), logits.max() + 1]
        return max(sklearn_metrics.f1_score(labels, logits >= t, zero_division=0) for t in each)

    for genre in range(2):
        found = sklearn_metrics.f1_score(labels[:, genre], logits[:, genre] >= chosen[genre])
        assert found == pytest.approx(best(labels[:, genre], logits[:, genre]), rel=1e-12)
    # Of four posters: the threshold that is best for all genres together.
    of_all = sklearn_metrics.f1_score(labels.ravel(), logits.ravel() >= chosen[2])
    assert of_all == pytest.approx(best(labels.ravel(), logits.ravel()), rel=1e-12)


def test_no_poster_has_a_part_in_its_own_thresholds():
    labels, logits = make_answers(200)
    before = thresholds.cross_fit_thresholds(labels, logits)
    assert len(np.unique(before, axis=0)) == 5
    for poster, genre in itertools.product(range(0, 200, 17), range(2)):
        changed = labels.copy()
        changed[poster, genre] = 1 - changed[poster, genre]
        after = thresholds.cross_fit_thresholds(changed, logits)
        np.testing.assert_array_equal(after[poster], before[poster])
    np.testing.assert_array_equal(
        before[1],
        thresholds.choose_thresholds(
            np.delete(labels, np.s_[1::5], axis=0), np.delete(logits, np.s_[1::5], axis=0)
        ),
    )


def test_where_there_are_validation_posters_thresholds_are_theirs():
    given, validation = (answers.Answers(*make_answers(300, seed=seed)) for seed in range(2))
    rates = given.labels.mean(axis=0)
    scores = analysis.score_with_intervals(given, rates, validation)
    taken = given.logits >= thresholds.choose_thresholds(*validation)
    f1 = sklearn_metrics.f1_score
    assert scores.loc["macro_f1", "score"] == pytest.approx(
        f1(given.labels, taken, average="macro")
    )
    # A constant that sees each genre everywhere has the best F1 that a constant can have.
    everywhere = f1(given.labels, np.ones_like(given.labels), average="macro", zero_division=0)
    assert 0 < scores.loc["macro_f1", "constant"] <= everywhere


@pytest.mark.parametrize("num_posters", [400, intervals._MOST_POSTERS * 2])
def test_an_interval_is_as_wide_as_the_error_of_a_mean(num_posters):
    values = np.random.default_rng(1).normal(3, 2, num_posters)
    low, high = intervals.bootstrap(lambda rows: [values[rows].mean()], num_posters)[:, 0]
    error = values.std() / np.sqrt(num_posters)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.3 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.3 * error)


def test_answers_are_read_as_what_they_are_of(tmp_path):
    run = directory.RunDirectory(tmp_path)
    facts = {"split": "test", "step": 7, "tta": "none"}
    assert answers.read(run, **facts) is None
    given = answers.Answers(*make_answers(5))
    answers.write(run, given, ["a", "é", "c", "d", "e"], **facts)
    read = answers.read(run, **facts)
    np.testing.assert_array_equal(read.labels, given.labels)
    np.testing.assert_array_equal(read.logits, given.logits)
    for other in ({"split": "validation"}, {"step": 8}, {"tta": "mirror"}):
        assert answers.read(run, **{**facts, **other}) is None
    with np.load(tmp_path / "answers.npz") as arrays:  # As other programs read it.
        assert arrays["poster_ids"].tolist() == ["a", "é", "c", "d", "e"]
