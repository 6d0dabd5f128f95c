"""Settings that belong together, by name: a model and how to train it.

README's table of models has the scores, the time and the size of each.
"""

from collections.abc import Sequence
from typing import Any

from absl import flags

from trainer import config

# The tutorial's CNN, trained as the tutorial does: the defaults of `Config`.
_REFERENCE: dict[str, Any] = {}

# The same network on smaller posters, which leaves time for twelve times as many epochs.
_REFERENCE_TUNED = {
    "image_size": 128,
    "epochs": 60,
    "learning_rate_schedule": "cosine",
    "warmup_epochs": 2.0,
}

_COMPACT = {
    "model": "compact_cnn",
    "image_size": 160,
    "epochs": 45,
    "batch_size": 64,
    "learning_rate": 2e-3,
    "learning_rate_schedule": "cosine",
    "warmup_epochs": 2.0,
    "weight_decay": 0.05,
    "weight_average": 0.998,
    "dropout": 0.3,
    "augment": "flip,crop,color,erase",
    "mixup": 0.2,
}

# The head alone, on features of the posters and of their mirror images.
_PRETRAINED_HEAD = {
    "model": "efficientnet_lite2",
    # Above the 260 pixels of its own training: posters have small faces and letters.
    "image_size": 416,
    "pretrained_weights": "imagenet",
    "freeze": config.BACKBONE,
    "head_units": 512,
    "epochs": 40,
    "batch_size": 64,
    "learning_rate": 1e-3,
    "learning_rate_schedule": "cosine",
    "warmup_epochs": 1.0,
    "weight_decay": 0.5,
    "dropout": 0.5,
    "augment": "flip",
}

# The head as above, then the upper layers of the backbone with it.
_PRETRAINED = {
    **_PRETRAINED_HEAD,
    "head_epochs": 40,
    "freeze": "stem,block[0-9]_*,block10_*,*_depthwise",
    "epochs": 6,
    "batch_size": 32,
    "learning_rate": 1e-4,
    "weight_decay": 0.05,
    "weight_average": 0.998,
    "augment": "flip,crop,color,erase",
}

PRESETS = {
    "reference": _REFERENCE,
    "reference_tuned": _REFERENCE_TUNED,
    "compact": _COMPACT,
    "pretrained_head": _PRETRAINED_HEAD,
    "pretrained": _PRETRAINED,
}


def nearest(settings: config.Config, without: Sequence[str] = ()) -> tuple[str, list[str]]:
    """Returns the preset that settings differ least from, and the flags that make them of it.

    Settings named in `without` do not count.
    """
    given = {name: value for name, value in settings.to_json().items() if name not in without}
    changes = {}
    for preset, values in PRESETS.items():
        expected = config.Config(**values).to_json()
        changes[preset] = [
            f"--{name}={value}" for name, value in given.items() if value != expected[name]
        ]
    return min(changes.items(), key=lambda item: len(item[1]))


def define_flag(meaning: str) -> flags.FlagHolder[str]:
    """Defines --preset of a command; `meaning` says what it is for there."""
    return flags.DEFINE_enum("preset", "compact", PRESETS, meaning)


def config_from_flags(preset: flags.FlagHolder[str]) -> config.Config:
    """Returns the settings of a preset and of the flags that are given.

    Raises:
        config.UsageError: a setting cannot be used.
    """
    return config.from_flags(preset=PRESETS[preset.value])
