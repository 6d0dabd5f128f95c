"""A command of the project, with the tests' own small networks among its models.

    python -m tests.with_tiny_model trainer --model=tiny_cnn ...

`register` adds the networks in the process that runs the tests. With TESTS_WITHOUT_CHANCE the
optimizer is plain gradient descent: Adam's first steps go by the signs of gradients, so that it
would show neither a gradient that is too large nor, fairly, what rounding does.
"""

import os
import runpy
import sys

import keras

from trainer.models import ends, layers, optimizer, registry


def tiny_cnn(config, num_genres, precision):
    """Each kind of state that a run keeps: weights, moving statistics, dropout's random numbers."""
    pixels = ends.pixel_input(config)
    x = keras.layers.Rescaling(ends.RESCALE, dtype=precision)(pixels)
    x = layers.ConvBatchNorm(16, 3, 2, "relu", momentum=0.9, dtype=precision)(x)
    x = keras.layers.GlobalAveragePooling2D(dtype=precision)(x)
    x = keras.layers.Dropout(config.dropout, dtype=precision)(x)
    logits = keras.layers.Dense(num_genres, dtype="float32", name="logits")(x)
    return keras.Model(pixels, logits, name="tiny_cnn")


def tiny_backbone(config, num_genres, precision):
    """A network of a backbone and a head, as the pretrained ones are."""
    pixels = ends.pixel_input(config)
    x = keras.layers.Rescaling(ends.RESCALE, dtype=precision)(pixels)
    x = layers.ConvBatchNorm(8, 3, 2, "relu", dtype=precision, name="stem")(x)
    x = layers.ConvBatchNorm(16, 3, 2, "relu", dtype=precision, name="block1")(x)
    features = keras.layers.GlobalAveragePooling2D(dtype=precision)(x)
    backbone = keras.Model(pixels, features, name="backbone")
    return ends.with_head(backbone, config, num_genres, precision)


def smooth_cnn(config, num_genres, precision):
    """No kinks and no dropout: rounding errors do not grow, and nothing else may differ."""
    pixels = ends.pixel_input(config)
    x = keras.layers.Rescaling(ends.RESCALE, dtype=precision)(pixels)
    x = layers.ConvBatchNorm(8, 3, 2, "softplus", momentum=0.9, dtype=precision)(x)
    x = keras.layers.Conv2D(16, 3, 2, activation="tanh", dtype=precision)(x)
    x = keras.layers.GlobalAveragePooling2D(dtype=precision)(x)
    logits = keras.layers.Dense(num_genres, dtype="float32", name="logits")(x)
    return keras.Model(pixels, logits, name="smooth_cnn")


def register():
    """Adds the networks to the models that `--model` knows."""
    for network in (tiny_cnn, tiny_backbone, smooth_cnn):
        registry.MODELS[network.__name__] = network


def gradient_descent(config, *_):
    """Takes the place of `optimizer.create_optimizer`."""
    return keras.optimizers.SGD(config.learning_rate)


if __name__ == "__main__":
    register()
    if "TESTS_WITHOUT_CHANCE" in os.environ:
        optimizer.create_optimizer = gradient_descent
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
