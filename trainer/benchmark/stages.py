"""The trainer's own stages, each a function that takes a turn of some seconds, and their clock."""

import dataclasses
import functools
import pathlib
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import keras
import tensorflow as tf
import tqdm

from trainer import config as config_lib, run_data, steps
from trainer.data import pipeline, preprocessing, rows as rows_lib, splits, stream
from trainer.models import optimizer as optimizer_lib, registry

_COUNTED = 64  # Examples counted at a time in the stages before batching.
_MATMUL_SIZE = 4096
_WARM_UP = 3  # Steps before the clock counts: they compile, or take what was prefetched.


class Turn(NamedTuple):
    """What was done while the clock counted."""

    images: int
    seconds: float
    cpu_seconds: float

    def __add__(self, other: "Turn") -> "Turn":
        return Turn(*map(sum, zip(self, other, strict=True)))

    def figures(self) -> dict[str, float]:
        return {
            "images_per_second": self.images / self.seconds,
            "cpu_ms_per_image": 1000 * self.cpu_seconds / self.images,
            "cores_busy": self.cpu_seconds / self.seconds,
        }


Stage = Callable[[float], Turn]


def take_turn(step: Callable[[], int], seconds: float) -> Turn:
    """Calls `step`, which returns how many images it did, until the time is over."""
    for _ in range(_WARM_UP):
        step()
    images = 0
    start, cpu_start = time.perf_counter(), time.process_time()
    while not images or time.perf_counter() - start < seconds:
        images += step()
    return Turn(images, time.perf_counter() - start, time.process_time() - cpu_start)


def take_turns(stages: dict[str, Stage], seconds: float, count: int) -> dict[str, Turn]:
    """Times stages in turns, each for `seconds` in all, so that a busy moment hits all alike."""
    measured = {}
    for _ in range(count):
        for name, take in tqdm.tqdm(stages.items(), leave=False, disable=not sys.stderr.isatty()):
            turn = take(seconds / count)
            measured[name] = measured[name] + turn if name in measured else turn
    return measured


def peak_memory() -> int:
    """Returns the most memory that this process has held, in bytes."""
    # Not `getrusage`: there a new process starts with its parent's.
    words = pathlib.Path("/proc/self/status").read_text().split()
    return int(words[words.index("VmHWM:") + 1]) * 1024


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

    def decode(example):
        return tf.size(preprocessing.decode(example["image"]))

    def resize(example):
        return tf.size(preprocessing.decode_and_resize(example["image"], config.image_size))

    counted = {
        "read": records.map(tf.strings.length),
        "parse": examples.map(lambda example: tf.strings.length(example["image"])),
        "decode": examples.map(decode, num_parallel_calls=threads),
        "resize": examples.map(resize, num_parallel_calls=threads),
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
        *(model, optimizer, tf.distribute.get_strategy()),
        computation=steps.Computation(config.jit_compile),
    )
    spec = run_data.make_spec(config, run_data.Cache("memory", ""))
    fed_step = make_train_step(augment=spec.augment_batch)

    def fed_by(batches, train_step=fed_step) -> Stage:
        def step() -> int:
            train_step(batches)["loss"].numpy()  # Waits for the device.
            return config.batch_size

        return functools.partial(take_turn, step)

    batch = resident_batch(config.image_size, config.batch_size, num_genres)
    resident = iter(tf.data.Dataset.from_tensors(batch).repeat())
    rows = rows_lib.in_memory(rows_lib.decode(split, config.image_size), split.num_examples)
    warm = iter(rows_lib.train_batches(rows, spec))
    on_device = dataclasses.replace(spec, rows_on_device=True, augment_on_device=True)
    return {
        "step_resident": fed_by(resident, make_train_step()),  # As it is.
        "row_numbers": _consume(rows_lib.train_batches(rows, on_device)),
        "warm_pipeline": _consume(warm),
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
    best, end = float("inf"), time.perf_counter() + seconds
    while (start := time.perf_counter()) < end or best == float("inf"):
        product().numpy()
        best = min(best, time.perf_counter() - start)
    return 2 * _MATMUL_SIZE**3 / best


def _stream(split: splits.Split, config: config_lib.Config) -> tf.data.Dataset:
    spec = run_data.make_spec(config, run_data.Cache("none", ""))
    return stream.train_batches(split, spec, config.shuffle_buffer)


def _consume(batches) -> Stage:
    iterator = iter(batches)
    return functools.partial(take_turn, lambda: len(tf.nest.flatten(next(iterator))[0]))
