"""From the bytes of images to pixels in the graph of the exported model.

Server-side batching joins the images of many clients, so an image that cannot be read
must cost the others nothing: images are decoded in `tf.data` pipelines inside the graph, each
for itself, which drop what fails. The first takes them for JPEGs, as nearly all are, with as
few operations as can be; what it drops is looked at more closely by a second one.

An image's pixels are those of the poster that a dataset would store (`poster_tfds.images`);
an image for which that cannot be done in a graph is refused.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from poster_tfds import images as images_lib
from trainer.data import preprocessing

(
    LOADED,
    _EMPTY,
    _NOT_AN_IMAGE,
    _TOO_MANY_BYTES,
    _TOO_MANY_PIXELS,
    _LARGER_THAN_STORED,
    _CMYK,
    _TURNED,
    _UNUSUAL_PNG,
    _DAMAGED,
    _NOT_DECODED,
) = range(11)
_JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_MAX_CHANNELS = 3  # Of a JPEG; more are CMYK.
_SCAN = b"\xff\xda"
_TURN_OF_EXIF = f"{images_lib.EXIF}\\C*?{images_lib.TURN}"  # \C is RE2's name of any byte.
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_SIDES, _PNG_BITS, _PNG_COLOURS = 16, 24, 25  # Where a PNG has them.
_PNG_ALPHA = 4  # The bit of its colours' kind that says so.
_PNG_CONVERTED = "iCCP|eXIf|Raw profile type|XML:com.adobe.xmp"  # Chunks that change the picture.
_PNG_TRANSPARENCY = "tRNS"
_BLACK = np.zeros([1, 1, 3], np.uint8)  # In the place of an image that is not decoded.
_NO_DATA = 128  # The level of what libjpeg fills in where a JPEG's data end too early.
_FILLER = bytes(range(1, 255)) * 4  # Data without a marker.
_PARALLEL_CALLS = 4  # Threads are the server's; more calls than cores wait at no cost.


class Limits(NamedTuple):
    """What an image may cost; it is refused by its header beyond that."""

    max_bytes: int = 32_000_000
    max_pixels: int = 25_000_000
    max_side: int = 0  # In pixels, where the dataset's posters were reduced; 0: none.


class ImageLoader:
    """Decodes and resizes images, row by row: what becomes of one never depends on another."""

    def __init__(self, image_size: int, limits: Limits):
        self._resize = functools.partial(preprocessing.resize, image_size=image_size)
        self._image_size = image_size
        self._limits = limits

    @property
    def reasons(self) -> list[str]:
        """Why an image was not loaded, in words, by its status; "" for `LOADED`."""
        convert = "send a JPEG, or ask with `python -m export.predict`, which converts"
        max_side = self._limits.max_side
        reasons = {
            LOADED: "",
            _EMPTY: "empty",
            _NOT_AN_IMAGE: f"neither a JPEG nor a PNG; {convert}",
            _TOO_MANY_BYTES: f"more than {self._limits.max_bytes} bytes",
            _TOO_MANY_PIXELS: f"more than {self._limits.max_pixels} pixels",
            _LARGER_THAN_STORED: f"a side of more than {max_side} pixels, to which the dataset's "
            f"posters are reduced; `python -m export.predict --max_side={max_side}` reduces it",
            _CMYK: f"its colours are CMYK; {convert}",
            _TURNED: f"its EXIF data ask for a turn; {convert}",
            _UNUSUAL_PNG: "a PNG with a colour profile, EXIF data or a transparent colour of 16 "
            f"bits; {convert}",
            _DAMAGED: "damaged: its data end too early",
            _NOT_DECODED: "does not decode",
        }
        return [reasons[status] for status in sorted(reasons)]

    def load(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Decodes what can be decoded.

        Args:
            images: string [N], files as bytes.

        Returns:
            `LOADED` or another status for each, int32 [N], and uint8 [N, S, S, 3], black if not
            loaded.
        """
        status = self._check_bytes(images)
        status, pixels = tf.cond(
            tf.size(images) == 1,
            lambda: self._load_one(images, status),
            lambda: self._load_several(images, status),
        )
        return self._check_damage(images, status, pixels)

    def _check_bytes(self, images: tf.Tensor) -> tf.Tensor:
        """Returns the status of each image, int32 [N], as far as it is seen without a decoder."""
        length = tf.strings.length(images)
        status = tf.where(_ask_for_a_turn(images), _TURNED, LOADED)
        status = tf.where(_begins_as_jpeg(images) | _begins_as_png(images), status, _NOT_AN_IMAGE)
        status = tf.where(length > self._limits.max_bytes, _TOO_MANY_BYTES, status)
        return tf.where(length == 0, _EMPTY, status)

    def _load_one(self, images: tf.Tensor, status: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Loads the only image, in a pipeline that has not even a batch."""
        none, none_loaded = np.zeros([0, 0, 3], np.uint8), tf.zeros([0], tf.int64)
        image = tf.cond(
            status[0] == LOADED,
            lambda: _decoded_or(
                none,
                images[0],
                lambda image: preprocessing.decode(_check_jpeg(image, self._limits)),
            ),
            lambda: tf.constant(none),
        )
        # Resized outside: a pipeline prepares its functions anew at each call, so that every
        # operation in them costs more than one here.
        return tf.cond(
            tf.size(image) > 0,
            lambda: (status, self._resize(image)[None]),
            lambda: self._load_rest(images, status, none_loaded, self._black[None]),
        )

    def _load_several(self, images: tf.Tensor, status: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Loads any number of images, for JPEGs first."""

        def load(row):
            return self._resize(preprocessing.decode(_check_jpeg(images[row], self._limits)))

        rows = tf.where((status == LOADED) & _begins_as_jpeg(images))[:, 0]
        rows, pixels = _for_each(rows, load, self._black)
        return tf.cond(
            tf.size(rows) == tf.size(images),
            lambda: (status, pixels[:-1]),
            lambda: self._load_rest(images, status, rows, pixels),
        )

    def _load_rest(
        self, images: tf.Tensor, status: tf.Tensor, rows: tf.Tensor, pixels: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Loads those that are not among some rows, int64 [K], which are loaded.

        Theirs are the first pixels, uint8 [K + 1, S, S, 3]; the last ones are black.
        """
        shape = tf.shape(images, tf.int64)

        def load(row):
            status, image = self._decode(images[row])
            return status, self._resize(image)

        num_loaded = tf.size(rows)
        positions = tf.tensor_scatter_nd_update(
            tf.fill(shape, num_loaded), rows[:, None], tf.range(num_loaded)
        )
        rest = tf.where((status == LOADED) & (positions == num_loaded))
        status = tf.tensor_scatter_nd_update(
            status, rest, tf.fill([tf.shape(rest)[0]], _NOT_DECODED)
        )
        rows, (found, more) = _for_each(rest[:, 0], load, (_NOT_DECODED, self._black))
        status = tf.tensor_scatter_nd_update(status, rows[:, None], found[:-1])
        positions = tf.tensor_scatter_nd_update(
            positions, rows[:, None], tf.range(num_loaded + 1, num_loaded + 1 + tf.size(rows))
        )
        return status, tf.gather(tf.concat([pixels, more], 0), positions)

    @property
    def _black(self) -> tf.Tensor:
        """Stands for an image that is not loaded: uint8 [S, S, 3]."""
        return tf.zeros([self._image_size, self._image_size, 3], tf.uint8)

    def _decode(self, image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns an image's status, an int32 scalar, and uint8 [H, W, 3]; may raise an error."""
        limits = self._limits
        is_png = _begins_as_png(image)
        shape, usual = tf.cond(is_png, lambda: _png_header(image), lambda: _jpeg_header(image))
        num_pixels = tf.reduce_prod(tf.cast(shape, tf.int64))
        larger = bool(limits.max_side) & (tf.reduce_max(shape) > limits.max_side)
        status = tf.where(usual, LOADED, tf.where(is_png, _UNUSUAL_PNG, _CMYK))
        status = tf.where(larger, _LARGER_THAN_STORED, status)
        status = tf.where(num_pixels > limits.max_pixels, _TOO_MANY_PIXELS, status)
        decoded = tf.cond(
            status == LOADED,
            lambda: preprocessing.decode(
                tf.cond(is_png, lambda: _png_to_jpeg(image), lambda: image)
            ),
            lambda: tf.constant(_BLACK),
        )
        return status, decoded

    def _check_damage(
        self, images: tf.Tensor, status: tf.Tensor, pixels: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Names JPEGs whose data end too early, of which TensorFlow says nothing.

        Two kinds are suspect: with a last pixel as libjpeg fills it in, and with several scans, of
        which some may be missing (progressive ones). They are decoded once more with a filler after
        their data, which changes nothing of a whole picture.
        """
        filled_in = pixels[:, -1, -1, 0] == _NO_DATA
        # What is between markers of scans, as (image, number of the part): at most three parts.
        parts = tf.raw_ops.StringSplitV2(input=images, sep=_SCAN, maxsplit=2)

        def check_same(row):
            again = self._resize(preprocessing.decode(_add_filler(images[row])))
            same = tf.reduce_all(again == pixels[row])
            with tf.control_dependencies([tf.raw_ops.Assert(condition=same, data=[row])]):
                return tf.identity(row)

        def check():
            shape = tf.shape(images, tf.int64)
            many_scans = tf.scatter_nd(parts.indices[:, :1], parts.indices[:, 1] == 2, shape)
            suspect = (status == LOADED) & (filled_in | many_scans) & _begins_as_jpeg(images)
            rows = tf.where(suspect)[:, 0]
            whole, _ = _for_each(rows, check_same, tf.constant(-1, tf.int64))
            whole = tf.scatter_nd(whole[:, None], tf.ones_like(whole, tf.bool), shape)
            damaged = suspect & ~whole
            black = tf.constant(0, tf.uint8)
            return (
                tf.where(damaged, _DAMAGED, status),
                tf.where(damaged[:, None, None, None], black, pixels),
            )

        return tf.cond(
            tf.reduce_any(filled_in) | (parts.shape[1] > 2), check, lambda: (status, pixels)
        )


def images_of_examples(examples: tf.Tensor) -> tf.Tensor:
    """Returns the feature `image_bytes` of serialized tf.Examples, string [N]; "" for no such."""
    feature = {"image_bytes": tf.io.FixedLenFeature([], tf.string)}

    def parse(row):
        return tf.io.parse_single_example(examples[row], feature)["image_bytes"]

    shape = tf.shape(examples, tf.int64)
    rows, images = _for_each(tf.range(shape[0]), parse, tf.constant(""))
    return tf.tensor_scatter_nd_update(tf.fill(shape, ""), rows[:, None], images[:-1])


def _begins_as_jpeg(images: tf.Tensor) -> tf.Tensor:
    return tf.strings.substr(images, 0, len(_JPEG)) == _JPEG


def _begins_as_png(images: tf.Tensor) -> tf.Tensor:
    return tf.strings.substr(images, 0, len(_PNG)) == _PNG


def _ask_for_a_turn(images: tf.Tensor) -> tf.Tensor:
    """Returns which images' EXIF data ask for a turn, or other data as the builder takes them."""
    return _contains(tf.strings.substr(images, 0, images_lib.HEADER_BYTES), _TURN_OF_EXIF)


def _contains(texts: tf.Tensor, pattern: str) -> tf.Tensor:
    # A replacement begins to look at the pattern's first word; a match goes through every byte.
    return tf.strings.regex_replace(texts, pattern, "", replace_global=False) != texts


def _check_jpeg(image: tf.Tensor, limits: Limits) -> tf.Tensor:
    """Returns a JPEG; raises an error for what is none, beyond limits or CMYK."""
    height, width, channels = tf.unstack(tf.io.extract_jpeg_shape(image))
    # A product might overflow.
    usual = (channels <= _MAX_CHANNELS) & (height <= limits.max_pixels // width)
    if limits.max_side:
        usual &= tf.maximum(height, width) <= limits.max_side
    # `tf.debugging.Assert` adds branches, which cost more than what they guard.
    with tf.control_dependencies([tf.raw_ops.Assert(condition=usual, data=[height, width])]):
        return tf.identity(image)


def _png_to_jpeg(image: tf.Tensor) -> tf.Tensor:
    """Returns the JPEG that `poster_tfds.images` makes of a PNG."""

    def on_white():
        rgba = tf.cast(tf.io.decode_png(image, channels=4), tf.uint16)
        rgb, alpha = rgba[..., :3], rgba[..., 3:]
        # Divided by 255 and rounded as Pillow does it.
        scaled = rgb * alpha + 255 * (255 - alpha) + 128
        shift = tf.constant(8, tf.uint16)
        scaled = tf.bitwise.right_shift(scaled + tf.bitwise.right_shift(scaled, shift), shift)
        return tf.cast(scaled, tf.uint8)

    # Of an image without transparency, TensorFlow makes one if a value has less than 8 bits.
    rgb = tf.cond(_has_alpha(image), on_white, lambda: tf.io.decode_png(image, channels=3))
    return tf.io.encode_jpeg(rgb, quality=images_lib.JPEG_QUALITY)


def _add_filler(jpeg: tf.Tensor) -> tf.Tensor:
    """Returns a JPEG with more data before its end marker, and without what follows that."""
    parts = tf.strings.split(jpeg, _JPEG_END)
    return tf.strings.reduce_join(parts[:-1], separator=_JPEG_END) + _FILLER + _JPEG_END


def _jpeg_header(image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns height and width of a JPEG, and whether it is in colour or grey."""
    shape = tf.io.extract_jpeg_shape(image)
    return shape[:2], shape[2] <= _MAX_CHANNELS


def _png_header(image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns height and width of a PNG, and whether a graph converts it as Pillow does."""
    sides = tf.strings.substr(image, _PNG_SIDES, 8)
    sides = tf.io.decode_raw(sides, tf.int32, little_endian=False)
    deep = tf.strings.substr(image, _PNG_BITS, 1) == b"\x10"
    unusual = _contains(image, _PNG_CONVERTED) | (deep & _contains(image, _PNG_TRANSPARENCY))
    return tf.reverse(tf.ensure_shape(sides, [2]), [0]), ~unusual


def _has_alpha(png: tf.Tensor) -> tf.Tensor:
    colours = tf.io.decode_raw(tf.strings.substr(png, _PNG_COLOURS, 1), tf.uint8)[0]
    return (colours >= _PNG_ALPHA) | _contains(png, _PNG_TRANSPARENCY)


def _decoded_or(default: tf.Tensor | np.ndarray, element: tf.Tensor, decode: Callable) -> tf.Tensor:
    """Returns what `decode` makes of an element, or `default` if it raises an error."""
    decoded = tf.data.Dataset.from_tensors(element).map(decode).ignore_errors()
    return _run(decoded.concatenate(tf.data.Dataset.from_tensors(default)).take(1))


def _for_each(rows: tf.Tensor, function: Callable, default) -> tuple[tf.Tensor, Any]:
    """Applies a function to rows, some at a time, and leaves out those for which it fails.

    Args:
        rows: int64 [M].
        function: of a row, to tensors; an error in it concerns this row alone.
        default: tensors such as the function returns.

    Returns:
        The rows, int64 [K], for which it did not fail, and its tensors for these, [K + 1, ...],
        with the default last.
    """
    last = tf.data.Dataset.from_tensors((tf.constant(-1, tf.int64), default))
    rows, results = _run(
        tf.data.Dataset.from_tensor_slices(rows)
        .map(lambda row: (row, function(row)), _PARALLEL_CALLS)
        .ignore_errors()
        .concatenate(last)
        .batch(tf.size(rows, out_type=tf.int64) + 1)
    )
    return rows[:-1], results


def _run(dataset: tf.data.Dataset):
    """Returns a dataset's only element."""
    options = tf.data.Options()
    options.autotune.enabled = False
    # They are sought anew at each call, and take longer than they save.
    options.experimental_optimization.apply_default_optimizations = False
    return dataset.with_options(options).get_single_element()
