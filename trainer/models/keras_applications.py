"""Networks of keras.applications as backbones."""

import inspect
import os
import sys

import keras
import numpy as np

from trainer import config

# Of ImageNet's colours, at levels 0 to 1.
_STANDARD_DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)


def create_backbone(name: str, image_size: int, precision: str) -> keras.Model:
    """Returns a network of keras.applications without its classifier, with fresh weights.

    It takes uint8 [N, S, S, 3] to features [N, F], with the network's own preprocessing.

    Raises:
        config.UsageError: there is no such network, or it cannot take images of this size.
    """
    module = _module(name)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        pixels = keras.Input((image_size, image_size, 3), dtype="uint8", name="pixels")
        levels = keras.ops.cast(pixels, keras.config.dtype_policy().compute_dtype)
        network = getattr(module, name)(
            include_top=False,
            weights=None,
            pooling="avg",
            input_tensor=module.preprocess_input(levels),
        )
    except ValueError as error:
        raise config.UsageError(
            f"--model=keras:{name} --image_size={image_size}: {error}"
        ) from error
    finally:
        keras.config.set_dtype_policy(before)
    if any(_is_adaptable(layer) for layer in network.layers):
        network = keras.models.clone_model(network, [pixels], clone_function=_clone)
    return keras.Model(pixels, network.output, name=config.BACKBONE)


def load_weights(backbone: keras.Model, name: str, source: str | os.PathLike) -> None:
    """Puts weights into what `create_backbone` returned.

    `source` is `imagenet`, which Keras downloads, or a file written by `save_weights`.

    Raises:
        config.UsageError: they cannot be had, or are of another network.
    """
    weights = "imagenet" if source == "imagenet" else None
    try:
        network = getattr(_module(name), name)(include_top=False, weights=weights, pooling="avg")
        if weights is None:
            network.load_weights(source)
        backbone.set_weights(network.get_weights())
    except Exception as error:  # Keras raises whatever the download or the file leads to.
        raise config.UsageError(
            f"--pretrained_weights={source}: they cannot be loaded into keras:{name} ({error})."
        ) from error
    for layer in backbone.layers:
        if isinstance(layer, Normalization):
            layer.correct_variance()


class Normalization(keras.layers.Normalization):
    """Keras's, by what its variables hold: Keras's own keeps copies that no checkpoint changes."""

    def call(self, inputs):
        self.finalize_state()
        return super().call(inputs)

    def correct_variance(self) -> None:
        """Sets ImageNet's variances where Keras's weights have standard deviations.

        Those of EfficientNetB0 to B7 do (https://github.com/tensorflow/tensorflow/issues/49930),
        and only with `weights="imagenet"` has Keras's network one more layer, which divides by the
        root of the standard deviations once more. This is the same in one layer, whatever file
        the weights are from. No picture has variances as large as these.
        """
        if np.allclose(self.adapt_variance, _STANDARD_DEVIATION, atol=1e-3):
            self.adapt_variance.assign(_STANDARD_DEVIATION**2)


def _is_adaptable(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, keras.layers.Normalization) and bool(layer.weights)


def _clone(layer: keras.layers.Layer) -> keras.layers.Layer:
    kind = Normalization if _is_adaptable(layer) else type(layer)
    return kind.from_config(layer.get_config())


def _module(name: str):
    """Returns the module of keras.applications that has the network and its preprocessing."""
    function = getattr(keras.applications, name, None)
    if inspect.isfunction(function):
        return sys.modules[function.__module__]
    names = [n for n, _ in inspect.getmembers(keras.applications, inspect.isfunction)]
    raise config.UsageError(f"--model=keras:{name}: choose one of {', '.join(names)}.")
