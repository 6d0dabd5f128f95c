"""The reference CNN is the tutorial's, and its fused layer is Keras's."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer import config, presets
from trainer.models import layers, optimizer as optimizer_lib, registry

# Output shape without the batch axis, and parameters, of the tutorial's printed summary.
# Its last layer's sigmoid stands outside the model here.
TUTORIAL = [
    ("Conv2D", (348, 348, 16), 448),
    ("BatchNormalization", (348, 348, 16), 64),
    ("MaxPooling2D", (174, 174, 16), 0),
    ("Dropout", (174, 174, 16), 0),
    ("Conv2D", (172, 172, 32), 4640),
    ("BatchNormalization", (172, 172, 32), 128),
    ("MaxPooling2D", (86, 86, 32), 0),
    ("Dropout", (86, 86, 32), 0),
    ("Conv2D", (84, 84, 64), 18496),
    ("BatchNormalization", (84, 84, 64), 256),
    ("MaxPooling2D", (42, 42, 64), 0),
    ("Dropout", (42, 42, 64), 0),
    ("Conv2D", (40, 40, 128), 73856),
    ("BatchNormalization", (40, 40, 128), 512),
    ("MaxPooling2D", (20, 20, 128), 0),
    ("Dropout", (20, 20, 128), 0),
    ("Flatten", (51200,), 0),
    ("Dense", (128,), 6553728),
    ("BatchNormalization", (128,), 512),
    ("Dropout", (128,), 0),
    ("Dense", (128,), 16512),
    ("BatchNormalization", (128,), 512),
    ("Dropout", (128,), 0),
    ("Dense", (25,), 3225),
]


def test_the_reference_cnn_is_the_tutorials_layer_for_layer():
    model = registry.create_model(config.Config(image_size=350), 25, "float32")
    rescaling, *rest = model.layers
    assert isinstance(rescaling, keras.layers.Rescaling)
    assert rescaling.scale == 1 / 255
    summary = [
        (type(layer).__name__.removeprefix("Fused"), layer.output.shape[1:], layer.count_params())
        for layer in rest
    ]
    assert summary == TUTORIAL
    rates = [layer.rate for layer in rest if isinstance(layer, keras.layers.Dropout)]
    assert rates == [0.3, 0.3, 0.4, 0.5, 0.5, 0.5]
    assert model.count_params() == 6_672_889
    assert sum(np.prod(v.shape) for v in model.trainable_variables) == 6_671_897


def test_activations_and_logits():
    model = registry.create_model(config.Config(image_size=64), 5, "mixed_bfloat16")
    weighted = [
        la for la in model.layers if isinstance(la, keras.layers.Conv2D | keras.layers.Dense)
    ]
    assert [layer.activation.__name__ for layer in weighted] == ["relu"] * 6 + ["linear"]
    logits = model(np.zeros((2, 64, 64, 3), np.uint8))
    assert logits.dtype == tf.float32
    assert {layer.compute_dtype for layer in model.layers[1:-1]} == {"bfloat16"}


def test_an_image_too_small_for_four_poolings_is_refused():
    with pytest.raises(config.UsageError, match="--image_size=45: reference_cnn needs at least 46"):
        registry.create_model(config.Config(image_size=45), 5, "float32")
    assert registry.create_model(config.Config(image_size=46), 5, "float32").count_params()


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


@pytest.mark.parametrize("kernel_size", [(3, 3), (2, 4), (1, 1)])
def test_filters_gradient_by_matrix_products_is_the_sum_over_all_positions(
    kernel_size, monkeypatch
):
    monkeypatch.setattr(layers.runtime, "lacks_fast_filter_gradient", lambda: True)
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(3, 9, 11, 16)).astype(np.float32)
    layer = layers.Conv2D(5, kernel_size)
    rows, columns = kernel_size
    with tf.GradientTape() as tape:
        watched = tf.constant(inputs)
        tape.watch(watched)
        outputs = layer(watched)
        loss = tf.reduce_sum(outputs * tf.sin(outputs))
    by_inputs, by_kernel, by_bias = tape.gradient(
        loss, [watched, layer.kernel.value, layer.bias.value]
    )

    # From the definition, in float64.
    kernel = layer.kernel.numpy().astype(np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(inputs, kernel_size, axis=(1, 2))
    expected = np.einsum("nyxcij,ijcd->nyxd", windows, kernel)
    upstream = np.sin(expected) + expected * np.cos(expected)
    expected_inputs = np.zeros(inputs.shape)
    height, width = expected.shape[1:3]
    for i in range(rows):
        for j in range(columns):
            expected_inputs[:, i : i + height, j : j + width] += upstream @ kernel[i, j].T
    tolerance = {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(outputs, expected, **tolerance)
    np.testing.assert_allclose(by_inputs, expected_inputs, **tolerance)
    np.testing.assert_allclose(
        by_kernel, np.einsum("nyxcij,nyxd->ijcd", windows, upstream), **tolerance
    )
    np.testing.assert_allclose(by_bias, upstream.sum(axis=(0, 1, 2)), **tolerance)


@pytest.mark.parametrize(
    "settings", [{"padding": "same"}, {"strides": 2}, {"dilation_rate": 2}, {"groups": 2}], ids=str
)
def test_other_convolutions_are_kerass(settings, monkeypatch):
    monkeypatch.setattr(layers.runtime, "lacks_fast_filter_gradient", lambda: True)
    inputs = tf.random.stateless_normal((2, 8, 8, 16), (0, 0))
    ours, kerass = layers.Conv2D(4, 3, **settings), keras.layers.Conv2D(4, 3, **settings)
    ours.build(inputs.shape)
    kerass.build(inputs.shape)
    kerass.set_weights(ours.get_weights())
    np.testing.assert_array_equal(ours(inputs), kerass(inputs))


@pytest.mark.parametrize("rate", [0.3, 0.5, 0.999])
def test_dropout_drops_its_share_and_keeps_the_mean(rate):
    layer = layers.Dropout(rate, seed=1)
    count = 3 * 101 * 1001  # Odd: one of the drawn pairs of values is left over.
    outputs = layer(tf.ones((3, 101, 1001)), training=True).numpy()
    kept = outputs != 0
    error = np.sqrt(rate * (1 - rate) / count)
    assert kept.mean() == pytest.approx(1 - rate, abs=4 * error)
    np.testing.assert_allclose(outputs[kept], 1 / (1 - rate), rtol=2e-2 if rate > 0.9 else 1e-4)
    # Neighbours share 32 random bits, but nothing else.
    pairs = np.corrcoef(kept.ravel()[:-1:2], kept.ravel()[1::2])
    assert abs(pairs[0, 1]) < 4 / np.sqrt(count / 2)
    again = layer(tf.ones((3, 101, 1001)), training=True).numpy()
    assert np.mean((again != 0) == kept) == pytest.approx(
        rate**2 + (1 - rate) ** 2, abs=6 / np.sqrt(count)
    )
    same = layers.Dropout(rate, seed=1)(tf.ones((3, 101, 1001)), training=True)
    np.testing.assert_array_equal(same, outputs)


def test_dropout_passes_its_mask_to_the_gradient_and_rests_when_not_training():
    layer = layers.Dropout(0.4)
    inputs = tf.ones((50, 50))
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs, training=True)
    np.testing.assert_array_equal(tape.gradient(outputs, inputs), outputs)
    assert layer(inputs, training=False) is inputs
    assert layers.Dropout(0.0)(inputs, training=True) is inputs
    half = layers.Dropout(0.4, dtype="mixed_bfloat16")(tf.ones((9, 9), tf.bfloat16), training=True)
    assert half.dtype == tf.bfloat16


def test_fused_batch_normalization_keeps_16_bit_activations():
    layer = layers.FusedBatchNormalization(dtype="mixed_bfloat16")
    outputs = layer(tf.ones((4, 3, 3, 2), tf.bfloat16), training=True)
    assert outputs.dtype == tf.bfloat16
    assert {v.dtype for v in layer.weights} == {"float32"}


@pytest.mark.parametrize("name", presets.PRESETS)
def test_each_preset_is_a_model_that_can_be_trained(name):
    chosen = config.Config(**presets.PRESETS[name])
    model = registry.create_model(dataclasses.replace(chosen, image_size=64), 25, "float32")
    assert model.output_shape == (None, 25)
    assert model.name == chosen.model
    assert model.trainable_variables


def test_the_compact_cnn_has_under_two_million_parameters():
    model = registry.create_model(config.Config(model="compact_cnn", image_size=128), 25, "float32")
    assert model.count_params() == 1_562_681


def test_patterns_freeze_layers_by_name():
    def backbone(freeze):
        chosen = config.Config(model="efficientnet_lite0", image_size=32, freeze=freeze)
        return registry.create_model(chosen, 5, "float32").get_layer("backbone")

    layers_of = backbone("stem, block[0-2]_*,*_depthwise").layers
    frozen = {layer.name for layer in layers_of if layer.weights and not layer.trainable}
    early = {f"block{i}_{kind}" for i in range(3) for kind in ("expand", "project")}
    depthwise = {f"block{i}_depthwise" for i in range(16)}
    assert frozen == {"stem", *early, *depthwise} - {"block0_expand"}
    assert not backbone("backbone").trainable_variables
    with pytest.raises(config.UsageError, match="--freeze=blok1: no layer is called 'blok1'"):
        backbone("blok1")
    with pytest.raises(config.UsageError, match="no weight is left to train"):
        registry.create_model(config.Config(image_size=64, freeze="*"), 5, "float32")


def test_pretrained_backbones_normalize_by_their_own_statistics():
    """With pretrained weights a step leaves the moving statistics as they were."""
    posters = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    for source, changed in (("none", True), ("weights.pth", False)):
        chosen = config.Config(model="efficientnet_lite0", image_size=32, pretrained_weights=source)
        model = registry.create_model(chosen, 5, "float32")
        before = [w.numpy() for w in model.non_trainable_variables if "moving" in w.path]
        model(posters, training=True)
        after = [w.numpy() for w in model.non_trainable_variables if "moving" in w.path]
        same = [np.array_equal(*pair) for pair in zip(before, after, strict=True)]
        assert all(same) is not changed


def test_the_average_of_the_weights_is_numpys_and_has_the_statistics_too():
    chosen = config.Config(model="compact_cnn", image_size=32)
    average, model = (registry.create_model(chosen, 3, "float32") for _ in range(2))
    registry.copy_weights(model, average)
    expected = model.get_weights()
    running = optimizer_lib.WeightAverage(average, model, momentum=0.3)
    rng = np.random.default_rng(0)
    for step in range(1, 8):
        model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
        running.update(tf.constant(step))
        momentum = min(0.3, (1 + step) / (10 + step))  # 2/11, 3/12, and from then on 0.3.
        expected = [
            momentum * mean + (1 - momentum) * weight
            for mean, weight in zip(expected, model.get_weights(), strict=True)
        ]
    assert any("moving_variance" in weight.path for weight in average.weights)
    for found, value in zip(average.get_weights(), expected, strict=True):
        np.testing.assert_allclose(found, value, atol=1e-5)


def test_frozen_layers_are_left_out_of_the_average_and_stand_in_it_as_they_are():
    chosen = config.Config(model="efficientnet_lite0", image_size=32, freeze="stem,block0_*")
    average, model = (registry.create_model(chosen, 3, "float32") for _ in range(2))
    names = ("stem", "block0_depthwise", "block0_project")
    layers_frozen = [model.get_layer("backbone").get_layer(name) for name in names]
    frozen = {id(weight) for layer in layers_frozen for weight in layer.weights}
    assert len(frozen) == 3 * 5  # Filters, scale and offset, mean and variance.
    running = optimizer_lib.WeightAverage(average, model, momentum=0.5)
    begun, current = average.get_weights(), model.get_weights()
    model.set_weights([weight + 1 for weight in current])
    running.update(tf.constant(100))
    for mean, before, weight, old in zip(
        average.weights, begun, model.weights, current, strict=True
    ):
        expected = old if id(weight) in frozen else (before + old + 1) / 2
        np.testing.assert_allclose(mean.numpy(), expected, atol=1e-6, err_msg=weight.path)


def test_whole_numbers_stand_in_the_average_as_they_are():
    average, model = (keras.Sequential([keras.Input((1,)), Positions()]) for _ in range(2))
    model.set_weights([np.array([2, 7])])
    optimizer_lib.WeightAverage(average, model, momentum=0.5).update(tf.constant(100))
    np.testing.assert_array_equal(average.get_weights(), [[2, 7]])


class Positions(keras.layers.Layer):
    """Has integers for weights, as the embeddings of CLIP and SigLIP in KerasHub."""

    def build(self, input_shape):
        self.positions = self.add_weight(shape=(2,), dtype="int64", trainable=False)

    def call(self, inputs):
        return inputs + keras.ops.cast(self.positions, inputs.dtype)
