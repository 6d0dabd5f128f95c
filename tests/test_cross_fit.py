"""Thresholds of a run without a validation split, by models that have not seen the posters."""

import json
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics

from export import saved_model
from tests import conftest
from trainer import config as config_lib
from trainer.data import splits
from trainer.decisions import decision, thresholds
from trainer.reports import evaluated
from trainer.run import directory

FOLDS = 2


def cross_fit(run_dir, *flags, **kwargs):
    command = (sys.executable, "-m", "trainer.cross_fit", f"--run_dir={run_dir}")
    return conftest.run(*command, f"--folds={FOLDS}", *flags, **kwargs)


@pytest.fixture(scope="module")
def fitted(run_dir, tmp_path_factory):
    """A run and its folds."""
    copied = shutil.copytree(run_dir, tmp_path_factory.mktemp("cross_fit") / "run")
    cross_fit(copied)
    return copied


@pytest.fixture(scope="module")
def answers(fitted):
    """What the model of each fold answers for what it was not trained on: labels and logits."""
    found = []
    for number in range(1, FOLDS + 1):
        fold = directory.RunDirectory(fitted).fold(number, FOLDS)
        config, facts = fold.read_config()
        whole = splits.open_split(config.dataset, config.data_dir, "train")
        trained_on, (start, end) = ids(whole, config.train_split), FOLD_ENDS[number - 1]
        of_part = evaluated.evaluate_run(fold.path, f"train[{start}:{end}]")
        assert trained_on | set(of_part.poster_ids) == ids(whole, "train")
        assert not trained_on & set(of_part.poster_ids)
        assert not facts["validation_split"] and not config.test_split
        found.append(of_part.answers)
    return tuple(map(np.concatenate, zip(*found, strict=True)))


FOLD_ENDS = [(0, 255), (255, 510)]


def ids(whole, name):
    split = splits.Split(whole.builder, name)
    return {example["poster_id"].decode() for example in split.read().as_numpy_iterator()}


def test_thresholds_are_chosen_by_models_that_have_not_seen_the_posters(fitted, answers):
    labels, logits = answers
    content = json.loads((fitted / "thresholds.json").read_text())
    assert content["split"] == "train"
    assert "510 posters of train" in content["how"] and "one of 2 models" in content["how"]
    assert content["step"] == directory.RunDirectory(fitted).read_metrics()["step"].max()
    table = pd.DataFrame(content["genres"])
    assert table["posters"].tolist() == labels.sum(axis=0).tolist()
    for row, truth, scores in zip(table.itertuples(), labels.T, logits.T, strict=True):
        assert row.posters >= thresholds.MIN_TO_CHOOSE
        precision, recall, _ = sklearn.metrics.precision_recall_curve(truth, scores)
        best = np.nanmax(2 * precision * recall / np.maximum(precision + recall, 1e-9))
        probabilities = 1 / (1 + np.exp(-(row.slope * np.float64(scores) + row.intercept)))
        ours = sklearn.metrics.f1_score(truth, probabilities >= row.threshold)
        assert ours == pytest.approx(best, abs=1e-9)


def test_the_report_of_other_posters_and_the_export_take_them(fitted):
    kept = decision.Decision.from_json(json.loads((fitted / "thresholds.json").read_text()))
    on_test = evaluated.evaluate_run(fitted, "test")
    pd.testing.assert_frame_equal(on_test.decision.table, kept.table)
    pd.testing.assert_frame_equal(saved_model.open_run(fitted).decision.table, kept.table)
    assert saved_model.open_run(fitted).decision.how == kept.how
    # Not of posters by which they were chosen, nor for another aim.
    assert evaluated.evaluate_run(fitted, "train[:50]").decision is None
    assert evaluated.evaluate_run(fitted, "test", target_precision=0.8).decision is None


def test_folds_that_are_trained_are_not_trained_again(fitted):
    """For another precision."""
    checkpoints = {path: path.stat().st_mtime_ns for path in fitted.glob("folds/*/checkpoints/*")}
    before = (fitted / "thresholds.json").read_text()
    assert len(checkpoints) >= FOLDS
    try:
        output = cross_fit(fitted, "--target_precision=0.9").stdout
        content = json.loads((fitted / "thresholds.json").read_text())
    finally:
        (fitted / "thresholds.json").write_text(before)
    assert output.count("steps are done") == FOLDS and "epoch 1" not in output
    assert "a precision of at least 0.9" in content["how"]
    for path, changed in checkpoints.items():
        assert path.stat().st_mtime_ns == changed


@pytest.mark.parametrize(
    ("setting", "advice"),
    [
        ({"validation_split": "train[:5]"}, "has a validation split, train[:5]: `python -m"),
        ({"init_from": "runs/other"}, "the weights of runs/other, which may have seen every"),
    ],
)
def test_runs_whose_posters_are_not_unseen_are_refused(run_dir, tmp_path, setting, advice):
    copied = shutil.copytree(run_dir, tmp_path / "run")
    content = json.loads((copied / "config.json").read_text())
    content["config"].update(setting)
    content["validation_split"] = setting.get("validation_split", "")
    (copied / "config.json").write_text(json.dumps(content))
    result = cross_fit(copied, check=False)
    assert result.returncode == 1 and advice in result.stderr
    assert not (copied / "folds").exists()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("test", [("test[30:90]", "test[0:30]"), ("test[0:30]+test[60:90]", "test[30:60]")]),
        ("train[100:-400]", [("train[103:110]", "train[100:103]")]),
        (
            "train[:2]+test[80:]",
            [
                ("test[82:90]", "train[0:2]+test[80:82]"),
                ("train[0:2]+test[80:82]+test[86:90]", "test[82:86]"),
            ],
        ),
    ],
)
def test_parts_of_any_split_are_named(data_dir, name, expected):
    split = splits.open_split("poster_tfds/synthetic", str(data_dir), name)
    assert split.folds(3)[: len(expected)] == expected
    sizes = [splits.Split(split.builder, part).num_examples for _, part in split.folds(3)]
    assert sum(sizes) == split.num_examples and max(sizes) - min(sizes) <= 1


def test_more_parts_than_posters_are_refused(data_dir):
    split = splits.open_split("poster_tfds/synthetic", str(data_dir), "test[:4]")
    with pytest.raises(config_lib.UsageError, match="has 4 posters, not 5"):
        split.folds(5)
