"""Networks of keras.applications as backbones."""

import inspect
import os
import sys

import keras

from trainer import config


def create_backbone(name: str, image_size: int, precision: str) -> keras.Model:
    """Returns a network of keras.applications without its classifier, with fresh weights.

    Args:
        name: of the function, as EfficientNetV2B0.
        image_size: side S of the input, in pixels.
        precision: Keras dtype policy.

    Returns:
        Model of uint8 [N, S, S, 3] to features [N, F], with the network's own preprocessing.

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
    return keras.Model(pixels, network.output, name=config.BACKBONE)


def load_weights(backbone: keras.Model, name: str, source: str | os.PathLike) -> None:
    """Puts weights into what `create_backbone` returned.

    Args:
        backbone: the network.
        name: its name.
        source: `imagenet`, which Keras downloads, or a file written by `save_weights`.

    Raises:
        config.UsageError: they cannot be had, or are of another network.
    """
    if name.startswith("EfficientNetB"):
        raise config.UsageError(
            f"--model=keras:{name} --pretrained_weights={source}: Keras scales the input of "
            "EfficientNetB0 to B7 otherwise with its ImageNet weights than without, and a file "
            "does not say which it is of. Take keras:EfficientNetV2B0 to V2B3."
        )
    try:
        if source == "imagenet":
            network = getattr(_module(name), name)(include_top=False, pooling="avg")
            backbone.set_weights(network.get_weights())
        else:
            backbone.load_weights(source)
    except Exception as error:  # Keras raises whatever the download or the file leads to.
        raise config.UsageError(
            f"--pretrained_weights={source}: they cannot be loaded into keras:{name} ({error})."
        ) from error


def _module(name: str):
    """Returns the module of keras.applications that has the network and its preprocessing."""
    function = getattr(keras.applications, name, None)
    if inspect.isfunction(function):
        return sys.modules[function.__module__]
    names = [n for n, _ in inspect.getmembers(keras.applications, inspect.isfunction)]
    raise config.UsageError(f"--model=keras:{name}: choose one of {', '.join(names)}.")
