"""Features that are kept are those that would be computed, and of nothing else."""

import contextlib
import dataclasses
import errno
import json
import os
import re
import shutil

import keras
import numpy as np
import pytest

from tests import conftest
from trainer import config as config_lib
from trainer.data import caching, feature_files, features, splits

CONFIG = config_lib.Config(model="efficientnet_lite0", image_size=32)
FEATURES = features.Features(  # Of the 10 posters of the test split.
    np.arange(30, dtype=np.float32).reshape(10, 1, 3), np.eye(10, 2, dtype=np.float32)
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
        for part in (slice(0, 6), slice(6, 10)):
            collector.take(FEATURES.labels[part], FEATURES.values[part])
        return collector.finish()


def train(data_dir, run_dir, **settings):
    head = {"model": "tiny_backbone", "freeze": "backbone", "batch_size": 18, "seed": 3}
    conftest.train(data_dir, run_dir, **head, **settings)
    lines = conftest.read_metrics(run_dir)
    changing = {"seconds", "images_per_second", "flops_per_second", "share_waited"}
    return [{k: v for k, v in line.items() if k not in changing} for line in lines]


def test_a_second_head_starts_at_once_and_learns_the_same(data_dir, tmp_path, capsys, monkeypatch):
    kept = {"features_dir": str(tmp_path / "kept")}
    read = f"features of train: those in {tmp_path / 'kept'}"
    first = train(data_dir, tmp_path / "first", **kept)
    assert read not in capsys.readouterr().out
    assert train(data_dir, tmp_path / "again", **kept) == first
    assert read in capsys.readouterr().out
    # Another augmentation has other features.
    train(data_dir, tmp_path / "other", **kept, augment="flip", epochs=1)
    assert read not in capsys.readouterr().out
    assert len(list((tmp_path / "kept").iterdir())) == 3
    # In memory, and on disk where there is none, they are the same.
    assert train(data_dir, tmp_path / "memory") == first
    assert re.search(r"features in memory: 0\.\d\d GB fit in half of", capsys.readouterr().out)
    monkeypatch.setattr(caching.machine, "available_memory", lambda: 0)
    assert train(data_dir, tmp_path / "disk") == first
    assert re.search(r"features on disk: .* do not fit in half of the 0.0", capsys.readouterr().out)


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
    changed = dataclasses.replace(CONFIG, image_size=48)
    others.append(feature_files.describe(changed, split, backbone, False))
    weights = backbone.get_weights()
    weights[0][0, 0] += 1e-6
    backbone.set_weights(weights)
    others.append(feature_files.describe(CONFIG, split, backbone, False))
    assert [feature_files.read(tmp_path, other) for other in others] == [None] * len(others)


def test_a_dataset_that_was_built_anew_has_other_features(split, backbone, tmp_path):
    shutil.copytree(split.builder.data_path, tmp_path / split.builder.info.full_name)
    copy = splits.open_split("poster_tfds/synthetic", str(tmp_path), "test")
    about = feature_files.describe(CONFIG, split, backbone, False)
    assert feature_files.describe(CONFIG, copy, backbone, False) == about
    os.utime(copy.pieces(0, 1)[0].path)
    assert feature_files.describe(CONFIG, copy, backbone, False) != about


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
