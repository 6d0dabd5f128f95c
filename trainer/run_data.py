"""What a run reads: its splits, opened once, and batches of posters or of their features."""

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.client import device_lib

from poster_tfds import machine
from trainer import config as config_lib, inference, runtime, steps
from trainer.data import order, pipeline, rows as rows_lib, splits, stream, test_time

_MEMORY_SHARE = 0.5  # Of the free memory, or room on disk, that `auto` takes.
_DEVICE_SHARE = 0.3
_Batches = Callable[[tf.distribute.InputContext], tf.data.Dataset]


class Cache(NamedTuple):
    """Where decoded posters, or features, are kept, and why there."""

    name: str  # device, memory, disk or none.
    reason: str


class RunData(NamedTuple):
    """The splits of a run."""

    train: splits.Split
    evaluated: Sequence[splits.Split]  # During training.
    validation: str  # The one on which the best checkpoint is chosen; empty: none.
    cache: Cache
    spec: pipeline.TrainSpec
    steps_per_epoch: int


class Inputs(NamedTuple):
    """Functions of a worker's place among all to its endless batches."""

    train: _Batches
    evaluated: dict[str, _Batches]
    # Function of a batch to the `image` and `genres` to train on, in the step.
    augment: Callable[[dict[str, tf.Tensor]], dict[str, tf.Tensor]]


def open_data(config: config_lib.Config, num_workers: int = 1) -> RunData:
    """Opens the splits that the settings name, and counts the train split's genres if need be.

    Raises:
        config.UsageError: there is no such dataset or split, or it is damaged or too small.
    """
    train = splits.open_split(config.dataset, config.data_dir, config.train_split)
    validation = choose_validation(config, train)
    if config.patience and not validation:
        raise config_lib.UsageError(
            f"--patience={config.patience} looks at a validation split, and there is none: give "
            "--train_split='train[:85%]' --validation_split='train[85%:]', or leave it out."
        )
    names = dict.fromkeys(name for name in (validation, config.test_split) if name)
    evaluated = [splits.Split(train.builder, name) for name in names]
    if config.data_service:
        runtime.check_reachable("--data_service", config.data_service)
        cache = Cache("none", f"{config.data_service} reads the train split")
    else:
        num_posters = sum(split.num_examples for split in (train, *evaluated))
        cache = choose_cache(config, num_posters, config.image_size**2 * 3)
    if config.examples_per_step > train.num_examples:
        raise config_lib.UsageError(
            f"--batch_size={config.batch_size}: a step has {config.examples_per_step} posters, and "
            f"{train} has {train.num_examples}. Give --batch_size="
            f"{max(train.num_examples // config.accumulate_steps, 1)} or less."
        )
    if cache.name == "none" and config.freeze != config_lib.BACKBONE:
        steps_per_epoch = stream.steps_per_epoch(train, config.examples_per_step, num_workers)
    else:
        steps_per_epoch = train.num_examples // config.examples_per_step
    _ = train.genre_counts  # Counted, if need be, before the run begins.
    return RunData(train, evaluated, validation, cache, make_spec(config, cache), steps_per_epoch)


def choose_validation(config: config_lib.Config, train: splits.Split) -> str:
    """Returns the name of the split to choose the best checkpoint on; empty: none."""
    if config.validation_split != "auto":
        return config.validation_split
    return "validation" if "validation" in train.builder.info.splits else ""


def make_spec(config: config_lib.Config, cache: Cache) -> pipeline.TrainSpec:
    """Returns what the training step is fed with."""
    frozen = config.freeze == config_lib.BACKBONE
    on_device = config.augment_on == "device" or (
        config.augment_on == "auto" and bool(tf.config.list_logical_devices("GPU"))
    )
    has_rows = cache.name == "device" and not frozen
    return pipeline.TrainSpec(
        config.image_size,
        config.examples_per_step,
        config.seed,
        () if frozen else config.augmentations,
        augment_on_device=on_device or has_rows,
        randaugment=config.randaugment,
        mixup=config.mixup,
        cutmix=config.cutmix,
        rows_on_device=has_rows,
    )


def choose_cache(config: config_lib.Config, num_examples: int, bytes_of_one: int) -> Cache:
    """Resolves `--cache`: with `auto`, to the first place where there is room.

    Args:
        config: its `cache` and `cache_dir` count.
        num_examples: of all splits.
        bytes_of_one: that an example takes.
    """
    size = num_examples * bytes_of_one
    frozen = config.freeze == config_lib.BACKBONE
    if frozen and config.cache in ("none", "device"):
        return Cache("memory", "features of a frozen backbone are needed in each epoch")
    if config.cache == "memory" and size > (free := machine.available_memory()):
        raise config_lib.UsageError(
            f"--cache=memory: {size / 1e9:.2f} GB do not fit in the {free / 1e9:.1f} GB of free "
            "memory. Give --cache=disk, or none."
        )
    if config.cache != "auto":
        return Cache(config.cache, f"as --cache={config.cache} says")
    rooms = {
        "device": (_DEVICE_SHARE * _free_on_device(), "the GPU's free memory"),
        "memory": (_MEMORY_SHARE * machine.available_memory(), "the free memory"),
        "disk": (
            _MEMORY_SHARE * machine.free_disk(config.cache_dir),
            f"the disk of {config.cache_dir}",
        ),
    }
    if frozen:
        del rooms["device"]
    for name, (room, where) in rooms.items():
        if size <= room:
            return Cache(name, f"{size / 1e9:.2f} GB, of at most {room / 1e9:.1f} GB of {where}")
    reason = f"{size / 1e9:.2f} GB of decoded posters have no room in memory or on disk"
    return Cache("disk" if frozen else "none", reason)


def open_inputs(
    config: config_lib.Config,
    data: RunData,
    model: keras.Model,
    strategy: tf.distribute.Strategy,
    start_step: int = 0,
    should_stop: Callable[[], bool] = lambda: False,
) -> Inputs | None:
    """Returns batches of posters, or of the features that a frozen backbone has for them.

    Args:
        config: the settings.
        data: the run's splits.
        model: what is trained.
        strategy: where the replicas are.
        start_step: steps that an interrupted run has taken.
        should_stop: whether to give up filling rows, asked again and again.

    Returns:
        The batches, or None if it was given up.

    Raises:
        config.UsageError: rows cannot be kept where they are to be.
    """
    spec, frozen = data.spec, config.freeze == config_lib.BACKBONE
    if data.cache.name == "none" and not frozen:
        return _stream_inputs(config, data, start_step)
    rows = {}
    for split in (data.train, *data.evaluated):
        if split.name in rows:
            continue
        is_train = split is data.train
        if frozen:
            views = "mirror" if is_train and "flip" in config.augmentations else "none"
            backbone = model.get_layer(config_lib.BACKBONE)
            about = _describe_features(config, split, backbone, views)
            parts = functools.partial(
                _compute_features, config, split, backbone, views, strategy, should_stop
            )
        else:
            about = rows_lib.describe(split, config.image_size)
            parts = functools.partial(rows_lib.decode, split, config.image_size, should_stop)
        filled = _fill(config, data.cache, split, about, parts)
        if filled is None:
            return None
        rows[split.name] = filled
    augment = spec.augment_batch
    if spec.rows_on_device:
        on_device = rows_lib.OnDevice(rows[data.train.name], strategy)

        def augment(batch):
            return spec.augment_batch(on_device.look_up(batch))

    return Inputs(
        functools.partial(
            rows_lib.train_batches, rows[data.train.name], spec, start_step=start_step
        ),
        {
            split.name: functools.partial(
                rows_lib.eval_batches, rows[split.name], config.batch_size
            )
            for split in data.evaluated
        },
        augment,
    )


def poster_ids_of_step(config: config_lib.Config, data: RunData, step: int) -> list[str]:
    """Returns the Ids of the posters that a run trains on in a step, counted from 1."""
    numbers = order.rows_of_step(
        data.train.num_examples, config.examples_per_step, config.seed, step - 1
    )
    ids = data.train.read_ids()
    return [ids[number] for number in numbers]


def _stream_inputs(config: config_lib.Config, data: RunData, start_step: int) -> Inputs:
    return Inputs(
        functools.partial(
            stream.train_batches,
            data.train,
            data.spec,
            config.shuffle_buffer,
            start_step=start_step,
            service=config.data_service,
        ),
        {
            split.name: functools.partial(
                stream.eval_batches, split, config.image_size, config.batch_size
            )
            for split in data.evaluated
        },
        data.spec.augment_batch,
    )


def _fill(
    config: config_lib.Config,
    cache: Cache,
    split: splits.Split,
    about: dict[str, Any],
    parts: Callable[[], rows_lib.Parts],
) -> rows_lib.Rows | None:
    """Returns the rows of a split: found on disk, or filled; None if a stop was asked for."""
    if cache.name != "disk":
        return rows_lib.in_memory(parts(), split.num_examples)
    if found := rows_lib.find(config.cache_dir, about):
        print(f"{split}: as kept in {config.cache_dir}", flush=True)
        return found
    return rows_lib.on_disk(parts(), split.num_examples, config.cache_dir, about)


def _compute_features(
    config: config_lib.Config,
    split: splits.Split,
    backbone: keras.Model,
    views: str,
    strategy: tf.distribute.Strategy,
    should_stop: Callable[[], bool],
) -> rows_lib.Parts:
    """Yields features, float32 [M, V, F], and genres of a split, computed on all replicas."""

    def compute(images, training):
        features = [backbone(view, training=training) for view in test_time.variants(images, views)]
        return tf.cast(tf.stack(features, axis=1), tf.float32)

    posters = functools.partial(stream.eval_batches, split, config.image_size, config.batch_size)
    with split.damage_named():
        for genres, values in inference.parts(
            steps.make_eval_step(compute, strategy),
            iter(strategy.distribute_datasets_from_function(posters)),
            pipeline.num_eval_steps(split.num_examples, config.batch_size),
            f"features of {split}",
            should_stop,
        ):
            yield values, genres


def _describe_features(
    config: config_lib.Config, split: splits.Split, backbone: keras.Model, views: str
) -> dict[str, Any]:
    digest = hashlib.sha256()
    for weight in backbone.get_weights():
        digest.update(np.ascontiguousarray(weight).tobytes())
    return rows_lib.describe(
        split,
        config.image_size,
        model=config.model,
        weights=digest.hexdigest(),
        precision=sorted({layer.compute_dtype for layer in backbone.layers}),
        views=views,
        batch_size=config.batch_size,  # Its kernels may round otherwise.
    )


def _free_on_device() -> int:
    """Returns the bytes that TensorFlow may take of the GPU with the least of them; 0: no GPU."""
    if not tf.config.list_logical_devices("GPU"):
        return 0
    devices = device_lib.list_local_devices()
    return min(device.memory_limit for device in devices if device.device_type == "GPU")
