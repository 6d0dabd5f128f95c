"""What may go wrong with a run ends in one message, and nothing good is lost."""

import dataclasses
import errno
import json
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest

from poster_tfds import directory_lock
from tests import conftest
from tests.runs import finish, start, state, steps
from trainer import config, train
from trainer.data import order, splits
from trainer.models import optimizer as optimizer_lib, registry
from trainer.run import checkpoints, directory


def test_a_loss_that_is_not_finite_stops_with_the_step_and_its_posters(data_dir, tmp_path):
    """A rate that overflows float32 in the first step; an earlier checkpoint is kept."""
    settings = {"seed": 3, "checkpoint_every_steps": 1}
    conftest.train(data_dir, tmp_path, **settings, max_steps=2)
    with pytest.raises(config.UsageError, match="not finite at step 4") as error:
        conftest.train(data_dir, tmp_path, **settings, learning_rate=1e38, override=True)
    assert steps(tmp_path)[-1] == 3
    split = splits.open_split("poster_tfds/synthetic", str(data_dir), "train")
    numbers = order.rows_of_step(conftest.NUM_TRAIN, 9, 3, 3)
    ids = str(error.value).split("Its batch: ")[1].split(".")[0].split(", ")
    assert ids == [split.read_ids()[number] for number in numbers]


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
    ("kind", "split", "is_trained"),
    [
        ("flipped", "train", True),
        ("truncated", "train", False),
        ("between records", "train", True),
        ("truncated", "test", False),
    ],
)
def test_a_damaged_shard_is_named_with_its_byte(data_dir, tmp_path, kind, split, is_trained):
    copied = copy_of(data_dir, tmp_path)
    shard = max(shards(copied, split), key=lambda path: path.stat().st_size)
    index = 1 if split == "train" else 0
    content, begin = bytearray(shard.read_bytes()), record_at(shard, index)
    if kind == "flipped":
        content[begin + 100] ^= 4
    shard.write_bytes(content[: {"truncated": begin + 50, "between records": begin}.get(kind)])
    expected = f"record {index}, at byte {begin}"
    if kind == "between records":
        expected = f"holds {index} records, was built with"
    if is_trained:
        with pytest.raises(config.UsageError, match=expected) as error:
            conftest.train(copied, tmp_path / "run")
        assert str(shard) in str(error.value) and "Build it again" in str(error.value)
    else:
        found = splits.open_split("poster_tfds/synthetic", str(copied), split).find_damage()
        assert str(shard) in found and expected in found


def test_two_trainers_do_not_share_a_run_directory(data_dir, run_dir, tmp_path):
    """It is held before it is looked at: what another is changing says nothing yet."""
    with directory_lock.hold(run_dir), pytest.raises(config.UsageError, match="at work there"):
        train.train_and_evaluate(config.Config(data_dir=str(data_dir), epochs=7), run_dir)
    with pytest.raises(config.UsageError, match="is not built in"):
        train.train_and_evaluate(config.Config(data_dir=str(tmp_path)), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_where_a_file_system_has_no_locks_the_user_is_asked_to_see_to_it(
    tmp_path, monkeypatch, capsys
):
    def flock(*_):
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr("fcntl.flock", flock)
    with directory.RunDirectory(tmp_path / "run").held():
        assert (tmp_path / "run").exists()
    said = "has no locks (no locks here). Make sure that no other process"
    assert said in capsys.readouterr().err


def test_other_settings_need_override_and_another_model_is_refused(data_dir, tmp_path):
    conftest.train(data_dir, tmp_path, max_steps=1)
    changes = {"max_steps": 2, "learning_rate": 0.02, "augment": "flip"}
    with pytest.raises(config.UsageError, match="--override goes on") as error:
        conftest.train(data_dir, tmp_path, **changes)
    for difference in ("--learning_rate: 0.01 then, 0.02 now", "--augment: '' then, 'flip' now"):
        assert difference in str(error.value)
    conftest.train(data_dir, tmp_path, **changes, override=True)
    assert steps(tmp_path)[-1] == 2
    settings = json.loads((tmp_path / "config.json").read_text())["config"]
    assert settings["learning_rate"] == 0.02
    run = directory.RunDirectory(tmp_path)
    for change, said in (
        ({"image_size": 64}, "--image_size: 32 then, 64 now\n.*do not fit another model"),
        ({"model": "compact_cnn"}, "checkpoints do not fit another model"),
        (
            {"batch_size": 64},
            "--batch_size: 9 then, 64 now\n.*epochs of others would be miscounted",
        ),
    ):
        other = dataclasses.replace(run.read_config()[0], **change)
        with pytest.raises(config.UsageError, match=said):
            run.check_continues(other, resume=True, override=True)


def test_a_checkpoint_of_another_optimizer_is_refused_in_words(tmp_path):
    """float16 wraps the optimizer: `--precision=auto` may mean another on another machine."""
    settings = config.Config(model="tiny_cnn", image_size=32)
    kept = []
    for precision in ("mixed_float16", "float32"):
        model = registry.create_model(settings, 3, "float32")
        optimizer = optimizer_lib.create_optimizer(settings, precision, 10)
        optimizer.build(model.trainable_variables)
        kept.append(checkpoints.Checkpoints(tmp_path, model, optimizer, 2))
    kept[0].save(checkpoints.State(1, 0.5))
    assert kept[0].restore() == (1, 0.5)
    with pytest.raises(config.UsageError, match=r"00000001 does not fit .*in a --precision like"):
        kept[1].restore()


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


@pytest.mark.parametrize(
    ("genres", "num_train", "said"),
    [
        (["Heist"], 10, r"genres then: \['Noir'\]; now: \['Heist'\]"),
        (["Noir"], 11, "number of posters to train on then: 10; now: 11"),
    ],
)
def test_another_dataset_is_refused(tmp_path, genres, num_train, said):
    run = directory.RunDirectory(tmp_path)
    run.write_config(config.Config(), genres=["Noir"], num_train=10)
    run.check_same_data(["Noir"], 10)
    with pytest.raises(config.UsageError, match=said):
        run.check_same_data(genres, num_train)


IN_OWN_MOUNTS = ("unshare", "--user", "--map-root-user", "--mount")


def run_in_own_mounts(script):
    if not shutil.which("unshare") or subprocess.run([*IN_OWN_MOUNTS, "true"]).returncode:
        pytest.skip("no user namespaces here: NOT TESTED short of disk or memory")
    return conftest.run(*IN_OWN_MOUNTS, "bash", "-c", script)


LITTLE_DISK = """
mount -t tmpfs -o size=60m tmpfs {run_dir}
{train} --max_steps=2 --keep_checkpoints=1 || exit 10
free=$(df --output=avail -k {run_dir} | tail -1)
head -c $((free - 1000))K /dev/zero > {run_dir}/full
{train} --max_steps=4 --keep_checkpoints=1 && exit 11
ls {run_dir}/checkpoints/00000002 > /dev/null || exit 12
rm {run_dir}/full
{train} --max_steps=4 --keep_checkpoints=1 || exit 13
ls {run_dir}/checkpoints
"""


@pytest.mark.slow
def test_a_full_disk_leaves_the_earlier_checkpoint_and_the_run_goes_on_with_room(
    data_dir, tmp_path
):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    train = shlex.join(conftest.trainer_command(data_dir, run_dir, model="compact_cnn"))
    result = run_in_own_mounts(LITTLE_DISK.format(run_dir=run_dir, train=train))
    assert "The checkpoint of step 4 could not be written to" in result.stderr
    assert "That of step 2 is intact. Make room" in result.stderr
    assert "Traceback" not in result.stderr
    assert "Going on after step 2 of 4" in result.stdout
    assert result.stdout.endswith("00000004\n")


LITTLE_MEMORY = """
echo "MemAvailable: 60 kB" > {directory}/meminfo
mount --bind {directory}/meminfo /proc/meminfo
{train}
"""


@pytest.mark.slow
def test_short_of_memory_rows_are_on_disk_and_the_run_goes_on_as_it_would_have(data_dir, tmp_path):
    settings = {"deterministic": "true", "augment": "flip", "cache_dir": tmp_path / "cache"}
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    assert "of the free memory" in finish(start(data_dir, whole, **settings, max_steps=8))
    finish(start(data_dir, halved, **settings, max_steps=4))
    train = shlex.join(conftest.trainer_command(data_dir, halved, **settings, max_steps=8))
    result = run_in_own_mounts(LITTLE_MEMORY.format(directory=tmp_path, train=train))
    assert "cache disk: 0.00 GB, of at most" in result.stdout
    assert "Going on after step 4 of 8" in result.stdout
    np.testing.assert_equal(state(halved), state(whole))


NO_DISK_FOR_AN_EXPORT = """
mkdir -p {export_dir}
mount -t tmpfs -o size=100k tmpfs {export_dir}
{python} -m tests.with_tiny_model export --run_dir={run_dir} --export_dir={export_dir} && exit 10
ls -A {export_dir}
"""


@pytest.mark.slow
def test_a_full_disk_ends_an_export_in_one_message(run_dir, tmp_path):
    result = run_in_own_mounts(
        NO_DISK_FOR_AN_EXPORT.format(
            run_dir=run_dir, export_dir=tmp_path / "export", python=sys.executable
        )
    )
    said = f"--export_dir={tmp_path / 'export'}: the version could not be written"
    assert re.search(re.escape(said), result.stderr)
    assert "Traceback" not in result.stderr
    assert result.stdout.strip() == ""
