"""Runs are compared by the records they left, and joined where only their seeds differ."""

import base64
import functools
import re
import sys

import numpy as np
import PIL.Image
import pytest
from sklearn import metrics as sklearn_metrics

from tests import conftest
from trainer import config, presets
from trainer.reports import answers, comparison, intervals, paired
from trainer.run import directory

CONSTANT = {"loss": 0.24, "label_accuracy": 0.9, "macro_ap": 0.1, "micro_ap": 0.3, "lrap": 0.5}


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """Intervals are the subject of `test_report_numbers`."""
    bootstrap = functools.partial(intervals.bootstrap, num_resamples=60)
    monkeypatch.setattr(intervals, "bootstrap", bootstrap)


def write_run(path, macro_aps, *, validation=None, minutes=10.0, speed=100.0, **settings):
    """Leaves the records of a run as the trainer does, of macro APs epoch by epoch."""
    run = directory.RunDirectory(path)
    run.write_config(
        config.Config(**settings),
        genres=["a", "b"],
        num_train=10,
        validation_split="validation" if validation else "",
        parameters=1234,
    )
    for i, macro_ap in enumerate(macro_aps):
        values = {"test": macro_ap}
        if validation:
            values["validation"] = validation[i]
        now = {"epoch": i + 1, "step": 7 * (i + 1)}
        now["seconds"] = 60 * minutes * (i + 1) / len(macro_aps)
        of_training = {"split": "train", "loss": 0.2, "constant": {"loss": CONSTANT["loss"]}}
        of_training["images_per_second"] = speed if i else speed / 2
        of_splits = [
            {
                "split": split,
                "loss": 0.3 - value / 2,
                "label_accuracy": 0.9 + value / 100,
                "macro_ap": value,
                "micro_ap": value + 0.2,
                "lrap": value + 0.3,
                "images_per_second": 900,
                "constant": CONSTANT,
            }
            for split, value in values.items()
        ]
        run.append_metrics([{**now, **record} for record in (of_training, *of_splits)])
    return path


def table_of(*paths, split="test"):
    runs = [comparison.read_run(path, split) for path in paths]
    return comparison.make_table(comparison.group(runs)).reset_index().to_dict("records")


def test_runs_that_differ_in_their_seed_alone_are_one_row_and_the_best_is_first(tmp_path):
    compact = presets.PRESETS["compact"]
    finals, minutes = [0.21, 0.25, 0.22], [10.0, 12.0, 11.0]
    paths = [write_run(tmp_path / "reference", [0.12, 0.15], minutes=90)]
    for seed in range(3):
        paths.append(
            write_run(
                tmp_path / f"compact{seed}",
                [0.5, 0.2, finals[seed]],  # The last epoch's counts, not the best on test.
                minutes=minutes[seed],
                speed=200 + seed,
                seed=seed,
                **compact,
            )
        )
    focal = {**compact, "loss": "focal"}
    paths.append(write_run(tmp_path / "focal", [0.3], seed=1, **focal))
    rows = table_of(*paths)
    assert [row["run"] for row in rows] == [
        "`--preset=compact --loss=focal`",
        "`--preset=compact`",
        "`--preset=reference`",
        "constant predictor",
    ]
    row = rows[1]
    assert row["seeds"] == "0, 1, 2"
    assert row["parameters"] == "1,234"
    for name, of_run in (
        ("macro AP", np.array(finals)),
        ("micro AP", np.array(finals) + 0.2),
        ("loss", 0.3 - np.array(finals) / 2),
        ("LRAP", np.array(finals) + 0.3),
    ):
        mean, spread = (float(part) for part in row[name].split(" ± "))
        assert (mean, spread) == pytest.approx((of_run.mean(), of_run.std(ddof=1)), abs=6e-5)
    assert row["minutes to train"] == f"{np.mean(minutes):.1f} ± {np.std(minutes, ddof=1):.1f}"
    assert row["img/s in training"] == "201 ± 1"
    assert rows[0]["macro AP"] == "0.3000"
    assert rows[2]["minutes to train"] == "90.0"
    assert rows[3]["macro AP"] == "0.1000"
    assert rows[3]["LRAP"] == "0.5000"


def leave_answers(path, labels, logits, step):
    facts = {"split": "test", "step": step, "tta": "none"}
    given = answers.Answers(labels, logits)
    answers.write(directory.RunDirectory(path), given, [], **facts)


def test_differences_are_those_on_the_same_posters(tmp_path):
    """A run that is a little better on most posters surely is, though its interval overlaps."""
    rng = np.random.default_rng(0)
    labels = (rng.random((400, 2)) < 0.3).astype(np.float32)
    noise = rng.normal(size=labels.shape)
    paths = []
    for size, strength in ((64, 1.4), (48, 1.3)):
        paths.append(write_run(tmp_path / str(size), [strength / 5], image_size=size))
        leave_answers(paths[-1], labels, noise + strength * labels, step=7)
    without = write_run(tmp_path / "without", [0.1], image_size=96)
    groups = comparison.group([comparison.read_run(path, "test") for path in [*paths, without]])
    differences = comparison.make_differences(groups)
    assert differences.index.tolist() == ["`--preset=reference --image_size=48`"]
    better, worse = (run.answers for (run, *_) in groups[:2])
    average_precision = sklearn_metrics.average_precision_score
    expected = average_precision(labels, better.logits) - average_precision(labels, worse.logits)
    value, low, high = map(float, re.findall(r"[+-][\d.]+", differences["macro AP"].iloc[0]))
    assert value == pytest.approx(expected, abs=6e-5)
    assert 0 < low < value < high
    assert differences["macro AP"].iloc[0].endswith("*")
    (low_of_better, _), (_, high_of_worse) = (
        map(float, comparison.make_table(groups)["95% of posters"].iloc[i].split(" to "))
        for i in range(2)
    )
    assert high_of_worse > low_of_better
    same = paired.difference([better], [better])
    np.testing.assert_array_equal(same, np.zeros_like(same))
    assert comparison.DIFFERENCES in comparison.format_markdown(comparison.make_tables(groups))


def test_the_best_epoch_by_the_validation_split_counts_where_there_is_one(tmp_path):
    path = write_run(tmp_path / "run", [0.1, 0.2, 0.3, 0.4], validation=[0.2, 0.9, 0.3, 0.1])
    assert table_of(path)[0]["macro AP"] == "0.2000"
    assert table_of(path, split="validation")[0]["macro AP"] == "0.9000"


def test_flags_that_all_rows_share_stand_above_the_table(tmp_path):
    runs = [
        comparison.read_run(
            write_run(tmp_path / str(size), [0.2], epochs=9, image_size=size), "test"
        )
        for size in (64, 96)
    ]
    lines = comparison.format_markdown(comparison.make_tables(comparison.group(runs))).splitlines()
    assert lines[0] == "All with `--epochs=9`."
    for line, size in zip(lines[4:6], (64, 96), strict=True):
        cells = [cell.strip() for cell in line.split("|")]
        assert cells[1:4] == [f"`--preset=reference --image_size={size}`", "0", "1,234"]


@pytest.mark.parametrize(
    ("settings", "split", "complaint"),
    [
        ({}, "validation", "no scores of --split=validation; the run was evaluated on test"),
        ({}, "train", "no scores of --split=train; the run was evaluated on test"),
        ({"dataset": "poster_tfds/mine"}, "test", "several datasets .poster_tfds/imdb, poster"),
    ],
)
def test_what_cannot_be_compared_is_refused(settings, split, complaint, tmp_path):
    paths = [write_run(tmp_path / "a", [0.2]), write_run(tmp_path / "b", [0.2], **settings)]
    with pytest.raises(config.UsageError, match=complaint):
        table_of(*paths, split=split)


@pytest.mark.slow
def test_the_command_prints_the_table_and_draws_the_curves(tmp_path):
    paths = [
        write_run(tmp_path / "slow", [0.1, 0.15], minutes=600),
        write_run(tmp_path / "fast", [0.2, 0.3], minutes=2, **presets.PRESETS["compact"]),
    ]
    plot = tmp_path / "plot.png"
    page = tmp_path / "page.html"
    flags = (f"--plot={plot}", f"--page={page}")
    result = conftest.run(sys.executable, "-m", "trainer.compare", *paths, *flags)
    lines = [line for line in result.stdout.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "`--preset=compact`",
        "`--preset=reference`",
        "constant predictor",
    ]
    assert not result.stderr
    with PIL.Image.open(plot) as picture:
        assert picture.size == (1200, 600)
    text = page.read_text()
    assert '<th scope="row">--preset=compact</th>' in text
    assert base64.b64encode(plot.read_bytes()).decode() in text
