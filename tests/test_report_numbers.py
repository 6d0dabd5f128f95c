"""Each number in a report's tables is recomputed by scikit-learn from the answers that it keeps."""

import html
import json
import re
import shutil

import numpy as np
import pytest
from sklearn import metrics

from poster_tfds import synthetic
from trainer.data import splits
from trainer.decisions import decision
from trainer.reports import evaluated, page, report as report_lib

GENRES = synthetic.GENRES


@pytest.fixture(scope="module")
def written(run_dir, decided_run, data_dir, tmp_path_factory):
    """A run with its report, at thresholds that were chosen on posters of train."""
    run_copy = tmp_path_factory.mktemp("numbers") / "run"
    shutil.copytree(run_dir, run_copy)
    answered = evaluated.evaluate_run(run_copy, "test", str(data_dir))
    decided = decision.read(decided_run / "thresholds.json", step=answered.step, tta=answered.tta)
    page.write(report_lib.Report(answered._replace(decision=decided)))
    return run_copy


@pytest.fixture(scope="module")
def tables(written):
    """The tables of the page, by their captions or the text before: {row: {column: cell}}."""
    text = (written / "report.html").read_text()
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
def answers(written):
    """Labels, scores, calibrated scores and predicted genres, each [N, G]."""
    with np.load(written / "answers.npz") as saved:
        labels, logits = saved["labels"], np.float64(saved["logits"])
    decided = read_thresholds(written)
    slope, intercept, threshold = (
        np.array([decided[genre][name] for genre in GENRES])
        for name in ("slope", "intercept", "threshold")
    )
    calibrated = 1 / (1 + np.exp(-(slope * logits + intercept)))
    return labels, 1 / (1 + np.exp(-logits)), calibrated, calibrated >= threshold


def read_thresholds(run_dir):
    """Returns what `thresholds.json` has of each genre."""
    decided = json.loads((run_dir / "thresholds.json").read_text())["genres"]
    return {each["genre"]: each for each in decided}


def calibration_error(labels, scores):
    """Of 15 bins of equal width, the mean distance of scores and labels, by posters."""
    bins = np.minimum((scores * 15).astype(int), 14).ravel()
    labels, scores = labels.ravel(), scores.ravel()
    parts = [bins == i for i in range(15) if (bins == i).any()]
    return sum(abs(labels[i].mean() - scores[i].mean()) * i.mean() for i in parts)


def r_precision(labels, scores):
    """Of a poster with R genres, how many of its R highest scores are right; of those with any."""
    shares = []
    for label, score in zip(labels, scores, strict=True):
        if count := int(label.sum()):
            shares.append(label[np.argsort(-score, kind="stable")[:count]].mean())
    return np.mean(shares)


def test_scores_are_scikit_learns(tables, answers):
    labels, scores, calibrated, predicted = answers
    expected = {
        "loss": metrics.log_loss(labels.ravel(), scores.ravel()),
        "label accuracy": ((scores > 0.5) == labels).mean(),
        "macro AP": metrics.average_precision_score(labels, scores),
        "micro AP": metrics.average_precision_score(labels, scores, average="micro"),
        "LRAP": metrics.label_ranking_average_precision_score(labels, scores),
        "ROC-AUC": metrics.roc_auc_score(labels, scores),
        "R-precision": r_precision(labels, scores),
        "calibration error": calibration_error(labels, scores),
        "the same, calibrated": calibration_error(labels, calibrated),
        "macro F1": metrics.f1_score(labels, predicted, average="macro", zero_division=0),
        "micro F1": metrics.f1_score(labels, predicted, average="micro", zero_division=0),
        "sample F1": metrics.f1_score(labels, predicted, average="samples", zero_division=0),
        "subset accuracy": metrics.accuracy_score(labels > 0, predicted),
    }
    found = {name: float(row["score"]) for name, row in tables["How sure they are"].items()}
    assert found == pytest.approx(expected, abs=6e-5)
    of_all = tables["Scores"]["all of test"]
    assert int(of_all.pop("posters")) == len(labels)
    for name, cell in of_all.items():
        assert float(cell) == pytest.approx(expected[name], abs=6e-5), name


def test_the_constants_scores_are_scikit_learns(tables, answers, data_dir):
    labels = answers[0]
    train = splits.open_split("poster_tfds/synthetic", str(data_dir), "train")
    constant = np.broadcast_to(train.read_labels().mean(axis=0), labels.shape)
    found = tables["Scores"]["constant, all of test"]
    expected = {
        "loss": metrics.log_loss(labels.ravel(), constant.ravel()),
        "macro AP": metrics.average_precision_score(labels, constant),
        "micro AP": metrics.average_precision_score(labels, constant, average="micro"),
        "LRAP": metrics.label_ranking_average_precision_score(labels, constant),
        "label accuracy": ((constant > 0.5) == labels).mean(),
    }
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, abs=6e-5), name
        in_interval = tables["How sure they are"][name]["constant's"]
        assert float(in_interval) == pytest.approx(value, abs=6e-5), name


def test_each_genres_numbers_are_scikit_learns(tables, answers, written):
    labels, scores, _, predicted = answers
    decided = read_thresholds(written)
    rows = tables["Genres"]
    assert set(rows) == set(GENRES)
    for genre, name in enumerate(GENRES):
        label, score, is_on = labels[:, genre], scores[:, genre], predicted[:, genre]
        expected = {
            "in test": label.sum(),
            "constant's AP": label.mean(),
            "AP": metrics.average_precision_score(label, score),
            "ROC-AUC": metrics.roc_auc_score(label, score),
            "threshold": decided[name]["threshold"],
            "recall": metrics.recall_score(label, is_on),
            "F1": metrics.f1_score(label, is_on),
        }
        if is_on.any():
            expected["precision"] = metrics.precision_score(label, is_on)
        found = {column: float(rows[name][column]) for column in expected}
        assert found == pytest.approx(expected, abs=6e-5), name


def test_parts_are_scored_by_scikit_learn_too(tables, answers):
    labels, scores, _, _ = answers
    counts = labels.sum(axis=1)
    rows = tables["Parts of the posters"]
    checked = 0
    for part, is_in in (
        ("genres: none", counts == 0),
        ("genres: 1", counts == 1),
        ("genres: 2", counts == 2),
        ("genres: 3 or more", counts > 2),
    ):
        if part not in rows:
            continue
        checked += 1
        of_part, its = labels[is_in], scores[is_in]
        occurring = of_part.any(axis=0)
        assert int(rows[part]["posters"]) == is_in.sum()
        expected = {
            "macro AP": metrics.average_precision_score(of_part[:, occurring], its[:, occurring]),
            "micro AP": metrics.average_precision_score(of_part, its, average="micro"),
        }
        for name, value in expected.items():
            assert float(rows[part][name]) == pytest.approx(value, abs=6e-5), (part, name)
    assert checked >= 2
