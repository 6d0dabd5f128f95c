"""A head that trains on features computed once, and the fine-tuning that follows it."""

import dataclasses
import re

import keras
import numpy as np
import pytest

from tests import conftest
from trainer import config, learner as learner_lib
from trainer.data import order, splits
from trainer.models import registry
from trainer.run import checkpoints, directory

HEAD = {"model": "tiny_backbone", "freeze": "backbone", "augment": "flip", "batch_size": 18}


@pytest.fixture(scope="module")
def head_run(data_dir, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "head"
    conftest.train(data_dir, run_dir, **HEAD, learning_rate=0.1, epochs=8)
    return run_dir


def weights_of(model):
    """Returns the weights of each layer of the backbone, joined."""
    return {
        layer.name: np.concatenate([w.ravel() for w in layer.get_weights()])
        for layer in model.get_layer("backbone").layers
        if layer.weights
    }


def restored(run_dir):
    return checkpoints.restore_model(run_dir)[0]


def test_a_head_learns_on_a_backbone_that_stays_what_it_was(head_run):
    of_train = [r["loss"] for r in conftest.read_metrics(head_run) if r["split"] == "train"]
    assert of_train[-1] < 0.95 * of_train[0]
    chosen, facts = directory.RunDirectory(head_run).read_config()
    keras.utils.set_random_seed(chosen.seed + 1)  # As the trainer does.
    fresh = weights_of(registry.create_model(chosen, len(facts["genres"]), "float32"))
    after = weights_of(restored(head_run))
    assert fresh.keys() == after.keys() == {"stem", "block1"}
    for name, expected in fresh.items():
        np.testing.assert_array_equal(after[name], expected, name)


def test_fine_tuning_begins_where_the_head_ended_and_keeps_what_is_frozen(
    head_run, data_dir, tmp_path
):
    settings = {"model": "tiny_backbone", "freeze": "stem", "init_from": str(head_run)}
    conftest.train(data_dir, tmp_path, **settings, learning_rate=1e-5, epochs=1)
    before, after = weights_of(restored(head_run)), weights_of(restored(tmp_path))
    np.testing.assert_array_equal(before["stem"], after["stem"])
    assert 0 < np.abs(before["block1"] - after["block1"])[: 3 * 3 * 8 * 16].max() < 1e-3
    kernels = [
        model.get_layer("head").get_weights()[0] for model in map(restored, (head_run, tmp_path))
    ]
    np.testing.assert_allclose(*kernels, atol=1e-3)


def test_a_loss_that_is_not_finite_names_the_posters_of_the_heads_batch(data_dir, tmp_path):
    settings = {**HEAD, "seed": 3, "learning_rate": 1e38}
    with pytest.raises(config.UsageError, match="not finite at step") as error:
        conftest.train(data_dir, tmp_path, **settings)
    step, ids = re.search(r"at step (\d+)\. Its batch: (.*)\.\n", str(error.value)).groups()
    split = splits.open_split("poster_tfds/synthetic", str(data_dir), "train")
    numbers = order.rows_of_step(conftest.NUM_TRAIN, 18, 3, int(step) - 1)
    expected = [split.read_ids()[number] for number in numbers]
    assert ids.split(", ") == expected


def test_a_run_of_another_model_or_size_is_not_begun_with(head_run):
    chosen, facts = directory.RunDirectory(head_run).read_config()
    for changes, genres, said in (
        (
            {"model": "compact_cnn", "freeze": ""},
            facts["genres"],
            "that run is of tiny_backbone with",
        ),
        ({"head_units": 7}, facts["genres"], "its layers are of other sizes"),
        ({}, ["Noir", "Heist"], "this one is of tiny_backbone with"),
    ):
        changed = dataclasses.replace(chosen, **changes)
        model = registry.create_model(changed, len(genres), "float32")
        learner = learner_lib.Learner(model, average=None, optimizer=None, part="")
        with pytest.raises(config.UsageError, match=f"--init_from=.*{said}"):
            learner_lib.initialize(learner, changed, genres, str(head_run))
