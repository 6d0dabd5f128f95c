"""Posters: read from their folder, each decoded once to see that it can be."""

import io
import itertools
import os
import struct
from collections.abc import Iterable, Iterator

import PIL.Image
import tensorflow as tf
from etils import epath

from poster_tfds import annotations as annotations_lib, faults

MAX_BYTES = 32 << 20
MAX_PIXELS = 64 << 20
_JPEG_MAGIC = b"\xff\xd8\xff"
_EXIF_MARKER = b"Exif\0\0"
_ORIENTATION_TAG = 0x0112
_TURNED = range(2, 9)  # The orientations of EXIF that ask for a turn or a mirror image.
# Decoding one row and column of eight halves the time and finds the same faults: they
# are in the entropy-coded data, all of which is gone through.
_QUICK = {"channels": 3, "ratio": 8}
# Posters read ahead of the writer: enough to keep the cores busy, few enough that memory
# does not depend on the size of the data.
_CHUNK = 512
_BATCH = 32


def poster_path(images_dir: epath.PathLike, poster_id: str) -> epath.Path:
    """Returns where the JPEG of a poster stands."""
    return epath.Path(images_dir) / f"{poster_id}.jpg"


def find_fault(image: bytes) -> str | None:
    """Returns why `image` is not a JPEG that can be trained on and served, or None.

    The size is read from the header first, so that a few KB cannot ask for gigabytes.
    Then TensorFlow's decoder has its say, which is the one of training and serving.
    """
    if not image:
        return "the file is empty"
    if len(image) > MAX_BYTES:
        return f"larger than {MAX_BYTES >> 20} MB"
    if not image.startswith(_JPEG_MAGIC):
        return f"not a JPEG (begins with {image[:8]!r})"
    try:
        height, width, channels = tf.io.extract_jpeg_shape(image).numpy().tolist()
    except tf.errors.InvalidArgumentError:
        return f"the JPEG's header cannot be read ({len(image)} bytes)"
    if height * width > MAX_PIXELS:
        return f"{width}x{height} is more than {MAX_PIXELS >> 20} million pixels"
    if channels not in (1, 3):
        return f"it has {channels} colour channels (CMYK?); convert it to RGB"
    if (orientation := _orientation(image)) in _TURNED:
        return f"its EXIF data asks for a turn (orientation {orientation}); turn its pixels"
    try:
        tf.io.decode_jpeg(image, **_QUICK)
    except tf.errors.InvalidArgumentError:
        return f"the JPEG does not decode ({len(image)} bytes; truncated or damaged?)"
    return None


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


def read_checked(
    rows: Iterable[annotations_lib.Annotation | faults.Fault], images_dir: epath.PathLike
) -> Iterator[tuple[annotations_lib.Annotation | faults.Fault, bytes | faults.Fault]]:
    """Yields each row, in order, with what `read_one` says of it, using all cores.

    TensorFlow's threads read and check; what they do not find sound, `read_one` names.
    """
    rows = iter(rows)
    chunks = iter(lambda: list(itertools.islice(rows, _CHUNK)), [])
    ahead = None
    for chunk in itertools.chain(chunks, [[]]):
        previous, ahead = ahead, (chunk, _start_reading(chunk, images_dir))
        if previous:
            yield from _join(*previous, images_dir)


def _start_reading(rows, images_dir: epath.PathLike) -> Iterator:
    """Starts reading the posters of some rows and returns batches of (position, bytes)."""
    positions, paths = [], []
    for i, row in enumerate(rows):
        if isinstance(row, faults.Fault):
            continue
        path = poster_path(images_dir, row.poster_id)
        if _has_size_of_poster(path):
            positions.append(i)
            paths.append(os.fspath(path))
    options = tf.data.Options()
    options.autotune.enabled = False
    num_threads = len(os.sched_getaffinity(0))
    options.threading.private_threadpool_size = num_threads
    slices = (tf.constant(positions, tf.int64), tf.constant(paths, tf.string))
    batches = (
        tf.data.Dataset.from_tensor_slices(slices)
        .map(_read_sound, num_parallel_calls=num_threads)
        .ignore_errors()
        .batch(_BATCH)
        .prefetch(-(-_CHUNK // _BATCH))
        .with_options(options)
        .as_numpy_iterator()
    )
    # tf.data starts to read ahead when it is first asked.
    first = next(batches, None)
    return itertools.chain([first] if first else [], batches)


def _has_size_of_poster(path: epath.Path) -> bool:
    """Returns whether a file is there that may be read whole."""
    try:
        return path.stat().length <= MAX_BYTES
    except (OSError, tf.errors.OpError):
        return False


def _read_sound(position: tf.Tensor, path: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Reads a poster; raises where `find_fault` would, but for its size and orientation.

    The number of decoded values is returned only so that decoding is not optimised away.
    """
    image = tf.io.read_file(path)
    shape = tf.io.extract_jpeg_shape(image)
    checks = [
        tf.debugging.assert_equal(tf.strings.substr(image, 0, len(_JPEG_MAGIC)), _JPEG_MAGIC),
        tf.debugging.assert_less_equal(
            tf.reduce_prod(tf.cast(shape[:2], tf.int64)), tf.constant(MAX_PIXELS, tf.int64)
        ),
        tf.debugging.Assert(tf.reduce_any(shape[2] == [1, 3]), [shape]),
    ]
    with tf.control_dependencies(checks):
        decoded = tf.io.decode_jpeg(tf.identity(image), **_QUICK)
    return position, image, tf.size(decoded)


def _join(rows, batches: Iterator, images_dir: epath.PathLike) -> Iterator:
    sound = (pair for batch in batches for pair in zip(*batch[:2], strict=True))
    position, image = next(sound, (None, None))
    for i, row in enumerate(rows):
        if i != position:
            yield row, read_one(row, images_dir)
            continue
        # Orientation is the one thing that TensorFlow does not read.
        yield row, read_one(row, images_dir) if _orientation(image) in _TURNED else image
        position, image = next(sound, (None, None))


def _orientation(image: bytes) -> int:
    """Returns the EXIF orientation; 1, as it stands, where there is none to be read."""
    if _EXIF_MARKER not in image[: 1 << 16]:
        return 1
    try:
        with PIL.Image.open(io.BytesIO(image)) as header:
            return header.getexif().get(_ORIENTATION_TAG, 1)
    except (OSError, SyntaxError, ValueError, struct.error, PIL.Image.DecompressionBombError):
        return 1
