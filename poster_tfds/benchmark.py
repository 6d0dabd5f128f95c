"""How far a build is from its floor: decoding every poster once, and copying its bytes.

    python -m poster_tfds.benchmark --manual_dir=posters --config=imdb

All are measured in one run, on all cores, after every file has been read once.
"""

import concurrent.futures
import io
import os
import pathlib
import resource
import sys
import tempfile
import time

import pandas as pd
import PIL.Image
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import app, flags, logging

from poster_tfds import Builder, machine

_MANUAL_DIR = flags.DEFINE_string("manual_dir", None, "Folder of the posters.", required=True)
_CONFIG = flags.DEFINE_string("config", "imdb", "Configuration to build.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Times each is measured; the best counts.")


def decode_all(paths: list[pathlib.Path]) -> None:
    """Decodes posters on all cores with libjpeg-turbo, as Pillow brings it."""

    def decode(path):
        with PIL.Image.open(io.BytesIO(path.read_bytes())) as image:
            image.load()

    with concurrent.futures.ThreadPoolExecutor(machine.num_cores()) as pool:
        for _ in pool.map(decode, paths, chunksize=64):
            pass


def copy_all(paths: list[pathlib.Path], directory: str) -> None:
    """Writes posters' bytes into a TFRecord."""
    with tf.io.TFRecordWriter(os.path.join(directory, "copy.tfrecord")) as writer:
        for path in paths:
            writer.write(path.read_bytes())


def build(directory: str) -> None:
    """Builds the dataset from nothing."""
    builder = Builder(config=_CONFIG.value, data_dir=directory)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=_MANUAL_DIR.value)
    )


def main(argv: list[str]) -> None:
    """Measures the three and prints one table."""
    if len(argv) > 1:
        sys.exit(f"Unknown argument {argv[1]!r}: settings are given as --name=value.")
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    paths = sorted(pathlib.Path(_MANUAL_DIR.value, "Images").glob("*.jpg"))
    num_bytes = sum(len(path.read_bytes()) for path in paths)
    tasks = {
        "decode all": lambda directory: decode_all(paths),
        "copy all": lambda directory: copy_all(paths, directory),
        "build": build,
    }
    best = dict.fromkeys(tasks, (float("inf"), 0.0))
    for _ in range(_REPEATS.value):
        for name, task in tasks.items():
            with tempfile.TemporaryDirectory() as directory:
                start, cpu_start = time.perf_counter(), time.process_time()
                task(directory)
                seconds = time.perf_counter() - start
                best[name] = min(best[name], (seconds, time.process_time() - cpu_start))
    table = pd.DataFrame.from_dict(best, orient="index", columns=["seconds", "CPU seconds"])
    table["posters/s"] = (len(paths) / table["seconds"]).round().astype(int)
    table["of the floor"] = table["seconds"] / table["seconds"].drop("build").max()
    print(f"{len(paths)} posters, {num_bytes / 1e6:.0f} MB, {machine.num_cores()} cores")
    print(table.to_string(float_format="{:.2f}".format))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"peak memory {peak / 1e9:.2f} GB")


if __name__ == "__main__":
    app.run(main)
