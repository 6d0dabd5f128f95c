"""Floating-point operations: how many training takes, and how many a device is built for."""

import collections
import math
import re

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
    for layer, forward in _forward_flops(model).items():
        total += forward * (1 + layer.trainable + trained_before)
        trained_before |= layer.trainable
    return total


def peak_flops(device_name: str, precision: str) -> float | None:
    """Returns the operations a second that a GPU is built for, in 16 bits, where that is known."""
    words = set(re.split(r"[\s-]+", device_name.upper()))
    peaks = [peak for name, peak in _PEAKS.items() if words.issuperset(name)]
    return peaks[0] if peaks and precision != "float32" else None


def _forward_flops(model: keras.Model) -> dict[keras.Layer, float]:
    """Returns, from the input on, each layer's operations of an image, in all of its calls."""
    total = collections.defaultdict(float)
    graph = model._functional if isinstance(model, keras.Sequential) else model
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        for node in graph._nodes_by_depth[depth]:
            if isinstance(node.operation, keras.Model):
                for layer, forward in _forward_flops(node.operation).items():
                    total[layer] += forward
            elif isinstance(node.operation, keras.Layer):
                # Also of depthwise and separable ones. Each entry is used once a pixel.
                weights = node.operation.weights
                kernels = [weight for weight in weights if weight.name.endswith("kernel")]
                pixels = math.prod(node.outputs[0].shape[1:-1]) if kernels else 0
                for kernel in kernels:
                    total[node.operation] += 2 * pixels * math.prod(kernel.shape)
    return total
