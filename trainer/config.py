"""Every setting of a training run: its default, its meaning, its choices."""

import dataclasses
from collections.abc import Sequence
from typing import Any


def _setting(default: Any, meaning: str, choices: Sequence[str] = (), minimum: float | None = None):
    metadata = {"meaning": meaning, "choices": choices, "minimum": minimum}
    return dataclasses.field(default=default, metadata=metadata)


class UsageError(ValueError):
    """What was asked for cannot be done; the message says what to do about it."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of a run; the defaults are the reference tutorial's."""

    # fmt: off
    dataset: str = _setting("poster_tfds/imdb", "TFDS dataset, NAME/CONFIG.")
    data_dir: str = _setting("data", "Where `tfds build --data_dir` put the dataset.")
    train_split: str = _setting("train", "Split to train on.")
    test_split: str = _setting("test", "Split to evaluate on after every epoch.")

    model: str = _setting("reference_cnn", "Model to train.", choices=("reference_cnn",))
    image_size: int = _setting(350, "Height and width that posters are resized to, in pixels.", minimum=46)
    epochs: int = _setting(5, "Passes over the train split.", minimum=1)
    batch_size: int = _setting(32, "Examples a step, over all replicas together.", minimum=1)
    learning_rate: float = _setting(1e-3, "Learning rate of Adam.", minimum=0)
    seed: int = _setting(0, "Seed of the weights, the shuffle order and dropout.", minimum=0)
    max_steps: int = _setting(0, "Stop after this many steps; 0: no limit.", minimum=0)

    precision: str = _setting("auto", "Arithmetic of the layers; auto: bfloat16 where the device computes in it, float16 on older tensor cores, else float32.", choices=("auto", "float32", "mixed_float16", "mixed_bfloat16"))
    strategy: str = _setting("auto", "Distribution; auto: multi_worker if TF_CONFIG is set, mirrored on several GPUs, else one device.", choices=("auto", "one_device", "mirrored", "multi_worker", "tpu"))
    tpu: str = _setting("", "Name or address of the TPU, for --strategy=tpu.")
    logical_cpus: int = _setting(1, "Logical devices to divide the CPU into, to try --strategy=mirrored without GPUs.", minimum=1)

    cache: str = _setting("auto", "What stays in memory: decoded posters (uint8), encoded ones (JPEG) or none; auto: decoded if it fits.", choices=("auto", "decoded", "encoded", "none"))
    shuffle_buffer: int = _setting(0, "Examples to draw from when shuffling; 0: the whole split, or 4096 with --cache=none.", minimum=0)
    # fmt: on

    def __post_init__(self):
        """Checks the values.

        Raises:
            UsageError: a setting cannot be used; the message names its flag.
        """
        for field in dataclasses.fields(self):
            value, choices = getattr(self, field.name), field.metadata["choices"]
            minimum = field.metadata["minimum"]
            if choices and value not in choices:
                raise UsageError(f"--{field.name}={value}: choose one of {', '.join(choices)}.")
            if minimum is not None and value < minimum:
                raise UsageError(f"--{field.name}={value}: must be at least {minimum}.")

    def to_json(self) -> dict[str, Any]:
        """Returns the settings as a JSON object."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Config":
        """Inverse of `to_json`; settings that are no longer known are left out."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})
