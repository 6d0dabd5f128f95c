"""A training step does what Keras's own would do, however many are taken in a call."""

import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import conftest
from trainer import config, steps
from trainer.benchmark import peers
from trainer.models import layers, registry
from trainer.reports import scores as scores_lib


def make_batches(sizes, seed=0, image_size=46, num_genres=4):
    rng = np.random.default_rng(seed)
    return [
        {
            "image": rng.integers(0, 256, (n, image_size, image_size, 3)).astype(np.uint8),
            "genres": (rng.random((n, num_genres)) < 0.4).astype(np.float32),
        }
        for n in sizes
    ]


@pytest.fixture(params=[True, False], ids=["filters by products", "filters by oneDNN"])
def filter_gradient(request, monkeypatch):
    monkeypatch.setattr(layers.runtime, "lacks_fast_filter_gradient", lambda: request.param)


def without_dropout(model):
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    return model


def with_dtype(model, dtype):
    def clone(layer):
        return type(layer).from_config({**layer.get_config(), "dtype": dtype})

    clone = keras.models.clone_model(model, clone_function=clone)
    clone.set_weights(model.get_weights())
    return clone


def test_a_step_is_what_stock_keras_would_do(filter_gradient):
    """Loss, gradients and moving statistics against Keras's `train_on_batch`.

    Plain gradient descent at rate 1: a weight moves by its gradient. In float32 a few
    units and maxima change sides, in stock Keras too, so gradients are held against
    stock Keras in float64: ours must be about as near to them as its float32 is.
    """
    keras.utils.set_random_seed(1)
    (batch,) = make_batches([8], image_size=94)
    ours = without_dropout(registry.create_model(config.Config(image_size=94), 4, "float32"))
    stock = without_dropout(peers.with_stock_layers(ours))
    assert {type(layer).__module__.split(".")[0] for layer in stock.layers} == {"keras"}
    before = ours.get_weights()
    stock.set_weights(before)
    exact = with_dtype(stock, "float64")
    expected_loss = {}
    for model in (stock, exact):
        model.compile(
            keras.optimizers.SGD(1.0), loss=keras.losses.BinaryCrossentropy(from_logits=True)
        )
        expected_loss[model] = float(model.train_on_batch(batch["image"], batch["genres"]))

    optimizer = keras.optimizers.SGD(1.0)
    optimizer.build(ours.trainable_variables)
    step = steps.make_train_step(ours, optimizer, tf.distribute.get_strategy())
    outputs = step(iter(tf.data.Dataset.from_tensors(batch)))

    labels, logits = steps.collect([outputs])
    loss = scores_lib.compute_metrics(labels, logits)["loss"]
    assert loss == pytest.approx(expected_loss[exact], rel=2e-4)

    def errors(model):
        """Distance from float64's change of each variable, relative to its length."""
        return np.array(
            [
                np.linalg.norm(v.numpy() - e.numpy()) / np.linalg.norm(e.numpy() - old)
                for v, e, old in zip(model.weights, exact.weights, before, strict=True)
            ]
        )

    assert (errors(ours) < 0.05).all()
    assert np.median(errors(ours)) < 5 * np.median(errors(stock)) + 1e-4
    statistics = ["moving" in v.name for v in ours.weights]
    assert sum(statistics) == 12
    assert (errors(ours)[statistics] < 1e-3).all()


def train_on(batches, calls, **settings):
    """Trains a fresh model without dropout; returns labels, logits and weights."""
    keras.utils.set_random_seed(1)
    model = without_dropout(registry.create_model(config.Config(image_size=46), 4, "float32"))
    optimizer = keras.optimizers.SGD(0.01)
    optimizer.build(model.trainable_variables)
    step = steps.make_train_step(model, optimizer, tf.distribute.get_strategy(), **settings)
    spec = {
        name: tf.TensorSpec([None, *value.shape[1:]], value.dtype)
        for name, value in batches[0].items()
    }
    iterator = iter(tf.data.Dataset.from_generator(lambda: iter(batches), output_signature=spec))
    outputs = [step(iterator, count) for count in calls]
    return (*steps.collect(outputs), model.get_weights())


def test_several_steps_a_call_are_the_same_steps():
    batches = make_batches([8, 8, 8, 5])
    labels, logits, weights = train_on(batches, [1, 1, 1, 1])
    same_labels, same_logits, same_weights = train_on(batches, [3, 1])
    np.testing.assert_array_equal(labels, np.concatenate([b["genres"] for b in batches]))
    np.testing.assert_array_equal(same_labels, labels)
    np.testing.assert_allclose(same_logits, logits, atol=1e-5)
    for a, b in zip(weights, same_weights, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_xla_takes_the_same_step():
    batches = make_batches([8])
    _, logits, weights = train_on(batches, [1])
    _, same_logits, same_weights = train_on(
        batches, [1], computation=steps.Computation(jit_compile=True)
    )
    # XLA's arithmetic is coarser.
    np.testing.assert_allclose(same_logits, logits, atol=5e-3)
    for a, b in zip(weights, same_weights, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-3)


OVERFLOW_ON_ONE_REPLICA = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy as np, keras, tensorflow as tf
from trainer import config, runtime, steps
from trainer.models import optimizer as optimizer_lib
strategy = runtime.create_strategy("mirrored", logical_cpus=2)
with strategy.scope():
    inputs = keras.Input((2,))
    model = keras.Model({"image": inputs}, keras.layers.Dense(1)(inputs))
    model_on_image = lambda image, training: model({"image": image})
    model_on_image.trainable_variables = model.trainable_variables
    optimizer = optimizer_lib.create_optimizer(config.Config(), "mixed_float16", 1, model)
    optimizer.build(model.trainable_variables)
before = [v.numpy() for v in model.trainable_variables]
scale = float(optimizer.dynamic_scale.numpy())
images = np.ones((4, 2), np.float32)
images[3] = np.inf  # The second replica's half.
examples = {"image": images, "genres": np.zeros((4, 1), np.float32)}
batches = tf.data.Dataset.from_tensor_slices(examples).batch(4, drop_remainder=True)
step = steps.make_train_step(model_on_image, optimizer, strategy)
step(iter(strategy.experimental_distribute_dataset(batches)))
for old, variable in zip(before, model.trainable_variables):
    np.testing.assert_array_equal(variable.numpy(), old)
assert float(optimizer.dynamic_scale.numpy()) == scale / 2
print("skipped")
"""


def test_an_overflow_on_one_replica_skips_the_step_on_all():
    result = conftest.run(sys.executable, "-c", OVERFLOW_ON_ONE_REPLICA)
    assert result.stdout.strip() == "skipped"
