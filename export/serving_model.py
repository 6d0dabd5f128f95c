"""The signatures of the exported model."""

import functools
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from export import loading
from trainer import config as config_lib
from trainer.data import preprocessing, test_time
from trainer.decisions import decision as decision_lib
from trainer.models import ends


class ServingModel(tf.Module):
    """Images in, genres with their scores, or features, out.

    Every signature answers row by row: a row whose image cannot be read has `ok` false,
    the reason in `error`, scores and features of 0 and no predicted genre, and the other rows are
    what they would be without it.
    """

    def __init__(
        self,
        model: keras.Model,
        decision: decision_lib.Decision,
        image_size: int,
        top_k: int,
        limits: loading.Limits,
        tta: str = config_lib.NO_TTA,
    ):
        """Wraps a model of uint8 [N, S, S, 3] to logits [N, G], with what makes genres of them."""
        super().__init__(name="poster_genres")
        genres = tuple(decision.table.index)
        extractor = ends.feature_extractor(model)
        self._logits = _inference(test_time.averaged(model, tta), len(genres))
        self._features = _inference(extractor, extractor.output_shape[-1])
        self._resize = functools.partial(preprocessing.resize, image_size=image_size)
        self._genres = genres
        self._slopes, self._intercepts, self._thresholds = (
            decision.table[name].to_numpy(np.float32)
            for name in ("slope", "intercept", "threshold")
        )
        self._top_k = min(top_k, len(self._genres))
        self._loader = loading.ImageLoader(image_size, limits)
        # tf.Module does not see into a Keras 3 model; a server could not restore the
        # variables of one that it merely holds.
        self._variables = [variable.value for variable in model.weights]

    @property
    def signatures(self) -> dict[str, Callable]:
        """The functions by the names under which they are served."""
        names = ("serving_default", "top_k", "classify", "pixels", "embed")
        return {name: getattr(self, name) for name in names}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def serving_default(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Scores every genre for each image, JPEGs or PNGs of any size, string [N].

        Returns:
            scores: float32 [N, G], the model's probability of each genre.
            calibrated: float32 [N, G], that of the share of posters with such scores.
            predicted: bool [N, G], whether that is at least the genre's threshold.
            genres: string [N, G], the genres' names, the same for each image.
            ok: bool [N], whether the image could be read.
            error: string [N], why not; empty if it could.
        """
        logits, status = self._answer_images(image_bytes)
        outputs = self._decide(logits, status)
        return {**outputs, "genres": self._names(logits), **self._verdict(status)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def top_k(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the K most probable genres of each image, best first.

        Returns:
            scores and calibrated: float32 [N, K]; predicted: bool [N, K]; genres: string [N, K];
            ok: bool [N]; error: string [N].
        """
        logits, status = self._answer_images(image_bytes)
        outputs = self._decide(logits, status)
        best = tf.math.top_k(outputs["scores"], self._top_k).indices
        outputs = {name: tf.gather(v, best, batch_dims=1) for name, v in outputs.items()}
        genres = tf.gather(tf.constant(self._genres), best)
        return {**outputs, "genres": genres, **self._verdict(status)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def classify(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """Scores images in the form of TensorFlow Serving's Classify API.

        Args:
            inputs: string [N], serialized tf.Examples with a bytes feature `image_bytes`.

        Returns:
            classes: string [N, G]; scores: float32 [N, G], 0 for what cannot be read.
        """
        logits, status = self._answer_images(loading.images_of_examples(inputs))
        return {"classes": self._names(logits), "scores": self._decide(logits, status)["scores"]}

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, name="pixels")])
    def pixels(self, pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        """Scores images that are decoded already, uint8 [N, H, W, 3], RGB."""
        scores = tf.cond(
            tf.size(pixels) > 0,
            lambda: tf.sigmoid(self._logits(self._resize(pixels))),
            lambda: tf.zeros([tf.shape(pixels)[0], len(self._genres)]),
        )
        return {"scores": scores, "genres": self._names(scores)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def embed(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns what the model's head makes genres of, for each image; `tta` leaves it as it is.

        Returns:
            features: float32 [N, F], alike for images that the model takes for alike;
            ok: bool [N]; error: string [N].
        """
        status, pixels = self.load(image_bytes)
        is_loaded = (status == loading.LOADED)[:, None]
        features = tf.where(is_loaded, self._features(pixels), 0)
        return {"features": features, **self._verdict(status)}

    def _names(self, answers: tf.Tensor) -> tf.Tensor:
        return tf.tile([self._genres], [tf.shape(answers)[0], 1])

    def _answer_images(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        status, pixels = self.load(images)
        return self._logits(pixels), status

    def _decide(self, logits: tf.Tensor, status: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns scores, calibrated scores and predicted genres, each [N, G]."""
        is_loaded = (status == loading.LOADED)[:, None]
        calibrated = tf.sigmoid(self._slopes * logits + self._intercepts)
        return {
            "scores": tf.where(is_loaded, tf.sigmoid(logits), 0),
            "calibrated": tf.where(is_loaded, calibrated, 0),
            "predicted": is_loaded & (calibrated >= self._thresholds),
        }

    def _verdict(self, status: tf.Tensor) -> dict[str, tf.Tensor]:
        error = tf.gather(self._loader.reasons, status)
        return {"ok": error == "", "error": error}

    def load(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns each image's status and pixels, as `loading.ImageLoader.load` does."""
        with tf.device("CPU"):  # The pixels of training were made on a CPU.
            return self._loader.load(images)


def _inference(network: Callable[..., tf.Tensor], width: int) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a function of pixels, uint8 [N, S, S, 3], to what a network answers, [N, width].

    A function and not the network, since tf.Module would track a Keras model too and, Keras 3
    wrapping its variables, store every weight twice (keras#23553).
    """

    def answer(pixels):
        # oneDNN's convolution of an empty batch has the wrong number of channels.
        return tf.cond(
            tf.shape(pixels)[0] > 0,
            lambda: network(pixels, training=False),
            lambda: tf.zeros([0, width]),
        )

    return answer
