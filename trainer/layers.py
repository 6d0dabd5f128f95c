"""Layers that Keras has, made as fast as the kernels that TensorFlow has."""

import keras
import tensorflow as tf


class FusedBatchNormalization(keras.layers.BatchNormalization):
    """Keras's batch normalization on TensorFlow's fused kernel.

    Keras 3 computes moments and the affine map operation by operation, in float32 even
    where the activations are bfloat16. The kernel reads 16-bit activations directly and
    keeps the statistics in float32. Variables, checkpoints and results are those of
    `keras.layers.BatchNormalization`; inputs that are not [N, H, W, C] go to Keras's own
    code.
    """

    def call(self, inputs, training=None, mask=None):
        """Normalizes a batch.

        Args:
            inputs: [N, H, W, C], float32, bfloat16 or float16.
            training: whether to use and record the batch's own statistics.
            mask: not supported by the kernel; sends the batch to Keras's code.

        Returns:
            Tensor of the inputs' shape in the layer's compute dtype.
        """
        if len(inputs.shape) != 4 or mask is not None or self.axis not in (-1, 3):
            return super().call(inputs, training=training, mask=mask)
        training = bool(training and self.trainable)
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=tf.cast(inputs, self.compute_dtype),
            scale=tf.convert_to_tensor(self.gamma),
            offset=tf.convert_to_tensor(self.beta),
            mean=[] if training else tf.convert_to_tensor(self.moving_mean),
            variance=[] if training else tf.convert_to_tensor(self.moving_variance),
            epsilon=self.epsilon,
            is_training=training,
        )
        if training:
            # The kernel returns the sample variance; Keras records the population's.
            count = tf.cast(tf.size(inputs[..., 0]), tf.float32)
            variance *= tf.maximum(count - 1, 1) / count
            for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
                moving.assign(moving * self.momentum + batch * (1 - self.momentum))
        return outputs
