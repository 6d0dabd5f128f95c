"""Every setting of a training run: its default, its meaning, its choices."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

AUGMENTATIONS = ("flip", "crop", "color", "erase")
NO_TTA, *_ = TTA = ("none", "mirror", "sizes", "mirror,sizes")  # Of `trainer.data.test_time`.
MAX_MAGNITUDE = 10  # Of RandAugment.
LOSSES = ("binary_crossentropy", "focal", "asymmetric")
BACKBONE = "backbone"  # What `freeze` calls all layers but the head.


# What --help puts the settings under, in this order.
GROUPS = ("data", "model", "optimization", "augmentation", "checkpoints", "devices")


def _setting(
    group: str,
    default: Any,
    meaning: str,
    choices: Sequence[str] = (),
    minimum: float | None = None,
):
    metadata = {"group": group, "meaning": meaning, "choices": choices, "minimum": minimum}
    return dataclasses.field(default=default, metadata=metadata)


_data, _model, _optimization, _augmentation, _checkpoints, _devices = (
    functools.partial(_setting, group) for group in GROUPS
)


class UsageError(ValueError):
    """What was asked for cannot be done; the message says what to do about it."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of a run; the defaults are the reference tutorial's."""

    # fmt: off
    dataset: str = _data("poster_tfds/imdb", "TFDS dataset, NAME/CONFIG.")
    data_dir: str = _data("data", "Where `tfds build --data_dir` put the dataset.")
    train_split: str = _data("train", "Split to train on, or a part of one, as train[:85%].")
    validation_split: str = _data("auto", "Split to choose the best checkpoint on, or a part of one, as train[85%:]; empty: none; auto: `validation`, if there is such a split.")
    test_split: str = _data("test", "Split to evaluate on; empty: none.")
    evaluate_every: int = _data(1, "Epochs from one evaluation to the next; the last is always evaluated.", minimum=1)
    cache: str = _data("auto", "Where decoded posters (uint8) are kept: device, in the memory of each GPU; memory; disk, in a file that other runs use too; none: they are read anew in each epoch. auto: the first where there is room.", choices=("auto", "device", "memory", "disk", "none"))
    cache_dir: str = _data("cache", "Folder of --cache=disk; it may be removed at any time between runs.")
    shuffle_buffer: int = _data(4096, "Records to draw from with --cache=none; JPEGs.", minimum=1)
    data_service: str = _data("", "Dispatcher of a tf.data service that reads the train split, as grpc://host:5050; see `python -m trainer.data_service --help`.")

    model: str = _model("reference_cnn", "Model to train: reference_cnn, compact_cnn, efficientnet_lite0 to efficientnet_lite2, keras:NAME for a network of keras.applications, as keras:EfficientNetV2B0, or kerashub:PRESET for an image backbone of KerasHub, as kerashub:resnet_18_imagenet or the directory of a preset.")
    image_size: int = _model(350, "Height and width that posters are resized to, in pixels.", minimum=32)
    pretrained_weights: str = _model("none", "Weights that the backbone of efficientnet_lite0 to 2, keras:NAME or kerashub:PRESET begins with: none, imagenet (of a KerasHub preset its own, whatever they were trained on), or a file of them.")
    init_from: str = _model("", "Run directory whose best weights this run begins with; they come before pretrained_weights.")
    freeze: str = _model("", "Layers that keep their weights, by name or pattern, comma-separated, as stem,block[0-4]_*; backbone: all but the head, which then trains on features that are computed once.")
    head_epochs: int = _model(0, "Epochs for which the head is trained first, on the features of a backbone that is frozen, before the layers that `freeze` does not name are trained too; 0: none.", minimum=0)
    head_learning_rate: float = _model(1e-3, "Learning rate of those epochs.", minimum=0)
    head_weight_decay: float = _model(0.5, "Weight decay of those epochs.", minimum=0)
    head_units: int = _model(0, "Width of a dense layer between a pretrained backbone and the logits, in units; 0: none.", minimum=0)
    dropout: float = _model(0.0, "Share of the features, 0 to 1, that dropout zeroes before each dense layer of compact_cnn and of a head.", minimum=0)

    epochs: int = _optimization(5, "Passes over the train split.", minimum=1)
    patience: int = _optimization(0, "Stop when so many evaluations in a row have brought no higher macro AP on the validation split; 0: train all epochs.", minimum=0)
    batch_size: int = _optimization(32, "Examples that go through the model at once, over all replicas together.", minimum=1)
    accumulate_steps: int = _optimization(1, "Batches whose gradients are summed up to one step: that of a batch of so many times the size, in the memory of one.", minimum=1)
    learning_rate: float = _optimization(1e-3, "Learning rate of Adam; with a schedule, the highest.", minimum=0)
    learning_rate_schedule: str = _optimization("constant", "How the learning rate goes on: constant, or cosine: down to 0 at the end of the last epoch.", choices=("constant", "cosine"))
    warmup_epochs: float = _optimization(0.0, "Epochs over which the cosine schedule first rises from 0.", minimum=0)
    weight_decay: float = _optimization(0.0, "Decoupled weight decay (AdamW) of all weights but biases and normalization.", minimum=0)
    clip_norm: float = _optimization(0.0, "Gradients are scaled down where the norm of all of them together is above this; 0: never.", minimum=0)
    weight_average: float = _optimization(0.0, "Momentum, 0 to 1, of a running average of the weights, which is evaluated and exported instead of them; 0: none.", minimum=0)
    loss: str = _optimization("binary_crossentropy", "Loss to train with. Evaluation reports the binary cross-entropy whatever it is.", choices=LOSSES)
    label_smoothing: float = _optimization(0.0, "How far, 0 to 1, labels are moved from 0 and 1 towards their genre's share of the train split.", minimum=0)
    seed: int = _optimization(0, "Seed of the weights, the shuffle order, the changes and dropout.", minimum=0)
    max_steps: int = _optimization(0, "Stop after this many steps; 0: no limit.", minimum=0)

    augment: str = _augmentation("", "Random changes to the posters in training, comma-separated: flip, crop, color, erase.")
    augment_on: str = _augmentation("auto", "Where they are changed: cpu, poster by poster with the decoding; device, batch by batch in the training step; auto: device on a GPU.", choices=("auto", "cpu", "device"))
    randaugment: float = _augmentation(0.0, "Magnitude, 0 to 10, of RandAugment: two more changes to each poster, of shape or colour, always made in the training step; 0: none.", minimum=0)
    mixup: float = _augmentation(0.0, "MixUp of each poster and its genres with another of its batch, always in the training step: a, as 0.2, of the distribution Beta(a, a) of its own share; 0: none.", minimum=0)
    cutmix: float = _augmentation(0.0, "The same for CutMix, which puts a rectangle of the other into the poster, as 1; beside mixup each has half of the posters; 0: none.", minimum=0)

    checkpoint_every_steps: int = _checkpoints(0, "Save a checkpoint every so many steps; 0: at the end of an epoch.", minimum=0)
    checkpoint_every_seconds: float = _checkpoints(300.0, "Save one also when the last is so many seconds old.", minimum=0)
    keep_checkpoints: int = _checkpoints(2, "How many of the newest checkpoints to keep, beside the best one.", minimum=1)

    precision: str = _devices("auto", "Arithmetic of the layers; auto: bfloat16 where the device computes in it, float16 on older tensor cores, else float32.", choices=("auto", "float32", "mixed_float16", "mixed_bfloat16"))
    strategy: str = _devices("auto", "Distribution; auto: multi_worker if TF_CONFIG is set, mirrored on several GPUs, else one device.", choices=("auto", "one_device", "mirrored", "multi_worker"))
    batch_norm: str = _devices("global", "Batch whose statistics several replicas normalize with: global, or local, each its own part, which is faster and learns otherwise.", choices=("global", "local"))
    worker_timeout: float = _devices(600.0, "Seconds to wait until all workers that TF_CONFIG names have started; 0: for ever.", minimum=0)
    logical_cpus: int = _devices(1, "Logical devices to divide the CPU into, to try --strategy=mirrored without GPUs.", minimum=1)
    jit_compile: bool = _devices(False, "Compile the training step with XLA: for one GPU; on a CPU it is slower.")
    steps_per_call: int = _devices(0, "Steps that the device takes before Python is asked again; 0: as many as take 0.05 seconds, where one takes less than 0.01.", minimum=0)
    deterministic: bool = _devices(False, "The same seed gives the same weights, bit for bit, on the same machine, whether the run was interrupted or not; may be slower on a GPU.")
    # fmt: on

    def __post_init__(self):
        """Checks the values; the message of a `UsageError` names the flag."""
        for field in dataclasses.fields(self):
            value, choices = getattr(self, field.name), field.metadata["choices"]
            minimum = field.metadata["minimum"]
            if choices and value not in choices:
                raise UsageError(f"--{field.name}={value}: choose one of {', '.join(choices)}.")
            if minimum is not None and value < minimum:
                raise UsageError(f"--{field.name}={value}: must be at least {minimum}.")
        if unknown := set(self.augmentations) - set(AUGMENTATIONS):
            raise UsageError(
                f"--augment={self.augment}: there is no {', '.join(sorted(unknown))!r}; choose of "
                f"{', '.join(AUGMENTATIONS)}."
            )
        if self.randaugment > MAX_MAGNITUDE:
            raise UsageError(f"--randaugment={self.randaugment}: must be at most {MAX_MAGNITUDE}.")
        for name in ("dropout", "weight_average", "label_smoothing"):
            if getattr(self, name) >= 1:
                raise UsageError(f"--{name}={getattr(self, name)}: must be less than 1.")
        if self.freeze == BACKBONE and set(self.augmentations) - {"flip"}:
            raise UsageError(
                f"--freeze={BACKBONE} computes each poster's features once, as it is and mirrored: "
                f"leave --augment={self.augment} out, or choose --augment=flip."
            )
        if self.head_epochs and (self.freeze == BACKBONE or self.init_from):
            given = f"--init_from={self.init_from}" if self.init_from else f"--freeze={BACKBONE}"
            raise UsageError(
                f"--head_epochs={self.head_epochs} trains a head first, and what is trained after "
                f"it begins with that: leave out {given}, or give --head_epochs=0."
            )
        for name in ("randaugment", "mixup", "cutmix"):
            if self.freeze == BACKBONE and getattr(self, name):
                raise UsageError(
                    f"--freeze={BACKBONE} computes each poster's features once: leave out "
                    f"--{name}={getattr(self, name)}."
                )
        if self.freeze == BACKBONE and self.data_service:
            raise UsageError(
                f"--freeze={BACKBONE} reads the posters once: leave out --data_service."
            )
        if self.jit_compile and self.accumulate_steps > 1:
            raise UsageError(
                f"--accumulate_steps={self.accumulate_steps} takes a batch in parts, which are not "
                "compiled: leave out --jit_compile."
            )
        if self.data_service and self.deterministic:
            raise UsageError(
                "--data_service: its examples come in the order in which they are ready. Leave out "
                "--deterministic."
            )
        if self.data_service and self.cache not in ("auto", "none"):
            raise UsageError(
                f"--data_service reads anew in each epoch: leave out --cache={self.cache}."
            )

    @property
    def augmentations(self) -> tuple[str, ...]:
        """The random changes that `augment` names."""
        return tuple(name.strip() for name in self.augment.split(",") if name.strip())

    def head_phase(self) -> "Config":
        """Returns the settings with which the head is trained first."""
        return dataclasses.replace(
            self,
            freeze=BACKBONE,
            epochs=self.head_epochs,
            head_epochs=0,
            learning_rate=self.head_learning_rate,
            weight_decay=self.head_weight_decay,
            weight_average=0.0,
            augment="flip" if "flip" in self.augmentations else "",
            randaugment=0.0,
            mixup=0.0,
            cutmix=0.0,
            max_steps=0,
            data_service="",
        )

    @property
    def examples_per_step(self) -> int:
        """Of a training step, over all replicas together."""
        return self.batch_size * self.accumulate_steps

    def to_json(self) -> dict[str, Any]:
        """Returns the settings as a JSON object."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Config":
        """Inverse of `to_json`; settings that are no longer known are left out."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


def define_flags(names: Sequence[str] = ()) -> None:
    """Defines a flag for each setting, or for those named, in the group that --help has it under."""
    for field in dataclasses.fields(Config):
        if not names or field.name in names:
            flags.DEFINE_flag(_make_flag(field), module_name=field.metadata["group"])


def define_tta_flag() -> flags.FlagHolder:
    """Defines the flag for the variants of a poster, in the commands that have it."""
    return flags.DEFINE_enum(
        "tta",
        NO_TTA,
        TTA,
        "Variants of each poster whose answers are averaged, which takes so many times as long: the "
        "mirror image, or the poster in two sizes, or four of both; none: the poster alone.",
    )


def define_target_precision_flag() -> flags.FlagHolder:
    """Defines the flag for what thresholds are chosen for, in the commands that choose them."""
    return flags.DEFINE_float(
        "target_precision",
        0,
        "Choose each genre's threshold for this precision, 0 to 1, instead of the best F1.",
        lower_bound=0,
        upper_bound=1,
    )


def describe_tta(tta: str) -> str:
    """Returns in words what the answers are of, for a choice of `TTA`."""
    return {
        NO_TTA: "of each poster as it is",
        "mirror": "mean logits of each poster and its mirror image (--tta=mirror)",
        "sizes": "mean logits of each poster and its enlarged middle (--tta=sizes)",
        "mirror,sizes": "mean logits of each poster, its enlarged middle and the mirror images of "
        "both (--tta=mirror,sizes)",
    }[tta]


def _make_flag(field: dataclasses.Field) -> flags.Flag:
    meaning, choices = field.metadata["meaning"], field.metadata["choices"]
    if choices:
        return flags.EnumFlag(field.name, field.default, meaning, choices)
    if field.type is bool:
        return flags.BooleanFlag(field.name, field.default, meaning)
    parsers = {int: flags.IntegerParser, float: flags.FloatParser, str: flags.ArgumentParser}
    serializer = flags.ArgumentSerializer()
    return flags.Flag(parsers[field.type](), serializer, field.name, field.default, meaning)


def from_flags(names: Sequence[str] = (), preset: Mapping[str, Any] | None = None) -> Config:
    """Returns the settings that the flags of `define_flags(names)` give.

    `preset` has the values of settings whose flags are not given.

    Raises:
        UsageError: a setting cannot be used.
    """
    names = names or [field.name for field in dataclasses.fields(Config)]
    given = {name: flags.FLAGS[name].value for name in names}
    chosen = {name: v for name, v in (preset or {}).items() if not flags.FLAGS[name].present}
    return Config(**{**given, **chosen})
