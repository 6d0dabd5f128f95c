"""A head that trains on features computed once, and the fine-tuning that follows it."""

import dataclasses
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import conftest
from trainer import config, learner as learner_lib
from trainer.data import batching, features, splits
from trainer.models import registry
from trainer.run import checkpoints, directory

RNG = np.random.default_rng(0)
FEATURES = features.Features(
    RNG.normal(size=(10, 2, 3)).astype(np.float32), np.eye(10, 4, dtype=np.float32)
)
ORDER = batching.Batching(10, batch_size=4, seed=1, shuffle_buffer=10)


def take(dataset, count):
    return list(dataset.take(count).as_numpy_iterator())


def places(batches):
    """Returns, of each example, which poster it is and which of its variants."""
    images = np.concatenate([batch["image"] for batch in batches])
    found = (FEATURES.values[None] == images[:, None, None]).all(-1)
    assert (found.sum(axis=(1, 2)) == 1).all()
    return [tuple(place) for place in np.argwhere(found)[:, 1:]]


def test_an_epoch_of_features_has_posters_once_in_one_of_its_variants():
    epochs = take(features.train_batches(FEATURES, ORDER), 8)
    orders = [places(epochs[i : i + 2]) for i in range(0, 8, 2)]
    assert {len(batch["genres"]) for batch in epochs} == {4}
    for order in orders:
        assert len({poster for poster, _ in order}) == 8
        assert {variant for _, variant in order} == {0, 1}
    assert orders[0] != orders[1] != orders[2]
    assert {poster for order in orders for poster, _ in order} == set(range(10))
    posters = [poster for poster, _ in orders[0][:4]]
    np.testing.assert_array_equal(epochs[0]["genres"], FEATURES.labels[posters])


def test_features_go_on_where_an_interrupted_run_left_off():
    whole = take(features.train_batches(FEATURES, ORDER), 6)
    rest = take(features.train_batches(FEATURES, dataclasses.replace(ORDER, start_step=3)), 3)
    for found, expected in zip(rest, whole[3:], strict=True):
        np.testing.assert_array_equal(found["image"], expected["image"])


def test_evaluation_takes_posters_as_they_are_and_each_once():
    batches = take(features.eval_batches(FEATURES, ORDER), 3)
    images, weights = (np.concatenate([b[k] for b in batches]) for k in ("image", "weight"))
    np.testing.assert_array_equal(weights, [1] * 10 + [0] * 2)
    np.testing.assert_array_equal(images[:10], FEATURES.values[:, 0])


def test_the_second_variant_is_the_mirror_image():
    posters = RNG.integers(0, 256, (2, 4, 6, 3)).astype(np.uint8)

    def backbone(images, training):
        assert not training
        return tf.cast(tf.reshape(images, [2, -1]), tf.bfloat16)

    values = features.variants(backbone, mirrored=True)(tf.constant(posters), training=False)
    expected = np.stack([posters.reshape(2, -1), posters[:, :, ::-1].reshape(2, -1)], axis=1)
    assert values.dtype == tf.float32
    np.testing.assert_array_equal(values, expected)
    assert features.variants(backbone, mirrored=False)(posters, training=False).shape[1] == 1


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
    """Features are shuffled all together, whatever --shuffle_buffer says of posters."""
    settings = {**HEAD, "shuffle_buffer": 5, "seed": 3, "learning_rate": 1e38}
    with pytest.raises(config.UsageError, match="not finite at step") as error:
        conftest.train(data_dir, tmp_path, **settings)
    step, ids = re.search(r"at step (\d+)\. Its batch: (.*)\.\n", str(error.value)).groups()
    split = splits.open_split("poster_tfds/synthetic", str(data_dir), "train")
    labels = split.read_labels()
    tf.random.set_seed(3 + 1)  # As the trainer does.
    known = features.Features(np.zeros([len(labels), 1, 1], np.float32), labels)
    order = batching.Batching(len(labels), 18, seed=3, shuffle_buffer=len(labels))
    batch = take(features.train_batches(known, order), int(step))[-1]
    genres = {
        example["poster_id"].decode(): example["genres"]
        for example in split.read().as_numpy_iterator()
    }
    expected = [np.isin(np.arange(8), genres[poster_id]) for poster_id in ids.split(", ")]
    np.testing.assert_array_equal(batch["genres"], expected)


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
