"""Answers that are counted score as those that are kept do, within the error that is said."""

import json
import signal

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from tests.test_resume import finish, start, state, steps, wait_for
from trainer.reports import answers, scores, tally

RATES = np.array([0.5, 0.2, 0.1, 0.2, 0.3, 0.01])


def make_answers():
    """Returns labels and logits; the last genre never occurs."""
    rng = np.random.default_rng(0)
    labels = (rng.random((5000, 6)) < [0.5, 0.2, 0.1, 0.05, 0.3, 0]).astype(np.float32)
    return labels, np.float32(3 * rng.normal(size=labels.shape) + 2 * labels - 1)


def count(labels, logits):
    counted = tally.Tally(RATES)
    for part in np.array_split(np.arange(len(labels)), 3):
        counted.add(labels[part], logits[part])
    return counted


def test_scores_are_those_of_scikit_learn_within_their_error():
    labels, logits = make_answers()
    found = count(labels, logits).compute_metrics()
    probabilities = 1 / (1 + np.exp(-np.float64(logits)))
    expected = {
        "loss": sklearn_metrics.log_loss(labels.ravel(), probabilities.ravel()),
        "label_accuracy": sklearn_metrics.accuracy_score(labels.ravel(), logits.ravel() > 0),
        "lrap": sklearn_metrics.label_ranking_average_precision_score(labels, logits),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-12)
    for name, labels_of, scores_of in (
        ("macro_ap", labels[:, :5], logits[:, :5]),
        ("micro_ap", labels.ravel(), logits.ravel()),
    ):
        exact = sklearn_metrics.average_precision_score(labels_of, scores_of)
        assert 0 < abs(found[name] - exact) <= found[f"{name}_error"] < 1e-3


def test_answers_that_are_alike_in_truth_are_scored_exactly():
    """Halves are numbers of which a bin has one."""
    labels, logits = make_answers()
    logits = np.round(logits * 2) / 2
    found = count(labels, logits).compute_metrics()
    for name, value in scores.compute_metrics(labels, logits).items():
        assert found[name] == pytest.approx(value, rel=1e-12), name


@pytest.mark.parametrize("seed", range(5))
def test_no_order_within_a_bin_is_beyond_the_error(seed):
    rng = np.random.default_rng(seed)
    positives, negatives = rng.integers(0, 5, (2, 7))
    positives[3] += 1
    found = tally.average_precision(negatives, positives)
    bins = np.repeat(np.arange(7), positives + negatives)
    labels = np.concatenate([[1] * p + [0] * n for p, n in zip(positives, negatives, strict=True)])
    assert found.value == pytest.approx(sklearn_metrics.average_precision_score(labels, bins))
    # The best and the worst order, and some others.
    orders = [labels, -labels, *rng.random((20, len(labels)))]
    apart = [
        abs(
            sklearn_metrics.average_precision_score(labels, np.lexsort((order, bins)).argsort())
            - found.value
        )
        for order in orders
    ]
    assert max(apart) == pytest.approx(found.error, abs=1e-12)


def test_numbers_beyond_a_float16_are_in_their_order():
    labels = np.array([[1], [0], [1], [0], [1], [0]], np.float32)
    logits = np.array([[1e30], [7e4], [1e-9], [-1e-9], [-7e4], [-1e30]], np.float32)
    counted = tally.Tally(np.array([0.5]))
    counted.add(labels, logits)
    found = counted.compute_metrics()
    exact = sklearn_metrics.average_precision_score(labels, logits)
    assert abs(found["macro_ap"] - exact) <= found["macro_ap_error"]
    # Those of about 0 are alike, and so are the two highest and the two lowest.
    assert found["macro_ap"] == pytest.approx(
        sklearn_metrics.average_precision_score(labels, [2, 2, 1, 1, 0, 0])
    )


def test_the_constant_predictor_is_scored_from_counts():
    labels, logits = make_answers()
    counted = count(labels, logits)
    expected = scores.compute_constant_metrics(labels, RATES)
    assert counted.compute_constant_metrics() == pytest.approx(expected, rel=1e-9)
    of_shares = tally.constant_metrics(labels.mean(axis=0, dtype=np.float64), RATES)
    assert np.isnan(of_shares.pop("lrap")) and expected.pop("lrap")
    assert of_shares == pytest.approx(expected, rel=1e-9)


def test_where_nothing_is_defined_nothing_is_said():
    counted = tally.Tally(RATES)
    counted.add(np.zeros((3, 6)), np.zeros((3, 6)))
    found = counted.compute_metrics() | counted.compute_constant_metrics()
    assert np.isnan([found["macro_ap"], found["micro_ap"], found["macro_ap_error"]]).all()
    counted.add(np.zeros((1, 6)), np.full((1, 6), np.nan))
    with pytest.raises(ValueError, match="not finite"):
        counted.compute_metrics()


def test_what_is_saved_of_it_has_one_size_and_goes_on():
    labels, logits = make_answers()
    whole = count(labels, logits)
    resumed = whole.anew()
    assert len(resumed) == 0
    resumed.restore(count(labels[:700], logits[:700]).arrays)
    resumed.add(labels[700:], logits[700:])
    assert len(resumed) == len(whole) == 5000
    assert resumed.compute_metrics() == pytest.approx(whole.compute_metrics(), rel=1e-12)
    sizes = {name: array.nbytes for name, array in tally.Tally(RATES).arrays.items()}
    assert sizes == {name: array.nbytes for name, array in whole.arrays.items()}
    np.testing.assert_array_equal(whole.first(6)[1], logits[:6])
    np.testing.assert_array_equal(whole.first(6)[0], labels[:6])


def test_only_so_many_are_kept():
    assert isinstance(answers.gather(answers.MOST_KEPT, RATES), answers.Kept)
    assert isinstance(answers.gather(answers.MOST_KEPT + 1, RATES), tally.Tally)


def test_a_run_that_counts_and_is_killed_scores_as_one_that_keeps_all(data_dir, tmp_path):
    flags = ("--deterministic", "--epochs=1", "--checkpoint_every_steps=2")
    kept, counted = tmp_path / "kept", tmp_path / "counted"
    finish(start(data_dir, kept, *flags))
    killed = start(data_dir, counted, *flags, module="tests.counting_trainer")
    wait_for(lambda: steps(counted), killed)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert steps(counted)[-1] > 0
    finish(start(data_dir, counted, *flags, module="tests.counting_trainer"))
    theirs, ours = (
        [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        for path in (kept, counted)
    )
    for their, our in zip(theirs, ours, strict=True):
        assert our["split"] == their["split"]
        for name in ("loss", "label_accuracy", "lrap"):
            assert our[name] == pytest.approx(their[name], rel=1e-12)
        for name in ("macro_ap", "micro_ap"):
            assert abs(our[name] - their[name]) <= our[f"{name}_error"] + 1e-12 < 0.01
        assert our["constant"] == pytest.approx(their["constant"], rel=1e-9)
    # What is learned has not changed, and of the answers there are only counts.
    theirs, ours = state(kept), state(counted)
    of_both = theirs.keys() & ours.keys()
    assert {name.split("/")[0] for name in theirs.keys() - of_both} == {"labels", "logits"}
    assert {name.split("/")[0] for name in ours.keys() - of_both} == {"counts", "sums"}
    for name in of_both:
        np.testing.assert_array_equal(ours[name], theirs[name])
