"""What the trainer is compared with: what a user would take instead.

Each peer runs in a process of its own, so that its memory can be told from ours, and
takes its turns when it is asked to.
"""

import concurrent.futures
import functools
import io
import itertools
import multiprocessing
import sys
import time

import keras
import numpy as np
import tensorflow as tf

from trainer import command_line, config as config_lib
from trainer.benchmark import stages, turns
from trainer.data import splits
from trainer.models import layers, registry

_BATCH = 64
_POSTERS = 1024  # Enough that they do not stay in the processor's caches.
_WARM_UP = 2


class Peer:
    """A peer in a process of its own."""

    def __init__(self, create, *arguments):
        """Starts the process.

        Args:
            create: one of the functions below.
            *arguments: its arguments.
        """
        self._process = concurrent.futures.ProcessPoolExecutor(
            1,
            multiprocessing.get_context("spawn"),
            initializer=command_line.import_stock_tensorflow,
        )
        self._process.submit(_create, create, arguments).result()

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *exception) -> None:
        self._process.shutdown()

    def take_turn(self, seconds: float) -> turns.Turn:
        """Lets the peer run for some seconds."""
        return self._process.submit(_take_turn, seconds).result()

    def peak_memory(self) -> int:
        """Returns the most memory that the process has held, in bytes."""
        return self._process.submit(turns.peak_memory).result()


_stages = []  # In a peer's process: the peer.


def _create(create, arguments) -> None:
    _stages.append(create(*arguments))


def _take_turn(seconds: float) -> turns.Turn:
    return _stages[0](seconds)


def tutorial_loop(config: config_lib.Config) -> stages.Stage:
    """Loads posters one by one into a list, and that into one float array, as the tutorial does."""
    posters = itertools.cycle(_read_posters(config))
    size = (config.image_size, config.image_size, 3)

    def take_turn(seconds: float) -> turns.Turn:
        start, cpu_start = time.perf_counter(), time.process_time()
        loaded = []
        while not loaded or time.perf_counter() - start < seconds:
            image = keras.utils.load_img(io.BytesIO(next(posters)), target_size=size)
            loaded.append(keras.utils.img_to_array(image) / 255)
        images = len(np.array(loaded))
        end, cpu_end = time.perf_counter(), time.process_time()
        return turns.Turn(images, end - start, cpu_end - cpu_start)

    return take_turn


def opencv(config: config_lib.Config) -> stages.Stage:
    """Decodes and resizes with OpenCV on two threads, into batches of uint8."""
    import cv2

    cv2.setNumThreads(1)  # The two threads are the pool's.
    pool = concurrent.futures.ThreadPoolExecutor(2)
    posters = itertools.cycle([np.frombuffer(p, np.uint8) for p in _read_posters(config)])
    size = (config.image_size, config.image_size)

    def load(poster: np.ndarray) -> np.ndarray:
        image = cv2.imdecode(poster, cv2.IMREAD_COLOR_RGB)
        return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)

    def step() -> int:
        return len(np.stack(list(pool.map(load, itertools.islice(posters, _BATCH)))))

    return functools.partial(turns.take_turn, step)


def keras_fit(config: config_lib.Config, num_genres: int) -> stages.Stage:
    """Trains the reference CNN of stock layers with Keras's `fit`, in float32."""
    model = with_stock_layers(
        registry.create_model(
            config_lib.Config(image_size=config.image_size), num_genres, "float32"
        )
    )
    model.compile(
        keras.optimizers.Adam(config.learning_rate),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[keras.metrics.BinaryAccuracy(threshold=0)],
    )
    batch = stages.resident_batch(config.image_size, config.batch_size, num_genres)
    batches = tf.data.Dataset.from_tensors((batch["image"], batch["genres"])).repeat()

    def take_turn(seconds: float) -> turns.Turn:
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
        return turns.Turn(images, end - start, cpu_end - cpu_start)

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


def pytorch(config: config_lib.Config, num_genres: int, precision: str) -> stages.Stage:
    """Trains the reference CNN with PyTorch, channels last, in our precision (no float16)."""
    import torch
    from torch import nn

    channels, side, blocks = 3, config.image_size, []
    for filters, dropout in ((16, 0.3), (32, 0.3), (64, 0.4), (128, 0.5)):
        blocks += [nn.Conv2d(channels, filters, 3), nn.ReLU(), nn.BatchNorm2d(filters, 1e-3, 0.01)]
        blocks += [nn.MaxPool2d(2), nn.Dropout(dropout)]
        channels, side = filters, (side - 2) // 2
    width = channels * side**2
    blocks.append(nn.Flatten())
    for _ in range(2):
        blocks += [nn.Linear(width, 128), nn.ReLU(), nn.BatchNorm1d(128, 1e-3, 0.01)]
        blocks.append(nn.Dropout(0.5))
        width = 128
    model = nn.Sequential(*blocks, nn.Linear(width, num_genres))
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), config.learning_rate, fused=True)
    batch = stages.resident_batch(config.image_size, config.batch_size, num_genres)
    image = torch.from_numpy(batch["image"].numpy()).permute(0, 3, 1, 2)
    genres = torch.from_numpy(batch["genres"].numpy())
    bfloat16 = torch.autocast("cpu", torch.bfloat16, enabled=precision == "mixed_bfloat16")

    def step() -> int:
        optimizer.zero_grad()
        with bfloat16:
            logits = model(image / 255)
        loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), genres)
        loss.backward()
        optimizer.step()
        loss.item()
        return config.batch_size

    return functools.partial(turns.take_turn, step)


def _read_posters(config: config_lib.Config) -> list[bytes]:
    split = splits.open_split(config.dataset, config.data_dir, config.train_split)
    examples = split.read().take(_POSTERS)
    return [example["image"] for example in examples.as_numpy_iterator()]
