"""Image backbones of KerasHub, by their presets: https://keras.io/keras_hub/presets/."""

import functools
import os
import pathlib
import tempfile
from typing import Any

import keras

from trainer import config

_FETCH = """Is it in the list of https://keras.io/keras_hub/presets/, and is there a network?
Without one here, save it where there is one, and give the directory, as --model=kerashub:DIR:
  import keras_hub
  keras_hub.models.Backbone.from_preset("{preset}").save_to_preset("DIR")
  keras_hub.layers.ImageConverter.from_preset("{preset}").save_to_preset("DIR")"""


@functools.cache
def read_network(preset: str) -> dict[str, Any]:
    """Returns what `create_backbone` needs of a preset, a name or a directory, as JSON: no weights.

    It is `backbone`, as Keras serializes it, and `scale` and `offset`, numbers or one for each
    channel, which take levels of 0 to 255 to what it was trained on.

    Raises:
        config.UsageError: KerasHub is not installed, the preset cannot be had, or is not of a
            network of images.
    """
    backbones, converters = _import_keras_hub()
    try:
        network = _of_images(backbones.from_preset(preset, load_weights=False))
        converter = converters.from_preset(preset)
    except Exception as error:  # Whatever the download or the directory leads to.
        raise _cannot_be_had(preset, error) from error
    inputs = keras.tree.flatten(network.input)
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        raise config.UsageError(
            f"--model=kerashub:{preset}: a {type(network).__name__} does not take one image alone."
        )
    serialized = keras.saving.serialize_keras_object(network)
    names = ("module", "class_name", "registered_name", "config")
    return {
        "backbone": {name: serialized[name] for name in names},
        "scale": 1.0 if converter.scale is None else converter.scale,
        "offset": 0.0 if converter.offset is None else converter.offset,
    }


def create_backbone(network: dict[str, Any], image_size: int, precision: str) -> keras.Model:
    """Returns a preset's network, with fresh weights.

    It takes uint8 [N, S, S, 3] to features [N, F], with the preset's own scaling. What it gives is
    pooled as KerasHub's classifiers do: the mean over all places or, where there is a class token,
    that token. SigLIP's network does so itself.

    Raises:
        config.UsageError: KerasHub is not installed, or the network cannot take images of this
            size or gives no features of a whole image.
    """
    _import_keras_hub()
    return _between_ends(_build(network, image_size, precision), network, image_size, precision)


def load_weights(backbone: keras.Model, preset: str, source: str | os.PathLike) -> None:
    """Puts weights into what `create_backbone` returned for a preset.

    `source` is `imagenet` for the preset's own weights, whatever they were trained on, or a file
    written by `save_weights` of KerasHub's network.

    Raises:
        config.UsageError: they cannot be had, or are of another network or image size.
    """
    network, size = read_network(preset), backbone.input.shape[1]
    resized = _build(network, size, "float32")
    with tempfile.TemporaryDirectory() as directory:
        path = source
        if source == "imagenet":
            path = pathlib.Path(directory, "preset.weights.h5")
            try:
                _of_images(_import_keras_hub()[0].from_preset(preset)).save_weights(path)
            except Exception as error:
                raise _cannot_be_had(preset, error) from error
        try:
            # From a file, since it is in reading one that DINOv2 fits its positions to the size.
            resized.load_weights(path)
        except Exception as error:
            own = network["backbone"]["config"].get("image_shape", [None])[0]
            advice = f" The preset's own size is {own}." if own else ""
            raise config.UsageError(
                f"--pretrained_weights={source}: they cannot be loaded into kerashub:{preset} at "
                f"--image_size={size}.{advice} ({_first_line(error)})"
            ) from error
    backbone.set_weights(_between_ends(resized, network, size, "float32").get_weights())


def _import_keras_hub() -> tuple[Any, Any]:
    """Returns KerasHub's classes of backbones and of image converters."""
    try:
        import keras_hub
    except ImportError as error:
        raise config.UsageError(
            f"--model=kerashub:PRESET needs KerasHub, which cannot be imported ({error}). Install "
            "it with pip install -e '.[kerashub]'."
        ) from error
    return keras_hub.models.Backbone, keras_hub.layers.ImageConverter


def _cannot_be_had(preset: str, error: Exception) -> config.UsageError:
    return config.UsageError(
        f"--model=kerashub:{preset}: the preset cannot be had ({_first_line(error)}).\n"
        + _FETCH.format(preset=preset)
    )


def _first_line(error: Exception) -> str:
    """Returns the first line: those after it have the values of weights."""
    return str(error).partition("\n")[0]


def _of_images(network: keras.Model) -> keras.Model:
    """Returns a network, or of one for images and text the part that images go through."""
    return getattr(network, "vision_encoder", network)


def _build(network: dict[str, Any], image_size: int, precision: str) -> keras.Model:
    settings = {**network["backbone"]["config"], "dtype": precision}
    if "image_shape" in settings:  # EfficientNet takes any size.
        settings["image_shape"] = (image_size, image_size, 3)
    try:
        return keras.saving.deserialize_keras_object({**network["backbone"], "config": settings})
    except ValueError as error:
        raise config.UsageError(f"--image_size={image_size}: {error}") from error


def _between_ends(
    inner: keras.Model, network: dict[str, Any], image_size: int, precision: str
) -> keras.Model:
    """Returns the layers of KerasHub's network between a scaling of pixels and a pooling."""
    pixels = keras.Input((image_size, image_size, 3), dtype="uint8", name="pixels")
    levels = keras.layers.Rescaling(network["scale"], network["offset"], dtype=precision)(pixels)
    # Not `inner(...)`, so that its layers can be frozen by name.
    outputs = inner.call(keras.tree.map_structure(lambda _: levels, inner.input))
    return keras.Model(pixels, _pool(outputs, inner, precision), name=config.BACKBONE)


def _pool(outputs: Any, network: keras.Model, precision: str) -> keras.KerasTensor:
    """Returns features [N, F] of what a network gives."""
    if isinstance(outputs, dict) and hasattr(network, "stage_names"):  # HGNetV2
        outputs = outputs[network.stage_names[-1]]
    rank = len(outputs.shape) if isinstance(outputs, keras.KerasTensor) else None
    if rank == 2:
        return outputs
    if rank == 3:  # Tokens; of all that give such, Swin alone has no class token.
        is_swin = type(network).__name__ == "SwinTransformerBackbone"
        if getattr(network, "use_class_token", not is_swin):
            return outputs[:, 0]
        return keras.layers.GlobalAveragePooling1D(dtype=precision, name="features")(outputs)
    if rank == 4:
        return keras.layers.GlobalAveragePooling2D(dtype=precision, name="features")(outputs)
    raise config.UsageError(
        f"--model=kerashub:PRESET: a {type(network).__name__} gives no features of a whole image."
    )
