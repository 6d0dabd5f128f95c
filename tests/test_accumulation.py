"""A batch that goes through the model in parts is learned from as if it went through whole."""

import json
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import conftest
from tests.test_resume import metrics, state, steps as saved_steps
from trainer import config, steps, train
from trainer.models import ends, optimizer as optimizer_lib, registry

SETTINGS = {
    "learning_rate": 0.01,
    "learning_rate_schedule": "cosine",
    "weight_decay": 0.1,
    "layer_decay": 0.5,
    "unfreeze_epochs": 0.5,
    "clip_norm": 0.1,
}
SIZES = (16, 16, 13, 3)  # The last is smaller than the number of parts.


def smooth_cnn(config, num_genres, precision):
    """Without kinks, batch normalization and dropout: no difference but rounding is allowed."""
    pixels = ends.pixel_input(config)
    x = keras.layers.Rescaling(ends.RESCALE, dtype=precision)(pixels)
    for filters in (8, 16):
        x = keras.layers.Conv2D(filters, 3, 2, activation="tanh", dtype=precision)(x)
    x = keras.layers.GlobalAveragePooling2D(dtype=precision)(x)
    logits = keras.layers.Dense(num_genres, dtype="float32")(x)
    return keras.Model(pixels, logits, name="smooth_cnn")


def make_batches(sizes=SIZES):
    rng = np.random.default_rng(0)
    return [
        {
            "image": rng.integers(0, 256, (size, 32, 32, 3)).astype(np.uint8),
            "genres": (rng.random((size, 3)) < 0.4).astype(np.float32),
        }
        for size in sizes
    ]


def train_on(batches, strategy, computation, precision="float32", calls=(1, 2, 1)):
    """Returns the optimizer, and labels, logits, weights and their average, as lists."""
    keras.utils.set_random_seed(1)
    chosen = config.Config(image_size=32, **SETTINGS)
    with strategy.scope():
        model, average = (smooth_cnn(chosen, 3, precision) for _ in range(2))
        optimizer = optimizer_lib.create_optimizer(chosen, precision, 2, model)
        optimizer.build(model.trainable_variables)
    registry.copy_weights(model, average)
    step = steps.make_train_step(
        model,
        optimizer,
        strategy,
        average=optimizer_lib.WeightAverage(average, model, 0.5),
        computation=computation,
    )
    spec = {
        name: tf.TensorSpec([None, *value.shape[1:]], value.dtype)
        for name, value in batches[0].items()
    }
    replicas = strategy.num_replicas_in_sync

    def parts():
        for batch in batches:
            for i in range(replicas):  # As `batching.Share`: the first replicas have theirs first.
                share = SIZES[0] // replicas
                yield {name: value[i * share : (i + 1) * share] for name, value in batch.items()}

    distributed = strategy.distribute_datasets_from_function(
        lambda context: tf.data.Dataset.from_generator(parts, output_signature=spec)
    )
    iterator = iter(distributed)
    outputs = [step(iterator, count) for count in calls]
    finite = np.concatenate([output["finite"] for output in outputs])
    assert finite.tolist() == [1.0] * (sum(calls) * replicas)
    assert int(optimizer.iterations.numpy()) == sum(calls)
    labels, logits = steps.collect(outputs)
    order = np.lexsort(logits.T)  # Replicas give theirs in turns.
    found = [labels[order], logits[order], *model.get_weights(), *average.get_weights()]
    return [value.tolist() for value in found]


def assert_close(found, expected, atol=1e-6):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.array(one), np.array(other), rtol=0, atol=atol)


ONE_DEVICE = tf.distribute.get_strategy()


@pytest.fixture(scope="module")
def whole():
    return train_on(make_batches(), ONE_DEVICE, steps.Computation())


@pytest.mark.parametrize("num_parts", [4, 5])
def test_parts_on_one_device_are_the_batch(whole, num_parts):
    computation = steps.Computation(accumulate_steps=num_parts)
    assert_close(train_on(make_batches(), ONE_DEVICE, computation), whole)


def test_xla_compiles_what_is_done_with_a_part(whole):
    computation = steps.Computation(jit_compile=True, accumulate_steps=4)
    assert_close(train_on(make_batches(), ONE_DEVICE, computation), whole, atol=1e-4)


ON_TWO_REPLICAS = """
import json, os
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
from trainer import runtime, steps
strategy = runtime.create_strategy("mirrored", logical_cpus=2)
from tests import test_accumulation as test
computations = [steps.Computation(accumulate_steps=number) for number in (1, 4)]
print(json.dumps([test.train_on(test.make_batches(), strategy, c) for c in computations]))
"""


def test_parts_on_two_replicas_are_the_batch_on_one_device(whole):
    """Clipped by the norm of the gradients' sum; the second replica has 5 and 0 of the last two."""
    printed = conftest.run(sys.executable, "-c", ON_TWO_REPLICAS).stdout
    in_one_part, in_four = json.loads(printed)
    assert_close(in_one_part, whole)
    assert_close(in_four, whole)


def test_a_part_that_overflows_in_float16_skips_the_step_and_leaves_nothing_behind():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Dense(3)(inputs))
    chosen = config.Config(learning_rate=0.1)
    optimizer = optimizer_lib.create_optimizer(chosen, "mixed_float16", 2, model)
    optimizer.build(model.trainable_variables)
    computation = steps.Computation(accumulate_steps=4)
    step = steps.make_train_step(model, optimizer, ONE_DEVICE, computation=computation)
    images = np.ones([2, 8, 2], np.float32)
    images[0, 5, 1] = np.inf  # In the third part of the first batch.
    batches = {"image": images, "genres": np.zeros([2, 8, 3], np.float32)}
    iterator = iter(tf.data.Dataset.from_tensor_slices(batches))
    before, scale = model.get_weights(), float(optimizer.dynamic_scale)
    step(iterator)
    for value, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, old)
    assert float(optimizer.dynamic_scale) == scale / 2
    assert step(iterator)["finite"].numpy().tolist() == [1.0]
    for value, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_allclose(value, old - 0.1, atol=1e-4)  # Adam's first step.


def test_a_run_in_parts_that_is_resumed_is_the_run_of_the_large_batch(
    data_dir, tmp_path, monkeypatch
):
    """510 posters in batches of 64, the last of 62; stopped within the second epoch."""
    monkeypatch.setitem(registry.MODELS, "smooth_cnn", smooth_cnn)
    common = {
        **SETTINGS,
        "dataset": "poster_tfds/synthetic",
        "data_dir": str(data_dir),
        "model": "smooth_cnn",
        "image_size": 32,
        "precision": "float32",
        "weight_average": 0.9,
        "epochs": 2,
        "test_split": "",
    }
    large = config.Config(**common, batch_size=64)
    parts = config.Config(**common, batch_size=16, accumulate_steps=4)
    train.train_and_evaluate(large, tmp_path / "large", report=False)
    stopped = config.Config(**{**parts.to_json(), "max_steps": 11})
    for settings in (stopped, parts):
        train.train_and_evaluate(settings, tmp_path / "parts", report=False)
        assert saved_steps(tmp_path / "parts")[-1] == (settings.max_steps or 16)
    expected, found = state(tmp_path / "large"), state(tmp_path / "parts")
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        atol = 1e-6 if value.dtype == np.float32 else 0
        np.testing.assert_allclose(found[name], value, rtol=0, atol=atol, err_msg=name)
    last = [records[-1] for records in map(metrics, (tmp_path / "large", tmp_path / "parts"))]
    assert last[0]["loss"] == pytest.approx(last[1]["loss"], abs=1e-6)
    with pytest.raises(config.UsageError, match="--accumulate_steps: 4 then, 2 now"):
        other = config.Config(**{**parts.to_json(), "accumulate_steps": 2})
        train.train_and_evaluate(other, tmp_path / "parts", override=True)
