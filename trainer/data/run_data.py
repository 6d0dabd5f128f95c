"""What a run reads: its splits, opened once, and batches of posters or of their features."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from trainer import config as config_lib, runtime
from trainer.data import (
    batching as batching_lib,
    caching,
    feature_computing,
    features as features_lib,
    order,
    pipeline,
    splits,
)
from trainer.run import directory

_Batches = Callable[[tf.distribute.InputContext], tf.data.Dataset]


class RunData(NamedTuple):
    """The splits of a run."""

    train: splits.Split
    evaluated: Sequence[splits.Split]  # During training.
    validation: str  # The one on which the best checkpoint is chosen; empty: none.
    cache: caching.Cache  # Of the train split.
    steps_per_epoch: int


class Inputs(NamedTuple):
    """Functions of a worker's place among all to its endless batches."""

    train: _Batches
    evaluated: dict[str, _Batches]


def open_data(config: config_lib.Config) -> RunData:
    """Opens the splits that the settings name.

    Raises:
        config.UsageError: there is no such dataset or split, it is damaged, or the train split has
            fewer posters than a batch.
    """
    train = splits.open_split(config.dataset, config.data_dir, config.train_split)
    steps_per_epoch = train.num_examples // config.examples_per_step
    if not steps_per_epoch:
        largest = max(train.num_examples // config.accumulate_steps, 1)
        in_parts = f" with --accumulate_steps={config.accumulate_steps}"
        raise config_lib.UsageError(
            f"--batch_size={config.batch_size}{in_parts if config.accumulate_steps > 1 else ''}: "
            f"{train.name} has {train.num_examples} posters, fewer than the "
            f"{config.examples_per_step} of a step. Give --batch_size={largest} or less."
        )
    validation = choose_validation(config, train)
    if config.patience and not validation:
        raise config_lib.UsageError(
            f"--patience={config.patience} looks at a validation split, and there is none: give "
            "--train_split='train[:85%]' --validation_split='train[85%:]', or leave it out."
        )
    evaluated = dict.fromkeys(name for name in (validation, config.test_split) if name)
    if config.freeze == config_lib.BACKBONE:
        cache = caching.Cache("none", "posters are read once, for their features")
    elif config.data_service:
        runtime.check_reachable("--data_service", config.data_service)
        cache = caching.Cache("none", f"{config.data_service} reads the train split")
    else:
        cache = caching.choose_cache(config.cache, train, config.image_size)
    return RunData(
        train,
        [splits.Split(train.builder, name) for name in evaluated],
        validation,
        cache,
        steps_per_epoch,
    )


def choose_validation(config: config_lib.Config, train: splits.Split) -> str:
    """Returns the name of the split to choose the best checkpoint on; empty: none."""
    if config.validation_split != "auto":
        return config.validation_split
    return "validation" if "validation" in train.builder.info.splits else ""


def make_spec(
    config: config_lib.Config, split: splits.Split, **changes: Any
) -> pipeline.PipelineSpec:
    """Returns what a pipeline of posters needs for evaluation; `changes` are of its attributes."""
    settings = {"batch_size": config.batch_size, **changes}
    return pipeline.PipelineSpec(split, config.image_size, **settings)


def make_train_spec(
    config: config_lib.Config, split: splits.Split, **changes: Any
) -> pipeline.PipelineSpec:
    """Returns what a pipeline of posters needs for training; `changes` are of its attributes."""
    # A frozen backbone's features are shuffled whole.
    frozen = config.freeze == config_lib.BACKBONE
    augment = () if frozen else config.augmentations
    on_device = config.augment_on == "device" or (
        config.augment_on == "auto" and bool(tf.config.list_logical_devices("GPU"))
    )
    return make_spec(
        config,
        split,
        batch_size=config.examples_per_step,
        seed=config.seed,
        shuffle_buffer=split.num_examples if frozen else config.shuffle_buffer,
        augment=augment,
        augment_on_device=bool(augment) and on_device,
        randaugment=config.randaugment,
        mixup=config.mixup,
        cutmix=config.cutmix,
        **changes,
    )


def poster_ids_of_step(config: config_lib.Config, split: splits.Split, step: int) -> list[str]:
    """Returns the Ids of the posters that a run without a data service trains on in a step.

    Steps are counted from 1.
    """
    batching = make_train_spec(config, split, start_step=step - 1).batching
    epoch, batch = batching.start
    number = tf.constant(epoch, tf.int64)
    if config.freeze == config_lib.BACKBONE:
        in_order = batching.shuffled(split.read().map(lambda e: e["poster_id"]), number)
    else:
        in_order = order.in_order(order.lanes(split), batching)(number)
        in_order = in_order.map(lambda record: split.parse(record)["poster_id"])
    of_step = in_order.skip(batch * batching.batch_size).take(batching.batch_size)
    return [name.decode() for name in batching_lib.finish(of_step).as_numpy_iterator()]


def open_inputs(
    config: config_lib.Config,
    data: RunData,
    run: directory.RunDirectory,
    model: keras.Model,
    strategy: tf.distribute.Strategy,
    start_step: int = 0,
    should_stop: Callable[[], bool] = lambda: False,
) -> Inputs | None:
    """Returns batches of posters, or of the features that a frozen backbone has for them.

    They begin after `start_step` batches that an interrupted run has trained on. Where features
    are computed, `should_stop` is asked again and again; it is None if that said so.

    Raises:
        config.UsageError: features cannot be kept where they are to be.
    """
    if config.freeze != config_lib.BACKBONE:
        return _poster_inputs(config, data, run, start_step)
    features = feature_computing.compute(
        config,
        [make_spec(config, split) for split in (data.train, *data.evaluated)],
        run,
        model.get_layer(config_lib.BACKBONE),
        strategy,
        should_stop,
    )
    return features and _feature_inputs(config, data, features, start_step)


def _poster_inputs(
    config: config_lib.Config, data: RunData, run: directory.RunDirectory, start_step: int
) -> Inputs:
    spec = make_train_spec(config, data.train, cache=data.cache.name, start_step=start_step)

    def train(context):
        if config.data_service:
            return pipeline.service_batches(spec, config.data_service, context)
        if spec.cache != "disk":
            return pipeline.train_batches(spec, context)
        file = run.new_cache(context.input_pipeline_id) / "posters"
        return pipeline.train_batches(
            dataclasses.replace(spec, cache_file=os.fspath(file)), context
        )

    # Read once an epoch, they need not take the room that decoded posters do.
    cache = "none" if data.cache.name == "none" else "encoded"
    return Inputs(
        train,
        {
            split.name: functools.partial(
                pipeline.eval_batches, make_spec(config, split, cache=cache)
            )
            for split in data.evaluated
        },
    )


def _feature_inputs(
    config: config_lib.Config,
    data: RunData,
    features: Mapping[str, features_lib.Features],
    start_step: int,
) -> Inputs:
    train = make_train_spec(config, data.train, start_step=start_step)
    return Inputs(
        functools.partial(features_lib.train_batches, features[data.train.name], train.batching),
        {
            split.name: functools.partial(
                features_lib.eval_batches,
                features[split.name],
                make_spec(config, split).batching,
            )
            for split in data.evaluated
        },
    )
