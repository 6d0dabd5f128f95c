"""A run that is killed, stopped or damaged ends as if nothing had happened."""

import os
import random
import shutil
import signal
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import conftest
from tests.runs import (
    assert_same_run,
    finish,
    killed_after,
    metrics,
    start,
    state,
    steps,
    wait_for,
)
from trainer import config
from trainer.data import splits, stream
from trainer.run import checkpoints

# All that is random or grows with the steps. An epoch has 6 steps.
SETTINGS = {
    "deterministic": True,
    "epochs": 3,
    "augment": "flip,crop,color,erase",
    "augment_on": "device",
    "randaugment": 5.0,
    "mixup": 0.2,
    "cutmix": 1.0,
    "checkpoint_every_steps": 4,
    "learning_rate_schedule": "cosine",
    "warmup_epochs": 1.0,
    "weight_average": 0.9,
    "keep_checkpoints": 9,
}


@pytest.fixture(scope="module")
def whole(data_dir, tmp_path_factory):
    """A run that nothing interrupted."""
    run_dir = tmp_path_factory.mktemp("whole")
    conftest.train(data_dir, run_dir, **SETTINGS)
    return run_dir


def test_a_killed_run_goes_on_bit_for_bit(data_dir, tmp_path, whole, capsys):
    """Killed between two checkpoints, and while one is written; then another cache is used."""
    disk = {"cache_dir": str(tmp_path / "rows")}
    with killed_after(5):
        conftest.train(data_dir, tmp_path, **SETTINGS, steps_per_call=1)
    assert steps(tmp_path) == [4]
    incomplete = tmp_path / "checkpoints" / ".incomplete-00000008"
    shutil.copytree(tmp_path / "checkpoints" / "00000004", incomplete)
    with killed_after(14):
        conftest.train(*(data_dir, tmp_path), **SETTINGS, **disk, cache="disk", steps_per_call=1)
    assert not incomplete.exists()
    assert conftest.train(data_dir, tmp_path, **SETTINGS, cache="device", steps_per_call=3)
    printed = capsys.readouterr().out
    assert "Going on after step 4 of 18" in printed and "Going on after step 12 of 18" in printed
    assert_same_run(whole, tmp_path)
    assert len(metrics(tmp_path)) == 6


def test_a_stopped_run_goes_on_and_has_each_epoch_once(data_dir, tmp_path, whole, capsys):
    conftest.train(data_dir, tmp_path, **SETTINGS, max_steps=8)
    assert [r["step"] for r in metrics(tmp_path)] == [6, 6, 8, 8]
    conftest.train(data_dir, tmp_path, **SETTINGS)
    assert [r["step"] for r in metrics(tmp_path)] == [6, 6, 8, 8, 12, 12, 18, 18]
    np.testing.assert_equal(state(tmp_path), state(whole))
    seconds = [record["seconds"] for record in conftest.read_metrics(tmp_path)]
    assert seconds == sorted(seconds) and seconds[0] > 0
    capsys.readouterr()
    conftest.train(data_dir, tmp_path, **SETTINGS)
    assert "all 18 steps are done" in capsys.readouterr().out


def loss_of(model, data_dir):
    """Returns the cross-entropy of the test split, by NumPy."""
    split = splits.open_split("poster_tfds/synthetic", str(data_dir), "test")
    batches = stream.eval_batches(split, image_size=32, batch_size=10)
    (batch,) = batches.take(1).as_numpy_iterator()
    p = 1 / (1 + np.exp(-model(batch["image"], training=False).numpy().astype(np.float64)))
    return -np.mean(np.log(np.where(batch["genres"] > 0, p, 1 - p)))


def test_the_average_of_the_weights_is_what_is_evaluated_and_restored(data_dir, whole):
    average, facts = checkpoints.restore_model(whole)
    model = keras.models.clone_model(average)
    trained = tf.train.Checkpoint(model=model)
    trained.read(str(whole / "checkpoints" / f"{facts['step']:08}" / "state")).expect_partial()
    recorded = metrics(whole)[-1]
    assert (recorded["split"], recorded["step"]) == ("test", 18)
    off, off_without_average = (
        abs(loss_of(m, data_dir) - recorded["loss"]) for m in (average, model)
    )
    assert off < 1e-6 < 1e-4 < off_without_average


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_passed_over(data_dir, tmp_path, whole, capsys):
    with killed_after(14):
        conftest.train(data_dir, tmp_path, **SETTINGS, steps_per_call=1)
    damage(tmp_path / "checkpoints" / "00000012" / "state.data-00000-of-00001")
    conftest.train(data_dir, tmp_path, **SETTINGS)
    printed = capsys.readouterr()
    assert "WARNING: the checkpoint" in printed.err and "00000012 is damaged" in printed.err
    assert "Going on after step 8 of 18" in printed.out
    assert_same_run(whole, tmp_path)


@pytest.mark.parametrize("kind", ["flipped", "halved", "cut by a byte", "emptied", "gone"])
@pytest.mark.parametrize("file", ["state.index", "state.data-00000-of-00001"])
def test_the_newest_checkpoint_that_is_whole_is_found(tmp_path, whole, kind, file):
    directory = tmp_path / "checkpoints"
    shutil.copytree(whole / "checkpoints", directory)
    assert checkpoints.find(directory).name == "00000018"
    path = directory / "00000018" / file
    content = path.read_bytes()
    if kind == "flipped":
        damage(path)
    elif kind == "gone":
        path.unlink()
    else:
        kept = {"halved": len(content) // 2, "cut by a byte": len(content) - 1, "emptied": 0}
        path.write_bytes(content[: kept[kind]])
    assert checkpoints.find(directory).name == "00000016"


def test_where_no_checkpoint_can_be_read_the_run_is_refused(tmp_path, whole):
    for path in (whole / "checkpoints").iterdir():
        (tmp_path / path.name).mkdir()
    with pytest.raises(config.UsageError, match=r"No checkpoint in .* can be read"):
        checkpoints.find(tmp_path)


def test_the_best_checkpoint_outlives_the_newest(data_dir, tmp_path):
    """Stopped in between, so that the best is found again from the metrics."""
    settings = {
        "train_split": "train[:75%]",
        "validation_split": "train[75%:]",
        "batch_size": 20,
        "epochs": 6,
        "keep_checkpoints": 1,
        "learning_rate": 0.1,
    }
    conftest.train(data_dir, tmp_path, **settings, max_steps=8)
    conftest.train(data_dir, tmp_path, **settings)
    scores = {r["step"]: r["macro_ap"] for r in metrics(tmp_path) if r["split"] == "train[75%:]"}
    assert list(scores) == [2, 4, 6, 8, 10, 12]
    best = max(scores, key=scores.get)
    assert set(steps(tmp_path)) == {best, 12}
    assert checkpoints.restore_model(tmp_path)[1]["step"] == best


def test_a_checkpoint_is_saved_when_the_last_is_old(data_dir, tmp_path):
    """It is looked at after the first step, and then about once a second."""
    conftest.train(data_dir, tmp_path, epochs=1, checkpoint_every_seconds=0.0, keep_checkpoints=9)
    assert {1, 6} <= set(steps(tmp_path))


def flags_of(settings):
    return {name: str(value).lower() for name, value in settings.items()}


@pytest.mark.slow
def test_killed_at_random_moments_a_run_ends_with_the_same_bits(data_dir, tmp_path):
    rng = random.Random(0)
    settings = {**flags_of(SETTINGS), "epochs": 12, "checkpoint_every_steps": 2}
    settings["keep_checkpoints"] = 2
    finish(start(data_dir, tmp_path / "whole", **settings))
    run_dir = tmp_path / "killed"
    for kill in range(4):
        process = start(data_dir, run_dir, **settings)
        newest = steps(run_dir)[-1:]
        if kill == 2:  # While a checkpoint is written.
            is_time = lambda: list((run_dir / "checkpoints").glob(".incomplete-*"))  # noqa: E731
        else:
            is_time = lambda newest=newest: steps(run_dir)[-1:] > newest  # noqa: E731
        assert wait_for(is_time, process)
        time.sleep(0 if kill == 2 else rng.uniform(0, 0.3))
        process.kill()
        finish(process, -signal.SIGKILL)
    assert "Going on after step" in finish(start(data_dir, run_dir, **settings))
    assert_same_run(tmp_path / "whole", run_dir)
    assert not list((run_dir / "checkpoints").glob(".*"))


@pytest.mark.slow
def test_a_signal_saves_and_the_same_command_goes_on(data_dir, tmp_path):
    settings = flags_of({**SETTINGS, "epochs": 1000})
    process = start(data_dir, tmp_path, **settings)
    assert wait_for(lambda: steps(tmp_path), process)
    process.send_signal(signal.SIGINT)
    printed = finish(process)
    stopped_after = steps(tmp_path)[-1]
    assert f"Stopped after step {stopped_after} of 6000" in printed
    assert "Traceback" not in printed
    last = stopped_after + 2
    for run_dir in (tmp_path, tmp_path / "whole"):
        finish(start(data_dir, run_dir, **settings, max_steps=last))
    np.testing.assert_equal(state(tmp_path), state(tmp_path / "whole"))


@pytest.mark.slow
def test_a_second_signal_stops_at_once(data_dir, tmp_path):
    """Also within a call of many steps, where Python's own handlers would have to wait."""
    process = start(data_dir, tmp_path, epochs=100_000, image_size=256, steps_per_call=6)
    while "2/100000" not in process.stdout.readline():
        assert process.poll() is None
    os.kill(process.pid, signal.SIGSTOP)  # Both signals come before it can end on the first.
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    os.kill(process.pid, signal.SIGCONT)
    assert process.wait(60) in (128 + signal.SIGTERM, 128 + signal.SIGINT)
    assert "stopping, with a checkpoint" in process.stderr.read()
