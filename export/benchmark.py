"""What serving costs beside the CNN, on the machine at hand.

    python -m export.benchmark --posters=FOLDER

Decoding in which a bad image fails alone against a plain `map_fn`, in which it fails the batch,
also with the last image cut off; and the whole signature, with `--tta` of each poster's views,
against the CNN alone. In turns of one run; a tenth of the calls were faster than the times given,
so that they hold on a machine that has other work, too.
"""

import pathlib
import sys
import time

import numpy as np
import pandas as pd
import tqdm
from absl import flags

from trainer import command_line, config as config_lib

_POSTERS = flags.DEFINE_string("posters", None, "Folder of JPEGs.", required=True)
_MODEL = flags.DEFINE_string("model", "reference_cnn", "Model to serve, with fresh weights.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 350, "Side of the decoded posters, in pixels.")
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["1", "8", "32"], "Images a request.")
_SECONDS = flags.DEFINE_float("seconds", 8, "How long to measure each.")
_TTA = config_lib.define_tta_flag()
_NUM_GENRES = 25
_TURNS = 16


def main(arguments: list[str]) -> None:
    del arguments
    command_line.import_tensorflow()
    import tensorflow as tf

    from export import loading, serving_model
    from trainer.data import preprocessing
    from trainer.decisions import decision
    from trainer.models import registry

    size = _IMAGE_SIZE.value
    model = registry.create_model(
        config_lib.Config(model=_MODEL.value, image_size=size), _NUM_GENRES, "float32"
    )
    genres = decision.undecided([f"genre {i}" for i in range(_NUM_GENRES)])
    served = serving_model.ServingModel(model, genres, size, 5, loading.Limits(), tta=_TTA.value)

    @tf.function
    def decode_all(images):
        def decode(image):
            return preprocessing.decode_and_resize(image, size)

        return tf.map_fn(decode, images, fn_output_signature=tf.uint8)

    @tf.function
    def contained(images):
        status, pixels = served.load(images)
        # Fetched as one output, as that of `map_fn` is: each costs a call from Python more.
        with tf.control_dependencies([status]):
            return tf.identity(pixels)

    stages = {
        "map_fn": decode_all,
        "contained": contained,
        "1 cut off": contained,
        "signature": served.serving_default,
        "CNN alone": tf.function(lambda pixels: model(pixels, training=False)),
    }
    paths = sorted(pathlib.Path(_POSTERS.value).glob("*.jpg"))
    rows = {}
    for batch_size in map(int, _BATCH_SIZES.value):
        images = [path.read_bytes() for path in paths[:batch_size]]
        if len(images) < batch_size:
            sys.exit(f"--posters={_POSTERS.value}: fewer than {batch_size} files *.jpg.")
        batch = tf.constant(images)
        *good, last = images
        inputs = dict.fromkeys(stages, batch) | {
            "1 cut off": tf.constant([*good, last[: len(last) // 2]]),
            "CNN alone": decode_all(batch),
        }
        taken = {name: [] for name in stages}
        turns = list(stages) * _TURNS
        for name in tqdm.tqdm(turns, f"batches of {batch_size}", leave=False, disable=None):
            taken[name] += _time_calls(stages[name], inputs[name], _SECONDS.value / _TURNS)
        milliseconds = {
            name: 1e3 * np.percentile(seconds, 10) / batch_size for name, seconds in taken.items()
        }
        rows[batch_size] = milliseconds | {
            "contained / map_fn": milliseconds["contained"] / milliseconds["map_fn"],
            "signature / CNN": milliseconds["signature"] / milliseconds["CNN alone"],
        }
    table = pd.DataFrame.from_dict(rows, "index").rename_axis("batch")
    print(f"Milliseconds an image:\n\n{table.to_string(float_format='{:.2f}'.format)}")


def _time_calls(function, inputs, seconds: float) -> list[float]:
    """Calls a function for some time; returns the seconds of each call but the first."""
    import tensorflow as tf

    times, end = [], time.perf_counter() + seconds
    while len(times) < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        tf.nest.map_structure(lambda x: x.numpy(), function(inputs))
        times.append(time.perf_counter() - start)
    return times[1:]


if __name__ == "__main__":
    command_line.run(main)
