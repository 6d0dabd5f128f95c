"""A head that trains on features computed once, and the fine-tuning that follows it."""

import dataclasses
import json
import re
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests import conftest
from trainer import config, learner as learner_lib, presets
from trainer.data import batching, features, pipeline, splits
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


def test_an_epoch_of_features_has_each_poster_once_in_one_of_its_variants():
    epochs = take(features.train_batches(FEATURES, ORDER), 9)
    orders = [places(epochs[i : i + 3]) for i in (0, 3, 6)]
    assert [len(batch["genres"]) for batch in epochs] == [4, 4, 2] * 3
    for order in orders:
        assert sorted(poster for poster, _ in order) == list(range(10))
        assert {variant for _, variant in order} == {0, 1}
    assert orders[0] != orders[1] != orders[2]
    posters = [poster for poster, _ in orders[0][:4]]
    np.testing.assert_array_equal(epochs[0]["genres"], FEATURES.labels[posters])


def test_features_go_on_where_an_interrupted_run_left_off():
    whole = take(features.train_batches(FEATURES, ORDER), 9)
    rest = take(features.train_batches(FEATURES, dataclasses.replace(ORDER, start_step=4)), 5)
    for found, expected in zip(rest, whole[4:], strict=True):
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


@pytest.fixture(scope="module")
def head_run(data_dir, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "head"
    train("--preset=pretrained_head", data_dir, run_dir, "--epochs=6")
    return run_dir


def train(preset, data_dir, run_dir, *flags, **kwargs):
    return conftest.run(
        *(sys.executable, "-m", "trainer", "--dataset=poster_tfds/synthetic", preset, "--noreport"),
        *(f"--data_dir={data_dir}", f"--run_dir={run_dir}", "--image_size=64", *flags),
        **kwargs,
    )


def records(run_dir):
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if json.loads(line)["split"] == "test"]


def test_a_head_learns_on_a_backbone_that_stays_what_it_was(head_run):
    last = records(head_run)[-1]
    assert last["macro_ap"] > 1.5 * last["constant"]["macro_ap"]
    chosen, facts = directory.RunDirectory(head_run).read_config()
    # The preset's settings, but for those whose flags were given.
    assert chosen == config.Config(
        **{**presets.PRESETS["pretrained_head"], "image_size": 64, "epochs": 6},
        dataset="poster_tfds/synthetic",
        data_dir=chosen.data_dir,
    )
    fresh = registry.create_model(chosen, len(facts["genres"]), "float32")
    registry.load_pretrained_weights(fresh, chosen)
    for name, expected in weights_of(fresh).items():
        np.testing.assert_array_equal(weights_of(restored(head_run))[name], expected, name)


def restored(run_dir):
    return checkpoints.restore_model(run_dir)[0]


def weights_of(model):
    """Returns the weights of each layer of the backbone, joined."""
    return {
        layer.name: np.concatenate([w.ravel() for w in layer.get_weights()])
        for layer in model.get_layer("backbone").layers
        if layer.weights
    }


def test_fine_tuning_begins_where_the_head_ended_and_keeps_what_is_frozen(
    head_run, data_dir, tmp_path
):
    flags = ("--epochs=1", "--learning_rate=1e-5", "--head_epochs=0", f"--init_from={head_run}")
    train("--preset=pretrained", data_dir, tmp_path, *flags)
    assert records(tmp_path)[0]["macro_ap"] == pytest.approx(
        records(head_run)[-1]["macro_ap"], abs=0.02
    )
    before, after = weights_of(restored(head_run)), weights_of(restored(tmp_path))
    kept = {name for name in before if np.array_equal(before[name], after[name])}
    early = {f"block{i}_{kind}" for i in range(11) for kind in ("expand", "project")}
    depthwise = {f"block{i}_depthwise" for i in range(21)}
    assert kept - {"normalization"} == {"stem", *early, *depthwise} - {"block0_expand"}


def test_a_loss_that_is_not_finite_names_the_posters_of_the_heads_batch(data_dir, tmp_path):
    """Features are shuffled all together, whatever --shuffle_buffer says of posters."""
    result = train(
        "--preset=pretrained_head",
        data_dir,
        tmp_path,
        *("--pretrained_weights=none", "--precision=float32", "--seed=3", "--shuffle_buffer=50"),
        *("--learning_rate=1e38", "--learning_rate_schedule=constant", "--weight_decay=0"),
        check=False,
    )
    step, ids = re.search(r"at step (\d+)\. Its batch: (.*)\.\n", result.stderr).groups()
    split = splits.open_split("poster_tfds/synthetic", str(data_dir), "train")
    in_order = take(pipeline.eval_batches(pipeline.PipelineSpec(split, 8, 102)), 5)
    labels = np.concatenate([batch["genres"] for batch in in_order])
    tf.random.set_seed(3 + 1)  # As the trainer does.
    known = features.Features(np.zeros([len(labels), 1, 1], np.float32), labels)
    order = batching.Batching(len(labels), 64, seed=3, shuffle_buffer=len(labels))
    batch = take(features.train_batches(known, order), int(step))[-1]
    genres = {
        example["poster_id"].decode(): example["genres"]
        for example in split.read().as_numpy_iterator()
    }
    expected = [np.isin(np.arange(8), genres[poster_id]) for poster_id in ids.split(", ")]
    np.testing.assert_array_equal(batch["genres"], expected)


def learner(model):
    return learner_lib.Learner(model, average=None, optimizer=None, part="")


def test_a_run_of_another_model_or_size_is_not_begun_with(head_run):
    chosen, facts = directory.RunDirectory(head_run).read_config()
    for changes, said in (
        ({"model": "compact_cnn", "freeze": ""}, "that run is of efficientnet_lite2 with"),
        ({"head_units": 7}, "its layers are of other sizes"),
    ):
        changed = dataclasses.replace(chosen, **changes)
        model = registry.create_model(changed, len(facts["genres"]), "float32")
        with pytest.raises(config.UsageError, match=f"--init_from=.*{said}"):
            learner_lib.initialize(learner(model), changed, facts["genres"], str(head_run))
    model = registry.create_model(chosen, 2, "float32")
    with pytest.raises(config.UsageError, match="this one is of efficientnet_lite2 with"):
        learner_lib.initialize(learner(model), chosen, ["Noir", "Heist"], str(head_run))
