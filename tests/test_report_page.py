"""The report of a run says how good the model is, where it errs, and what leaked."""

import csv
import json
import re
import shlex
import shutil

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from poster_tfds import splits, synthetic
from tests import conftest
from trainer import config, presets
from trainer.data import preprocessing
from trainer.decisions import decision
from trainer.reports import analysis, evaluated, page, report as report_lib, sections
from trainer.run import checkpoints

NUM_POSTERS = 80
GENRES = synthetic.GENRES


@pytest.fixture(scope="module")
def leaky(run_dir, tmp_path_factory):
    """A run without a validation split, of whose test posters two stand in train as well.

    Returns:
        The report, its page, and the test posters: Id -> path, genres and whether it leaked.
    """
    directory = tmp_path_factory.mktemp("report")
    posters, data_dir, run_copy = (directory / name for name in ("posters", "data", "run"))
    synthetic.ensure_posters(posters, NUM_POSTERS)
    with (posters / "train.csv").open() as file:
        rows = list(csv.DictReader(file))
    is_test = splits.reference_test_rows(NUM_POSTERS)
    test_rows, train_rows = np.flatnonzero(is_test), np.flatnonzero(~is_test)

    def image(row):
        return posters / "Images" / f"{rows[row]['Id']}.jpg"

    leaked = set(test_rows[[2, 5]])
    for row, original in zip(sorted(leaked), train_rows[[0, 7]], strict=True):
        shutil.copy(image(original), image(row))
    conftest.build(
        posters, data_dir, {"name": "leaky", "split": "reference", "drop_duplicates": False}
    )
    shutil.copytree(run_dir, run_copy, ignore=shutil.ignore_patterns("thresholds.json"))
    facts = json.loads((run_copy / "config.json").read_text())
    facts |= {"num_train": len(train_rows), "validation_split": ""}
    facts["config"] |= {
        "dataset": "poster_tfds/leaky",
        "data_dir": str(data_dir),
        "train_split": "train",
        "validation_split": "",
    }
    (run_copy / "config.json").write_text(json.dumps(facts))
    described = report_lib.Report(evaluated.evaluate_run(run_copy), num_resamples=10)
    expected = {
        rows[row]["Id"]: (image(row), [int(rows[row][genre]) for genre in GENRES], row in leaked)
        for row in test_rows
    }
    return described, page.write(described).read_text(), expected


@pytest.fixture(scope="module")
def answers(leaky):
    """Ids, labels, probabilities and which posters leaked, from the files themselves."""
    described, _, expected = leaky
    model, facts = checkpoints.restore_model(described.evaluated.run.path)
    images = [
        preprocessing.decode_and_resize(path.read_bytes(), facts["image_size"])
        for path, _, _ in expected.values()
    ]
    probabilities = 1 / (1 + np.exp(-np.float64(model(np.stack(images), training=False))))
    _, labels, leaked = zip(*expected.values(), strict=True)
    return list(expected), np.array(labels), probabilities, np.array(leaked)


def test_predictions_are_those_of_the_model_for_the_files(leaky, answers):
    poster_ids, labels, probabilities, leaked = answers
    given = leaky[0].evaluated
    order = [poster_ids.index(poster_id) for poster_id in given.poster_ids]
    np.testing.assert_array_equal(given.labels, labels[order])
    np.testing.assert_array_equal(given.leaked, leaked[order])
    np.testing.assert_allclose(1 / (1 + np.exp(-given.logits)), probabilities[order], atol=1e-4)


def test_scores_stand_with_and_without_the_posters_that_were_trained_on(leaky, answers):
    _, labels, probabilities, leaked = answers
    printed = page.describe(leaky[0])
    assert leaked.sum() == 2
    assert "are in train too, byte for byte: 2." in printed
    for title, chosen in (("all of test", leaked >= 0), ("without those in train", ~leaked)):
        (line,) = (line for line in printed.splitlines() if line.startswith(title))
        num_posters, loss, *_, lrap = map(float, line.removeprefix(title).split())
        assert num_posters == chosen.sum()
        assert [loss, lrap] == pytest.approx(
            [
                sklearn_metrics.log_loss(labels[chosen].ravel(), probabilities[chosen].ravel()),
                sklearn_metrics.label_ranking_average_precision_score(
                    labels[chosen], probabilities[chosen]
                ),
            ],
            abs=2e-4,
        )
    everything, unseen = analysis.score_with_and_without(
        np.eye(4), np.ones((4, 4)), np.ones(4, bool), np.full(4, 0.25)
    )
    assert everything.num_posters == 4 and unseen is None


def test_without_a_validation_split_thresholds_are_a_half_and_one_is_recommended(leaky):
    described, text, _ = leaky
    run = described.evaluated.run
    assert not run.thresholds.exists()
    np.testing.assert_array_equal(described.predicted, described.evaluated.logits >= 0)
    assert set(described.genres["threshold"]) == {0.5}
    assert "Not chosen: each threshold is 0.5" in text
    split = "--train_split='train[:85%]' --validation_split='train[85%:]'"
    assert split in sections.summarize(described)[-1]
    with pytest.raises(config.UsageError, match="has no validation split to choose"):
        evaluated.evaluate_run(run.path, target_precision=0.6)


def test_thresholds_are_chosen_on_the_validation_split(run_dir, data_dir, tmp_path):
    run_copy = shutil.copytree(run_dir, tmp_path / "run")
    answered = evaluated.evaluate_run(run_copy, "test", str(data_dir), target_precision=0.6)
    page.write(report_lib.Report(answered, num_resamples=3))
    kept = decision.read(run_copy / "thresholds.json", step=answered.step, tta="none")
    of_validation = evaluated.evaluate_run(run_copy, "train[75%:]", str(data_dir))
    chosen = decision.choose(GENRES, *of_validation.answers, 0.6, "train[75%:]")
    assert answered.decision.how == kept.how == chosen.how
    np.testing.assert_allclose(kept.calibrate(answered.logits), chosen.calibrate(answered.logits))
    # Not for the posters that they are chosen on.
    assert of_validation.decision.how.startswith("Not chosen: each threshold is 0.5")
    assert len(sections.summarize(report_lib.Report(answered, num_resamples=3))) < 4


def test_the_sentences_and_the_command_are_of_this_run(run_dir, data_dir):
    given = evaluated.evaluate_run(run_dir, "train[:75%]", str(data_dir))
    described = report_lib.Report(given, num_resamples=10)
    labels, logits = np.float64(given.labels), given.logits
    top = labels[np.arange(len(labels)), logits.argmax(axis=1)].mean()
    commonest = given.base_rates.argmax()
    how_good, *_ = sections.summarize(described)
    assert how_good.startswith(f"For {top:.0%} of {len(labels)} posters of train[:75%] the genre")
    assert f"(always saying {GENRES[commonest]}: {labels[:, commonest].mean():.0%})" in how_good
    average_precisions = sklearn_metrics.average_precision_score(labels, logits, average=None)
    assert f"macro AP is {average_precisions.mean():.3f}, between" in how_good
    assert f"(a constant: {labels.mean(axis=0).mean():.3f})" in how_good
    # Genres with posters enough are praised or blamed.
    described.genres["num_evaluated"] = 10
    _, at_what, where_not = sections.summarize(described)
    named = [
        f"{GENRES[g]} (AP {average_precisions[g]:.2f})"
        for g in average_precisions.argsort()[::-1][:3]
    ]
    assert at_what == f"It knows best: {', '.join(named)}."
    is_unknown = described.genres["low"] <= described.genres["constant"]
    for genre in GENRES:
        assert (genre in where_not) == is_unknown[genre] or not is_unknown.any()
    # What trains it again, as the flags give it.
    _, _, _, *flags = shlex.split(sections.describe_facts(described)["Trained by"])
    values = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    again = dict(presets.PRESETS[values.pop("preset")])
    assert values.pop("run_dir") == "RUN"
    again |= {name: type(getattr(given.config, name))(value) for name, value in values.items()}
    assert config.Config(**again) == given.config


def test_doubted_labels_are_shown_with_the_doubt(leaky):
    described, text, _ = leaky
    answered = described.evaluated
    doubted = analysis.probably_mislabelled(answered.labels, described.calibrated)
    shown = text.split("<h2>Probably mislabelled</h2>")[1].split("<h2>")[0]
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", shown, re.DOTALL)
    assert len(captions) == min(len(doubted), 12) > 0
    for caption, (poster, genre) in zip(captions, doubted, strict=False):
        doubt = "not {}?" if answered.labels[poster, genre] else "{} too?"
        assert caption.startswith(f"{answered.poster_ids[poster]}, loss ")
        assert f"<br>{doubt.format(GENRES[genre])}<br>" in caption


def test_the_page_is_one_file_and_begins_with_the_worst_poster(leaky, answers):
    _, text, _ = leaky
    poster_ids, labels, probabilities, leaked = answers
    assert not re.search(r'(src|href)="(?!data:)', text)
    losses = [
        sklearn_metrics.log_loss(of_poster, p)
        for of_poster, p in zip(labels, probabilities, strict=True)
    ]
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", text, re.DOTALL)
    by_loss = np.argsort(losses)[::-1]
    assert [caption.split(",")[0] for caption in captions[: len(labels)]] == [
        poster_ids[i] for i in by_loss
    ]
    worst = by_loss[0]
    genres = np.array(GENRES)
    assert ", ".join(genres[labels[worst] == 1]) in captions[0]
    for i in np.argsort(-probabilities[worst])[:3]:
        line = f"{genres[i]} {probabilities[worst, i]:.2f}"
        assert (f"<b>{line}</b>" in captions[0]) == (labels[worst, i] == 1)
        assert line in captions[0]
    marked = {caption.split(",")[0] for caption in captions if "in the train split too" in caption}
    assert marked == {poster_ids[i] for i in np.flatnonzero(leaked)}


def test_the_surest_answers_are_explained_right_ones_first(leaky, answers):
    _, text, _ = leaky
    poster_ids, labels, probabilities, _ = answers
    section = text.split("<h2>What the surest answers rest on</h2>")[1]
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", section, re.DOTALL)
    lines = []
    for is_right in (True, False):
        found = np.where(labels == is_right, probabilities, 0)
        best = found.max(axis=0)
        for genre in np.argsort(-best)[:4]:
            answer = f"{GENRES[genre]} {best[genre]:.2f}"
            answer = f"<b>{answer}</b>" if is_right else answer
            lines.append((poster_ids[found[:, genre].argmax()], answer))
    assert len(captions) == len(lines) == 8
    for caption, (poster_id, answer) in zip(captions, lines, strict=True):
        assert caption.startswith(f"{poster_id}, <i>") and f"\n{answer}, " in caption


def test_a_split_or_a_dataset_that_is_not_there_is_refused(leaky):
    run = leaky[0].evaluated.run
    with pytest.raises(config.UsageError, match="has no split 'holdout'; it has"):
        evaluated.evaluate_run(run.path, "holdout")
    with pytest.raises(config.UsageError, match="there is no such dataset in"):
        evaluated.evaluate_run(run.path, "test", run.path / "elsewhere")


def test_where_no_poster_comes_twice_the_train_split_is_not_read(run_dir, data_dir, tmp_path):
    """`synthetic` is built without posters that came before."""
    mixed = evaluated.evaluate_run(run_dir, "test[:9]+train[:5]", str(data_dir))
    np.testing.assert_array_equal(mixed.leaked, [False] * 9 + [True] * 5)
    left_out = shutil.ignore_patterns("downloads", "*-train.tfrecord-*")
    without = shutil.copytree(data_dir, tmp_path / "data", ignore=left_out)
    run_copy = shutil.copytree(run_dir, tmp_path / "run")
    facts = json.loads((run_copy / "config.json").read_text()) | {"validation_split": ""}
    (run_copy / "config.json").write_text(json.dumps(facts))
    answered = evaluated.evaluate_run(run_copy, "test", str(without))
    assert len(answered.leaked) == len(answered.labels) > 0
    assert not answered.leaked.any()


def test_false_positives_are_the_posters_without_a_genre_that_it_is_seen_in():
    labels = np.array([[1, 0], [0, 0], [0, 1], [0, 0], [1, 1]])
    logits = np.array([[9.0, 0], [1, 0], [3, 0], [-2, 0], [4, 0]])
    np.testing.assert_array_equal(analysis.false_positives(labels, logits, 0, 2), [2, 1])
    assert len(analysis.false_positives(labels, logits, 0, 9)) == 3
