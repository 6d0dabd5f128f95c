"""The trainer's own stages: each a function that takes a turn of some seconds."""

import dataclasses
import functools
import time
from collections.abc import Callable

import keras
import tensorflow as tf

from trainer import config as config_lib, run_data, steps
from trainer.benchmark import turns
from trainer.data import pipeline, preprocessing, rows as rows_lib, splits, stream
from trainer.models import optimizer as optimizer_lib, registry

Stage = Callable[[float], turns.Turn]
_COUNTED = 64  # Examples counted at a time in the stages before batching.
_MATMUL_SIZE = 4096


def pipeline_stages(split: splits.Split, config: config_lib.Config) -> dict[str, Stage]:
    """Returns the stages of the cold pipeline, each with what comes before it.

    Only `cold_pipeline` copies posters into batches; the others count them.
    """
    threads = pipeline.num_threads(split)
    examples = split.read()
    records = tf.data.TFRecordDataset(
        [str(path) for path in split.builder.info.splits[split.name].filepaths],
        num_parallel_reads=threads,
    )
    decoded = examples.map(
        lambda example: preprocessing.decode(example["image"]),
        num_parallel_calls=threads,
    )
    resized = examples.map(
        lambda example: preprocessing.decode_and_resize(example["image"], config.image_size),
        num_parallel_calls=threads,
    )
    counted = {
        "read": records.map(tf.strings.length),
        "parse": examples.map(lambda example: tf.strings.length(example["image"])),
        "decode": decoded.map(tf.size),
        "resize": resized.map(tf.size),
    }
    stages = {
        name: _consume(pipeline.finish(dataset.repeat().batch(_COUNTED), split))
        for name, dataset in counted.items()
    }
    stages["cold_pipeline"] = _consume(_stream(split, config))
    stages["fill_rows"] = _consume(rows_lib.decoded(split, config.image_size).repeat())
    return stages


def training_stages(
    split: splits.Split, config: config_lib.Config, precision: str
) -> dict[str, Stage]:
    """Returns the training step on a resident batch and fed, and the warm pipeline alone."""
    num_genres = len(split.genres)
    model = registry.create_model(config, num_genres, precision)
    optimizer = optimizer_lib.create_optimizer(config, precision, 1)
    optimizer.build(model.trainable_variables)
    make_train_step = functools.partial(
        steps.make_train_step,
        model,
        optimizer,
        tf.distribute.get_strategy(),
        computation=steps.Computation(config.jit_compile),
    )
    # A resident batch is trained on as it is.
    resident_step = make_train_step()
    spec = run_data.make_spec(config, run_data.Cache("memory", ""))
    fed_step = make_train_step(augment=spec.augment_batch)

    def fed_by(batches, train_step=fed_step) -> Stage:
        def step() -> int:
            train_step(batches)["loss"].numpy()  # Waits for the device.
            return config.batch_size

        return functools.partial(turns.take_turn, step)

    batch = resident_batch(config.image_size, config.batch_size, num_genres)
    rows = rows_lib.in_memory(rows_lib.decode(split, config.image_size), split.num_examples)
    warm = iter(rows_lib.train_batches(rows, spec))
    on_device = dataclasses.replace(spec, rows_on_device=True, augment_on_device=True)
    numbers = rows_lib.train_batches(rows, on_device)

    return {
        "step_resident": fed_by(iter(tf.data.Dataset.from_tensors(batch).repeat()), resident_step),
        "row_numbers": _consume(numbers),
        "warm_pipeline": functools.partial(turns.take_turn, lambda: _size(next(warm))),
        "step_fed_cold": fed_by(iter(_stream(split, config))),
        "step_fed_warm": fed_by(warm),
    }


def resident_batch(image_size: int, batch_size: int, num_genres: int) -> dict[str, tf.Tensor]:
    """Returns a batch of noise: uint8 [B, S, S, 3] and float32 [B, G]."""
    shape = [batch_size, image_size, image_size, 3]
    noise = tf.random.stateless_uniform(shape, (0, 0), 0, 256, tf.int32)
    return {"image": tf.cast(noise, tf.uint8), "genres": tf.zeros([batch_size, num_genres])}


def matmul_flops(precision: str, seconds: float) -> float:
    """Measures floating-point operations a second of a large matrix product."""
    dtype = keras.DTypePolicy(precision).compute_dtype
    factor = tf.ones([_MATMUL_SIZE, _MATMUL_SIZE], dtype)
    product = tf.function(lambda: tf.matmul(factor, factor)[0, 0])
    product().numpy()
    best = float("inf")
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        start = time.perf_counter()
        product().numpy()
        best = min(best, time.perf_counter() - start)
    return 2 * _MATMUL_SIZE**3 / best


def _stream(split: splits.Split, config: config_lib.Config) -> tf.data.Dataset:
    spec = run_data.make_spec(config, run_data.Cache("none", ""))
    return stream.train_batches(split, spec, config.shuffle_buffer)


def _consume(dataset: tf.data.Dataset) -> Stage:
    iterator = iter(dataset)
    return functools.partial(turns.take_turn, lambda: _size(next(iterator)))


def _size(batch) -> int:
    return len(tf.nest.flatten(batch)[0])
