"""Where the time goes, on the machine at hand.

    python -m trainer.benchmark --dataset=poster_tfds/imdb --data_dir=data --compare=keras_fit

Everything is measured in one run, so that stages can be compared with each other.
"""

import dataclasses
import json
import pathlib
import resource
import sys
import time
from collections.abc import Callable

from absl import app, flags

from trainer import config as config_lib, startup

_DEFAULTS = config_lib.Config()
_COMPARISONS = ("keras_fit",)
_WARM_UP = 2  # Steps before the clock counts: the first compiles.

_DATASET = flags.DEFINE_string("dataset", _DEFAULTS.dataset, "TFDS dataset, NAME/CONFIG.")
_DATA_DIR = flags.DEFINE_string("data_dir", _DEFAULTS.data_dir, "Where the dataset is built.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", _DEFAULTS.image_size, "Side of the posters.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", _DEFAULTS.batch_size, "Examples a step.")
_PRECISION = flags.DEFINE_string("precision", "auto", "As the trainer's --precision.")
_SECONDS = flags.DEFINE_float("seconds", 10, "How long to measure each stage.", lower_bound=0)
_COMPARE = flags.DEFINE_list(
    "compare", [], f"What to measure beside it, of: {', '.join(_COMPARISONS)}."
)
_JSON = flags.DEFINE_string("json", None, "File to write the figures to.")
_VERBOSE = flags.DEFINE_bool("verbose", False, "Show TensorFlow's own messages.")


@dataclasses.dataclass
class Stage:
    """Speed of one stage."""

    images_per_second: float
    cpu_ms_per_image: float
    cores_busy: float


def measure(step: Callable[[], int], seconds: float) -> Stage:
    """Calls `step`, which returns how many images it did, until the time is over.

    A few calls come before the clock counts.
    """
    for _ in range(_WARM_UP):
        step()
    images = 0
    start, cpu_start = time.perf_counter(), time.process_time()
    while not images or time.perf_counter() - start < seconds:
        images += step()
    elapsed, cpu = time.perf_counter() - start, time.process_time() - cpu_start
    return Stage(images / elapsed, 1000 * cpu / images, cpu / elapsed)


def measure_training(
    builder, image_size: int, batch_size: int, precision: str, seconds: float
) -> dict[str, Stage]:
    """Measures the training step on a batch in memory, and fed from a warm cache."""
    import tensorflow as tf

    from trainer import input_pipeline, models, train

    num_genres = len(input_pipeline.genre_names(builder))
    model = models.create_model("reference_cnn", image_size, num_genres, precision)
    optimizer = train.create_optimizer(1e-3, precision)
    optimizer.build(model.trainable_variables)
    train_step = train.make_train_step(model, optimizer, tf.distribute.get_strategy())

    def take_step(batches):
        # Reading a result back waits for the device.
        return len(train_step(batches)["logits"].numpy())

    dataset = input_pipeline.train_dataset(
        builder,
        "train",
        image_size=image_size,
        batch_size=batch_size,
        cache="decoded",
        shuffle_buffer=0,
        seed=0,
    )
    fed = iter(dataset)
    resident = iter(tf.data.Dataset.from_tensors(next(fed)).repeat())
    return {
        "step_resident": measure(lambda: take_step(resident), seconds),
        "step_fed_warm": measure(lambda: take_step(fed), seconds),
    }


def measure_keras_fit(builder, image_size: int, batch_size: int, seconds: float) -> Stage:
    """Measures Keras's own `fit` on the same CNN with stock layers, in float32.

    Only whole steps are timed, so that the end of an epoch does not count against it.
    """
    import keras
    import tensorflow as tf

    from trainer import input_pipeline, layers, models

    num_genres = len(input_pipeline.genre_names(builder))
    model = keras.models.clone_model(
        models.create_model("reference_cnn", image_size, num_genres, "float32"),
        clone_function=lambda layer: (
            keras.layers.BatchNormalization(name=layer.name)
            if isinstance(layer, layers.FusedBatchNormalization)
            else layer.__class__.from_config(layer.get_config())
        ),
    )
    model.compile(
        keras.optimizers.Adam(1e-3),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[keras.metrics.BinaryAccuracy(threshold=0)],
    )
    image = tf.cast(
        tf.random.stateless_uniform(
            [batch_size, image_size, image_size, 3], (0, 0), 0, 256, tf.int32
        ),
        tf.uint8,
    )
    genres = tf.zeros([batch_size, num_genres])
    batches = tf.data.Dataset.from_tensors((image, genres)).repeat()
    clock = []

    def on_batch_end(batch, logs):
        del batch, logs
        clock.append((time.perf_counter(), time.process_time()))
        model.stop_training = clock[-1][0] - clock[min(_WARM_UP, len(clock) - 1)][0] > seconds

    callback = keras.callbacks.LambdaCallback(on_train_batch_end=on_batch_end)
    model.fit(batches, steps_per_epoch=sys.maxsize, verbose=0, callbacks=[callback])
    (start, cpu_start), (end, cpu_end) = clock[_WARM_UP], clock[-1]
    images = batch_size * (len(clock) - 1 - _WARM_UP)
    elapsed, cpu = end - start, cpu_end - cpu_start
    return Stage(images / elapsed, 1000 * cpu / images, cpu / elapsed)


def format_table(stages: dict[str, Stage]) -> str:
    """Returns the stages as a table, each compared with the first."""
    first = next(iter(stages.values()))
    lines = [f"{'':<16}{'img/s':>10}{'CPU ms/img':>12}{'cores busy':>12}{'of the first':>14}"]
    for name, stage in stages.items():
        lines.append(
            f"{name:<16}{stage.images_per_second:>10.1f}{stage.cpu_ms_per_image:>12.2f}"
            f"{stage.cores_busy:>12.2f}{stage.images_per_second / first.images_per_second:>14.2f}"
        )
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Measures what the flags name and prints one table."""
    if len(argv) > 1:
        sys.exit(f"Unknown argument {argv[1]!r}: settings are given as --name=value.")
    if unknown := set(_COMPARE.value) - set(_COMPARISONS):
        sys.exit(f"--compare={','.join(unknown)}: choose from {', '.join(_COMPARISONS)}.")
    startup.import_tensorflow(_VERBOSE.value)
    import tensorflow as tf

    from trainer import input_pipeline, run_directory, runtime

    try:
        builder = input_pipeline.open_dataset(_DATASET.value, _DATA_DIR.value)
    except config_lib.UsageError as error:
        sys.exit(str(error))
    precision = runtime.choose_precision(_PRECISION.value)
    sizes = {"image_size": _IMAGE_SIZE.value, "batch_size": _BATCH_SIZE.value}
    stages = measure_training(builder, **sizes, precision=precision, seconds=_SECONDS.value)
    if "keras_fit" in _COMPARE.value:
        stages["keras_fit"] = measure_keras_fit(builder, **sizes, seconds=_SECONDS.value)
    device = tf.config.list_logical_devices()[-1].device_type
    cores = runtime.num_cores()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        f"{builder.info.full_name} on {device}, {cores} cores, {precision}, batches of "
        f"{_BATCH_SIZE.value}\n\n{format_table(stages)}\n\npeak memory {peak / 1e9:.2f} GB"
    )
    if _JSON.value:
        figures = {
            "device": device,
            "cores": cores,
            "peak_memory_bytes": peak,
            "stages": {name: dataclasses.asdict(stage) for name, stage in stages.items()},
        }
        run_directory.write_atomically(
            pathlib.Path(_JSON.value), json.dumps(figures, indent=2) + "\n"
        )


if __name__ == "__main__":
    app.run(main)
