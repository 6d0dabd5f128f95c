"""Each number in a report is recomputed by scikit-learn, or by hand, from the file of predictions.

Those of the plots are read from the axes on which they are drawn.
"""

import html
import json
import re
import shutil

import matplotlib.figure
import numpy as np
import pandas as pd
import pytest
from sklearn import calibration as sklearn_calibration, metrics

from poster_tfds import synthetic
from trainer import config
from trainer.data import splits
from trainer.decisions import decision
from trainer.reports import (
    analysis,
    answers as answers_lib,
    evaluated,
    intervals,
    page,
    plots,
    report as report_lib,
    scores,
    slices,
)
from trainer.run import directory

GENRES = synthetic.GENRES
SPLIT = "train[:75%]+test"  # Large enough that each genre occurs.
NUM_RESAMPLES = 40
RNG = np.random.default_rng(0)
LABELS = (RNG.random((400, 4)) < [0.5, 0.3, 0.1, 0.02]).astype(np.float32)
LOGITS = (RNG.normal(size=LABELS.shape) + 2 * LABELS - 1).round(1)  # With equal ones.
PROBABILITIES = 1 / (1 + np.exp(-LOGITS))
PREDICTED = LOGITS > 0


@pytest.fixture(scope="module")
def report(run_dir, data_dir, tmp_path_factory):
    """A report, which is written into a copy of the run's directory."""
    run_copy = shutil.copytree(run_dir, tmp_path_factory.mktemp("numbers") / "run")
    answered = evaluated.evaluate_run(run_copy, SPLIT, str(data_dir))
    of_some = (array[::2] for array in answered.answers)  # More than there are in the split.
    chosen = decision.choose(GENRES, *of_some, split="train[75%:]")
    report = report_lib.Report(answered._replace(decision=chosen), num_resamples=NUM_RESAMPLES)
    page.write(report)
    return report


@pytest.fixture(scope="module")
def tables(report):
    """The tables of the page, by their headings: {row: {column: cell}}."""
    text = report.evaluated.run.report.read_text()
    found = {}
    for title, table in re.findall(
        r"<h2>([^<]*)</h2>(?:(?!<h2>).)*?(<table.*?</table>)", text, re.S
    ):
        rows = [
            [html.unescape(re.sub("<[^>]*>", "", cell)).strip() for cell in cells]
            for row in re.findall(r"<tr.*?</tr>", table, re.S)
            if (cells := re.findall(r"<t[hd].*?</t[hd]>", row, re.S))
        ]
        columns, *rows = rows
        found[title] = {row[0]: dict(zip(columns[1:], row[1:], strict=True)) for row in rows}
    return found


@pytest.fixture(scope="module")
def answers(report):
    """Labels, scores, calibrated scores and predicted genres, each [N, G]."""
    run = report.evaluated.run
    with np.load(run.answers) as saved:
        labels, logits = saved["labels"], np.float64(saved["logits"])
    decided = pd.DataFrame(json.loads(run.thresholds.read_text())["genres"]).set_index("genre")
    slope, intercept, threshold = decided.loc[GENRES, ["slope", "intercept", "threshold"]].values.T
    calibrated = 1 / (1 + np.exp(-(slope * logits + intercept)))
    assert labels.any(axis=0).all()
    return labels, 1 / (1 + np.exp(-logits)), calibrated, calibrated >= threshold


def test_scores_are_those_of_the_written_predictions(tables, answers, data_dir):
    """`test_scores` has them from scikit-learn."""
    labels, probabilities, calibrated, predicted = answers
    logits = np.log(probabilities / (1 - probabilities))
    expected = scores.compute_metrics(labels, logits)
    more = scores.compute_more_metrics(labels, logits, calibrated, predicted)
    rows, of_all = tables["How sure they are"], tables["Scores"][f"all of {SPLIT}"]
    headings = scores.HEADINGS | scores.MORE_HEADINGS
    for name, value in (expected | more).items():
        assert float(rows[headings[name]]["score"]) == pytest.approx(value, abs=6e-5), name
    assert int(of_all["posters"]) == len(labels)
    train = splits.open_split("poster_tfds/synthetic", str(data_dir), "train[:75%]")
    rates = train.read_labels().mean(axis=0)
    for name, constant in scores.compute_constant_metrics(labels, rates).items():
        heading = scores.HEADINGS[name]
        assert float(of_all[heading]) == pytest.approx(expected[name], abs=6e-5), name
        for found in (
            tables["Scores"][f"constant, all of {SPLIT}"][heading],
            rows[heading]["constant's"],
        ):
            assert float(found) == pytest.approx(constant, abs=6e-5), name


def test_intervals_are_those_of_scikit_learns_scores(tables, answers):
    """Percentiles of resamples, moved onto the score: one of logits, one of what is predicted."""

    def score(labels, scores, _, predicted):
        return [
            metrics.log_loss(labels.ravel(), scores.ravel()),
            metrics.accuracy_score(labels > 0, predicted),
        ]

    rng, size = np.random.default_rng(0), len(answers[0])
    drawn = [rng.integers(size, size=size) for _ in range(NUM_RESAMPLES)]
    resampled = np.array([score(*(array[rows] for array in answers)) for rows in drawn])
    moved = np.array(score(*answers)) - resampled.mean(axis=0)
    ends = np.percentile(resampled, [2.5, 97.5], axis=0) + moved
    for name, low, high in zip(("loss", "subset accuracy"), *ends, strict=True):
        found = [
            float(tables["How sure they are"][name][end]) for end in ("lower end", "upper end")
        ]
        assert found == pytest.approx([max(low, 0), high], abs=6e-5), name


@pytest.mark.parametrize("num_posters", [400, intervals._MOST_POSTERS * 2])
def test_an_interval_is_as_wide_as_the_error_of_a_mean(num_posters):
    values = np.random.default_rng(1).normal(3, 2, num_posters)
    low, high = intervals.bootstrap(lambda rows: [values[rows].mean()], num_posters)[:, 0]
    error = values.std() / np.sqrt(num_posters)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.3 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.3 * error)


def test_each_genres_numbers_are_scikit_learns(report, tables, answers):
    labels, scores, _, predicted = answers
    rows = tables["Genres"]
    assert set(rows) == set(GENRES)
    for genre, name in enumerate(GENRES):
        label, score, is_on = labels[:, genre], scores[:, genre], predicted[:, genre]
        expected = {
            f"in {SPLIT}": label.sum(),
            "constant's AP": label.mean(),
            "AP": metrics.average_precision_score(label, score),
            "ROC-AUC": metrics.roc_auc_score(label, score),
            "threshold": report.evaluated.decision.table.loc[name, "threshold"],
            "recall": metrics.recall_score(label, is_on),
            "F1": metrics.f1_score(label, is_on),
        }
        if is_on.any():
            expected["precision"] = metrics.precision_score(label, is_on)
        found = {column: float(rows[name][column]) for column in expected}
        assert found == pytest.approx(expected, abs=6e-5), name
        assert float(rows[name]["lower end"]) < found["AP"] < float(rows[name]["upper end"])


def test_genres_with_too_few_posters_are_marked_in_words():
    rng = np.random.default_rng(0)
    labels = np.zeros((300, 4))
    for genre, count in enumerate((9, 120, 0, 10)):
        labels[rng.choice(300, count, replace=False), genre] = 1
    logits = rng.normal(size=labels.shape) + labels
    given = answers_lib.Answers(labels, logits)
    found = analysis.score_genres(
        "abcd", given, logits > 0.5, np.array([60, 900, 2, 49]), NUM_RESAMPLES
    )
    assert found["remark"].to_dict() == {
        "b": "",
        "a": "too few to measure",
        "d": "too few to learn",
        "c": "too few to learn, none to measure",
    }
    scores = ["average_precision", "roc_auc", "low", "high", "recall"]
    assert found.loc["c", scores].isna().all()


def test_plots_show_scikit_learns_numbers(report, answers):
    labels, scores, calibrated, predicted = answers
    axes = matplotlib.figure.Figure().subplots()
    plots._draw_precisions(report, axes)
    found = metrics.average_precision_score(labels, scores, average=None)
    widths = {bar.get_y() + bar.get_height() / 2: bar.get_width() for bar in axes.patches}
    np.testing.assert_allclose([widths[i] for i in sorted(widths)], np.sort(found)[::-1])
    panels = matplotlib.figure.Figure().subplots(2, 4)
    plots._draw_curves(report, range(len(GENRES)), panels)
    for genre, panel in enumerate(panels.flat):
        curve, constant, dot = (np.array(line.get_data()) for line in panel.lines)
        label, is_on = labels[:, genre], predicted[:, genre]
        precision, recall, _ = metrics.precision_recall_curve(label, scores[:, genre])
        np.testing.assert_allclose(curve, [recall[-2::-1], precision[-2::-1]])
        np.testing.assert_allclose(constant[1], label.mean(), rtol=1e-6)
        if is_on.any():
            expected = metrics.recall_score(label, is_on), metrics.precision_score(label, is_on)
            np.testing.assert_allclose(dot[:, 0], expected)
    panels = matplotlib.figure.Figure().subplots(1, 2)
    plots._draw_calibration(report, panels)
    for panel, values in zip(panels, (scores, calibrated), strict=True):
        share, mean = sklearn_calibration.calibration_curve(
            labels.ravel(), values.ravel(), n_bins=15
        )
        curve = panel.lines[1].get_xydata()
        np.testing.assert_allclose(curve[~np.isnan(curve[:, 0])], np.stack([mean, share], 1))
        counts = np.histogram(values, 15, (0, 1))[0]
        heights = [bar.get_height() for bar in panel.patches]
        np.testing.assert_allclose(heights, counts / counts.max())


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
    labels, logits = LABELS[::2], LOGITS[::2]
    assert found.loc["studio: A", ["macro AP", "constant's macro AP"]].tolist() == pytest.approx(
        [metrics.average_precision_score(labels, logits), labels.mean()]
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


def test_predictions_are_read_as_what_they_are_of(tmp_path):
    run = directory.RunDirectory(tmp_path)
    facts = {"split": "test", "step": 7, "tta": "none"}
    assert answers_lib.read(run, **facts) is None
    given = answers_lib.Answers(LABELS[:5], LOGITS[:5])
    answers_lib.write(run, given, ["a", "é", "c", "d", "e"], **facts)
    for read, expected in zip(answers_lib.read(run, **facts), given, strict=True):
        np.testing.assert_array_equal(read, expected)
    for other in ({"split": "validation"}, {"step": 8}, {"tta": "mirror"}):
        assert answers_lib.read(run, **{**facts, **other}) is None
    with np.load(tmp_path / "answers.npz") as arrays:  # As other programs read it.
        assert arrays["poster_ids"].tolist() == ["a", "é", "c", "d", "e"]
