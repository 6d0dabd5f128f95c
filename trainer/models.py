"""Models by name.

A model maps uint8 posters [N, S, S, 3] to float32 logits [N, G], one for each genre;
the probability of a genre is the logit's sigmoid.

Those with a pretrained backbone consist of two layers, `backbone` (pixels to features [N, F]) and
`head` (features to logits).
"""

import fnmatch

import keras
import numpy as np

from trainer import applications, config as config_lib, efficientnet, layers, pretrained

RESCALE = 1 / 255
_KERAS_PREFIX = "keras:"


def create_model(config: config_lib.Config, num_genres: int, precision: str) -> keras.Model:
    """Builds a model with fresh weights.

    Args:
        config: its `model`, `image_size`, `freeze`, `head_units` and `dropout` count, and
            whether there are `pretrained_weights`.
        num_genres: width G of the output.
        precision: Keras dtype policy, e.g. "mixed_bfloat16".

    Raises:
        config.UsageError: there is no such model, or no layer that `freeze` names.
    """
    if config.model in MODELS:
        model = MODELS[config.model](config, num_genres, precision)
    elif config.model.startswith(_KERAS_PREFIX):
        backbone = applications.create_backbone(
            config.model.removeprefix(_KERAS_PREFIX), config.image_size, precision
        )
        model = _with_head(backbone, config, num_genres, precision)
    else:
        raise config_lib.UsageError(
            f"--model={config.model}: choose one of {', '.join(MODELS)}, or {_KERAS_PREFIX}NAME."
        )
    _freeze(model, config.freeze)
    return model


def load_pretrained_weights(model: keras.Model, config: config_lib.Config) -> None:
    """Puts the weights that `config.pretrained_weights` names into a model's backbone.

    Raises:
        config.UsageError: they cannot be had, or are of another network.
    """
    source = config.pretrained_weights
    if source == "none":
        return
    if not has_backbone(model):
        raise config_lib.UsageError(
            f"--pretrained_weights={source}: {config.model} has no backbone to put them into."
        )
    backbone = model.get_layer(config_lib.BACKBONE)
    if config.model.startswith(_KERAS_PREFIX):
        applications.load_weights(backbone, config.model.removeprefix(_KERAS_PREFIX), source)
    else:
        path = pretrained.find_lite0_weights() if source == "imagenet" else source
        pretrained.load_lite0_weights(backbone, path)


def has_backbone(model: keras.Model) -> bool:
    """Returns whether a model consists of a backbone and a head."""
    return any(layer.name == config_lib.BACKBONE for layer in model.layers)


def copy_weights(source: keras.Model, target: keras.Model) -> None:
    """Sets the weights of a model to those of another with the same layers.

    Raises:
        ValueError: its layers are others.
    """
    target.set_weights([np.asarray(weight) for weight in source.get_weights()])


def reference_cnn(config: config_lib.Config, num_genres: int, precision: str) -> keras.Model:
    """The tutorial's sequential CNN: four convolutions, three dense layers.

    At 350 pixels and 25 genres it has 6,672,889 parameters.
    """
    if config.image_size < 46:
        raise config_lib.UsageError(
            f"--image_size={config.image_size}: reference_cnn needs at least 46 pixels."
        )
    stack = [_pixels(config)]
    stack.append(keras.layers.Rescaling(RESCALE, dtype=precision))
    for filters, dropout in ((16, 0.3), (32, 0.3), (64, 0.4), (128, 0.5)):
        stack += [
            layers.Conv2D(filters, 3, activation="relu", dtype=precision),
            layers.FusedBatchNormalization(dtype=precision),
            keras.layers.MaxPooling2D(2, dtype=precision),
            layers.Dropout(dropout, dtype=precision),
        ]
    stack.append(keras.layers.Flatten(dtype=precision))
    for _ in range(2):
        stack += [
            keras.layers.Dense(128, activation="relu", dtype=precision),
            layers.FusedBatchNormalization(dtype=precision),
            layers.Dropout(0.5, dtype=precision),
        ]
    stack.append(keras.layers.Dense(num_genres, dtype="float32", name="logits"))
    return keras.Sequential(stack, name="reference_cnn")


def compact_cnn(config: config_lib.Config, num_genres: int, precision: str) -> keras.Model:
    """A residual network of nine 3x3 convolutions with global average pooling.

    Blocks are those of https://arxiv.org/abs/1512.03385. At 25 genres it has 1,562,681
    parameters, whatever the image size.
    """

    def convolve(x, filters, kernel_size=3, strides=1, activation="relu"):
        return layers.ConvBatchNorm(
            filters, kernel_size, strides, activation, momentum=0.9, dtype=precision
        )(x)

    pixels = _pixels(config)
    x = keras.layers.Rescaling(RESCALE, dtype=precision)(pixels)
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


def efficientnet_lite0(config: config_lib.Config, num_genres: int, precision: str) -> keras.Model:
    """EfficientNet-Lite0 with a head for genres."""
    backbone = efficientnet.create_backbone(config.image_size, precision)
    return _with_head(backbone, config, num_genres, precision)


def _with_head(
    backbone: keras.Model, config: config_lib.Config, num_genres: int, precision: str
) -> keras.Model:
    """Returns a model of a backbone and of a head of one or two dense layers."""
    head = [keras.Input(backbone.output.shape[1:], name="features")]
    if config.head_units:
        head += [
            layers.Dropout(config.dropout, dtype=precision),
            keras.layers.Dense(config.head_units, activation="relu", dtype=precision),
        ]
    head += [
        layers.Dropout(config.dropout, dtype=precision),
        keras.layers.Dense(num_genres, dtype="float32", name="logits"),
    ]
    if config.pretrained_weights != "none":
        # Batch statistics of a few posters would spoil what ImageNet has taught.
        backbone = layers.InferenceModel(backbone.input, backbone.output, name=backbone.name)
    pixels = _pixels(config)
    logits = keras.Sequential(head, name="head")(backbone(pixels))
    return keras.Model(pixels, logits, name=config.model.replace(":", "_"))


def _freeze(model: keras.Model, names: str) -> None:
    """Has the layers of a backbone, or of a model without one, keep their weights.

    Raises:
        config.UsageError: there is no such layer, or nothing is left to train.
    """
    inner = model.get_layer(config_lib.BACKBONE) if has_backbone(model) else model
    for pattern in filter(None, map(str.strip, names.split(","))):
        if pattern == config_lib.BACKBONE and inner is not model:
            inner.trainable = False
            continue
        frozen = [layer for layer in inner.layers if fnmatch.fnmatchcase(layer.name, pattern)]
        for layer in frozen:
            layer.trainable = False
        if not frozen:
            raise config_lib.UsageError(
                f"--freeze={names}: no layer is called {pattern!r}. Those with weights are "
                + ", ".join(layer.name for layer in inner.layers if layer.weights)
                + "."
            )
    if not model.trainable_variables:
        raise config_lib.UsageError(f"--freeze={names}: no weight is left to train.")


def _pixels(config: config_lib.Config) -> keras.KerasTensor:
    return keras.Input((config.image_size, config.image_size, 3), dtype="uint8", name="pixels")


MODELS = {
    "reference_cnn": reference_cnn,
    "compact_cnn": compact_cnn,
    "efficientnet_lite0": efficientnet_lite0,
}
