"""A search chooses by validation posters alone, loses nothing when it is stopped, and is right."""

import dataclasses
import json
import re
import shlex
import signal
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests import conftest, test_compare
from trainer import config as config_lib, presets
from trainer.data import splits
from trainer.run import directory
from trainer.search import process, space as space_lib, trials as trials_lib

SPACE = {
    "dropout": {"low": 0.0, "high": 0.5},
    "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "head_units": {"low": 1, "high": 9},
    "weight_average": [0.0, 0.99],
}
CONFIG = config_lib.Config(epochs=8, learning_rate=0.5)  # A rate outside of the space.


def make_search(objective="macro_ap", space=None, config=CONFIG, trials=()):
    return trials_lib.Search(config, space or SPACE, objective, list(trials))


def complete(settings, scores, objective="macro_ap"):
    """A trial that ended with its last score."""
    pairs = [(epoch + 1, score) for epoch, score in enumerate(scores)]
    best = {"epoch": len(scores), objective: scores[-1]}
    return trials_lib.Trial(settings, trials_lib.COMPLETE, pairs, best)


def test_what_is_varied_of_a_preset_can_be(tmp_path):
    path = tmp_path / "space.json"
    for settings in presets.PRESETS.values():
        config = config_lib.Config(**settings)
        space = space_lib.default_space(config)
        path.write_text(json.dumps(space))
        assert space_lib.read_space(path, config) == space
        assert {"learning_rate", "weight_decay"} <= space.keys()
        assert ("head_units" in space) == (config.freeze == config_lib.BACKBONE)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "cannot be read"),
        ('{"test_split": ["test"]}', "'test_split' cannot be varied"),
        ('{"dropout": {"low": 0.1}}', "'dropout': give a list of choices"),
        ('{"head_units": [1.5]}', "not of type int"),
        ('{"dropout": [0.5, 1.5]}', "--dropout=1.5: must be less than 1"),
        ('{"dropout": {"low": 0.5, "high": 0.5}}', '"low" must be less than "high"'),
        ('{"learning_rate": {"low": 0, "high": 1, "log": true}}', "more than 0"),
    ],
)
def test_a_space_that_cannot_be_is_refused_with_its_file(text, complaint, tmp_path):
    path = tmp_path / "space.json"
    path.write_text(text)
    with pytest.raises(config_lib.UsageError, match=re.escape(complaint)) as refused:
        space_lib.read_space(path, CONFIG)
    assert f"--space={path}" in str(refused.value)


def test_a_search_that_goes_on_proposes_what_one_without_a_break_does(tmp_path):
    """The first has the settings as they are; the others lie in the space, each on its own."""
    path = tmp_path / "search.json"
    proposed = []
    for interrupted in (False, True):
        search = make_search()
        for i in range(14):  # After ten, Optuna learns from those before.
            if interrupted:
                search.write(path)
                search = make_search()
                search.read_trials(path)
            settings = search.propose()
            score = 1 - abs(settings["dropout"] - 0.2)
            failed = trials_lib.Trial(settings, trials_lib.FAILED)
            pruned = trials_lib.Trial(settings, trials_lib.PRUNED, [(2, score)])
            ended = {5: failed, 6: pruned}.get(i) or complete(settings, [score / 2, score])
            search.trials.append(ended)
        proposed.append([trial.settings for trial in search.trials])
    assert proposed[0] == proposed[1]
    first, *others = proposed[0]
    assert first == {"dropout": 0.0, "learning_rate": 0.5, "head_units": 0, "weight_average": 0.0}
    for settings in others:
        assert 0 <= settings["dropout"] <= 0.5 and 1e-4 <= settings["learning_rate"] <= 1e-2
        assert settings["head_units"] in range(1, 10) and settings["weight_average"] in (0.0, 0.99)
    assert len({settings["learning_rate"] for settings in others}) == len(others)


def test_a_search_with_other_settings_is_not_gone_on_with(tmp_path):
    path = tmp_path / "search.json"
    make_search().write(path)
    make_search().read_trials(path)
    for other, change in (
        (make_search(config=dataclasses.replace(CONFIG, seed=3)), "--seed: 0 then, 3 now"),
        (make_search("loss"), "--objective: 'macro_ap' then, 'loss' now"),
        (make_search(space={"dropout": [0.1]}), "--space: "),
    ):
        with pytest.raises(config_lib.UsageError, match=re.escape(change)):
            other.read_trials(path)


@pytest.mark.parametrize("objective", trials_lib.OBJECTIVES)
def test_a_trial_under_the_median_is_pruned_after_a_quarter_of_its_epochs(objective):
    sign = -1 if objective == "loss" else 1
    rng = np.random.default_rng(0)
    settings = {"dropout": 0.1}
    curves = rng.random((5, CONFIG.epochs))
    search = make_search(objective, trials=[complete(settings, c, objective) for c in curves])
    decisions = []
    for curve in rng.random((20, CONFIG.epochs)):
        for epochs in range(1, CONFIG.epochs):
            scores = [(i + 1, score) for i, score in enumerate(curve[:epochs])]
            best = max(sign * curve[:epochs])
            decisions.append(epochs >= 2 and best < np.median(sign * curves[:, epochs - 1]))
            assert search.should_prune(trials_lib.Trial(settings, scores=scores)) == decisions[-1]
    assert 0 < sum(decisions) < len(decisions)
    worst = trials_lib.Trial(settings, scores=[(4, -9.0 * sign)])
    assert search.should_prune(worst)
    assert not make_search(objective, trials=search.trials[:3]).should_prune(worst)
    lengths = make_search(objective, {"epochs": [4, 8], **SPACE}, trials=search.trials)
    assert not lengths.should_prune(worst)


def test_splits_overlap_where_an_example_is_in_both(data_dir):
    names = ["train", "test", "train[:40%]", "train[40%:]", "train[30%:50%]", "train[90%:]+test"]
    opened = [splits.open_split("poster_tfds/synthetic", str(data_dir), name) for name in names]
    builder = opened[0].builder
    identified = tfds.ReadConfig(add_tfds_id=True)
    datasets = [builder.as_dataset(name, read_config=identified) for name in names]
    ids = [{example["tfds_id"] for example in of_one.as_numpy_iterator()} for of_one in datasets]
    for i, split in enumerate(opened):
        for j, other in enumerate(opened):
            assert split.overlaps(other) == bool(ids[i] & ids[j]), (names[i], names[j])


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({}, "has no validation split"),
        ({"validation_split": "test"}, "shares posters with test"),
        ({"validation_split": "test[:50%]", "test_split": ""}, "shares posters with test"),
        ({"validation_split": "train[85%:]"}, "shares posters with train"),
    ],
)
def test_a_search_judges_by_posters_for_that_alone(settings, complaint, data_dir):
    config = config_lib.Config("poster_tfds/synthetic", str(data_dir), **settings)
    with pytest.raises(config_lib.UsageError, match=complaint) as refused:
        trials_lib.choose_split(config)
    assert "--train_split='train[:85%]'" in str(refused.value)


def test_a_trial_at_work_is_left_to_the_process_that_trains_it(tmp_path):
    refused = pytest.raises(config_lib.UsageError, match="another trainer is at work")
    with directory.RunDirectory(tmp_path / "000").held(), refused:
        process.train(make_search(), trials_lib.Trial({}), [], tmp_path / "000", lambda: False)


def command(data_dir, search_dir, *arguments):
    return (
        *(sys.executable, "-m", "trainer.search", "--preset=reference", "--image_size=48"),
        *("--train_split=train[:80%]", "--validation_split=train[80%:]", "--batch_size=9"),
        *("--dataset=poster_tfds/synthetic", f"--data_dir={data_dir}"),
        *(f"--search_dir={search_dir}", f"--cache_dir={search_dir / 'cache'}", *arguments),
    )


@pytest.mark.slow
def test_a_search_stopped_within_a_trial_goes_on_and_ends_with_the_best(data_dir, tmp_path):
    search_dir = tmp_path / "search"

    def read_trials():
        return json.loads((search_dir / "search.json").read_text())["trials"]

    arguments = command(data_dir, search_dir, "--epochs=2", "--max_trials=3", "--minutes=10")
    search = conftest.start(*arguments)
    cut = search_dir / "trials" / "001"
    while search.poll() is None and not list(cut.glob("checkpoints/*")):
        time.sleep(0.02)  # The processes need the cores.
    search.send_signal(signal.SIGTERM)
    printed, errors = search.communicate(timeout=60)
    assert search.returncode == 0, errors
    before = read_trials()
    assert [trial["state"] for trial in before] == ["complete", "unfinished"]
    assert "1 complete, 1 unfinished" in printed and "| 0       |" in printed

    printed = conftest.run(*arguments).stdout
    trials = read_trials()
    assert [trial["state"] for trial in trials] == ["complete"] * 3
    assert [trial["settings"] for trial in trials[:2]] == [trial["settings"] for trial in before]
    assert re.search("Going on after step|all 8 steps are done", (cut / "output.txt").read_text())
    best = []
    for i, trial in enumerate(trials):
        run = directory.RunDirectory(search_dir / "trials" / f"{i:03d}")
        config, records = run.read_config()[0], run.read_metrics()
        assert records["step"].nunique() == 2
        # No trial has looked at the test split.
        assert config.test_split == ""
        assert set(records["split"]) == {"train[:80%]", "train[80%:]"}
        assert vars(config) == {**vars(config), **trial["settings"]}
        best.append(records.loc[records["split"] == "train[80%:]", "macro_ap"].max())
        assert trial["best"]["macro_ap"] == best[-1]
    rows = re.findall(r"^\| (\d) +\| ([\d.]+)", printed, re.MULTILINE)
    order = np.argsort([trial["best"]["loss"] for trial in trials])
    assert rows == [(str(i), f"{best[i]:.4f}") for i in order]

    winner = shlex.split(printed.strip().splitlines()[-1])
    assert winner[:3] == ["python", "-m", "trainer"]
    flags = dict(flag.removeprefix("--").split("=", 1) for flag in winner[3:])
    expected = trials[order[0]]["settings"]
    assert {name: float(flags[name]) for name in expected} == expected
    assert flags["train_split"] == "train[:80%]" and flags["run_dir"] == f"{search_dir}/best"
    assert "test_split" not in flags  # The default one.


@pytest.mark.slow
def test_a_first_trial_that_fails_ends_the_search_with_what_it_said(data_dir, tmp_path):
    search = conftest.run(*command(data_dir, tmp_path, "--image_size=32"), check=False)
    assert search.returncode == 1 and "Traceback" not in search.stderr
    assert "Trial 0 has failed" in search.stderr
    assert "--image_size=32: reference_cnn needs at least 46 pixels." in search.stderr


def test_a_trials_minutes_are_also_those_of_the_head_that_it_trained_first(tmp_path):
    run = directory.RunDirectory(tmp_path)
    test_compare.write_run(run.head.path, [0.1, 0.2], validation=[0.1, 0.2], minutes=5)
    test_compare.write_run(run.path, [0.3], validation=[0.3], minutes=20, epochs=1)
    config = config_lib.Config(validation_split="validation", epochs=1)
    trial = trials_lib.Trial({})
    assert process._take_scores(make_search(config=config), trial, run)
    assert trial.minutes == pytest.approx(25)


@pytest.mark.parametrize(("curve", "is_done"), [([0.1, 0.2], False), ([0.2, 0.1], True)])
def test_a_trial_is_done_when_its_patience_is_over(curve, is_done, tmp_path):
    run = directory.RunDirectory(test_compare.write_run(tmp_path, curve, validation=curve))
    judged = dataclasses.replace(CONFIG, validation_split="validation", patience=1)
    search = make_search(config=judged)
    assert process._take_scores(search, trials_lib.Trial({}), run) == is_done
