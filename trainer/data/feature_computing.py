"""The features of a run's splits: read, or computed on all replicas, in memory or in files."""

import contextlib
import functools
import os
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from trainer import config as config_lib, inference, steps
from trainer.data import caching, feature_files, features as features_lib, pipeline
from trainer.run import directory


def compute(
    config: config_lib.Config,
    specs: Sequence[pipeline.PipelineSpec],
    run: directory.RunDirectory,
    backbone: keras.Model,
    strategy: tf.distribute.Strategy,
    should_stop: Callable[[], bool],
) -> dict[str, features_lib.Features] | None:
    """Returns the features of splits, by their names, or None if `should_stop` said so.

    `specs` say how the splits are read, that of the train split first; the features are kept in
    `run` if there is no memory for them.

    Raises:
        config.UsageError: `--features_dir` cannot be used, or there is no room.
    """
    train = specs[0].split.name
    of_names = {spec.split.name: spec for spec in specs}  # One may be train itself.
    mirrored = {name: name == train and "flip" in config.augmentations for name in of_names}
    num_posters = sum(
        spec.split.num_examples * (1 + mirrored[name]) for name, spec in of_names.items()
    )
    folder = _choose_folder(config, run, 4 * num_posters * backbone.output_shape[-1], strategy)
    features = {}
    for name, spec in of_names.items():
        collector: features_lib.Collector | feature_files.Collector
        collector = features_lib.Collector(spec.split.num_examples)
        if folder:
            about = feature_files.describe(config, spec.split, backbone, mirrored[name])
            if kept := feature_files.read(folder, about):
                print(f"features of {name}: those in {folder}", flush=True)
                features[name] = kept
                continue
            collector = feature_files.Collector(folder, about)
        posters = functools.partial(pipeline.eval_batches, spec)
        with contextlib.closing(collector), spec.split.damage_named():
            speed = inference.go_through(
                steps.make_eval_step(features_lib.variants(backbone, mirrored[name]), strategy),
                iter(strategy.distribute_datasets_from_function(posters)),
                spec.batching.steps_per_pass,
                f"features of {name}",
                collector.take,
                should_stop,
            )
            if speed is None:
                return None
            features[name] = collector.finish()
    return features


def _choose_folder(
    config: config_lib.Config,
    run: directory.RunDirectory,
    num_bytes: int,
    strategy: tf.distribute.Strategy,
) -> str | os.PathLike:
    """Returns where features of so many bytes are to be; empty: in memory.

    Raises:
        config.UsageError: `--features_dir` is given with several workers.
    """
    has_workers = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    if config.features_dir and has_workers:
        raise config_lib.UsageError(
            f"--features_dir={config.features_dir} is for one process: leave it out with several "
            "workers."
        )
    if config.features_dir or has_workers:
        return config.features_dir
    cache = caching.choose_feature_cache(num_bytes)
    print(f"features {cache.name}: {cache.reason}", flush=True)
    return run.new_cache(0) if cache.name == "on disk" else ""
