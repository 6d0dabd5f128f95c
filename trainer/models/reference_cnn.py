"""The tutorial's CNN, layer for layer."""

import keras

from trainer import config as config_lib
from trainer.models import ends, layers

_SMALLEST = 46  # Pixels; the four convolutions and poolings leave one of them.


def reference_cnn(config: config_lib.Config, num_genres: int, precision: str) -> keras.Model:
    """The tutorial's sequential CNN: four convolutions, three dense layers.

    At 350 pixels and 25 genres it has 6,672,889 parameters.
    """
    if config.image_size < _SMALLEST:
        raise config_lib.UsageError(
            f"--image_size={config.image_size}: reference_cnn needs at least {_SMALLEST} pixels."
        )
    synchronized = config.batch_norm == "global"
    stack = [ends.pixel_input(config)]
    stack.append(keras.layers.Rescaling(ends.RESCALE, dtype=precision))
    for filters, dropout in ((16, 0.3), (32, 0.3), (64, 0.4), (128, 0.5)):
        stack += [
            keras.layers.Conv2D(filters, 3, activation="relu", dtype=precision),
            layers.FusedBatchNormalization(synchronized=synchronized, dtype=precision),
            keras.layers.MaxPooling2D(2, dtype=precision),
            layers.Dropout(dropout, dtype=precision),
        ]
    stack.append(keras.layers.Flatten(dtype=precision))
    for _ in range(2):
        stack += [
            keras.layers.Dense(128, activation="relu", dtype=precision),
            layers.FusedBatchNormalization(synchronized=synchronized, dtype=precision),
            layers.Dropout(0.5, dtype=precision),
        ]
    stack.append(keras.layers.Dense(num_genres, dtype="float32", name="logits"))
    return keras.Sequential(stack, name="reference_cnn")
