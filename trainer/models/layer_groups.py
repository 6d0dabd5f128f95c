"""The layers of a model in groups, from the logits down: what learns at rates of its own."""

import re
from collections.abc import Sequence

import keras

from trainer import config as config_lib
from trainer.models import ends

# As block3_expand, block6h_se_reduce, conv2_block1_1_conv, stage_0_block_1_layernorm.
_BLOCK = re.compile(r".*(?:block_?|expanded_conv_)\d+[a-z]?(?=_)")


def from_the_top(model: keras.Model) -> list[list[keras.Variable]]:
    """Returns the weights that are trained, group by group: those next to the logits first.

    The first group is the whole head, the others are the backbone's blocks, by their layers'
    names. What is in no block, as a stem or a model without a backbone, has a group for each
    convolution or dense layer and the normalization after it. Groups that are frozen are left out.
    """
    if not ends.has_backbone(model):
        return _split(model.layers)
    (head,) = (layer for layer in model.layers if layer.name == "head")
    return [head.trainable_variables, *_split(model.get_layer(config_lib.BACKBONE).layers)]


def _split(layers: Sequence[keras.Layer]) -> list[list[keras.Variable]]:
    """Returns the trained weights of layers, which come from the pixels up, last group first."""
    groups: dict[str, list[keras.Variable]] = {}
    name = ""
    for layer in layers:
        if block := _BLOCK.match(layer.name):
            name = block[0]
        elif any(len(weight.shape) > 1 for weight in layer.weights):
            name = layer.name
        groups.setdefault(name, []).extend(layer.trainable_variables)
    return [group for group in reversed(groups.values()) if group]
