"""Posters: read from their folder, each decoded once to see that it can be."""

import collections
import concurrent.futures
import io
import os
import warnings
from collections.abc import Iterable, Iterator

import PIL.Image
import tensorflow as tf
from etils import epath

from poster_tfds import annotations as annotations_lib, faults

MAX_BYTES = 32 << 20
MAX_PIXELS = 64 << 20
_JPEG_MAGIC = b"\xff\xd8\xff"
_ORIENTATION_TAG = 0x0112
_EXIF_MARKER = b"Exif\0\0"
# Posters read ahead of the writer for each thread: enough to keep the threads busy, few
# enough that memory does not depend on the size of the data.
_WINDOW_PER_THREAD = 16


def poster_path(images_dir: epath.PathLike, poster_id: str) -> epath.Path:
    """Returns where the JPEG of a poster stands."""
    return epath.Path(images_dir) / f"{poster_id}.jpg"


def find_fault(image: bytes) -> str | None:
    """Returns why `image` is not a JPEG that can be trained on and served, or None.

    The size is read from the header first, so that a few KB cannot ask for gigabytes.
    Then TensorFlow's decoder, which is the one that training and serving use, goes
    through all of the data. It leaves out seven of eight rows and columns of the result:
    that halves the time and finds the same faults, which are in the entropy-coded data.
    """
    if not image:
        return "the file is empty"
    if len(image) > MAX_BYTES:
        return f"larger than {MAX_BYTES >> 20} MB"
    if not image.startswith(_JPEG_MAGIC):
        return f"not a JPEG (begins with {image[:8]!r})"
    try:
        with warnings.catch_warnings(), PIL.Image.open(io.BytesIO(image)) as header:
            warnings.simplefilter("ignore")
            width, height = header.size
            mode = header.mode
            has_exif = _EXIF_MARKER in image[: 1 << 16]
            orientation = header.getexif().get(_ORIENTATION_TAG, 1) if has_exif else 1
    except PIL.Image.DecompressionBombError as error:
        return f"more than {MAX_PIXELS >> 20} million pixels ({error})"
    except (OSError, SyntaxError, ValueError):
        return f"the JPEG's header cannot be read ({len(image)} bytes)"
    if width * height > MAX_PIXELS:
        return f"{width}x{height} is more than {MAX_PIXELS >> 20} million pixels"
    if mode not in ("RGB", "L"):
        return f"its colours are {mode}; convert it to RGB"
    if orientation != 1:
        return f"its EXIF data asks for a turn (orientation {orientation}); turn its pixels"
    try:
        tf.io.decode_jpeg(image, channels=3, ratio=8)
    except tf.errors.InvalidArgumentError:
        return f"the JPEG does not decode ({len(image)} bytes; truncated or damaged?)"
    return None


def read_checked(
    rows: Iterable[annotations_lib.Annotation | faults.Fault], images_dir: epath.PathLike
) -> Iterator[tuple[annotations_lib.Annotation | faults.Fault, bytes | faults.Fault]]:
    """Yields each row with its poster's bytes, or with what is wrong with it.

    Posters are read and decoded on all cores; the order is kept.
    """
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    try:
        pending = collections.deque()
        for row in rows:
            pending.append((row, pool.submit(read_one, row, images_dir)))
            if len(pending) >= threads * _WINDOW_PER_THREAD:
                row, image = pending.popleft()
                yield row, image.result()
        while pending:
            row, image = pending.popleft()
            yield row, image.result()
    finally:
        pool.shutdown(cancel_futures=True)


def read_one(
    row: annotations_lib.Annotation | faults.Fault, images_dir: epath.PathLike
) -> bytes | faults.Fault:
    """Returns the bytes of a row's poster, or what is wrong with the poster or the row."""
    if isinstance(row, faults.Fault):
        return row
    path = poster_path(images_dir, row.poster_id)
    try:
        with path.open("rb") as file:
            image = file.read(MAX_BYTES + 1)
        reason = find_fault(image)
    except (OSError, tf.errors.OpError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    if reason:
        return faults.Fault(row.line, row.poster_id, f"{path}: {reason}")
    return image
