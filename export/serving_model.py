"""The signatures of the exported model.

Server-side batching joins the images of many clients, so an image that cannot be read
must cost the others nothing: images are checked and decoded in `tf.data` pipelines inside
the graph, which drop what fails. A batch in which every image looks like a whole, small
JPEG is decoded together, which is fastest; any other, and one that deceives, image by image.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from trainer.data import preprocessing

_JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_HEADER = 24  # Bytes of a PNG up to the end of its height.
_LOADED, _EMPTY, _NOT_AN_IMAGE, _TOO_MANY_BYTES, _TOO_MANY_PIXELS, _NOT_DECODED = range(6)
_BLACK = np.zeros([1, 1, 3], np.uint8)  # In the place of an image that is not decoded.
_PARALLEL_CALLS = 4  # Threads are the server's; more calls than cores wait at no cost.


class Limits(NamedTuple):
    """What an image may cost; it is refused by its header beyond that."""

    max_bytes: int = 32_000_000
    max_pixels: int = 25_000_000


# Of an image that is decoded together with others, ten at a time: at the default limits they take
# less memory than `_PARALLEL_CALLS` of the largest.
_SMALL = Limits(max_bytes=1 << 20, max_pixels=1 << 22)


class ServingModel(tf.Module):
    """Images in, genres with their scores out.

    Every signature answers row by row: a row whose image cannot be read has `ok` false,
    the reason in `error` and scores of 0, and the other rows are what they would be
    without it.
    """

    def __init__(
        self,
        model: keras.Model,
        genres: Sequence[str],
        image_size: int,
        top_k: int,
        limits: Limits,
    ):
        """Wraps a trained model.

        Args:
            model: uint8 [N, S, S, 3] to logits [N, G].
            genres: their G names.
            image_size: S.
            top_k: genres that `top_k` answers with; all, if there are fewer.
            limits: what an image may cost.
        """
        super().__init__(name="poster_genres")
        # Behind a function: tf.Module would track the model too and, Keras 3 wrapping
        # its variables, store every weight twice (keras#23553).
        self._logits = lambda pixels: model(pixels, training=False)
        self._image_size = image_size
        self._genres = tuple(genres)
        self._top_k = min(top_k, len(genres))
        self._limits = limits
        # tf.Module does not see into a Keras 3 model; a server could not restore the
        # variables of one that it merely holds.
        self._variables = [variable.value for variable in model.weights]

    @property
    def signatures(self) -> dict[str, Callable]:
        """The functions by the names under which they are served."""
        names = ("serving_default", "top_k", "classify", "pixels")
        return {name: getattr(self, name) for name in names}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def serving_default(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Scores every genre for each image.

        Args:
            image_bytes: string [N], JPEGs or PNGs of any size.

        Returns:
            scores: float32 [N, G], the probability of each genre.
            genres: string [N, G], the genres' names, the same for each image.
            ok: bool [N], whether the image could be read.
            error: string [N], why not; empty if it could.
        """
        scores, error = self._score_images(image_bytes)
        return {"scores": scores, "genres": self._names(scores), **_verdict(error)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def top_k(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the K most probable genres of each image, best first.

        Args:
            image_bytes: string [N], JPEGs or PNGs of any size.

        Returns:
            scores: float32 [N, K]; genres: string [N, K]; ok: bool [N]; error: string [N].
        """
        scores, error = self._score_images(image_bytes)
        best = tf.math.top_k(scores, self._top_k)
        genres = tf.gather(tf.constant(self._genres), best.indices)
        return {"scores": best.values, "genres": genres, **_verdict(error)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def classify(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """Scores images in the form of TensorFlow Serving's Classify API.

        Args:
            inputs: string [N], serialized tf.Examples with a bytes feature `image_bytes`.

        Returns:
            classes: string [N, G]; scores: float32 [N, G], 0 for what cannot be read.
        """
        feature = {"image_bytes": tf.io.FixedLenFeature([], tf.string)}
        scores, _ = self._score_images(
            inputs, lambda example: tf.io.parse_single_example(example, feature)["image_bytes"]
        )
        return {"classes": self._names(scores), "scores": scores}

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, name="pixels")])
    def pixels(self, pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        """Scores images that are decoded already.

        Args:
            pixels: uint8 [N, H, W, 3], RGB.

        Returns:
            scores: float32 [N, G]; genres: string [N, G].
        """
        scores = tf.cond(
            tf.size(pixels) > 0,
            lambda: self._score(preprocessing.resize(pixels, self._image_size)),
            lambda: tf.zeros([tf.shape(pixels)[0], len(self._genres)]),
        )
        return {"scores": scores, "genres": self._names(scores)}

    def _names(self, scores: tf.Tensor) -> tf.Tensor:
        return tf.tile([self._genres], [tf.shape(scores)[0], 1])

    def _score(self, pixels: tf.Tensor) -> tf.Tensor:
        # oneDNN's convolution of an empty batch has the wrong number of channels.
        return tf.cond(
            tf.shape(pixels)[0] > 0,
            lambda: tf.sigmoid(self._logits(pixels)),
            lambda: tf.zeros([0, len(self._genres)]),
        )

    def _score_images(
        self, inputs: tf.Tensor, unpack: Callable | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns scores [N, G] and errors [N] of images, or of what `unpack` makes images of."""
        with tf.device("CPU"):  # The pixels of training were made on a CPU.
            status, pixels = self.load(inputs, unpack)
        scores = self._score(pixels) * tf.cast(status == _LOADED, tf.float32)[:, None]
        reasons = {
            _LOADED: "",
            _EMPTY: "empty",
            _NOT_AN_IMAGE: "neither a JPEG nor a PNG",
            _TOO_MANY_BYTES: f"more than {self._limits.max_bytes} bytes",
            _TOO_MANY_PIXELS: f"more than {self._limits.max_pixels} pixels",
            _NOT_DECODED: "does not decode",
        }
        return scores, tf.gather([reasons[code] for code in sorted(reasons)], status)

    def load(
        self, inputs: tf.Tensor, unpack: Callable | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Decodes what can be decoded: what becomes of one image never depends on another.

        Args:
            inputs: string [N].
            unpack: what makes an image file's bytes of an element, if it is not one.

        Returns:
            Whether each was loaded or why not, int32 [N], and uint8 [N, S, S, 3], black if
            not.
        """
        if unpack:
            return self._load_each(inputs, unpack)
        few_bytes = tf.reduce_all(tf.strings.length(inputs) <= self._limits.max_bytes)
        return tf.cond(
            few_bytes & (tf.size(inputs) == 1),
            lambda: self._load_one(inputs),
            lambda: self._load_together(inputs),
        )

    def _load_one(self, inputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Loads the only image, which has few enough bytes."""
        none = np.zeros([0, 0, 3], np.uint8)
        max_pixels = self._limits.max_pixels
        image = _decoded_or(none, inputs[0], lambda image: _decode_jpeg(image, max_pixels))
        # Resized outside: a pipeline prepares its functions anew at each call, so that every
        # operation in them costs more than one here.
        return tf.cond(
            tf.size(image) > 0,
            lambda: (tf.constant([_LOADED]), preprocessing.resize(image, self._image_size)[None]),
            lambda: self._load_each(inputs),
        )

    def _load_together(self, inputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Loads images as one element of a pipeline, or as many if that fails."""
        limits = Limits(*map(min, self._limits, _SMALL))
        shape = [self._image_size, self._image_size, 3]

        def decode_all(images):
            return tf.map_fn(
                lambda image: preprocessing.resize(
                    _decode_jpeg(image, limits.max_pixels), shape[0]
                ),
                images,
                fn_output_signature=tf.TensorSpec(shape, tf.uint8),
            )

        none = tf.zeros([0, *shape], tf.uint8)
        pixels = tf.cond(
            tf.reduce_all(_look_like_jpegs(inputs, limits.max_bytes)),
            lambda: _decoded_or(none, inputs, decode_all),
            lambda: none,
        )
        return tf.cond(
            tf.shape(pixels)[0] == tf.size(inputs),
            lambda: (tf.fill(tf.shape(inputs), _LOADED), pixels),
            lambda: self._load_each(inputs),
        )

    def _load_each(
        self, inputs: tf.Tensor, unpack: Callable = lambda image: image
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Loads any number of elements, each for itself."""
        size = tf.size(inputs, out_type=tf.int64)

        def load(row):
            status, image = self._decode(unpack(inputs[row]))
            return row, status, preprocessing.resize(image, self._image_size)

        # One more, which stands for all that fail.
        black = tf.zeros([self._image_size, self._image_size, 3], tf.uint8)
        failed = tf.data.Dataset.from_tensors((tf.constant(-1, tf.int64), _NOT_DECODED, black))
        loaded = (
            tf.data.Dataset.range(size)
            .map(load, _PARALLEL_CALLS)
            .ignore_errors()
            .concatenate(failed)
            .batch(size + 1)
        )
        rows, status, pixels = _run(loaded)
        num_loaded = tf.size(rows) - 1
        positions = tf.tensor_scatter_nd_update(
            tf.fill([size], num_loaded), rows[:-1, None], tf.range(num_loaded)
        )
        return tf.gather(status, positions), tf.gather(pixels, positions)

    def _decode(self, image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns an image's status, an int32 scalar, and uint8 [H, W, 3]; may raise an error."""
        length = tf.strings.length(image)
        is_jpeg = tf.strings.substr(image, 0, len(_JPEG)) == _JPEG
        is_png = tf.strings.substr(image, 0, len(_PNG)) == _PNG
        status = tf.where(is_jpeg | is_png, _LOADED, _NOT_AN_IMAGE)
        status = tf.where(length > self._limits.max_bytes, _TOO_MANY_BYTES, status)
        status = tf.where(length == 0, _EMPTY, status)

        def decode():
            sides = tf.cond(is_png, lambda: _png_shape(image), lambda: _jpeg_shape(image))
            return tf.cond(
                tf.reduce_prod(tf.cast(sides, tf.int64)) > self._limits.max_pixels,
                lambda: (_TOO_MANY_PIXELS, tf.constant(_BLACK)),
                # TensorFlow's decoder of JPEG takes PNG too.
                lambda: (_LOADED, preprocessing.decode(image)),
            )

        return tf.cond(status == _LOADED, decode, lambda: (status, tf.constant(_BLACK)))


def _look_like_jpegs(images: tf.Tensor, max_bytes: int) -> tf.Tensor:
    """Returns which images begin and end as a JPEG and have few enough bytes, bool [N]."""
    length = tf.strings.length(images)
    end = tf.strings.substr(images, tf.maximum(length - len(_JPEG_END), 0), length)
    begins = tf.strings.substr(images, 0, len(_JPEG)) == _JPEG
    return begins & (end == _JPEG_END) & (length <= max_bytes)


def _decode_jpeg(image: tf.Tensor, max_pixels: int) -> tf.Tensor:
    """Returns uint8 [H, W, 3]; raises an error for what is no JPEG or has too many pixels."""
    height, width = tf.unstack(_jpeg_shape(image))
    few_pixels = height <= max_pixels // width  # A product might overflow.
    # `tf.debugging.Assert` adds branches, which cost more than what they guard.
    with tf.control_dependencies([tf.raw_ops.Assert(condition=few_pixels, data=[height, width])]):
        return preprocessing.decode(image)


def _decoded_or(default: tf.Tensor | np.ndarray, element: tf.Tensor, decode: Callable) -> tf.Tensor:
    """Returns what `decode` makes of an element, or `default` if it raises an error."""
    decoded = tf.data.Dataset.from_tensors(element).map(decode).ignore_errors()
    return _run(decoded.concatenate(tf.data.Dataset.from_tensors(default)).take(1))


def _run(dataset: tf.data.Dataset):
    """Returns a dataset's only element."""
    options = tf.data.Options()
    options.autotune.enabled = False
    # They are sought anew at each call, and take longer than they save.
    options.experimental_optimization.apply_default_optimizations = False
    return dataset.with_options(options).get_single_element()


def _verdict(error: tf.Tensor) -> dict[str, tf.Tensor]:
    return {"ok": error == "", "error": error}


def _jpeg_shape(image: tf.Tensor) -> tf.Tensor:
    return tf.io.extract_jpeg_shape(image, output_type=tf.int32)[:2]


def _png_shape(image: tf.Tensor) -> tf.Tensor:
    """Returns height and width of a PNG, which its header has as big-endian integers."""
    sides = tf.strings.substr(image, _PNG_HEADER - 8, 8)
    sides = tf.io.decode_raw(sides, tf.int32, little_endian=False)
    return tf.reverse(tf.ensure_shape(sides, [2]), [0])
