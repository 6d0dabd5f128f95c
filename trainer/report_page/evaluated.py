"""A run's best model gone once through a split."""

import math
import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from poster_tfds import source
from trainer import (
    checkpoints,
    config as config_lib,
    datasets,
    input_pipeline,
    prediction,
    run_directory,
    steps,
)


class Evaluated(NamedTuple):
    """What the model answered, and what there is to know of the posters."""

    run: run_directory.RunDirectory
    config: config_lib.Config
    facts: dict[str, Any]  # Of `config.json`, with `checkpoint`.
    builder: tfds.core.DatasetBuilder
    split: str
    train_counts: np.ndarray  # int [G], posters of each genre in the train split.
    labels: np.ndarray  # float32 [N, G], multi-hot.
    logits: np.ndarray  # float32 [N, G].
    poster_ids: list[str]  # [N]
    leaked: np.ndarray  # bool [N], whether a poster's bytes stand in the train split too.


def evaluate_run(run_dir: str, split: str, data_dir: str = "") -> Evaluated:
    """Restores a run's best model in float32 and has it answer for a split.

    Args:
        run_dir: of the run.
        split: a split of its dataset, or a part of one.
        data_dir: where the dataset is built; empty: where the run has read it.

    Raises:
        config.UsageError: there is no such run or split, or the dataset is not there, is
            another now, or is damaged.
    """
    run = run_directory.RunDirectory(run_dir)
    config, _ = run.read_config()
    builder = datasets.open_dataset(config.dataset, data_dir or config.data_dir)
    size = datasets.num_examples(builder, split)
    num_train = datasets.num_examples(builder, config.train_split)
    genres = datasets.genre_names(builder)
    run.check_same_data(genres, num_train)
    model, facts = checkpoints.restore_model(run_dir)

    train_digests, train_counts = set(), np.zeros(len(genres), int)
    with datasets.damage_named(builder, config.train_split):
        for example in datasets.read(builder, config.train_split).as_numpy_iterator():
            train_digests.add(source.poster_digest(example["image"]))
            train_counts[example["genres"]] += 1
    poster_ids, leaked = [], []
    with datasets.damage_named(builder, split):
        for example in datasets.read(builder, split).as_numpy_iterator():
            poster_ids.append(example["poster_id"].decode())
            leaked.append(source.poster_digest(example["image"]) in train_digests)
        # Its order is that of `datasets.read`.
        batches = input_pipeline.eval_dataset(
            builder,
            split,
            image_size=config.image_size,
            batch_size=config.batch_size,
            cached=False,
        )
        predicted = prediction.predict(
            steps.make_eval_step(model, tf.distribute.get_strategy()),
            iter(batches),
            math.ceil(size / config.batch_size),
            f"evaluating {split}",
            should_stop=lambda: False,
        )
    return Evaluated(
        run,
        config,
        facts,
        builder,
        split,
        train_counts,
        predicted.labels,
        predicted.outputs,
        poster_ids,
        np.array(leaked),
    )


def read_posters(evaluated: Evaluated, wanted: Iterable[int]) -> dict[int, bytes]:
    """Returns the JPEGs of the posters with these numbers in the split."""
    wanted = set(map(int, wanted))
    with datasets.damage_named(evaluated.builder, evaluated.split):
        examples = datasets.read(evaluated.builder, evaluated.split).as_numpy_iterator()
        return {i: example["image"] for i, example in enumerate(examples) if i in wanted}


def checkpoint_step(evaluated: Evaluated) -> int:
    """Returns the step that the model is of."""
    return int(pathlib.Path(evaluated.facts["checkpoint"]).name)
