"""Models by name.

To add one, write a function of the settings, the number of genres and the precision in a file of
its own, and name it in `MODELS`: pipeline, checkpoints, evaluation and export follow.
"""

import fnmatch
from typing import Any

import keras
import numpy as np

from trainer import config as config_lib
from trainer.models import (
    compact_cnn,
    efficientnet_lite,
    ends,
    keras_applications,
    kerashub,
    pretrained,
    reference_cnn,
)

MODELS = {
    "reference_cnn": reference_cnn.reference_cnn,
    "compact_cnn": compact_cnn.compact_cnn,
    **dict.fromkeys(efficientnet_lite.SCALES, efficientnet_lite.efficientnet_lite),
}
_KERAS_PREFIX = "keras:"
_KERASHUB_PREFIX = "kerashub:"


def create_model(
    config: config_lib.Config,
    num_genres: int,
    precision: str,
    network: dict[str, Any] | None = None,
) -> keras.Model:
    """Builds a model with fresh weights.

    `precision` is a Keras dtype policy, `network` what a run has kept of `read_network`.

    Raises:
        config.UsageError: there is no such model, or no layer that `freeze` names.
    """
    if config.model in MODELS:
        model = MODELS[config.model](config, num_genres, precision)
    elif config.model.startswith(_KERAS_PREFIX):
        backbone = keras_applications.create_backbone(
            config.model.removeprefix(_KERAS_PREFIX), config.image_size, precision
        )
        model = ends.with_head(backbone, config, num_genres, precision)
    elif config.model.startswith(_KERASHUB_PREFIX):
        network = network or read_network(config)
        backbone = kerashub.create_backbone(network, config.image_size, precision)
        model = ends.with_head(backbone, config, num_genres, precision)
    else:
        raise config_lib.UsageError(
            f"--model={config.model}: choose one of {', '.join(MODELS)}, {_KERAS_PREFIX}NAME or "
            f"{_KERASHUB_PREFIX}PRESET."
        )
    _freeze(model, config.freeze)
    return model


def read_network(config: config_lib.Config) -> dict[str, Any] | None:
    """Returns what a run must keep to build its model again without KerasHub's preset."""
    if not config.model.startswith(_KERASHUB_PREFIX):
        return None
    return kerashub.read_network(config.model.removeprefix(_KERASHUB_PREFIX))


def load_pretrained_weights(model: keras.Model, config: config_lib.Config) -> None:
    """Puts the weights that `config.pretrained_weights` names into a model's backbone.

    Raises:
        config.UsageError: they cannot be had, or are of another network.
    """
    source = config.pretrained_weights
    if source == "none":
        return
    if not ends.has_backbone(model):
        raise config_lib.UsageError(
            f"--pretrained_weights={source}: {config.model} has no backbone to put them into."
        )
    backbone = model.get_layer(config_lib.BACKBONE)
    if config.model.startswith(_KERAS_PREFIX):
        keras_applications.load_weights(backbone, config.model.removeprefix(_KERAS_PREFIX), source)
    elif config.model.startswith(_KERASHUB_PREFIX):
        kerashub.load_weights(backbone, config.model.removeprefix(_KERASHUB_PREFIX), source)
    else:
        path = pretrained.find_lite_weights(config.model) if source == "imagenet" else source
        pretrained.load_lite_weights(backbone, config.model, path)


def copy_weights(source: keras.Model, target: keras.Model) -> None:
    """Sets weights to those of another model, which has the same layers, or raises ValueError."""
    target.set_weights([np.asarray(weight) for weight in source.get_weights()])


def _freeze(model: keras.Model, names: str) -> None:
    """Has the layers of a backbone, or of a model without one, keep their weights.

    Raises:
        config.UsageError: there is no such layer, or nothing is left to train.
    """
    inner = model.get_layer(config_lib.BACKBONE) if ends.has_backbone(model) else model
    for pattern in filter(None, map(str.strip, names.split(","))):
        if pattern == config_lib.BACKBONE:
            if inner is model:
                raise config_lib.UsageError(
                    f"--freeze={pattern}, which --head_epochs needs too: {model.name} has no "
                    "backbone. Leave both out."
                )
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
