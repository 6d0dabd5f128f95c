"""Posters: read from their folder, each checked and, where it must be, converted."""

import collections
import concurrent.futures
import itertools
from collections.abc import Iterable, Iterator

import tensorflow as tf
from etils import epath

from poster_tfds import annotations as annotations_lib, faults, image_files, images, machine

# Rows that are read as one task, and tasks ahead of the writer: enough to keep the cores busy, few
# enough that memory does not depend on the size of the data.
_CHUNK = 16
_AHEAD = 32


def read_one(
    row: annotations_lib.Annotation | faults.Fault, images_dir: epath.PathLike, config
) -> images.Poster | faults.Fault:
    """Returns a row's poster as it is stored, or what is wrong with the poster or the row."""
    if isinstance(row, faults.Fault):
        return row
    path = image_files.poster_path(images_dir, row)
    try:
        with path.open("rb") as file:
            image = file.read(images.MAX_BYTES + 1)
        return images.as_stored(image, config.max_side, config.on_damage == "keep")
    except (images.ImageError, OSError, tf.errors.OpError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return faults.Fault(row.line, row.poster_id, f"{path}: {reason}")


def read_checked(
    rows: Iterable[annotations_lib.Annotation | faults.Fault], images_dir: epath.PathLike, config
) -> Iterator[tuple[annotations_lib.Annotation | faults.Fault, images.Poster | faults.Fault]]:
    """Yields each row, in order, with what `read_one` says of it, using all cores."""

    def read(chunk):
        return [(row, read_one(row, images_dir, config)) for row in chunk]

    rows = iter(rows)
    waiting = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(machine.num_cores()) as pool:
        try:
            while True:
                while len(waiting) < _AHEAD and (chunk := list(itertools.islice(rows, _CHUNK))):
                    waiting.append(pool.submit(read, chunk))
                if not waiting:
                    return
                yield from waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
