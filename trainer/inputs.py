"""What a run reads: its dataset, and batches of posters or of their features."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from trainer import (
    config as config_lib,
    datasets,
    features as features_lib,
    input_pipeline,
    prediction,
    run_directory,
    runtime,
    steps,
)


class RunData(NamedTuple):
    """The dataset of a run."""

    builder: tfds.core.DatasetBuilder
    genres: list[str]
    num_train: int
    steps_per_epoch: int
    base_rates: np.ndarray  # float64 [G], of the train split.
    cache: input_pipeline.Cache
    validation_split: str  # On which the best checkpoint is chosen; empty: none.
    eval_splits: dict[str, int]  # Their sizes.


class Inputs(NamedTuple):
    """Functions of a worker's place among all to its endless batches."""

    train: Callable[[tf.distribute.InputContext], tf.data.Dataset]
    evaluated: dict[str, Callable[[tf.distribute.InputContext], tf.data.Dataset]]


def open_data(config: config_lib.Config) -> RunData:
    """Opens the dataset that the settings name.

    Raises:
        config.UsageError: there is none, it is damaged, or it lacks a split.
    """
    builder = datasets.open_dataset(config.dataset, config.data_dir)
    num_train = datasets.num_examples(builder, config.train_split)
    validation = datasets.validation_split(builder, config.validation_split)
    eval_splits = [split for split in (validation, config.test_split) if split]
    if config.freeze == config_lib.BACKBONE:
        cache = input_pipeline.Cache("none", "posters are read once, for their features")
    elif config.data_service:
        runtime.check_reachable("--data_service", config.data_service)
        cache = input_pipeline.Cache("none", f"{config.data_service} reads the train split")
    else:
        cache = input_pipeline.choose_cache(
            config.cache, builder, config.train_split, config.image_size
        )
    with datasets.damage_named(builder, config.train_split):
        base_rates = datasets.base_rates(builder, config.train_split)
    return RunData(
        builder,
        datasets.genre_names(builder),
        num_train,
        math.ceil(num_train / config.batch_size),
        base_rates,
        cache,
        validation,
        {split: datasets.num_examples(builder, split) for split in eval_splits},
    )


def poster_inputs(
    config: config_lib.Config,
    data: RunData,
    run: run_directory.RunDirectory,
    start_step: int,
) -> Inputs:
    """Returns batches of posters, from where an interrupted run left off."""

    def train(context):
        create = functools.partial(
            input_pipeline.train_dataset,
            cache=data.cache.name,
            cache_file=run.new_cache_file(context.input_pipeline_id)
            if data.cache.name == "disk"
            else "",
        )
        if config.data_service:
            create = functools.partial(input_pipeline.service_dataset, service=config.data_service)
        return create(
            data.builder,
            config.train_split,
            image_size=config.image_size,
            batch_size=config.batch_size,
            shuffle_buffer=config.shuffle_buffer,
            seed=config.seed,
            start_step=start_step,
            augment=config.augmentations,
            context=context,
        )

    # Read once an epoch, they need not take the room that decoded posters do.
    cached = data.cache.name != "none"
    return Inputs(
        train,
        {split: _eval_posters(config, data, split, cached) for split in data.eval_splits},
    )


def feature_inputs(
    config: config_lib.Config,
    data: RunData,
    backbone: keras.Model,
    strategy: tf.distribute.Strategy,
    start_step: int,
    should_stop: Callable[[], bool],
) -> Inputs | None:
    """Computes the features of all posters on all replicas, and returns batches of them.

    Args:
        config: the settings.
        data: the run's dataset.
        backbone: model of posters to features.
        strategy: where the replicas are.
        start_step: batches that an interrupted run has trained on.
        should_stop: whether to give up, asked again and again.

    Returns:
        The batches, or None if it was given up.
    """
    features = {}
    for split in dict.fromkeys([config.train_split, *data.eval_splits]):
        mirrored = split == config.train_split and "flip" in config.augmentations
        compute = steps.make_eval_step(features_lib.variants(backbone, mirrored), strategy)
        posters = _eval_posters(config, data, split, cached=False)
        batches = iter(strategy.distribute_datasets_from_function(posters))
        num_steps = math.ceil(datasets.num_examples(data.builder, split) / config.batch_size)
        with datasets.damage_named(data.builder, split):
            predicted = prediction.predict(
                compute, batches, num_steps, f"features of {split}", should_stop
            )
        if predicted is None:
            return None
        features[split] = features_lib.Features(predicted.outputs, predicted.labels)

    def train(context):
        return features_lib.train_dataset(
            features[config.train_split],
            batch_size=config.batch_size,
            seed=config.seed,
            start_step=start_step,
            context=context,
        )

    def evaluated(split):
        return lambda context: features_lib.eval_dataset(
            features[split], batch_size=config.batch_size, context=context
        )

    return Inputs(train, {split: evaluated(split) for split in data.eval_splits})


def _eval_posters(config: config_lib.Config, data: RunData, split: str, cached: bool):
    return lambda context: input_pipeline.eval_dataset(
        data.builder,
        split,
        image_size=config.image_size,
        batch_size=config.batch_size,
        cached=cached,
        context=context,
    )
