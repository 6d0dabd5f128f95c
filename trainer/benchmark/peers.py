"""What the trainer is compared with: what a user would take instead.

Each peer runs in a process of its own, so that its memory can be told from ours, and
takes its turns when it is asked to.
"""

import concurrent.futures
import contextlib
import io
import itertools
import multiprocessing
import sys
import time

import keras
import numpy as np
import tensorflow as tf

from trainer import command_line, config as config_lib
from trainer.benchmark import stages
from trainer.data import splits
from trainer.models import layers, registry

_POSTERS = 1024  # Enough that they do not stay in the processor's caches.
_WARM_UP = 2


class Peer(contextlib.AbstractContextManager):
    """A peer in a process of its own, made there by one of the functions below."""

    def __init__(self, create, *arguments):
        self._process = concurrent.futures.ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), command_line.import_stock_tensorflow
        )
        self._process.submit(_create, create, arguments).result()

    def __exit__(self, *exception) -> None:
        self._process.shutdown()

    def take_turn(self, seconds: float) -> stages.Turn:
        return self._process.submit(_take_turn, seconds).result()

    def peak_memory(self) -> int:
        return self._process.submit(stages.peak_memory).result()


_stages = []  # In a peer's process: the peer.


def _create(create, arguments) -> None:
    _stages.append(create(*arguments))


def _take_turn(seconds: float) -> stages.Turn:
    return _stages[0](seconds)


def tutorial_loop(config: config_lib.Config) -> stages.Stage:
    """Loads posters one by one into a list, and that into one float array, as the tutorial does."""
    split = splits.open_split(config.dataset, config.data_dir, config.train_split)
    examples = split.read().take(_POSTERS).as_numpy_iterator()
    posters = itertools.cycle([example["image"] for example in examples])
    size = (config.image_size, config.image_size, 3)

    def take_turn(seconds: float) -> stages.Turn:
        start, cpu_start = time.perf_counter(), time.process_time()
        loaded = []
        while not loaded or time.perf_counter() - start < seconds:
            image = keras.utils.load_img(io.BytesIO(next(posters)), target_size=size)
            loaded.append(keras.utils.img_to_array(image) / 255)
        images = len(np.array(loaded))
        end, cpu_end = time.perf_counter(), time.process_time()
        return stages.Turn(images, end - start, cpu_end - cpu_start)

    return take_turn


def keras_fit(config: config_lib.Config, num_genres: int) -> stages.Stage:
    """Trains the reference CNN of stock layers with Keras's `fit`, in float32."""
    reference = config_lib.Config(image_size=config.image_size)
    model = with_stock_layers(registry.create_model(reference, num_genres, "float32"))
    model.compile(
        keras.optimizers.Adam(config.learning_rate),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[keras.metrics.BinaryAccuracy(threshold=0)],
    )
    batch = stages.resident_batch(config.image_size, config.batch_size, num_genres)
    batches = tf.data.Dataset.from_tensors((batch["image"], batch["genres"])).repeat()

    def take_turn(seconds: float) -> stages.Turn:
        # From the end of one step to the end of another: `fit` may take seconds to end.
        clock = []

        def on_batch_end(batch, logs):
            del batch, logs
            clock.append((time.perf_counter(), time.process_time()))
            if len(clock) > _WARM_UP + 1:
                model.stop_training = clock[-1][0] - clock[_WARM_UP][0] > seconds

        callback = keras.callbacks.LambdaCallback(on_train_batch_end=on_batch_end)
        model.fit(
            batches, steps_per_epoch=sys.maxsize, shuffle=False, verbose=0, callbacks=[callback]
        )
        (start, cpu_start), (end, cpu_end) = clock[_WARM_UP], clock[-1]
        images = config.batch_size * (len(clock) - 1 - _WARM_UP)
        return stages.Turn(images, end - start, cpu_end - cpu_start)

    return take_turn


def with_stock_layers(model: keras.Sequential) -> keras.Sequential:
    """Returns a model of Keras's own layers in the place of ours, with fresh weights."""
    stock = {
        layers.FusedBatchNormalization: keras.layers.BatchNormalization,
        layers.Dropout: keras.layers.Dropout,
    }

    def clone(layer):
        settings = layer.get_config()
        if "synchronized" in settings:
            settings["synchronized"] = False  # There is one device.
        return stock.get(type(layer), type(layer)).from_config(settings)

    return keras.models.clone_model(model, clone_function=clone)
