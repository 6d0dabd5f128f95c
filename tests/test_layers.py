"""A convolution joined with its normalization is what Keras makes of the two."""

import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import conftest
from trainer import config
from trainer.models import layers, registry

SHAPE = (4, 9, 8, 6)


def stock(depthwise, strides):
    settings = {"padding": "same", "use_bias": False}
    if depthwise:
        convolution = keras.layers.DepthwiseConv2D(3, strides, **settings)
    else:
        convolution = keras.layers.Conv2D(5, 3, strides, **settings)
    normalization = keras.layers.BatchNormalization(epsilon=1e-3)
    return keras.Sequential([convolution, normalization, keras.layers.ReLU()])


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("depthwise", [True, False], ids=["depthwise", "full"])
def test_conv_batch_norm_is_kerass_two_layers(depthwise, strides):
    rng = np.random.default_rng(0)
    inputs = tf.constant(rng.normal(1, 2, SHAPE), tf.float32)
    ours = layers.ConvBatchNorm(None if depthwise else 5, 3, strides, "relu")
    theirs = stock(depthwise, strides)
    assert ours(inputs).shape == ours.compute_output_shape(SHAPE) == theirs(inputs).shape
    weights = [rng.normal(1, 0.3, w.shape) for w in theirs.get_weights()]
    ours.set_weights(weights)
    theirs.set_weights(weights)
    upstream = tf.constant(rng.normal(0, 1, theirs.compute_output_shape(SHAPE)), tf.float32)
    results = []
    for layer in (ours, theirs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs, training=True)
            loss = tf.reduce_sum(outputs * upstream)
        gradients = tape.gradient(loss, [inputs, *layer.trainable_variables])
        # The statistics that the step has left are used, folded into the filters.
        results.append([outputs, *gradients, *layer.get_weights(), layer(inputs, training=False)])
    for found, expected in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, atol=3e-4, rtol=3e-4)


def test_frozen_statistics_stay_and_are_used_in_training():
    inputs = tf.constant(np.random.default_rng(0).normal(5, 2, SHAPE), tf.float32)
    layer = layers.ConvBatchNorm(5, 3)
    layer(inputs)
    layer.trainable = False
    before = layer.get_weights()
    trained = layer(inputs, training=True)
    np.testing.assert_array_equal(trained, layer(inputs, training=False))
    for found, expected in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(found, expected)
    # Asked for statistics of their own, those of a batch with another mean differ.
    layer.trainable = True
    assert np.abs(layer(inputs, training=True) - trained).max() > 1


def test_half_precision_folds_in_full():
    """Small scales would be lost if they were rounded before they met the filters."""
    inputs = tf.ones(SHAPE)
    layer, half = (layers.ConvBatchNorm(5, 1, dtype=d) for d in ("float32", "mixed_bfloat16"))
    layer(inputs), half(inputs)
    layer.normalization.moving_mean.assign(layer(inputs)[0, 0, 0] * 0.999)
    layer.normalization.moving_variance.assign(tf.fill([5], 1e-4))
    half.set_weights(layer.get_weights())
    assert half(inputs).dtype == tf.bfloat16
    np.testing.assert_allclose(tf.cast(half(inputs), tf.float32), layer(inputs), atol=0.5)


LOCAL_STATISTICS = """
import keras, numpy as np, tensorflow as tf
from trainer import runtime
from trainer.models import layers

strategy = runtime.create_strategy("mirrored", logical_cpus=2)
parts = np.random.default_rng(0).normal(3, 2, (2, 4, 5, 6, 3)).astype(np.float32)
parts[1] += 5
with strategy.scope():
    layer = layers.FusedBatchNormalization(synchronized=False)
    layer.build((None, 5, 6, 3))

@tf.function
def normalize(weights):
    def of_replica():
        index = tf.distribute.get_replica_context().replica_id_in_sync_group
        with layers.statistics_weighted(tf.gather(weights, index)):
            return layer(tf.gather(parts, index), training=True)
    return strategy.experimental_local_results(strategy.run(of_replica))

for weights in ([1.0, 1.0], [1.0, 0.0]):
    before = [value.numpy() for value in (layer.moving_mean, layer.moving_variance)]
    recorded = []
    for part, found in zip(parts, normalize(tf.constant(weights)), strict=True):
        stock = keras.layers.BatchNormalization()
        stock.build((None, 5, 6, 3))
        stock.moving_mean.assign(before[0])
        stock.moving_variance.assign(before[1])
        np.testing.assert_allclose(found, stock(part, training=True), atol=1e-5)
        recorded.append([stock.moving_mean.numpy(), stock.moving_variance.numpy()])
    expected = np.average(recorded, axis=0, weights=weights)
    for moving, value in zip((layer.moving_mean, layer.moving_variance), expected, strict=True):
        for copy in strategy.experimental_local_results(moving.value):
            np.testing.assert_allclose(copy, value, rtol=1e-5)
"""


def test_replicas_that_are_not_synchronized_normalize_as_keras_does_each():
    """And all record the mean of their statistics, but of one without posters."""
    conftest.run(sys.executable, "-c", LOCAL_STATISTICS)


@pytest.mark.parametrize("name", registry.MODELS)
def test_the_setting_says_whether_replicas_share_statistics(name):
    for batch_norm in ("global", "local"):
        settings = config.Config(model=name, image_size=64, batch_norm=batch_norm)
        model = registry.create_model(settings, 3, "float32")
        normalizations = [
            layer
            for layer in model._flatten_layers()
            if isinstance(layer, layers.FusedBatchNormalization)
        ]
        assert normalizations
        assert {layer.synchronized for layer in normalizations} == {batch_norm == "global"}
