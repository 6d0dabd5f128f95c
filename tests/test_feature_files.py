"""Features that are kept are those that would be computed, and of nothing else."""

import contextlib
import dataclasses
import errno
import json
import os
import re
import sys

import keras
import numpy as np
import pytest

from tests import conftest
from trainer import config as config_lib
from trainer.data import feature_files, features, splits

CONFIG = config_lib.Config(model="efficientnet_lite0", image_size=32)
FEATURES = features.Features(  # Of the 90 posters of the test split.
    np.arange(270, dtype=np.float32).reshape(90, 1, 3), np.eye(90, 2, dtype=np.float32)
)


@pytest.fixture
def split(data_dir):
    return splits.open_split("poster_tfds/synthetic", str(data_dir), "test")


@pytest.fixture
def backbone():
    return keras.Sequential([keras.Input([4]), keras.layers.Dense(3)])


def keep(folder, about):
    """Keeps `FEATURES`, taken in two parts."""
    with contextlib.closing(feature_files.Collector(folder, about)) as collector:
        for part in (slice(0, 64), slice(64, 90)):
            collector.take(FEATURES.labels[part], FEATURES.values[part])
        return collector.finish()


def train(data_dir, run_dir, *flags, module="trainer"):
    return conftest.run(
        *(sys.executable, "-m", module, "--dataset=poster_tfds/synthetic", "--noreport"),
        *("--preset=pretrained_head", "--model=efficientnet_lite0", "--image_size=32"),
        *("--pretrained_weights=none", "--epochs=2", "--seed=3", "--deterministic"),
        *(f"--data_dir={data_dir}", f"--run_dir={run_dir}", *flags),
    )


def scores(run_dir):
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    changing = {"seconds", "images_per_second", "flops_per_second"}
    return [{k: v for k, v in line.items() if k not in changing} for line in lines]


def test_a_second_head_starts_at_once_and_learns_the_same(data_dir, tmp_path):
    kept = f"--features_dir={tmp_path / 'kept'}"
    first = train(data_dir, tmp_path / "first", kept)
    again = train(data_dir, tmp_path / "again", kept)
    without = train(data_dir, tmp_path / "without")
    for name in ("train", "test"):
        line = f"features of {name}: those in {tmp_path / 'kept'}"
        assert [line in result.stdout for result in (first, again, without)] == [False, True, False]
    assert scores(tmp_path / "first") == scores(tmp_path / "again") == scores(tmp_path / "without")
    # Another seed has other weights here, so other features.
    other = train(data_dir, tmp_path / "other", kept, "--seed=4")
    assert "those in" not in other.stdout
    assert len(list((tmp_path / "kept").iterdir())) == 4


def test_features_are_of_the_weights_the_posters_and_how_they_are_read(split, backbone, tmp_path):
    about = feature_files.describe(CONFIG, split, backbone, False)
    keep(tmp_path, about)
    found = feature_files.read(tmp_path, feature_files.describe(CONFIG, split, backbone, False))
    np.testing.assert_array_equal(found.values, FEATURES.values)
    np.testing.assert_array_equal(found.labels, FEATURES.labels)
    half = splits.Split(split.builder, "test[:50%]")
    others = [
        feature_files.describe(CONFIG, half, backbone, False),
        feature_files.describe(CONFIG, split, backbone, True),
    ]
    for change in ({"image_size": 48}, {"second_size": 64}, {"resize": "antialias"}):
        changed = dataclasses.replace(CONFIG, **change)
        others.append(feature_files.describe(changed, split, backbone, False))
    weights = backbone.get_weights()
    weights[0][0, 0] += 1e-6
    backbone.set_weights(weights)
    others.append(feature_files.describe(CONFIG, split, backbone, False))
    assert [feature_files.read(tmp_path, other) for other in others] == [None] * len(others)


def test_features_for_which_there_is_no_memory_are_on_disk_and_the_same(data_dir, tmp_path):
    in_memory = train(data_dir, tmp_path / "memory")
    assert re.search(r"features in memory: 0\.\d\d GB fit in half of the", in_memory.stdout)
    on_disk = train(data_dir, tmp_path / "disk", module="tests.crowded_trainer")
    assert re.search(r"features on disk: .* GB do not fit in half of the 0.0 GB", on_disk.stdout)
    assert scores(tmp_path / "memory") == scores(tmp_path / "disk")
    assert not (tmp_path / "disk" / "cache").exists()


def test_a_dataset_that_was_built_anew_has_other_features(split, backbone, tmp_path):
    keep(tmp_path, feature_files.describe(CONFIG, split, backbone, False))
    path = split.builder.info.splits["test"].filepaths[0]
    before = os.stat(path)
    try:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000_000))
        about = feature_files.describe(CONFIG, split, backbone, False)
    finally:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert feature_files.read(tmp_path, about) is None


def test_what_could_not_be_written_whole_is_not_there(split, backbone, tmp_path, monkeypatch):
    about = feature_files.describe(CONFIG, split, backbone, False)

    def fail(path, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.write_text", fail)
        with pytest.raises(config_lib.UsageError, match=r"No space left on device.*features_dir"):
            keep(tmp_path, about)
    assert not list(tmp_path.iterdir())
    slower = feature_files.Collector(tmp_path, about)
    slower.take(FEATURES.labels, FEATURES.values)
    keep(tmp_path, about)
    slower.finish()  # Another run, which began later, was faster.
    slower.close()
    (folder,) = tmp_path.iterdir()
    assert json.loads((folder / "about.json").read_text()) == about
    (folder / "values.npy").write_bytes((folder / "values.npy").read_bytes()[:-5])
    with pytest.raises(config_lib.UsageError, match=f"{folder} is damaged .*Remove it"):
        feature_files.read(tmp_path, about)
    with pytest.raises(
        config_lib.UsageError, match="--features_dir=gs://bucket: give a folder of a"
    ):
        feature_files.read("gs://bucket", about)
