"""Posters read by a dispatcher and two workers, each a process, as README starts them."""

import itertools
import signal
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests import conftest
from trainer import config
from trainer.data import pipeline, splits, stream

SIZE, BATCH, STEPS = 32, 12, 4  # Of 54 posters an epoch leaves 6 out.


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
        assert "Stopped." in process.communicate(timeout=60)[0]
        assert process.returncode == 0


@pytest.fixture(scope="module")
def split(data_dir):
    return splits.open_split("poster_tfds/synthetic", str(data_dir), "train")


@pytest.fixture(scope="module")
def all_posters(split):
    return posters(stream.eval_batches(split, SIZE, 54).take(1).as_numpy_iterator())


def batches(split, service, count, index=0, workers=1, **settings):
    spec = pipeline.TrainSpec(SIZE, BATCH, seed=1, **settings)
    context = tf.distribute.InputContext(workers, index, workers)
    dataset = stream.train_batches(split, spec, 8, context, service=service)
    return list(itertools.islice(dataset.as_numpy_iterator(), count))


def posters(batches):
    """Returns each poster with its genres."""
    return [
        (image.tobytes(), genres.tobytes())
        for batch in batches
        for image, genres in zip(batch["image"], batch["genres"], strict=True)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_each_example_comes_at_most_once_an_epoch(split, service, all_posters, workers):
    """The workers of the service divide the shards of each training worker."""
    found = [batches(split, service, 2 * STEPS, index, workers) for index in range(workers)]
    assert {len(batch["image"]) for worker in found for batch in worker} == {BATCH // workers}
    epochs = [
        posters(batch for worker in found for batch in worker[start : start + STEPS])
        for start in (0, STEPS)
    ]
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch) == STEPS * BATCH
        assert set(epoch) <= set(all_posters)
    assert epochs[0] != epochs[1]


@pytest.mark.slow
def test_the_service_makes_the_changes_that_are_asked_for(split, service, all_posters):
    changed = posters(batches(split, service, STEPS, augment=("flip",)))
    kept = len(set(changed) & set(all_posters))
    assert 0.2 * STEPS * BATCH < kept < 0.8 * STEPS * BATCH


@pytest.mark.slow
def test_the_trainer_trains_on_what_the_service_reads(data_dir, tmp_path, service, capsys):
    conftest.train(data_dir, tmp_path, data_service=service)
    assert f"cache none: {service} reads the train split" in capsys.readouterr().out
    losses = [r["loss"] for r in conftest.read_metrics(tmp_path) if r["split"] == "train"]
    assert np.isfinite(losses).all() and len(losses) == 2


def test_what_cannot_be_is_refused(data_dir, tmp_path):
    with pytest.raises(config.UsageError, match="Leave out --deterministic"):
        config.Config(data_service="grpc://x:1", deterministic=True)
    with pytest.raises(config.UsageError, match="leave out --cache=disk"):
        config.Config(data_service="grpc://x:1", cache="disk")
    with pytest.raises(config.UsageError, match="localhost:1: no server answers there"):
        conftest.train(data_dir, tmp_path, data_service="grpc://localhost:1")
