"""EfficientNet-Lite0 to 2.

EfficientNets without squeeze-and-excitation and with ReLU6, for devices without a GPU:
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite.
"""

import math
from typing import NamedTuple

import keras

from trainer import config as config_lib
from trainer.models import ends, layers

NUM_FEATURES = 1280
_STEM_FILTERS = 32
# Of ImageNet's colours, at levels 0 to 255, as the port was evaluated with.
_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
_STANDARD_DEVIATION = (0.229 * 255, 0.224 * 255, 0.225 * 255)


class _Scale(NamedTuple):
    """How a network differs from Lite0, in its stages; stem and top are the same."""

    width: float
    depth: float


SCALES = {
    "efficientnet_lite0": _Scale(1.0, 1.0),
    "efficientnet_lite1": _Scale(1.0, 1.1),
    "efficientnet_lite2": _Scale(1.1, 1.2),
}


class _Stage(NamedTuple):
    """Blocks of one width; the first has the strides."""

    repeats: int
    kernel_size: int
    strides: int
    expansion: int
    filters: int


# Table 1 of https://arxiv.org/abs/1905.11946, without squeeze-and-excitation.
_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)


def efficientnet_lite(config: config_lib.Config, num_genres: int, precision: str) -> keras.Model:
    """The network of `SCALES` that `config.model` names, with a head for genres."""
    synchronized = config.batch_norm == "global"
    backbone = create_backbone(config.model, config.image_size, precision, synchronized)
    return ends.with_head(backbone, config, num_genres, precision)


def create_backbone(
    name: str, image_size: int, precision: str, synchronized: bool = True
) -> keras.Model:
    """Returns a network of `SCALES` without its classifier, with fresh weights.

    It takes uint8 [N, S, S, 3] to features [N, 1280] and has 3,413,024 parameters (Lite0),
    4,189,344 (Lite1) or 4,869,168 (Lite2). `synchronized`: whether several replicas share the
    batch's statistics.
    """

    def convolve(x, name, filters, kernel_size=1, strides=1, activation="relu6"):
        return layers.ConvBatchNorm(
            filters,
            kernel_size,
            strides,
            activation,
            synchronized=synchronized,
            name=name,
            dtype=precision,
        )(x)

    pixels = keras.Input((image_size, image_size, 3), dtype="uint8", name="pixels")
    x = keras.layers.Normalization(
        mean=_MEAN, variance=[s**2 for s in _STANDARD_DEVIATION], dtype=precision
    )(pixels)
    x = convolve(x, "stem", _STEM_FILTERS, 3, 2)
    number = 0
    for stage in _scaled_stages(SCALES[name]):
        for repeat in range(stage.repeats):
            strides = 1 if repeat else stage.strides
            shortcut, block = x, f"block{number}"
            if stage.expansion != 1:
                x = convolve(x, f"{block}_expand", x.shape[-1] * stage.expansion)
            x = convolve(x, f"{block}_depthwise", None, stage.kernel_size, strides)
            x = convolve(x, f"{block}_project", stage.filters, activation=None)
            if repeat:
                x = keras.layers.Add(dtype=precision)([x, shortcut])
            number += 1
    x = convolve(x, "top", NUM_FEATURES)
    features = keras.layers.GlobalAveragePooling2D(dtype=precision)(x)
    return keras.Model(pixels, features, name=config_lib.BACKBONE)


def _scaled_stages(scale: _Scale) -> list[_Stage]:
    """Returns the stages, all wider and all but the first and the last with more blocks."""
    first, *between, last = (
        # To the nearest multiple of 8, as in all EfficientNets.
        stage._replace(filters=int(stage.filters * scale.width + 4) // 8 * 8)
        for stage in _STAGES
    )
    deeper = [s._replace(repeats=math.ceil(s.repeats * scale.depth)) for s in between]
    return [first, *deeper, last]
