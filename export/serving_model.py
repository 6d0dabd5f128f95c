"""The signatures of the exported model."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from trainer import preprocessing


class ServingModel(tf.Module):
    """JPEG bytes in, genres with their scores out."""

    def __init__(self, model: keras.Model, genres: Sequence[str], image_size: int):
        super().__init__(name="poster_genres")
        # Behind a function: tf.Module would track the model too and, Keras 3 wrapping
        # its variables, store every weight twice (keras#23553).
        self._logits = lambda pixels: model(pixels, training=False)
        self._image_size = image_size
        self._genres = tuple(genres)
        # tf.Module does not see into a Keras 3 model; a server could not restore the
        # variables of one that it merely holds.
        self._variables = [variable.value for variable in model.variables]

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def serving_default(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Scores every genre for each poster.

        Args:
            image_bytes: string [N], JPEGs of any size.

        Returns:
            scores: float32 [N, G], the probability of each genre.
            genres: string [N, G], the genres' names, the same for each poster.
        """
        # oneDNN's convolution of an empty batch has the wrong number of channels.
        scores = tf.cond(
            tf.size(image_bytes) > 0,
            lambda: self._score(image_bytes),
            lambda: tf.zeros([0, len(self._genres)]),
        )
        genres = tf.tile([self._genres], [tf.size(image_bytes), 1])
        return {"scores": scores, "genres": genres}

    def _score(self, image_bytes: tf.Tensor) -> tf.Tensor:
        with tf.device("CPU"):  # The pixels of training were made on a CPU.
            pixels = tf.map_fn(
                lambda image: preprocessing.decode_and_resize(image, self._image_size),
                image_bytes,
                fn_output_signature=tf.TensorSpec([self._image_size] * 2 + [3], tf.uint8),
            )
        return tf.sigmoid(self._logits(pixels))
