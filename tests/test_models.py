"""Models by name: the tutorial's layer for layer, each trainable, frozen by pattern."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer import config, presets
from trainer.models import layers, registry

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


@pytest.mark.parametrize("name", ["reference_cnn", "compact_cnn", "efficientnet_lite0"])
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
