"""Our layers are what Keras makes of the same, on one device and on two replicas."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer import runtime
from trainer.models import layers

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


@pytest.mark.parametrize("shape", [(8, 9, 7, 5), (16, 5)], ids=["images", "vectors"])
@pytest.mark.parametrize("training", [True, False])
def test_fused_batch_normalization_equals_kerass(shape, training):
    rng = np.random.default_rng(0)
    inputs = tf.constant(rng.normal(3, 2, shape), tf.float32)
    weights = [rng.uniform(0.5, 2, shape[-1:]) for _ in range(4)]
    results = []
    for layer_class in (keras.layers.BatchNormalization, layers.FusedBatchNormalization):
        layer = layer_class()
        layer.build(shape)
        layer.set_weights(weights)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs, training=training)
            loss = tf.reduce_sum(outputs * tf.sin(outputs))
        gradients = tape.gradient(loss, [inputs, *(v.value for v in layer.trainable_variables)])
        results.append(
            {
                "outputs": outputs.numpy(),
                "gradients": [gradient.numpy() for gradient in gradients],
                "weights": {v.name: v.numpy() for v in layer.weights},
            }
        )
    tf.nest.map_structure(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *results
    )
    # The moving statistics hold to more digits: their error would add up over steps.
    for name in ("moving_mean", "moving_variance"):
        keras_value, ours = (result["weights"][name] for result in results)
        np.testing.assert_allclose(ours, keras_value, rtol=2e-6)


def test_fused_batch_normalization_keeps_16_bit_activations():
    layer = layers.FusedBatchNormalization(dtype="mixed_bfloat16")
    outputs = layer(tf.ones((4, 3, 3, 2), tf.bfloat16), training=True)
    assert outputs.dtype == tf.bfloat16
    assert {v.dtype for v in layer.weights} == {"float32"}


@pytest.fixture(scope="module")
def strategy():
    return runtime.create_strategy("mirrored")


def on_replicas(strategy, layer, parts):
    """Calls a layer in training, each replica on its part; returns outputs and input gradients."""

    @tf.function
    def run():
        def of_replica():
            index = tf.distribute.get_replica_context().replica_id_in_sync_group
            part = tf.gather(parts, index)
            with tf.GradientTape() as tape:
                tape.watch(part)
                outputs = layer(part, training=True)
                loss = tf.reduce_sum(outputs * tf.sin(outputs))
            return outputs, tape.gradient(loss, part)

        return [strategy.experimental_local_results(x) for x in strategy.run(of_replica)]

    return [np.stack(results) for results in run()]


@pytest.mark.parametrize("shape", [(2, 4, 5, 6, 3), (2, 8, 3)], ids=["images", "vectors"])
@pytest.mark.parametrize("synchronized", [True, False])
def test_replicas_normalize_together_as_one_device_or_each_as_keras(strategy, shape, synchronized):
    """Not synchronized, they record the mean of their statistics."""
    parts = np.random.default_rng(0).normal(3, 2, shape).astype(np.float32)
    parts[1] += 5
    with strategy.scope():
        layer = layers.FusedBatchNormalization(synchronized=synchronized)
        layer.build(shape[1:])
    outputs, gradients = on_replicas(strategy, layer, parts)
    batches = parts.reshape(1, -1, *shape[2:]) if synchronized else parts
    found, recorded = [], []
    for batch in batches:
        stock = keras.layers.BatchNormalization()
        stock.build(batch.shape)
        batch = tf.constant(batch)
        with tf.GradientTape() as tape:
            tape.watch(batch)
            expected = stock(batch, training=True)
            loss = tf.reduce_sum(expected * tf.sin(expected))
        found.append((expected, tape.gradient(loss, batch)))
        recorded.append([stock.moving_mean.numpy(), stock.moving_variance.numpy()])
    for ours, theirs in zip((outputs, gradients), zip(*found, strict=True), strict=True):
        np.testing.assert_allclose(ours, np.concatenate(theirs).reshape(shape), atol=2e-4)
    expected = np.mean(recorded, axis=0)
    for moving, value in zip((layer.moving_mean, layer.moving_variance), expected, strict=True):
        for copy in strategy.experimental_local_results(moving.value):
            np.testing.assert_allclose(copy, value, rtol=1e-5)


def test_each_replica_drops_another_share_which_a_checkpoint_goes_on_with(strategy, tmp_path):
    with strategy.scope():
        layer = layers.Dropout(0.3)
        layer.build((1000,))
    checkpoint = tf.train.Checkpoint(states=[v.value for v in layer.variables])
    parts = np.ones((2, 300, 100), np.float32)
    path = checkpoint.write(str(tmp_path / "state"))
    first, gradients = on_replicas(strategy, layer, parts)
    second, _ = on_replicas(strategy, layer, parts)
    kept = [first[0], first[1], second[0], second[1]]
    for i, mask in enumerate(kept):
        assert np.mean(mask > 0) == pytest.approx(0.7, abs=0.012)
        np.testing.assert_allclose(mask[mask > 0], 1 / 0.7, rtol=1e-5)
        for other in kept[:i]:
            assert np.mean((mask > 0) == (other > 0)) == pytest.approx(0.58, abs=0.015)
    np.testing.assert_array_equal(gradients != 0, first > 0)
    checkpoint.read(path)
    np.testing.assert_array_equal(on_replicas(strategy, layer, parts)[0], first)


def test_dropout_rests_when_not_training_and_keeps_16_bits():
    inputs = tf.ones((9, 9), tf.bfloat16)
    layer = layers.Dropout(0.4, dtype="mixed_bfloat16")
    assert layer(inputs, training=True).dtype == tf.bfloat16
    np.testing.assert_array_equal(layer(inputs, training=False), inputs)
    np.testing.assert_array_equal(layers.Dropout(0.0)(inputs, training=True), inputs)
