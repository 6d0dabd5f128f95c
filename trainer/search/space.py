"""What a search varies: a space has, for each setting, a list of choices or a range.

As JSON: {"head_units": [256, 512], "learning_rate": {"low": 1e-4, "high": 1e-2, "log": true}}
"""

import dataclasses
import json
import pathlib
from typing import Any

from trainer import config as config_lib

Space = dict[str, list | dict[str, Any]]

# `epochs` is in none: half of a long run and the whole of a short one do not compare.
_HEAD: Space = {
    "head_units": [256, 512, 1024],
    "dropout": {"low": 0.1, "high": 0.6},
    "learning_rate": {"low": 1e-4, "high": 3e-3, "log": True},
    "weight_decay": {"low": 0.01, "high": 3.0, "log": True},
    "label_smoothing": {"low": 0.0, "high": 0.2},
}
_FINE_TUNING: Space = {
    "dropout": {"low": 0.1, "high": 0.6},
    "learning_rate": {"low": 2e-5, "high": 1e-3, "log": True},
    "weight_decay": {"low": 0.005, "high": 0.5, "log": True},
    "weight_average": [0.0, 0.99, 0.998],
}
_SCRATCH: Space = {
    "dropout": {"low": 0.0, "high": 0.5},
    "learning_rate": {"low": 2e-4, "high": 1e-2, "log": True},
    "weight_decay": {"low": 0.005, "high": 0.5, "log": True},
    "weight_average": [0.0, 0.99, 0.998],
}
_GROUPS = ("model", "optimization", "augmentation")  # Others do not change what is learned.
_RANGE = {"low", "high", "log"}


def default_space(config: config_lib.Config) -> Space:
    """Returns what is varied of a head, in fine-tuning, or of a network from random weights."""
    if config.freeze == config_lib.BACKBONE:
        return _HEAD
    if config.init_from or config.pretrained_weights != "none":
        return _FINE_TUNING
    if config.model == "reference_cnn":  # Its dropout is the tutorial's.
        return {name: values for name, values in _SCRATCH.items() if name != "dropout"}
    return _SCRATCH


def read_space(path: pathlib.Path, config: config_lib.Config) -> Space:
    """Reads a space from a JSON file; `config` has what is not varied.

    Raises:
        config.UsageError: there is no such file, or it is no space; the message says why.
    """
    try:
        space = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise config_lib.UsageError(f"--space={path} cannot be read: {error}") from error
    if not isinstance(space, dict) or not space:
        raise config_lib.UsageError(
            f"--space={path}: give a JSON object of settings, as "
            '{"dropout": {"low": 0.1, "high": 0.6}, "head_units": [256, 512]}.'
        )
    try:
        return {name: _checked(name, values, config) for name, values in space.items()}
    except config_lib.UsageError as error:
        raise config_lib.UsageError(f"--space={path}: {error}") from error


def contains(values: list | dict[str, Any], value: Any) -> bool:
    if isinstance(values, list):
        return value in values
    return values["low"] <= value <= values["high"]


def _checked(name: str, values: Any, config: config_lib.Config) -> list | dict[str, Any]:
    """Returns the choices or the range of a setting, ends of the setting's own type."""
    types = {
        field.name: field.type
        for field in dataclasses.fields(config_lib.Config)
        if field.metadata["group"] in _GROUPS
    }
    if name not in types:
        raise config_lib.UsageError(
            f"{name!r} cannot be varied; these can: {', '.join(sorted(types))}."
        )
    is_range = isinstance(values, dict) and {"low", "high"} <= values.keys() <= _RANGE
    if not (is_range and types[name] in (int, float)) and not (isinstance(values, list) and values):
        raise config_lib.UsageError(
            f"{name!r}: give a list of choices or, for a number, a range as "
            '{"low": 1e-4, "high": 1e-2, "log": true}.'
        )
    tried = [values["low"], values["high"]] if is_range else values
    if types[name] is float and all(type(value) in (int, float) for value in tried):
        tried = [float(value) for value in tried]
    if any(type(value) is not types[name] for value in tried):
        raise config_lib.UsageError(f"{name!r}: {tried} are not of type {types[name].__name__}.")
    for value in tried:
        dataclasses.replace(config, **{name: value})  # Says what cannot be used.
    if not is_range:
        return tried
    low, high = tried
    if low >= high or (values.get("log") and low <= 0):
        raise config_lib.UsageError(
            f'{name!r}: "low" must be less than "high" and, with "log", more than 0.'
        )
    return {**values, "low": low, "high": high}
