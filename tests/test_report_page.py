"""The report of a run says how good the model is, where it errs, and what leaked."""

import csv
import json
import re
import shlex
import shutil
import sys

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from poster_tfds import splits, synthetic
from tests import conftest
from trainer import config, presets
from trainer.data import preprocessing
from trainer.decisions import decision
from trainer.reports import (
    analysis,
    answers as answers_lib,
    evaluated,
    page,
    report as report_lib,
    sections,
)
from trainer.run import checkpoints

NUM_POSTERS = 80


@pytest.fixture(scope="module")
def report(run_dir, tmp_path_factory):
    """The report of a run on a dataset of whose test posters two stand in train as well.

    Returns:
        The run directory, what was printed, the page, and the test posters: Id -> path,
        genres and whether it leaked.
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
    shutil.copytree(run_dir, run_copy)
    facts = json.loads((run_copy / "config.json").read_text())
    facts["num_train"] = len(train_rows)
    facts["config"]["dataset"] = "poster_tfds/leaky"
    (run_copy / "config.json").write_text(json.dumps(facts))
    result = conftest.run(
        *(sys.executable, "-m", "trainer.report_page"),
        *(f"--run_dir={run_copy}", f"--data_dir={data_dir}"),
    )
    expected = {
        rows[row]["Id"]: (
            image(row),
            [int(rows[row][genre]) for genre in synthetic.GENRES],
            row in leaked,
        )
        for row in test_rows
    }
    return run_copy, result.stdout, (run_copy / "report.html").read_text(), expected


@pytest.fixture(scope="module")
def answers(report):
    """Ids, labels, probabilities and which posters leaked, from the files themselves."""
    run_dir, _, _, expected = report
    model, facts = checkpoints.restore_model(run_dir)
    images = [
        preprocessing.decode_and_resize(path.read_bytes(), facts["image_size"])
        for path, _, _ in expected.values()
    ]
    probabilities = 1 / (1 + np.exp(-np.float64(model(np.stack(images), training=False))))
    _, labels, leaked = zip(*expected.values(), strict=True)
    return list(expected), np.array(labels), probabilities, np.array(leaked)


def cells(text, title):
    """Returns the numbers of the rows of a printed table that begin with a title."""
    lines = [line for line in text.splitlines() if line.startswith(title)]
    return [[float(cell) for cell in re.findall(r" (\d+(?:\.\d+)?)\b", line)] for line in lines]


def scores(labels, probabilities):
    """Loss, label accuracy, macro AP, micro AP and LRAP by scikit-learn."""
    occurring = labels.any(axis=0)
    average_precision = sklearn_metrics.average_precision_score
    return [
        sklearn_metrics.log_loss(labels.ravel(), probabilities.ravel()),
        np.mean((probabilities > 0.5) == labels),
        average_precision(labels[:, occurring], probabilities[:, occurring]),
        average_precision(labels, probabilities, average="micro"),
        sklearn_metrics.label_ranking_average_precision_score(labels, probabilities),
    ]


def test_scores_stand_with_and_without_the_posters_that_were_trained_on(report, answers):
    _, printed, _, _ = report
    _, labels, probabilities, leaked = answers
    assert leaked.sum() == 2
    assert "are in train too, byte for byte: 2." in printed
    ((num_all, *of_all),) = cells(printed, "all of test")
    ((num_unseen, *of_unseen),) = cells(printed, "without those in train")
    assert (num_all, num_unseen) == (len(labels), len(labels) - 2)
    assert of_all == pytest.approx(scores(labels, probabilities), abs=2e-4)
    assert of_unseen == pytest.approx(scores(labels[~leaked], probabilities[~leaked]), abs=2e-4)


def test_scores_have_intervals_and_those_at_thresholds_are_of_other_posters(report, answers):
    """Without a validation split, thresholds for a fifth are chosen on the other four."""
    run_dir, printed, _, _ = report
    poster_ids, labels, probabilities, _ = answers
    words = " ".join(printed.split())
    assert (
        "the threshold with its best F1, chosen for each fifth of test on the other four" in words
    )
    assert "There is no validation split to choose them on." in words
    assert not (run_dir / "thresholds.json").exists()
    loss, _, macro_ap, micro_ap, _ = scores(labels, probabilities)
    occurring = labels.any(axis=0)
    for name, expected in (
        ("loss", loss),
        ("macro AP", macro_ap),
        ("micro AP", micro_ap),
        (
            "ROC-AUC",
            sklearn_metrics.roc_auc_score(labels[:, occurring], probabilities[:, occurring]),
        ),
    ):
        *_, (score, low, high, constant) = cells(printed, name)
        assert score == pytest.approx(expected, abs=2e-4)
        assert low < score < high
        assert constant != score
    with np.load(run_dir / "answers.npz") as saved:  # In the order of the records.
        order = [poster_ids.index(poster_id) for poster_id in saved["poster_ids"]]
        labels, logits = labels[order], saved["logits"]
        np.testing.assert_array_equal(saved["labels"], labels)
        np.testing.assert_allclose(1 / (1 + np.exp(-logits)), probabilities[order], atol=1e-4)
    _, taken = decision.cross_fit(labels, logits)
    *_, (micro_f1, _, _, _) = cells(printed, "micro F1")
    expected = sklearn_metrics.f1_score(labels, taken, average="micro")
    assert micro_f1 == pytest.approx(expected, abs=1e-4)


def test_thresholds_are_chosen_on_the_validation_split_and_another_run_can_take_them(report):
    run_dir, _, _, _ = report
    data_dir, half, other = run_dir.parent / "data", "train[:50%]", run_dir.parent / "other"
    shutil.copytree(run_dir, other)
    facts = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**facts, "validation_split": half}))
    without = evaluated.evaluate_run(run_dir, "test", data_dir)
    assert without.decision is None
    with pytest.raises(config.UsageError, match="no thresholds for --tta=none are there"):
        evaluated.with_thresholds_of(without, other)
    answered = evaluated.evaluate_run(other, "test", data_dir, target_precision=0.6)
    page.write(report_lib.Report(answered))
    kept = decision.read(other / "thresholds.json", step=without.step, tta="none")
    answered = evaluated.evaluate_run(other, half, data_dir)
    assert answered.decision is None  # Not for the posters that it would be chosen on.
    chosen = decision.choose(synthetic.GENRES, *answered.answers, 0.6, half)
    assert kept.how == chosen.how
    np.testing.assert_allclose(kept.calibrate(without.logits), chosen.calibrate(without.logits))
    taken = evaluated.with_thresholds_of(without, other)
    np.testing.assert_array_equal(
        taken.decision.predict(without.logits), kept.predict(without.logits)
    )
    assert taken.decision.how == f"Those of other, trained on train. {kept.how}"
    with pytest.raises(
        config.UsageError, match=r"chosen on train\[:50%\], which has posters of train"
    ):
        evaluated.with_thresholds_of(evaluated.evaluate_run(run_dir, "train", data_dir), other)
    facts["config"]["image_size"] = 64
    (other / "config.json").write_text(json.dumps({**facts, "validation_split": half}))
    with pytest.raises(config.UsageError, match="its --image_size is 64, here it is 48"):
        evaluated.with_thresholds_of(without, other)


def test_the_sentences_and_the_command_are_of_this_run(run_dir, data_dir):
    given = evaluated.evaluate_run(run_dir, "test", str(data_dir))
    described = report_lib.Report(given)
    labels, logits = given.labels, given.logits
    top = labels[np.arange(len(labels)), logits.argmax(axis=1)].mean()
    commonest = given.base_rates.argmax()
    how_good, at_what, where_not = sections.summarize(described)
    average_precisions = sklearn_metrics.average_precision_score(labels, logits, average=None)
    assert how_good.startswith(f"For {top:.0%} of {len(labels)} posters of test the genre with")
    always = f"(always saying {synthetic.GENRES[commonest]}: {labels[:, commonest].mean():.0%})"
    assert always in how_good
    assert f"macro AP is {average_precisions.mean():.3f}, between" in how_good
    assert f"(a constant: {labels.mean(axis=0).mean():.3f})" in how_good
    best = average_precisions.argsort()[::-1][:3]
    named = [f"{synthetic.GENRES[g]} (AP {average_precisions[g]:.2f})" for g in best]
    assert at_what == f"It knows best: {', '.join(named)}."
    is_unknown = described.genres["low"] <= described.genres["constant"]
    for genre in synthetic.GENRES:
        assert (genre in where_not) == is_unknown[genre] or not is_unknown.any()
    # What trains it again, as the flags give it.
    _, _, _, *flags = shlex.split(sections.describe_facts(described)["Trained by"])
    values = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    again = dict(presets.PRESETS[values.pop("preset")])
    assert values.pop("run_dir") == "RUN"
    again |= {name: type(getattr(given.config, name))(value) for name, value in values.items()}
    assert config.Config(**again) == given.config


def test_doubted_labels_are_shown_with_the_doubt(report):
    run_dir, _, text, _ = report
    answered = evaluated.evaluate_run(run_dir, "test", run_dir.parent / "data")
    described = report_lib.Report(answered)
    doubted = analysis.probably_mislabelled(answered.labels, described.decided.calibrated)
    shown = text.split("<h2>Probably mislabelled</h2>")[1].split("<h2>")[0]
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", shown, re.DOTALL)
    assert len(captions) == min(len(doubted), 12) > 0
    for caption, (poster, genre) in zip(captions, doubted, strict=False):
        name = synthetic.GENRES[genre]
        doubt = f"not {name}?" if answered.labels[poster, genre] else f"{name} too?"
        assert caption.startswith(f"{answered.poster_ids[poster]}, loss ")
        assert f"<br>{doubt}<br>" in caption


def test_each_genre_has_its_counts_its_precision_and_the_constants(report, answers):
    _, printed, _, _ = report
    _, labels, probabilities, _ = answers
    for i, genre in enumerate(synthetic.GENRES):
        *_, (num_train, num_test, constant, precision, low, high, auc, *_) = cells(printed, genre)
        assert num_test == labels[:, i].sum()
        assert num_train + num_test < NUM_POSTERS
        assert precision == pytest.approx(
            sklearn_metrics.average_precision_score(labels[:, i], probabilities[:, i]), abs=2e-4
        )
        assert low <= precision <= high
        assert auc == pytest.approx(
            sklearn_metrics.roc_auc_score(labels[:, i], probabilities[:, i]), abs=2e-4
        )
        assert constant == pytest.approx(labels[:, i].mean(), abs=1e-4)


def test_the_page_is_one_file_and_begins_with_the_worst_poster(report, answers):
    _, _, text, _ = report
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
    genres = np.array(synthetic.GENRES)
    assert ", ".join(genres[labels[worst] == 1]) in captions[0]
    for i in np.argsort(-probabilities[worst])[:3]:
        line = f"{genres[i]} {probabilities[worst, i]:.2f}"
        assert (f"<b>{line}</b>" in captions[0]) == (labels[worst, i] == 1)
        assert line in captions[0]
    marked = {caption.split(",")[0] for caption in captions if "in the train split too" in caption}
    assert marked == {poster_ids[i] for i in np.flatnonzero(leaked)}


def test_the_surest_answers_are_explained_right_ones_first(report, answers):
    run_dir, _, text, expected = report
    poster_ids, labels, probabilities, _ = answers
    section = text.split("<h2>What the surest answers rest on</h2>")[1]
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", section, re.DOTALL)
    lines = []
    for is_right in (True, False):
        found = np.where(labels == is_right, probabilities, 0)
        best = found.max(axis=0)
        for genre in np.argsort(-best)[:4]:
            answer = f"{synthetic.GENRES[genre]} {best[genre]:.2f}"
            answer = f"<b>{answer}</b>" if is_right else answer
            lines.append((poster_ids[found[:, genre].argmax()], answer, genre))
    assert len(captions) == len(lines) == 8
    for caption, (poster_id, answer, _) in zip(captions, lines, strict=True):
        assert caption.startswith(f"{poster_id}, <i>") and f"\n{answer}, " in caption
    # What hiding does to the first, patch by patch.
    poster_id, _, genre = lines[0]
    model, facts = checkpoints.restore_model(run_dir)
    size = facts["image_size"]
    pixels = preprocessing.decode_and_resize(expected[poster_id][0].read_bytes(), size).numpy()
    without = []
    for top in range(-size // 8, size, size // 8):
        for left in range(-size // 8, size, size // 8):
            hidden = pixels.copy()
            rows, columns = (slice(max(at, 0), at + size // 4) for at in (top, left))
            hidden[rows, columns] = np.round(pixels.mean(axis=(0, 1)))
            without.append(hidden)
    logits = np.float64(model(np.stack(without), training=False)[:, genre])
    assert f"{1 / (1 + np.exp(-logits.min())):.2f} with the framed part hidden" in captions[0]


def test_a_split_or_a_dataset_that_is_not_there_is_refused(report):
    run_dir, _, _, _ = report
    with pytest.raises(config.UsageError, match="has no split 'holdout'; it has"):
        evaluated.evaluate_run(run_dir, "holdout", run_dir.parent / "data")
    with pytest.raises(config.UsageError, match="there is no such dataset in"):
        evaluated.evaluate_run(run_dir, "test", run_dir.parent / "elsewhere")


def test_where_no_poster_comes_twice_the_train_split_is_not_read(run_dir, data_dir, tmp_path):
    """`synthetic` is built without posters that came before."""
    mixed = evaluated.evaluate_run(run_dir, "test[:9]+train[:5]", str(data_dir))
    np.testing.assert_array_equal(mixed.leaked, [False] * 9 + [True] * 5)
    left_out = shutil.ignore_patterns("downloads", "*-train.tfrecord-*")
    without = shutil.copytree(data_dir, tmp_path / "data", ignore=left_out)
    answered = evaluated.evaluate_run(run_dir, "test", str(without))
    assert len(answered.leaked) == len(answered.labels) > 0
    assert not answered.leaked.any()


def test_genres_with_too_few_posters_are_marked_in_words():
    rng = np.random.default_rng(0)
    labels = np.zeros((300, 4))
    for genre, count in enumerate((9, 120, 0, 10)):
        labels[rng.choice(300, count, replace=False), genre] = 1
    logits = rng.normal(size=labels.shape) + labels
    given = answers_lib.Answers(labels, logits)
    predicted = logits > 0.5
    found = analysis.score_genres("abcd", given, predicted, np.array([60, 900, 2, 49]))
    assert found["remark"].to_dict() == {
        "b": "",
        "a": "too few to measure",
        "d": "too few to learn",
        "c": "too few to learn, none to measure",
    }
    scores = ["average_precision", "roc_auc", "low", "high", "recall"]
    assert found.loc["c", scores].isna().all()
    for name, genre in (("b", 1), ("a", 0), ("d", 3)):
        truth, taken = labels[:, genre], predicted[:, genre]
        assert found.loc[name, ["average_precision", "roc_auc"]].tolist() == pytest.approx(
            [
                sklearn_metrics.average_precision_score(truth, logits[:, genre]),
                sklearn_metrics.roc_auc_score(truth, logits[:, genre]),
            ]
        )
        expected = sklearn_metrics.precision_recall_fscore_support(truth, taken, average="binary")
        assert found.loc[name, ["precision", "recall", "f1"]].tolist() == pytest.approx(
            expected[:3]
        )
        assert found.loc[name, "low"] < found.loc[name, "average_precision"]


def test_where_all_posters_were_trained_on_nothing_is_left_to_score():
    labels, logits = np.eye(4), np.ones((4, 4))
    everything, unseen = analysis.score_with_and_without(
        labels, logits, np.ones(4, bool), np.full(4, 0.25)
    )
    assert everything.num_posters == 4
    assert unseen is None


def test_false_positives_are_the_posters_without_a_genre_that_it_is_seen_in():
    labels = np.array([[1, 0], [0, 0], [0, 1], [0, 0], [1, 1]])
    logits = np.array([[9.0, 0], [1, 0], [3, 0], [-2, 0], [4, 0]])
    np.testing.assert_array_equal(analysis.false_positives(labels, logits, 0, 2), [2, 1])
    assert len(analysis.false_positives(labels, logits, 0, 9)) == 3
