"""A small residual network, for posters without pretrained weights."""

import keras

from trainer import config as config_lib
from trainer.models import ends, layers


def compact_cnn(config: config_lib.Config, num_genres: int, precision: str) -> keras.Model:
    """A residual network of nine 3x3 convolutions with global average pooling.

    Blocks are those of https://arxiv.org/abs/1512.03385. At 25 genres it has 1,562,681
    parameters, whatever the image size.
    """

    def convolve(x, filters, kernel_size=3, strides=1, activation="relu"):
        return layers.ConvBatchNorm(
            filters,
            kernel_size,
            strides,
            activation,
            momentum=0.9,
            synchronized=config.batch_norm == "global",
            dtype=precision,
        )(x)

    pixels = ends.pixel_input(config)
    x = keras.layers.Rescaling(ends.RESCALE, dtype=precision)(pixels)
    x = convolve(x, 32, strides=2)
    for filters in (48, 96, 160, 256):
        shortcut = convolve(x, filters, kernel_size=1, strides=2, activation=None)
        x = convolve(x, filters, strides=2)
        x = convolve(x, filters, activation=None)
        x = keras.layers.Add(dtype=precision)([x, shortcut])
        x = keras.layers.ReLU(dtype=precision)(x)
    x = keras.layers.GlobalAveragePooling2D(dtype=precision)(x)
    x = layers.Dropout(config.dropout, dtype=precision)(x)
    logits = keras.layers.Dense(num_genres, dtype="float32", name="logits")(x)
    return keras.Model(pixels, logits, name="compact_cnn")
