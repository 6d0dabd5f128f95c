"""Posters: read from their folder, each decoded once to see that it can be."""

import collections
import concurrent.futures
import os
from collections.abc import Iterable, Iterator

import tensorflow as tf
from etils import epath

from poster_tfds import annotations as annotations_lib, faults

_JPEG_MAGIC = b"\xff\xd8\xff"
# Posters read ahead of the writer for each thread: enough to keep the threads
# busy, few enough that memory does not depend on the size of the data.
_WINDOW_PER_THREAD = 16


def poster_path(images_dir: epath.PathLike, poster_id: str) -> epath.Path:
    """Returns where the JPEG of a poster stands."""
    return epath.Path(images_dir) / f"{poster_id}.jpg"


def find_fault(image: bytes) -> str | None:
    """Returns why `image` is not a JPEG that can be trained on, or None.

    TensorFlow's own decoder decides, since it is the one that training and
    serving use.
    """
    if not image:
        return "the file is empty"
    if not image.startswith(_JPEG_MAGIC):
        return f"not a JPEG (begins with {image[:8]!r})"
    try:
        tf.io.decode_jpeg(image, channels=3)
    except tf.errors.InvalidArgumentError:
        return f"the JPEG does not decode ({len(image)} bytes; truncated or damaged?)"
    return None


def read_checked(
    rows: Iterable[annotations_lib.Annotation | faults.Fault], images_dir: epath.PathLike
) -> Iterator[tuple[annotations_lib.Annotation | faults.Fault, bytes | faults.Fault]]:
    """Yields each row with its poster's bytes, or with what is wrong with it.

    Posters are read and decoded on all cores; the order is kept. A row that is a fault
    already is passed on as it is.
    """

    def read(row):
        if isinstance(row, faults.Fault):
            return row, row
        path = poster_path(images_dir, row.poster_id)
        try:
            image = path.read_bytes()
            reason = find_fault(image)
        except OSError as error:
            reason = error.strerror or str(error)
        if reason:
            return row, faults.Fault(row.line, row.poster_id, f"{path}: {reason}")
        return row, image

    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    try:
        pending = collections.deque()
        for row in rows:
            pending.append(pool.submit(read, row))
            if len(pending) >= threads * _WINDOW_PER_THREAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
