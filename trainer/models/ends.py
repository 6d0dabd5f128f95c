"""What models begin and end with: posters as they come, and a head on features."""

import re

import keras

from trainer import config as config_lib
from trainer.models import layers

RESCALE = 1 / 255


def pixel_input(config: config_lib.Config) -> keras.KerasTensor:
    return keras.Input((config.image_size, config.image_size, 3), dtype="uint8", name="pixels")


def with_head(
    backbone: keras.Model, config: config_lib.Config, num_genres: int, precision: str
) -> keras.Model:
    """Returns a model of two layers, `backbone` and a `head` of one or two dense layers.

    The backbone takes uint8 [N, S, S, 3] and gives features [N, F].
    """
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
    pixels = pixel_input(config)
    logits = keras.Sequential(head, name="head")(backbone(pixels))
    return keras.Model(pixels, logits, name=re.sub(r"[^\w.-]", "_", config.model))


def feature_extractor(model: keras.Model) -> keras.Model:
    """Returns the part of a model that makes features [N, F] of posters, with its own weights.

    It is the backbone or, of a model without one, all layers below `logits`.
    """
    if has_backbone(model):
        return model.get_layer(config_lib.BACKBONE)
    return keras.Model(model.inputs[0], model.get_layer("logits").input, name="features")


def has_backbone(model: keras.Model) -> bool:
    return any(layer.name == config_lib.BACKBONE for layer in model.layers)
