"""Backbones of KerasHub, from presets that the tests make: small, and of random weights."""

import shutil
import sys
import warnings

import keras
import numpy as np
import pytest

from tests import conftest
from trainer import config
from trainer.models import kerashub, registry
from trainer.run import checkpoints

SIZE = 48
SCALE, OFFSET = [0.017, 0.0175, 0.0174], [-2.1, -2.0, -1.8]


@pytest.fixture(scope="module")
def keras_hub():
    try:
        import keras_hub
    except ImportError:
        message = "keras-hub is not installed (pip install -e '.[kerashub]'): kerashub: NOT TESTED"
        warnings.warn(message, stacklevel=1)
        pytest.skip(message)
    return keras_hub


def resnet(models):
    return models.ResNetBackbone([64], [3], [64, 64], [1, 1], [1, 2], "basic_block")


def vit(models):
    return models.ViTBackbone((SIZE, SIZE, 3), 16, 2, 2, 8, 16)


NETWORKS = {
    "resnet": (resnet, lambda outputs: outputs.mean((1, 2))),
    "vit": (vit, lambda outputs: outputs[:, 0]),
}
CONVERTERS = {"resnet": "ResNet", "vit": "ViT"}


def save_preset(keras_hub, name, directory):
    """Saves a small network with weights that all differ from their first ones."""
    network = NETWORKS[name][0](keras_hub.models)
    random = np.random.default_rng(0)
    network.set_weights([w + 0.02 * random.standard_normal(w.shape) for w in network.get_weights()])
    network.save_to_preset(directory)
    converter = getattr(keras_hub.layers, f"{CONVERTERS[name]}ImageConverter")
    converter(image_size=(SIZE, SIZE), scale=SCALE, offset=OFFSET).save_to_preset(directory)


def kerashub_config(preset, **settings):
    return config.Config(model=f"kerashub:{preset}", **{"image_size": SIZE, **settings})


def pictures():
    return np.random.default_rng(1).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)


@pytest.mark.parametrize("name", NETWORKS)
def test_features_are_those_of_kerashub(keras_hub, name, tmp_path):
    """Of its own converter and network, pooled by NumPy as its classifiers and papers do."""
    save_preset(keras_hub, name, tmp_path / name)
    network = keras_hub.models.Backbone.from_preset(str(tmp_path / name))
    converter = keras_hub.layers.ImageConverter.from_preset(str(tmp_path / name))
    levels = converter(pictures())
    inputs = keras.tree.map_structure(lambda _: levels, network.input)
    expected = NETWORKS[name][1](np.asarray(network(inputs, training=False)))

    network.save_weights(tmp_path / "file.weights.h5")
    for source in ("imagenet", str(tmp_path / "file.weights.h5")):
        chosen = kerashub_config(tmp_path / name, pretrained_weights=source)
        model = registry.create_model(chosen, 5, "float32")
        backbone = model.get_layer("backbone")
        assert np.abs(backbone(pictures()) - expected).max() > 1e-2
        registry.load_pretrained_weights(model, chosen)
        np.testing.assert_allclose(backbone(pictures()), expected, rtol=1e-5, atol=1e-5)
    assert backbone.count_params() == network.count_params()


@pytest.mark.slow
def test_a_run_is_restored_where_the_preset_is_no_more(keras_hub, data_dir, tmp_path):
    preset, run_dir = tmp_path / "preset", tmp_path / "run"
    save_preset(keras_hub, "resnet", preset)
    settings = {"model": f"kerashub:{preset}", "pretrained_weights": "imagenet", "image_size": SIZE}
    conftest.train(data_dir, run_dir, **settings, head_epochs=1, freeze="conv*", epochs=1)
    given = kerashub_config(preset, pretrained_weights="imagenet")
    before = registry.create_model(given, 8, "float32")
    registry.load_pretrained_weights(before, given)
    shutil.rmtree(preset)
    kerashub.read_network.cache_clear()

    model, _ = checkpoints.restore_model(run_dir)
    old, new = (m.get_layer("backbone") for m in (before, model))
    for layer in filter(lambda layer: layer.weights, old.layers):
        pairs = zip(layer.get_weights(), new.get_layer(layer.name).get_weights(), strict=True)
        is_same = all(np.array_equal(a, b) for a, b in pairs)
        assert is_same == layer.name.startswith("conv"), layer.name


def test_weights_for_another_image_size_are_refused_by_name(keras_hub, tmp_path):
    save_preset(keras_hub, "vit", tmp_path / "vit")
    for size, expected in (
        (64, "--image_size=64. The preset's own size is 48."),
        (50, "--image_size=50: "),
    ):
        chosen = kerashub_config(tmp_path / "vit", image_size=size, pretrained_weights="imagenet")
        with pytest.raises(config.UsageError, match=expected):
            registry.load_pretrained_weights(registry.create_model(chosen, 5, "float32"), chosen)


def test_a_preset_that_cannot_be_had_is_to_be_fetched_elsewhere(keras_hub, tmp_path):
    vit(keras_hub.models).save_to_preset(tmp_path / "unscaled")
    for preset in (tmp_path / "unscaled", tmp_path / "nowhere"):
        with pytest.raises(config.UsageError, match=r"cannot be had(.|\n)*save_to_preset"):
            registry.create_model(kerashub_config(preset), 5, "float32")


def test_without_kerashub_the_command_to_install_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(config.UsageError, match=r"pip install -e '\.\[kerashub\]'"):
        registry.create_model(kerashub_config("resnet_18_imagenet"), 5, "float32")
