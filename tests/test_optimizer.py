"""Learning rates of their own for layers, against a plain NumPy AdamW."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer import config
from trainer.models import layer_groups, optimizer as optimizer_lib, registry

BLOCKS = ["head", "top", *(f"block{i}" for i in reversed(range(16))), "stem"]
LITE = {"model": "efficientnet_lite0", "image_size": 32, "head_units": 8}


@pytest.fixture(scope="module")
def lite():
    return registry.create_model(config.Config(**LITE), 3, "float32")


def depths_of(model):
    """Returns ids of Lite0's trained weights, and which block from the top each is in."""
    depths = {id(weight): 0 for weight in model.get_layer("head").trainable_variables}
    for layer in model.get_layer("backbone").layers:
        for weight in layer.trainable_variables:
            depths[id(weight)] = BLOCKS.index(layer.name.split("_")[0])
    return depths


def make_optimizer(model, precision="float32", **settings):
    optimizer = optimizer_lib.create_optimizer(config.Config(**settings), precision, 10, model)
    optimizer.build(model.trainable_variables)
    return optimizer


class NumpyAdam:
    """AdamW, of https://arxiv.org/abs/1711.05101, with Keras's defaults."""

    def __init__(self, value):
        self.value, self.mean, self.square, self.step = value.astype(np.float64), 0.0, 0.0, 0

    def update(self, gradient, rate, weight_decay):
        self.step += 1
        self.mean = 0.9 * self.mean + 0.1 * gradient
        self.square = 0.999 * self.square + 0.001 * gradient**2
        moved = self.mean / (1 - 0.9**self.step)
        # Keras's epsilon is "epsilon hat", which the second moment is not yet corrected for.
        correction = np.sqrt(1 - 0.999**self.step)
        scale = (np.sqrt(self.square) + 1e-7) / correction
        self.value = self.value * (1 - rate * weight_decay) - rate * moved / scale


def random_gradients(model, rng):
    return [rng.normal(size=v.shape).astype(np.float32) for v in model.trainable_variables]


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_each_block_has_its_share_of_the_rate_and_of_the_decay(lite, precision):
    settings = {"learning_rate": 0.01, "weight_decay": 0.5, "layer_decay": 0.8}
    optimizer = make_optimizer(lite, precision, **settings)
    depths, rng = depths_of(lite), np.random.default_rng(0)
    expected = [NumpyAdam(v.numpy()) for v in lite.trainable_variables]
    for _ in range(3):
        gradients = random_gradients(lite, rng)
        optimizer.apply([optimizer.scale_loss(tf.constant(g)) for g in gradients])
        for adam, gradient, v in zip(expected, gradients, lite.trainable_variables, strict=True):
            decay = 0.5 if v.name == "kernel" else 0.0
            adam.update(gradient, 0.01 * 0.8 ** depths[id(v)], decay)
    assert {depths[id(v)] for v in lite.trainable_variables} == set(range(19))
    for adam, v in zip(expected, lite.trainable_variables, strict=True):
        np.testing.assert_allclose(v.numpy(), adam.value, atol=2e-6, err_msg=v.path)


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_the_norm_of_all_gradients_together_is_clipped(precision):
    """As they are without the scale of float16; those under the norm are left alone."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    optimizer = make_optimizer(model, precision, clip_norm=2.0, weight_decay=0.1)
    rng = np.random.default_rng(0)
    expected = [NumpyAdam(v.numpy()) for v in model.trainable_variables]
    for size in (10.0, 0.01, 3.0):
        gradients = [size * gradient for gradient in random_gradients(model, rng)]
        norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients))
        optimizer.apply([optimizer.scale_loss(tf.constant(g)) for g in gradients])
        for adam, gradient, decay in zip(expected, gradients, (0.1, 0.0), strict=True):
            adam.update(gradient * min(1, 2.0 / norm), 1e-3, decay)
    for adam, v in zip(expected, model.trainable_variables, strict=True):
        np.testing.assert_allclose(v.numpy(), adam.value, atol=1e-6, err_msg=v.path)


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_blocks_begin_to_learn_one_after_the_other_from_the_top(lite, precision):
    """18 blocks in 36 steps: 3.6 epochs of 10."""
    optimizer = make_optimizer(lite, precision, unfreeze_epochs=3.6, weight_decay=0.1)
    depths = depths_of(lite)
    gradients = [optimizer.scale_loss(tf.ones(v.shape)) for v in lite.trainable_variables]
    for step in (0, 1, 2, 17, 18, 34, 35, 36):
        optimizer.iterations.assign(step)
        before = [v.numpy() for v in lite.trainable_variables]
        optimizer.apply(gradients)
        moved = {
            depths[id(v)]
            for v, old in zip(lite.trainable_variables, before, strict=True)
            if (v.numpy() != old).any()
        }
        assert moved == set(range(1 + step // 2))


def test_factors_of_1_are_kerass_adam_bit_for_bit():
    rng = np.random.default_rng(0)
    values, gradients = rng.normal(size=(2, 4, 5)).astype(np.float32)
    settings = {"learning_rate": 0.01, "weight_decay": 0.1}
    found = []
    for optimizer in (
        keras.optimizers.Adam(**settings),
        optimizer_lib.LayerwiseAdam([1.0], [0], **settings),
    ):
        variable = keras.Variable(values)
        optimizer.build([variable])
        for _ in range(3):
            optimizer.apply([tf.constant(gradients)])
        found.append([variable.numpy(), *(v.numpy() for v in optimizer.variables)])
    for kerass, ours in zip(*found, strict=True):
        np.testing.assert_array_equal(ours, kerass)


def test_checkpoints_are_adams(lite, tmp_path):
    """And a copy made of its settings goes on from them alike."""
    adam = make_optimizer(lite)
    ours = make_optimizer(lite, layer_decay=0.5, unfreeze_epochs=1.0, clip_norm=1.0)
    path = tf.train.Checkpoint(optimizer=adam).write(str(tmp_path / "adam"))
    tf.train.Checkpoint(optimizer=ours).read(path).assert_consumed()
    assert type(make_optimizer(lite, layer_decay=1.0)) is keras.optimizers.Adam
    copy = optimizer_lib.LayerwiseAdam.from_config(ours.get_config())
    assert copy.get_config() == ours.get_config()


def test_groups_of_kerass_networks_are_their_blocks():
    model = registry.create_model(
        config.Config(model="keras:EfficientNetV2B0", image_size=32), 3, "float32"
    )
    groups = layer_groups.from_the_top(model)
    repeats = enumerate([1, 2, 2, 3, 5, 8], start=1)
    blocks = [f"block{stage}{letter}" for stage, count in repeats for letter in "abcdefgh"[:count]]
    expected = ["stem_conv", *blocks, "top_conv"]
    assert len(groups) == 1 + len(expected)
    backbone = model.get_layer("backbone")
    for name, group in zip(reversed(expected), groups[1:], strict=True):
        first = next(layer for layer in backbone.layers if layer.name.startswith(name))
        assert group[0] is first.trainable_variables[0]


def test_without_blocks_each_convolution_is_a_group_with_its_normalization():
    model = registry.create_model(config.Config(image_size=46), 3, "float32")
    groups = layer_groups.from_the_top(model)
    assert [[weight.name for weight in group] for group in groups] == [
        ["kernel", "bias"],
        *[["kernel", "bias", "gamma", "beta"]] * 6,
    ]
    assert groups[0][0] is model.trainable_variables[-2]


def test_frozen_groups_do_not_count():
    chosen = config.Config(**LITE, freeze="block15_*,*_depthwise")
    model = registry.create_model(chosen, 3, "float32")
    groups = layer_groups.from_the_top(model)
    assert len(groups) == 18
    backbone = model.get_layer("backbone")
    assert groups[2][0] is backbone.get_layer("block14_expand").trainable_variables[0]
    assert sum(map(len, groups)) == len(model.trainable_variables)
