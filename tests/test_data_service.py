"""Posters read by a dispatcher and two workers, each a process, as README starts them."""

import itertools
import signal
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests import conftest
from tests.test_resume import finish, metrics, start
from trainer import config
from trainer.data import pipeline, splits

SIZE, NUM_TRAIN, BATCH = 48, 510, 36


@pytest.fixture(scope="module")
def service():
    """The dispatcher's address."""
    command = (sys.executable, "-m", "trainer.data_service", "--host=localhost")
    dispatcher = conftest.start(*command)
    address = dispatcher.stdout.readline().split("--data_service=")[1].strip()
    workers = [
        conftest.start(*command, f"--dispatcher={address.removeprefix('grpc://')}")
        for _ in range(2)
    ]
    for worker in workers:
        assert "is ready" in worker.stdout.readline()
    yield address
    for process in (*workers, dispatcher):
        process.send_signal(signal.SIGTERM)
        assert "Stopped." in finish(process)


@pytest.fixture(scope="module")
def split(data_dir):
    return splits.open_split("poster_tfds/synthetic", str(data_dir), "train")


def batches(split, service, count, index=0, workers=1, **settings):
    settings = {"shuffle_buffer": 510, **settings}
    spec = pipeline.PipelineSpec(split, SIZE, BATCH, seed=1, **settings)
    context = tf.distribute.InputContext(workers, index, workers)
    dataset = pipeline.service_batches(spec, service, context)
    return list(itertools.islice(dataset.as_numpy_iterator(), count))


def posters(batches):
    """Returns each poster with its genres, in an order of their own."""
    return sorted(
        (image.tobytes(), genres.tobytes())
        for batch in batches
        for image, genres in zip(batch["image"], batch["genres"], strict=True)
    )


@pytest.fixture(scope="module")
def expected(split):
    dataset = pipeline.train_batches(pipeline.PipelineSpec(split, SIZE, BATCH, shuffle_buffer=510))
    return posters(itertools.islice(dataset.as_numpy_iterator(), 15))


def test_each_example_comes_once_an_epoch(split, service, expected):
    found = batches(split, service, 30)
    sizes = [len(batch["image"]) for batch in found]
    assert sizes == [*[BATCH] * 14, 6] * 2
    assert posters(found[:15]) == posters(found[15:]) == expected
    assert any(
        (a["image"] != b["image"]).any() for a, b in zip(found[:14], found[15:29], strict=True)
    )


def test_shards_come_in_another_order_in_each_epoch(split, service):
    """Without a buffer, the first posters of an epoch are those of its first shards."""
    found = batches(split, service, 30, shuffle_buffer=1)
    early, early_again = (set(posters(found[first : first + 3])) for first in (0, 15))
    assert len(early) > 0.9 * 3 * BATCH
    assert len(early & early_again) < 0.5 * 3 * BATCH


def test_each_example_comes_once_over_three_training_workers(split, service, expected):
    found = [batches(split, service, 15, index, 3) for index in range(3)]
    assert {len(worker) for worker in found} == {15}
    assert posters(itertools.chain(*found)) == expected
    assert all(len(batch["image"]) <= BATCH // 3 for worker in found for batch in worker)


def test_the_service_makes_the_changes_that_are_asked_for(split, service, expected):
    changed = posters(batches(split, service, 15, augment=("flip",)))
    kept = len(set(changed) & set(expected))
    assert 0.4 * NUM_TRAIN < kept < 0.6 * NUM_TRAIN


def test_the_trainer_counts_each_poster_once(data_dir, tmp_path, service, run_dir):
    flags = (f"--data_service={service}", "--epochs=1")
    printed = finish(start(data_dir, tmp_path, *flags))
    assert f"cache none: {service} reads the train split" in printed
    for ours, theirs in zip(metrics(tmp_path), metrics(run_dir), strict=False):
        assert ours["constant"] == pytest.approx(theirs["constant"])
        assert np.isfinite(ours["loss"])


def test_what_cannot_be_is_refused(data_dir, tmp_path):
    with pytest.raises(config.UsageError, match="Leave out --deterministic"):
        config.Config(data_service="grpc://x:1", deterministic=True)
    with pytest.raises(config.UsageError, match="leave out --cache=disk"):
        config.Config(data_service="grpc://x:1", cache="disk")
    printed = finish(start(data_dir, tmp_path, "--data_service=grpc://localhost:1"), returncode=1)
    assert "--data_service=grpc://localhost:1: no server answers there" in printed
    assert "Traceback" not in printed
