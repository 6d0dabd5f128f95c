"""The examples of a split as arrays, filled once: then a batch is a gather of row numbers.

Posters are uint8, features of a frozen backbone float32. They are in memory or in a mapped file
that stays for other runs; what trains may have a copy on its own device.
"""

import contextlib
import hashlib
import json
import mmap
import os
import pathlib
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import tensorflow as tf

from trainer import config as config_lib, progress as progress_lib
from trainer.data import order, pipeline, splits
from trainer.run import directory

_READ = 64  # Posters at a time, while rows are filled.


class Rows(NamedTuple):
    """The examples of a split, in its order."""

    values: np.ndarray  # Posters, uint8 [N, S, S, 3], or features of V views, float32 [N, V, F].
    genres: np.ndarray  # float32 [N, G], multi-hot.

    @property
    def has_views(self) -> bool:
        return self.values.ndim == 3

    def tensors(self) -> "Rows":
        """Returns the same as tensors, which share the arrays' memory."""
        return Rows(*(tf.experimental.dlpack.from_dlpack(array.__dlpack__()) for array in self))


# Values and genres of some examples, one after the other.
Parts = Iterator[tuple[np.ndarray, np.ndarray]]


def decode(
    split: splits.Split, image_size: int, should_stop: Callable[[], bool] = lambda: False
) -> Parts:
    """Reads, decodes and resizes a split once, in its order, with a progress bar.

    Raises:
        config.UsageError: a shard is damaged.
    """
    title = f"decoding {split.num_examples} posters of {split}"
    with (
        split.damage_named(),
        progress_lib.Progress(title, split.num_examples, unit="poster") as bar,
    ):
        for batch in decoded(split, image_size).as_numpy_iterator():
            yield batch["image"], batch["genres"]
            bar.update(len(batch["image"]), len(batch["image"]))
            if should_stop():
                return


def decoded(split: splits.Split, image_size: int) -> tf.data.Dataset:
    """Returns one pass over a split in its order, decoded, some posters at a time."""
    examples = pipeline.map_parallel(split.read(), pipeline.loader(split, image_size), split)
    return pipeline.finish(examples.batch(_READ), split)


def in_memory(parts: Parts, num_examples: int) -> Rows | None:
    """Returns rows in memory, or None if there were fewer parts than examples.

    The arrays are filled in place: there is no second copy at any time.
    """
    rows, taken = None, 0
    for part in parts:
        if rows is None:
            rows = Rows(*(_allocate((num_examples, *a.shape[1:]), a.dtype) for a in part))
        for array, values in zip(rows, part, strict=True):
            array[taken : taken + len(values)] = values
        taken += len(part[0])
    return rows if taken == num_examples else None


def on_disk(
    parts: Parts, num_examples: int, cache_dir: str | os.PathLike, about: Mapping[str, Any]
) -> Rows | None:
    """Returns rows in a folder of `cache_dir`, or None if there were fewer parts than examples.

    They are written under a temporary name and mapped only then: a full disk is an error so, and
    not a signal.

    Args:
        parts: of the examples.
        num_examples: N.
        cache_dir: of all such folders.
        about: what the rows follow from, as JSON has it; `find` knows them by it.

    Raises:
        config.UsageError: they cannot be written.
    """
    folder = _folder(cache_dir, about)
    incomplete = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        with _errors_named(folder):
            incomplete.mkdir(parents=True)
            if not _write(parts, num_examples, incomplete):
                return None
            (incomplete / "about.json").write_text(json.dumps(about, indent=2) + "\n")
            try:
                incomplete.rename(folder)
            except OSError:
                if not folder.exists():  # It does if another run was faster.
                    raise
    finally:
        shutil.rmtree(incomplete, ignore_errors=True)
    return _open(folder)


def find(cache_dir: str | os.PathLike, about: Mapping[str, Any]) -> Rows | None:
    """Returns the rows that `on_disk` has kept there, or None.

    Raises:
        config.UsageError: they are damaged.
    """
    folder = _folder(cache_dir, about)
    if not folder.exists():
        return None
    try:
        return _open(folder)
    except (OSError, ValueError, EOFError) as error:
        raise config_lib.UsageError(
            f"{folder} is damaged ({error}). Remove it; the same command makes it anew."
        ) from error


def describe(split: splits.Split, image_size: int, **more: Any) -> dict[str, Any]:
    """Returns what the rows of a split follow from: its files, and how posters are read."""
    info = split.builder.info.splits[split.name]
    files = [(path.name, tf.io.gfile.stat(os.fspath(path))) for path in info.filepaths]
    return {
        "dataset": split.builder.info.full_name,
        "split": split.name,
        "num_examples": split.num_examples,
        "files": [[name, status.length, status.mtime_nsec] for name, status in files],
        "image_size": image_size,
        "tensorflow": tf.__version__,
        **more,
    }


def train_batches(
    rows: Rows,
    spec: pipeline.TrainSpec,
    context: tf.distribute.InputContext = pipeline.WHOLE,
    start_step: int = 0,
) -> tf.data.Dataset:
    """Returns endless batches in the order of `order.steps`.

    Args:
        rows: of the split.
        spec: of the training.
        context: which worker this is, of how many, and the number of replicas.
        start_step: steps that an interrupted run has taken.

    Yields:
        For one replica after the other, `image` [B, ...] or, where the step has the rows, `row`
        int64 [B]; `genres` float32 [B, G]; and what is drawn for the step's augmentations.
    """
    values, genres = rows.tensors()
    num_views = rows.values.shape[1] if rows.has_views else 1

    def load(step, place, numbers):
        batch = {"genres": tf.gather(genres, numbers)}
        if spec.rows_on_device:
            batch["row"] = numbers
        elif rows.has_views:
            views = spec.draw_views(step, num_views)[place : place + numbers.shape[0]]
            batch["image"] = tf.gather_nd(values, tf.stack([numbers, views], axis=1))
        else:
            batch["image"] = tf.gather(values, numbers)
        return spec.with_draws(batch, step, place)

    steps = order.steps(len(rows.genres), spec.batch_size, spec.seed, start_step)
    return pipeline.deal(steps, load, spec, context)


def eval_batches(
    rows: Rows, batch_size: int, context: tf.distribute.InputContext = pipeline.WHOLE
) -> tf.data.Dataset:
    """Returns endless passes in the split's order, `pipeline.num_eval_steps` batches each.

    The last is filled up with rows of weight 0, so that every example counts once.

    Yields:
        For one replica after the other, `image` [B, ...], `genres` float32 [B, G] and `weight`
        float32 [B].
    """
    values, genres = rows.tensors()
    if rows.has_views:  # The posters as they are count.
        values = Rows(np.ascontiguousarray(rows.values[:, 0]), rows.genres).tensors().values
    share = pipeline.Share.of(batch_size, context)
    num_rows = len(rows.genres)

    @tf.autograph.experimental.do_not_convert
    def load(i):
        first = i // share.num_replicas * batch_size + share.place(i % share.num_replicas)
        numbers = first + tf.range(share.per_replica, dtype=tf.int64)
        inside = tf.minimum(numbers, num_rows - 1)
        return {
            "image": tf.gather(values, inside),
            "genres": tf.gather(genres, inside),
            "weight": tf.cast(numbers < num_rows, tf.float32),
        }

    num_batches = pipeline.num_eval_steps(num_rows, batch_size) * share.num_replicas
    return pipeline.finish(tf.data.Dataset.range(num_batches).repeat().map(load, 2))


class OnDevice:
    """Rows that are where the training step is: a batch has their numbers, the step gathers."""

    def __init__(self, rows: Rows, strategy: tf.distribute.Strategy):
        """Copies the rows to each of this process's devices that train."""
        self._variables = []
        is_default = strategy is tf.distribute.get_strategy()  # It has no devices of its own.
        for device in ["CPU:0"] if is_default else strategy.extended.worker_devices:
            with tf.device(device):
                values = tf.identity(rows.tensors().values)
                self._variables.append(tf.Variable(values, trainable=False))

    def look_up(self, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns a batch with `image` in the place of `row`, on a replica."""
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        number = int(tf.get_static_value(replica)) % len(self._variables)
        others = {name: value for name, value in batch.items() if name != "row"}
        # A gather from a variable has a GPU kernel for uint8, one from a constant has none.
        return {**others, "image": tf.gather(self._variables[number], batch["row"])}


def _allocate(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Returns an array that begins with a page, as tensors that share it ask for."""
    size = max(int(np.prod(shape)) * np.dtype(dtype).itemsize, 1)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(memory, dtype, int(np.prod(shape))).reshape(shape)


def _write(parts: Parts, num_examples: int, folder: pathlib.Path) -> bool:
    """Writes the arrays of rows; returns whether they are complete."""
    files: list[BinaryIO] = []
    taken = 0
    with contextlib.ExitStack() as stack:
        for part in parts:
            if not files:
                for name, array in zip(Rows._fields, part, strict=True):
                    files.append(stack.enter_context((folder / f"{name}.npy").open("wb")))
                    header = np.lib.format.header_data_from_array_1_0(array)
                    header["shape"] = (num_examples, *array.shape[1:])
                    np.lib.format.write_array_header_1_0(files[-1], header)
            for file, array in zip(files, part, strict=True):
                file.write(np.ascontiguousarray(array).data)
            taken += len(part[0])
    return taken == num_examples


def _open(folder: pathlib.Path) -> Rows:
    # As a copy on write: tensors cannot share what may not be written; nothing writes it.
    arrays = (np.load(folder / f"{name}.npy", mmap_mode="c") for name in Rows._fields)
    return Rows(*map(np.asarray, arrays))


def _folder(cache_dir: str | os.PathLike, about: Mapping[str, Any]) -> pathlib.Path:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    return directory.local_path(cache_dir, "--cache_dir") / digest[:16]


@contextlib.contextmanager
def _errors_named(folder: pathlib.Path):
    try:
        yield
    except OSError as error:
        raise config_lib.UsageError(
            f"{folder.parent}: what --cache=disk keeps could not be written ({error.strerror}). "
            "Make room, or name another --cache_dir, and give the same command again."
        ) from error
