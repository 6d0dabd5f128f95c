"""A command of the project, with the tests' own small network among its models.

    python -m tests.with_tiny_model trainer --model=tiny_cnn ...

The network has each kind of state that a run keeps: weights, moving statistics and dropout's
random numbers. `register` adds it in the process that runs the tests.
"""

import runpy
import sys

NAME = "tiny_cnn"


def tiny_cnn(config, num_genres, precision):
    """A convolution with batch normalization, the mean over all places, and dropout."""
    import keras

    from trainer.models import ends, layers

    pixels = ends.pixel_input(config)
    x = keras.layers.Rescaling(ends.RESCALE, dtype=precision)(pixels)
    x = layers.ConvBatchNorm(16, 3, 2, "relu", momentum=0.9, dtype=precision)(x)
    x = keras.layers.GlobalAveragePooling2D(dtype=precision)(x)
    x = keras.layers.Dropout(config.dropout, dtype=precision)(x)
    logits = keras.layers.Dense(num_genres, dtype="float32", name="logits")(x)
    return keras.Model(pixels, logits, name=NAME)


def register():
    """Adds the network to the models that `--model` knows."""
    from trainer.models import registry

    registry.MODELS[NAME] = tiny_cnn


if __name__ == "__main__":
    from trainer import command_line

    command_line.import_stock_tensorflow()
    register()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
