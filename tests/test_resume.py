"""A run that is killed, stopped or damaged ends as if nothing had happened."""

import json
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import conftest
from trainer.data import pipeline, splits
from trainer.run import checkpoints

FLAGS = (
    "--deterministic",
    "--epochs=2",
    "--augment=flip,crop,color,erase",
    "--randaugment=5",
    "--mixup=0.2",
    "--cutmix=1",
    "--checkpoint_every_steps=2",
    "--learning_rate_schedule=cosine",
    "--warmup_epochs=1",
    "--weight_average=0.9",
)


def start(data_dir, run_dir, *flags, module="trainer", **environment):
    """Starts the trainer and returns its process; `finish` reads what it prints."""
    return conftest.start(
        *(sys.executable, "-m", module, "--dataset=poster_tfds/synthetic"),
        *(f"--data_dir={data_dir}", f"--run_dir={run_dir}", "--preset=reference"),
        *("--image_size=48", "--noreport", *flags),
        **environment,
    )


def finish(process, returncode=0):
    try:
        out, err = process.communicate(timeout=600)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == returncode, out + err
    return out + err


def steps(run_dir):
    """Returns the steps of the checkpoints of a run, oldest first."""
    directory = pathlib.Path(run_dir) / "checkpoints"
    return sorted(int(p.name) for p in directory.glob("[0-9]*")) if directory.exists() else []


def state(run_dir, step=None):
    """Returns every tensor of a checkpoint, the newest if no step is named."""
    step = steps(run_dir)[-1] if step is None else step
    reader = tf.train.load_checkpoint(str(run_dir / "checkpoints" / f"{step:08}" / "state"))
    names = reader.get_variable_to_shape_map().keys() - {"_CHECKPOINTABLE_OBJECT_GRAPH"}
    return {name: reader.get_tensor(name) for name in names}


def metrics(run_dir):
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        del record["images_per_second"], record["seconds"]
        record.pop("flops_per_second", None)
    return records


def assert_same_run(one, other):
    """Checks weights, optimizer, random states, answers and metrics bit by bit."""
    ours, theirs = state(one), state(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)
    assert metrics(one) == metrics(other)
    assert tensorboard_steps(one) == tensorboard_steps(other)


def tensorboard_steps(run_dir):
    found = []
    for path in (run_dir / "tensorboard").rglob("events*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                # Pictures are those of the last process.
                if value.tag not in ("images_per_second", "posters"):
                    found.append((path.parent.name, value.tag, event.step))
    assert len(found) == len(set(found))
    return sorted(found)


@pytest.fixture(scope="module")
def whole(data_dir, tmp_path_factory):
    """A run that nothing interrupted."""
    run_dir = tmp_path_factory.mktemp("whole")
    finish(start(data_dir, run_dir, *FLAGS))
    return run_dir


def wait_for(condition, process, seconds=300):
    """Waits until something is so; returns whether the process still runs then."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            process.kill()
            raise AssertionError("this did not happen in time\n" + "".join(process.communicate()))
        if process.poll() is not None:
            return False
        time.sleep(0.002)  # The process needs the cores.
    return process.poll() is None


def loss_of(model, data_dir):
    """Returns the cross-entropy of the test split, by NumPy."""
    split = splits.open_split("poster_tfds/synthetic", str(data_dir), "test")
    batches = pipeline.eval_batches(pipeline.PipelineSpec(split, image_size=48, batch_size=90))
    (batch,) = batches.take(1).as_numpy_iterator()
    p = 1 / (1 + np.exp(-model(batch["image"], training=False).numpy().astype(np.float64)))
    return -np.mean(np.log(np.where(batch["genres"] > 0, p, 1 - p)))


def test_the_average_of_the_weights_is_what_is_evaluated_and_restored(data_dir, whole):
    average, facts = checkpoints.restore_model(whole)
    model = keras.models.clone_model(average)
    trained = tf.train.Checkpoint(model=model)
    trained.read(str(whole / "checkpoints" / f"{facts['step']:08}" / "state")).expect_partial()
    (recorded,) = [
        record["loss"]
        for record in metrics(whole)
        if (record["split"], record["step"]) == ("test", 32)
    ]
    off, off_without_average = (abs(loss_of(m, data_dir) - recorded) for m in (average, model))
    assert off < 2e-4 < off_without_average  # The run may have computed in bfloat16.


# Ten kills in all, none of the tests a minute long.
@pytest.mark.parametrize(("kills", "seed"), [(4, 0), (3, 1), (3, 2)])
def test_killed_again_and_again_a_run_ends_with_the_same_bits(
    data_dir, tmp_path, whole, kills, seed
):
    rng = random.Random(seed)
    directory = tmp_path / "checkpoints"
    for kill in range(kills):
        process = start(data_dir, tmp_path, *FLAGS)
        newest = steps(tmp_path)[-1:]
        if kill == 2:  # While a checkpoint is written.
            assert wait_for(lambda: list(directory.glob(".incomplete-*")), process)
        else:
            assert wait_for(lambda newest=newest: steps(tmp_path)[-1:] > newest, process)
            time.sleep(rng.uniform(0, 0.3))
        process.kill()
        finish(process, -signal.SIGKILL)
    assert "Going on after step" in finish(start(data_dir, tmp_path, *FLAGS))
    assert_same_run(whole, tmp_path)
    assert not list((tmp_path / "checkpoints").glob(".*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_goes_on(data_dir, tmp_path, whole, number):
    flags = [flag for flag in FLAGS if "every" not in flag]
    process = start(data_dir, tmp_path, *flags, "--checkpoint_every_steps=1")
    assert wait_for(lambda: steps(tmp_path), process)
    process.send_signal(number)
    printed = finish(process)
    stopped_after = steps(tmp_path)[-1]
    assert f"Stopped after step {stopped_after} of 32" in printed
    assert "Traceback" not in printed
    finish(start(data_dir, tmp_path, *FLAGS))
    assert_same_run(whole, tmp_path)


def test_a_second_signal_stops_at_once(data_dir, tmp_path):
    """Also within a call of many steps, where Python's own handlers would have to wait."""
    flags = ("--epochs=1000", "--image_size=96", "--steps_per_call=16")
    process = start(data_dir, tmp_path, *flags)
    # Once the first epoch is evaluated, the next call into TensorFlow is of 16 steps.
    while "1/1000      16" not in process.stdout.readline():
        assert process.poll() is None
    before = steps(tmp_path)
    process.send_signal(signal.SIGTERM)
    while "SIGTERM: stopping, with a checkpoint" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    finish(process, 128 + signal.SIGTERM)
    assert steps(tmp_path) == before


def test_a_checkpoint_is_saved_when_the_last_is_old(data_dir, tmp_path):
    """It is looked at after the first step, and then about once a second."""
    flags = ("--epochs=1", "--checkpoint_every_seconds=0", "--keep_checkpoints=99")
    finish(start(data_dir, tmp_path, *flags))
    assert {1, 16} <= set(steps(tmp_path))


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_passed_over(data_dir, tmp_path, whole):
    finish(start(data_dir, tmp_path, *FLAGS, "--max_steps=20"))
    assert steps(tmp_path) == [18, 20]
    damage(tmp_path / "checkpoints" / "00000020" / "state.data-00000-of-00001")
    printed = finish(start(data_dir, tmp_path, *FLAGS))
    assert "WARNING: the checkpoint" in printed and "00000020 is damaged" in printed
    assert "Going on after step 18 of 32" in printed
    assert_same_run(whole, tmp_path)


@pytest.mark.parametrize("kind", ["flipped", "halved", "cut by a byte", "emptied", "gone"])
@pytest.mark.parametrize("file", ["state.index", "state.data-00000-of-00001"])
def test_the_newest_checkpoint_that_is_whole_is_found(tmp_path, whole, kind, file):
    directory = tmp_path / "checkpoints"
    shutil.copytree(whole / "checkpoints", directory)
    assert checkpoints.find(directory).name == "00000032"
    path = directory / "00000032" / file
    content = path.read_bytes()
    if kind == "flipped":
        damage(path)
    elif kind == "gone":
        path.unlink()
    else:
        kept = {"halved": len(content) // 2, "cut by a byte": len(content) - 1, "emptied": 0}
        path.write_bytes(content[: kept[kind]])
    assert checkpoints.find(directory).name == "00000030"


def test_where_no_checkpoint_can_be_read_the_run_is_refused(data_dir, tmp_path):
    finish(start(data_dir, tmp_path, "--max_steps=1"))
    (tmp_path / "checkpoints" / "00000001" / "state.index").unlink()
    printed = finish(start(data_dir, tmp_path, "--max_steps=2"), returncode=1)
    assert "No checkpoint in" in printed
    assert "Traceback" not in printed


def test_the_best_checkpoint_outlives_the_newest(data_dir, tmp_path):
    """Stopped in between, so that the best is found again from the metrics."""
    flags = (
        "--train_split=train[:80%]",
        "--validation_split=train[80%:]",
        "--epochs=7",
        "--keep_checkpoints=1",
        "--learning_rate=0.03",
    )
    finish(start(data_dir, tmp_path, *flags, "--max_steps=40"))
    finish(start(data_dir, tmp_path, *flags))
    scores = {r["step"]: r["macro_ap"] for r in metrics(tmp_path) if r["split"] == "train[80%:]"}
    assert len(scores) == 8
    best = max(scores, key=scores.get)
    assert set(steps(tmp_path)) == {best, 91}
    _, facts = checkpoints.restore_model(tmp_path)
    assert facts["step"] == best
