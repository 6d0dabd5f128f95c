"""What a report says beside its scores agrees with scikit-learn, and with counting by hand."""

import numpy as np
import pandas as pd
import pytest
from sklearn import calibration as sklearn_calibration, metrics as sklearn_metrics

from trainer import config
from trainer.reports import analysis, sections, slices

RNG = np.random.default_rng(0)
LABELS = (RNG.random((400, 4)) < [0.5, 0.3, 0.1, 0.02]).astype(np.float32)
LOGITS = (RNG.normal(size=LABELS.shape) + 2 * LABELS - 1).round(1)  # With equal ones.
PROBABILITIES = 1 / (1 + np.exp(-LOGITS))
PREDICTED = LOGITS > 0


def test_precision_and_recall_are_scikit_learns():
    precision, recall, _ = sklearn_metrics.precision_recall_curve(LABELS[:, 0], LOGITS[:, 0])
    # There they begin with the lowest threshold, and end with a point of no posters.
    found = analysis.precision_recall(LABELS[:, 0], LOGITS[:, 0])
    np.testing.assert_allclose(found, [recall[-2::-1], precision[-2::-1]])


def test_bins_of_calibration_are_scikit_learns():
    means, shares, counts = analysis.calibration_bins(LABELS, PROBABILITIES, 15)
    expected = sklearn_calibration.calibration_curve(
        LABELS.ravel(), PROBABILITIES.ravel(), n_bins=15
    )
    np.testing.assert_allclose([shares[counts > 0], means[counts > 0]], expected)
    assert counts.sum() == LABELS.size
    empty = analysis.calibration_bins(np.ones((2, 1)), np.full((2, 1), 0.99), 15)
    assert np.isnan(empty[0][:14]).all() and empty[2][14] == 2


def test_mistakes_and_pairs_are_counted_as_by_hand():
    mistakes = analysis.mistaken_shares(LABELS > 0, PREDICTED)
    pairs = analysis.joint_shares(LABELS)
    for i in range(4):
        for j in range(4):
            if i == j:
                assert np.isnan(mistakes[i, j]) and np.isnan(pairs[i, j])
                continue
            without = (LABELS[:, i] > 0) & (LABELS[:, j] == 0)
            assert mistakes[i, j] == pytest.approx(PREDICTED[without, j].mean())
            assert pairs[i, j] == pytest.approx(LABELS[LABELS[:, i] > 0, j].mean())


def test_labels_that_were_turned_round_are_doubted_and_no_others():
    labels = (RNG.random((500, 3)) < 0.4).astype(np.float32)
    # Surer of what is missing than of what is there, as models of rare genres are.
    probabilities = np.where(labels > 0, 0.6, 0.1) + RNG.uniform(-0.05, 0.05, labels.shape)
    turned = [(3, 0), (77, 1), (200, 2), (401, 0)]
    for poster, genre in turned:
        is_missing = labels[poster, genre] > 0
        probabilities[poster, genre] = 0.7 if is_missing else 0.03
        labels[poster, genre] = 1 - is_missing
    doubted = analysis.probably_mislabelled(labels, probabilities)
    assert {tuple(doubt) for doubt in doubted} == set(turned)
    # 0.7 is a quarter of the way from 0.6 to sure, 0.97 two thirds of that from 0.9.
    is_there = [labels[tuple(doubt)] for doubt in doubted]
    assert is_there == sorted(is_there, reverse=True)


def test_parts_are_scored_by_what_is_in_them_alone():
    columns = pd.DataFrame(
        {
            "year": np.arange(1900, 2300),
            "studio": ["A", "B"] * 200,
            "rare": ["x"] * 395 + ["y"] * 5,
            "title": [f"title {i}" for i in range(400)],
            "gap": [np.nan] * 200 + ["z"] * 200,
        }
    )
    found = slices.score(columns, LABELS, LOGITS)
    assert found.index.tolist() == [
        *("year: to 1999.75", "year: over 1999.75, to 2099.5"),
        *("year: over 2099.5, to 2199.25", "year: over 2199.25, to 2299"),
        *("studio: A", "studio: B", "rare: x", "gap: z"),
    ]
    assert found["posters"].tolist() == [100, 100, 100, 100, 200, 200, 395, 200]
    of_a = np.arange(0, 400, 2)
    occurring = LABELS[of_a].any(axis=0)
    average_precision = sklearn_metrics.average_precision_score
    assert found.loc["studio: A", "macro AP"] == pytest.approx(
        average_precision(LABELS[of_a][:, occurring], LOGITS[of_a][:, occurring])
    )
    assert found.loc["studio: A", "constant's macro AP"] == pytest.approx(
        LABELS[of_a][:, occurring].mean()
    )
    known = slices.known(LABELS, np.full((400, 2), [10, 20]))
    assert known["genres"].tolist() == [
        {0: "none", 1: "1", 2: "2"}.get(count, "3 or more") for count in LABELS.sum(axis=1)
    ]
    assert (known["pixels of the longer side"] == 20).all()


def test_columns_are_those_of_the_posters(tmp_path):
    path = tmp_path / "films.csv"
    path.write_text("Id,year\nb.jpg,1999\na,2001\na,2005\nz,1950\n")
    found = slices.read_columns(path, ["a", "b", "c"])
    np.testing.assert_array_equal(found["year"], [2001, 1999, np.nan])
    for content, complaint in (
        ("Name,year\na,1\n", "no column `Id`; it has Name, year"),
        ("Id,year\nq,1\n", "none of its Ids is one of the posters, as a"),
        ("", "cannot be read"),
    ):
        path.write_text(content)
        with pytest.raises(config.UsageError, match=f"--columns={path}: .*{complaint}"):
            slices.read_columns(path, ["a", "b"])


@pytest.mark.parametrize(
    ("waited", "words"),
    [
        (0.02, "2% of the time waiting for them; the computing limits it"),
        (0.4, "40% of the time waiting for them; reading and decoding limit it: "),
    ],
)
def test_what_limited_the_speed_is_said_of_most_epochs(waited, words):
    """The first epoch fills the cache."""
    records = pd.DataFrame(
        {
            "split": ["train", "train", "test", "train"],
            "images_per_second": [10, 50, 900, 52],
            "share_waited": [0.9, waited, np.nan, waited],
        }
    )
    found = sections._describe_speed(records, "train")
    assert found.startswith(f"50 posters/s in training, {words}")
    before = records.drop(columns="share_waited")
    assert sections._describe_speed(before, "train") == "50 posters/s in training"
    assert sections._describe_speed(before[:0], "train") == "not known"
