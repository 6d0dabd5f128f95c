"""How fast the training step is on this machine, what it takes, and which flags that speaks for."""

import dataclasses
import gc
import os
import time
from collections.abc import Callable

import tensorflow as tf

from poster_tfds import object_stores
from trainer import config as config_lib
from trainer.benchmark import stages
from trainer.data import splits
from trainer.doctor.findings import FAILED, LEFT_OUT, PASSED, Finding

_TURNS = 2
_WORTH_A_FLAG = 1.05  # Times as fast.
_KEEPS_UP = 0.95
# Of posters: at 350 pixels the activations of more have over 2^31 elements, which not every
# kernel can count.
_LARGEST_BATCH = 1 << 10
_GPU = "GPU:0"
_MOST_BYTES_READ = 1 << 30
_BLOCK = 8 << 20  # Bytes.


def check_disk(split: splits.Split) -> Finding:
    """Times reading a split's record files from the disk of --data_dir.

    What the system keeps of them in memory is given up first, as far as it lets go: a network's
    file server may still have it.
    """
    paths = split.builder.info.splits[split.name].filepaths
    if any(map(object_stores.is_on_one, paths)):
        return Finding(LEFT_OUT, "--data_dir is not of this file system")
    num_bytes, seconds = 0, 0.0
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            start = time.perf_counter()
            while block := file.read(_BLOCK):
                num_bytes += len(block)
            seconds += time.perf_counter() - start
        if num_bytes > _MOST_BYTES_READ:
            break
    posters = num_bytes / seconds / (split.num_bytes / split.num_examples)
    return Finding(
        PASSED,
        f"{num_bytes / 1e6:.0f} MB of {split.builder.info.full_name} read at "
        f"{num_bytes / seconds / 1e6:.0f} MB/s, {posters:.0f} posters/s",
    )


def check_step(
    split: splits.Split, config: config_lib.Config, precision: str, seconds: float
) -> Finding:
    """Times the step on a resident batch: in the chosen precision, in float32, and with XLA."""
    tried = {
        precision: (config, precision),
        "float32": (config, "float32"),
        "XLA": (dataclasses.replace(config, jit_compile=True), precision),
    }
    speeds = _time(
        {name: _resident_step(split, *of_one) for name, of_one in tried.items()}, seconds
    )
    return Finding(
        PASSED,
        ", ".join(f"{name} {speed:.0f} img/s" for name, speed in speeds.items())
        + f"; {config.model}, batches of {config.batch_size}",
        recommend(speeds, precision, len(tf.config.list_physical_devices("GPU"))),
    )


def recommend(speeds: dict[str, float], precision: str, num_gpus: int) -> tuple[str, ...]:
    """Returns the flags that img/s of the step speak for, of `precision`, float32 and XLA."""
    if speeds["float32"] > _WORTH_A_FLAG * speeds[precision]:
        return ("--precision=float32",)
    if speeds["XLA"] > _WORTH_A_FLAG * speeds[precision] and num_gpus < 2:
        return ("--jit_compile",)  # It is for one replica, and each GPU has one.
    return ()


def check_input(
    split: splits.Split, config: config_lib.Config, precision: str, seconds: float
) -> Finding:
    """Times the step fed from the cache, with changes to the posters and without, and resident."""
    plain = dataclasses.replace(config, augment="")
    of_plain = stages.training_stages(split, plain, precision)
    timed = {"resident": of_plain["step_resident"], "fed": of_plain["step_fed_warm"]}
    changes = ",".join(config_lib.AUGMENTATIONS)
    for place in ("cpu", "device"):
        changed = dataclasses.replace(config, augment=changes, augment_on=place)
        of_changed = stages.training_stages(split, changed, precision)
        timed[f"augmented on {place}"] = of_changed["step_fed_warm"]
    speeds = _time(timed, seconds)
    resident = speeds.pop("resident")
    detail = f"resident {resident:.0f} img/s; " + ", ".join(
        f"{name} {speed:.0f} ({speed / resident:.2f} of it)" for name, speed in speeds.items()
    )
    # The first is what --augment_on=auto chooses.
    places = ("device", "cpu") if tf.config.list_physical_devices("GPU") else ("cpu", "device")
    of_chosen, of_other = (speeds[f"augmented on {place}"] for place in places)
    if min(speeds["fed"], max(of_chosen, of_other)) < _KEEPS_UP * resident:
        detail += "; the input holds the step up: `python -m trainer.benchmark` says where"
    flags = (f"--augment_on={places[1]}",) if of_other > _WORTH_A_FLAG * of_chosen else ()
    return Finding(PASSED, detail, flags)


def check_memory(split: splits.Split, config: config_lib.Config, precision: str) -> Finding:
    """Measures the most memory that the step takes of the GPU, and this process of the machine."""
    detail = f"this process {stages.peak_memory() / 1e9:.2f} GB so far"
    if tf.config.list_physical_devices("GPU"):
        tf.config.experimental.reset_memory_stats(_GPU)
        _resident_step(split, config, precision)(0)
        peak = tf.config.experimental.get_memory_info(_GPU)["peak"]
        detail += (
            f"; {_GPU} {peak / 1e9:.2f} GB with {config.model}, batches of {config.batch_size}"
        )
    return Finding(PASSED, detail)


def check_batch_size(split: splits.Split, config: config_lib.Config, precision: str) -> Finding:
    """Looks for the largest batch that the GPU's memory has room for."""
    if not tf.config.list_physical_devices("GPU"):
        return Finding(
            LEFT_OUT, "there is no GPU; in the machine's own memory others may need room"
        )

    def try_batch(batch_size: int) -> None:
        gc.collect()  # The model before is in cycles of references.
        _resident_step(split, dataclasses.replace(config, batch_size=batch_size), precision)(0)

    largest = find_largest_batch(try_batch, config.batch_size)
    what = f"posters of {config.image_size} pixels with {config.model} in {precision}"
    if not largest:
        return Finding(FAILED, f"not even {config.batch_size} {what}: take a smaller --batch_size")
    return Finding(PASSED, f"{largest} {what}; at most {_LARGEST_BATCH} are tried")


def find_largest_batch(try_batch: Callable[[int], None], batch_size: int) -> int:
    """Doubles a batch until memory is out, up to 1024, and returns the last that fitted, or 0."""
    largest = 0
    while batch_size <= _LARGEST_BATCH:
        try:
            try_batch(batch_size)
        except tf.errors.ResourceExhaustedError:
            break
        largest, batch_size = batch_size, 2 * batch_size
    return largest


def _resident_step(split: splits.Split, config: config_lib.Config, precision: str) -> stages.Stage:
    return stages.training_stages(split, config, precision)["step_resident"]


def _time(timed: dict[str, stages.Stage], seconds: float) -> dict[str, float]:
    """Returns images a second of each."""
    taken = stages.take_turns(timed, seconds, _TURNS)
    return {name: turn.images / turn.seconds for name, turn in taken.items()}
