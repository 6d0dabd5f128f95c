"""Intervals cover as far as they should, and answers are read as what they are of."""

import numpy as np
import pytest

from trainer.reports import answers, intervals
from trainer.run import directory


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
    given = answers.Answers(np.eye(5, 3), np.random.default_rng(0).normal(size=(5, 3)))
    answers.write(run, given, ["a", "é", "c", "d", "e"], **facts)
    read = answers.read(run, **facts)
    np.testing.assert_array_equal(read.labels, given.labels)
    np.testing.assert_array_equal(read.logits, given.logits)
    for other in ({"split": "validation"}, {"step": 8}, {"tta": "mirror"}):
        assert answers.read(run, **{**facts, **other}) is None
    with np.load(tmp_path / "answers.npz") as arrays:  # As other programs read it.
        assert arrays["poster_ids"].tolist() == ["a", "é", "c", "d", "e"]
