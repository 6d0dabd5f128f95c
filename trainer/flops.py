"""Floating-point operations: how many training takes, and how many a device is built for."""

import math
import re
from collections.abc import Iterator

import keras

# Tensor cores of NVIDIA's GPUs, of 16-bit factors and without sparsity, in FLOP/s, as their
# datasheets have them (those of L4 and H100 give it with sparsity: twice as many). A GPU is known
# by the words of its name.
_PEAKS = {
    ("V100", "SXM2"): 125e12,
    ("V100", "PCIE"): 112e12,
    ("T4",): 65e12,
    ("A100",): 312e12,
    ("L4",): 121e12,
    ("H100", "PCIE"): 756e12,
    ("H100", "HBM3"): 989e12,  # What the SXM module calls itself.
}


def training_flops(model: keras.Model) -> float:
    """Returns the operations that training takes an image: of convolutions and dense layers.

    A multiplication with its addition counts as two. A layer's gradients take as much as its
    forward pass: once for its weights unless they are frozen, and once for its inputs if a layer
    before it is trained.
    """
    total, trained_before = 0, False
    for layer, forward in _forward_flops(model):
        total += forward * (1 + layer.trainable + trained_before)
        trained_before |= layer.trainable
    return total


def peak_flops(device_name: str, precision: str) -> float | None:
    """Returns the operations a second that a GPU is built for, where that is known.

    Args:
        device_name: as TensorFlow has it, e.g. "NVIDIA A100-SXM4-40GB".
        precision: Keras dtype policy; known is what there is for those of 16 bits.
    """
    words = set(re.split(r"[\s-]+", device_name.upper()))
    peaks = [peak for name, peak in _PEAKS.items() if words.issuperset(name)]
    return peaks[0] if peaks and precision != "float32" else None


def _forward_flops(model: keras.Model) -> Iterator[tuple[keras.Layer, float]]:
    """Gives the layers that have filters or matrices, and their operations an image."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _forward_flops(layer)
            continue
        # Also of depthwise and separable ones. Each entry is used once a pixel of the result.
        kernels = [weight for weight in layer.weights if weight.name.endswith("kernel")]
        if kernels:
            # Of each time that it is called: at each size of the poster.
            outputs = [node.outputs[0] for node in layer._inbound_nodes]
            pixels = sum(math.prod(output.shape[1:-1]) for output in outputs)
            yield layer, 2 * pixels * sum(math.prod(kernel.shape) for kernel in kernels)
