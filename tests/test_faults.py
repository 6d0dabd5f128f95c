"""What may go wrong with a run ends in one message, and nothing good is lost."""

import dataclasses
import errno
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from poster_tfds import directory_lock
from tests import conftest
from tests.test_resume import finish, start, state, steps, wait_for
from trainer import config, train
from trainer.data import pipeline, splits
from trainer.models import optimizer as optimizer_lib, registry
from trainer.run import checkpoints, directory


def refused(process, *expected):
    printed = finish(process, returncode=1)
    for text in expected:
        assert text in printed
    assert "Traceback" not in printed


def test_a_loss_that_is_not_finite_stops_with_the_step_and_its_posters(data_dir, tmp_path):
    """A rate that overflows float32 in the first step; an earlier checkpoint is kept."""
    flags = ("--precision=float32", "--seed=3", "--checkpoint_every_steps=1")
    finish(start(data_dir, tmp_path, *flags, "--max_steps=2"))
    split = splits.open_split("poster_tfds/synthetic", str(data_dir), "train")
    printed = finish(
        start(data_dir, tmp_path, *flags, "--learning_rate=1e38", "--override"), returncode=1
    )
    assert "not finite at step 4" in printed
    assert "Traceback" not in printed
    assert steps(tmp_path)[-1] == 3
    tf.random.set_seed(3 + 1)  # As the trainer does.
    spec = pipeline.PipelineSpec(split, 48, 32, seed=3, shuffle_buffer=4096)
    batches = pipeline.train_batches(spec)
    batch = list(batches.take(4).as_numpy_iterator())[3]
    ids = printed.split("Its batch: ")[1].split(".")[0].split(", ")
    genres = {
        example["poster_id"].decode(): example["genres"]
        for example in split.read().as_numpy_iterator()
    }
    expected = [np.isin(np.arange(8), genres[poster_id]) for poster_id in ids]
    np.testing.assert_array_equal(batch["genres"], expected)


def copy_of(data_dir, tmp_path):
    shutil.copytree(data_dir / "poster_tfds", tmp_path / "data" / "poster_tfds")
    return tmp_path / "data"


def shards(data_dir, split="train"):
    return sorted((data_dir / "poster_tfds" / "synthetic" / "1.0.0").glob(f"*-{split}.*"))


def record_at(shard, index):
    """Returns where a record begins, by the format's own lengths."""
    content, position = shard.read_bytes(), 0
    for _ in range(index):
        position += int.from_bytes(content[position : position + 8], "little") + 16
    return position


@pytest.mark.parametrize(
    ("kind", "split"),
    [
        ("flipped", "train"),
        ("truncated", "train"),
        ("between records", "train"),
        ("truncated", "test"),
    ],
)
def test_a_damaged_shard_is_named_with_its_byte(data_dir, tmp_path, kind, split):
    copied = copy_of(data_dir, tmp_path)
    shard = shards(copied, split)[2]
    content, begin = bytearray(shard.read_bytes()), record_at(shard, 3)
    if kind == "flipped":
        content[begin + 100] ^= 4
    shard.write_bytes(content[: {"truncated": begin + 50, "between records": begin}.get(kind)])
    expected = [str(shard), "Build it again"]
    if kind == "between records":
        expected.append("holds 3 records, was built with")
    else:
        expected.append(f"record 3, at byte {begin}")
    refused(start(copied, tmp_path / "run", "--epochs=1"), *expected)


def test_two_trainers_do_not_share_a_run_directory(data_dir, tmp_path):
    first = start(data_dir, tmp_path, "--epochs=1000")
    assert wait_for(lambda: steps(tmp_path), first)
    refused(start(data_dir, tmp_path, "--epochs=1000"), "another trainer is at work there")
    first.terminate()
    assert "Stopped after" in finish(first)


def test_a_directory_is_held_before_it_is_looked_at(data_dir, run_dir, tmp_path):
    """What another trainer is changing says nothing yet."""
    with directory_lock.hold(run_dir), pytest.raises(config.UsageError, match="at work there"):
        train.train_and_evaluate(config.Config(data_dir=str(data_dir), epochs=7), run_dir)
    with pytest.raises(config.UsageError, match="is not built in"):
        train.train_and_evaluate(config.Config(data_dir=str(tmp_path)), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_a_file_system_has_no_locks_the_user_is_asked_to_see_to_it(
    tmp_path, monkeypatch, capsys, number
):
    def flock(*_):
        raise OSError(number, "no locks here")

    monkeypatch.setattr(directory_lock.fcntl, "flock", flock)
    with directory.RunDirectory(tmp_path / "run").held():
        assert (tmp_path / "run").exists()
    assert (
        "has no locks (no locks here). Make sure that no other process" in capsys.readouterr().err
    )
    with directory_lock.hold(tmp_path) as is_held:
        assert not is_held


def test_other_settings_need_override_and_another_model_is_refused(data_dir, tmp_path):
    finish(start(data_dir, tmp_path, "--max_steps=1"))
    flags = ("--max_steps=2", "--learning_rate=0.01", "--augment=flip")
    difference = ("--learning_rate: 0.001 then, 0.01 now", "--augment: '' then, 'flip' now")
    refused(start(data_dir, tmp_path, *flags), *difference, "--override goes on")
    finish(start(data_dir, tmp_path, *flags, "--override"))
    assert steps(tmp_path)[-1] == 2
    settings = json.loads((tmp_path / "config.json").read_text())["config"]
    assert settings["learning_rate"] == 0.01
    refused(
        start(data_dir, tmp_path, *flags, "--image_size=64", "--override"),
        "--image_size: 48 then, 64 now",
        "do not fit",
    )
    run = directory.RunDirectory(tmp_path)
    for change, said in (
        ({"model": "compact_cnn"}, "checkpoints do not fit another model"),
        (
            {"batch_size": 64},
            "--batch_size: 32 then, 64 now\n.*epochs of others would be miscounted",
        ),
    ):
        other = dataclasses.replace(run.read_config()[0], **change)
        with pytest.raises(config.UsageError, match=said):
            run.check_continues(other, resume=True, override=True)


def test_a_checkpoint_of_another_optimizer_is_refused_in_words(tmp_path):
    """float16 wraps the optimizer: `--precision=auto` may mean another on another machine."""
    settings, none = config.Config(image_size=48), {"labels": np.zeros([0, 3], np.float32)}
    kept = []
    for precision in ("mixed_float16", "float32"):
        model = registry.create_model(settings, 3, "float32")
        optimizer = optimizer_lib.create_optimizer(settings, precision, 10, model)
        optimizer.build(model.trainable_variables)
        kept.append(checkpoints.Checkpoints(tmp_path, model, optimizer, none, 2))
    kept[0].save(1, none)
    assert kept[0].restore().step == 1
    with pytest.raises(config.UsageError, match=r"00000001 does not fit .*in a --precision like"):
        kept[1].restore()


def test_a_setting_that_came_later_counts_as_its_default(tmp_path):
    """An earlier version's `config.json` lacks it."""
    run = directory.RunDirectory(tmp_path)
    run.write_config(config.Config())
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    del content["config"]["augment"]
    path.write_text(json.dumps(content))
    run.check_continues(config.Config(), resume=True, override=False)
    with pytest.raises(config.UsageError, match="--augment: '' then, 'flip' now"):
        run.check_continues(config.Config(augment="flip"), resume=True, override=False)


def test_epochs_may_be_added_unless_the_learning_rate_ends_with_them(tmp_path):
    run = directory.RunDirectory(tmp_path)
    for schedule in ("constant", "cosine"):
        before, now = (
            config.Config(learning_rate_schedule=schedule, epochs=epochs) for epochs in (2, 3)
        )
        run.write_config(before)
        if schedule == "constant":
            run.check_continues(now, resume=True, override=False)
            continue
        with pytest.raises(config.UsageError, match="--epochs: 2 then, 3 now"):
            run.check_continues(now, resume=True, override=False)


def test_a_dataset_with_other_genres_is_refused(data_dir, tmp_path):
    copied = copy_of(data_dir, tmp_path)
    finish(start(copied, tmp_path / "run", "--max_steps=1"))
    names = shards(copied)[0].parent / "genres-feature.labels.txt"
    if not names.exists():
        (names,) = shards(copied)[0].parent.glob("*.labels.txt")
    genres = names.read_text().split()
    names.write_text("\n".join(["Noir", *genres[1:]]) + "\n")
    refused(
        start(copied, tmp_path / "run", "--max_steps=2"), "the dataset has changed", "Its genres"
    )


def test_a_dataset_with_another_number_of_posters_is_refused(tmp_path):
    run = directory.RunDirectory(tmp_path)
    run.write_config(config.Config(), genres=["Noir"], num_train=10)
    run.check_same_data(["Noir"], 10)
    with pytest.raises(config.UsageError, match="number of posters to train on then: 10; now: 11"):
        run.check_same_data(["Noir"], 11)


IN_OWN_MOUNTS = ("unshare", "--user", "--map-root-user", "--mount")


def run_in_own_mounts(script):
    if not shutil.which("unshare") or subprocess.run([*IN_OWN_MOUNTS, "true"]).returncode:
        pytest.skip("no user namespaces here: NOT TESTED short of disk or memory")
    return conftest.run(*IN_OWN_MOUNTS, "bash", "-c", script)


def command(data_dir, run_dir, *flags):
    return (
        f"{sys.executable} -m trainer --dataset=poster_tfds/synthetic --data_dir={data_dir} "
        f"--run_dir={run_dir} --preset=reference --image_size=48 --noreport {' '.join(flags)}"
    )


LITTLE_DISK = """
mount -t tmpfs -o size=5m tmpfs {run_dir}
{train} --max_steps=2 --keep_checkpoints=1 || exit 10
free=$(df --output=avail -k {run_dir} | tail -1)
head -c $((free - 500))K /dev/zero > {run_dir}/full
{train} --max_steps=4 --keep_checkpoints=1 && exit 11
ls {run_dir}/checkpoints/00000002 > /dev/null || exit 12
rm {run_dir}/full
{train} --max_steps=4 --keep_checkpoints=1 || exit 13
ls {run_dir}/checkpoints
"""


def test_a_full_disk_leaves_the_earlier_checkpoint_and_the_run_goes_on_with_room(
    data_dir, tmp_path
):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    train = command(data_dir, run_dir)
    result = run_in_own_mounts(LITTLE_DISK.format(run_dir=run_dir, train=train))
    assert "The checkpoint of step 4 could not be written to" in result.stderr
    assert "That of step 2 is intact. Make room" in result.stderr
    assert "Traceback" not in result.stderr
    assert "Going on after step 2 of 4" in result.stdout
    assert result.stdout.endswith("00000004\n")


LITTLE_MEMORY = """
echo "MemAvailable: 600 kB" > {directory}/meminfo
mount --bind {directory}/meminfo /proc/meminfo
{train}
"""


def test_short_of_memory_the_cache_gives_way_and_the_run_goes_on_as_it_would_have(
    data_dir, tmp_path
):
    """The first half with decoded posters in memory, the second where not even JPEGs fit."""
    flags = ("--deterministic", "--cache=decoded", "--augment=flip")
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    finish(start(data_dir, whole, *flags, "--max_steps=24"))
    finish(start(data_dir, halved, *flags, "--max_steps=12"))
    train = command(data_dir, halved, *flags, "--max_steps=24")
    result = run_in_own_mounts(LITTLE_MEMORY.format(directory=tmp_path, train=train))
    assert "cache none: WARNING, not --cache=decoded" in result.stdout
    assert "Going on after step 12 of 24" in result.stdout
    np.testing.assert_equal(state(halved), state(whole))


NO_DISK_FOR_AN_EXPORT = """
mkdir -p {export_dir}
mount -t tmpfs -o size=200k tmpfs {export_dir}
{python} -m export --run_dir={run_dir} --export_dir={export_dir} && exit 10
ls -A {export_dir}
"""


def test_a_full_disk_ends_an_export_in_one_message(run_dir, tmp_path):
    result = run_in_own_mounts(
        NO_DISK_FOR_AN_EXPORT.format(
            run_dir=run_dir, export_dir=tmp_path / "export", python=sys.executable
        )
    )
    assert f"--export_dir={tmp_path / 'export'}: the version could not be written" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout.strip() == ""
