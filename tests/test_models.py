"""The reference CNN is the tutorial's, and its fused layer is Keras's."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer import config, layers, models

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
    model = models.create_model("reference_cnn", 350, 25, "float32")
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
    model = models.create_model("reference_cnn", 64, 5, "mixed_bfloat16")
    weighted = [
        la for la in model.layers if isinstance(la, keras.layers.Conv2D | keras.layers.Dense)
    ]
    assert [layer.activation.__name__ for layer in weighted] == ["relu"] * 6 + ["linear"]
    logits = model(np.zeros((2, 64, 64, 3), np.uint8))
    assert logits.dtype == tf.float32
    assert {layer.compute_dtype for layer in model.layers[1:-1]} == {"bfloat16"}


def test_an_image_too_small_for_four_poolings_is_refused():
    with pytest.raises(config.UsageError, match="--image_size=45: reference_cnn needs at least 46"):
        models.create_model("reference_cnn", 45, 5, "float32")
    assert models.create_model("reference_cnn", 46, 5, "float32").count_params()


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
