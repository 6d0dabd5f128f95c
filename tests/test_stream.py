"""A stream gives each poster once an epoch, and goes on at a step as if it had not stopped."""

import numpy as np
import pytest
import tensorflow as tf

from tests import conftest
from tests.test_rows import PLAIN, SPEC, assert_same, take
from trainer import config
from trainer.data import pipeline, rows as rows_lib, splits, stream


@pytest.fixture(scope="module")
def train(data_dir):
    return splits.open_split("poster_tfds/synthetic", str(data_dir), "train")


@pytest.fixture(scope="module")
def rows(train):
    return rows_lib.in_memory(rows_lib.decode(train, 32), train.num_examples)


def posters_of(batches):
    return sorted(image.tobytes() for batch in batches for image in batch["image"])


@pytest.mark.parametrize("buffer", [1, 5, 4096])
def test_each_epoch_has_each_poster_once_in_an_order_of_its_own(train, rows, buffer):
    found = take(stream.train_batches(train, PLAIN, buffer), 12)
    expected = sorted(image.tobytes() for image in rows.values)
    assert posters_of(found[:6]) == posters_of(found[6:]) == expected
    assert found[0]["image"].tobytes() != found[6]["image"].tobytes()


@pytest.mark.parametrize("start", [1, 4, 6, 11])
def test_going_on_at_a_step_gives_the_batches_from_there_on(train, start):
    whole = take(stream.train_batches(train, SPEC, 5), start + 3)
    assert_same(take(stream.train_batches(train, SPEC, 5, start_step=start), 3), whole[start:])


def test_workers_have_shards_of_their_own(train, rows):
    spec = pipeline.TrainSpec(32, 16, seed=3)
    num_steps = stream.steps_per_epoch(train, 16, 2)
    assert num_steps == 3
    found = [
        take(stream.train_batches(train, spec, 5, tf.distribute.InputContext(2, w, 2)), num_steps)
        for w in range(2)
    ]
    posters = [set(posters_of(of_worker)) for of_worker in found]
    assert len(posters[0]) == len(posters[1]) == 24 and not posters[0] & posters[1]
    assert posters[0] | posters[1] <= {image.tobytes() for image in rows.values}
    with pytest.raises(config.UsageError, match=r"16 shards.*3 workers\. Take 2, 4, 8, 16 of them"):
        stream.steps_per_epoch(train, 15, 3)


@pytest.mark.parametrize("workers", [1, 2])
def test_evaluation_is_that_of_rows(train, rows, workers):
    for worker in range(workers):
        context = tf.distribute.InputContext(workers, worker, workers)
        found = take(stream.eval_batches(train, 32, 16, context), 8)
        expected = take(rows_lib.eval_batches(rows, 16, context), 8)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours["weight"], theirs["weight"])
            for name in ("image", "genres"):
                is_real = ours["weight"] > 0
                np.testing.assert_array_equal(ours[name][is_real], theirs[name][is_real])


def test_threads_are_bounded_by_cores_and_by_what_they_decode(train, monkeypatch):
    monkeypatch.setattr(pipeline.machine, "num_cores", lambda: 31)
    monkeypatch.setattr(pipeline.machine, "available_memory", lambda: 64 << 30)
    assert pipeline.num_threads(train) == 47
    monkeypatch.setattr(pipeline, "_BYTES_DECODED", 60 * 1000)  # As if posters were so much larger.
    assert pipeline.num_threads(train) == 31


def test_a_run_goes_on_in_its_own_kind_of_order(data_dir, tmp_path):
    conftest.train(data_dir, tmp_path, cache="none", max_steps=3)
    with pytest.raises(config.UsageError, match="another order"):
        conftest.train(data_dir, tmp_path, cache="memory")
    assert conftest.train(data_dir, tmp_path, cache="none")
