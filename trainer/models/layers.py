"""Layers that Keras has, on the fastest kernels that TensorFlow has.

Variables, checkpoints and results are those of the Keras classes; the floating-point
operations come in another order.
"""

import keras
import tensorflow as tf


class FusedBatchNormalization(keras.layers.BatchNormalization):
    """Keras's batch normalization on TensorFlow's fused kernel.

    Keras 3 computes moments and the affine map operation by operation, in float32 even
    where the activations are bfloat16. The kernel reads 16-bit activations directly and
    keeps the statistics in float32. Variables, checkpoints and results are those of
    `keras.layers.BatchNormalization`; inputs that are not [N, H, W, C] go to Keras's own
    code.

    Where several replicas train together, the statistics are of the whole global batch, so
    that they learn what one device would. Not `synchronized`, each normalizes its part for itself,
    which spares a copy in float32, and the mean of their statistics is recorded.
    """

    def __init__(self, synchronized: bool = True, **kwargs):
        super().__init__(synchronized=synchronized, **kwargs)

    def call(self, inputs, training=None, mask=None):
        """Normalizes a batch of float32, bfloat16 or float16, in the layer's compute dtype."""
        is_shared = training and self.trainable and _num_replicas() > 1
        if is_shared and self.synchronized:
            return self._normalize_together(inputs)
        if is_shared and len(inputs.shape) == 2:
            return self._normalize(inputs[:, None, None, :], training)[:, 0, 0, :]
        if len(inputs.shape) != 4 or mask is not None or self.axis not in (-1, 3):
            return super().call(inputs, training=training, mask=mask)
        return self._normalize(inputs, training)

    def _normalize(self, inputs: tf.Tensor, training: bool | None) -> tf.Tensor:
        """Normalizes [N, H, W, C] on the fused kernel."""
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
            if _num_replicas() > 1:
                context = tf.distribute.get_replica_context()
                mean, variance = context.all_reduce(tf.distribute.ReduceOp.MEAN, [mean, variance])
            self._record(mean, variance)
        return outputs

    def _normalize_together(self, inputs: tf.Tensor) -> tf.Tensor:
        """Normalizes [N, ..., C] with the statistics of all replicas' parts of the batch.

        The parts are of one size. Their means and variances are combined as by Chan, Golub and
        LeVeque (1979): nothing large is squared, so nothing cancels.
        """
        exact = tf.cast(inputs, self.moving_mean.dtype)
        statistics = tf.stack(tf.nn.moments(exact, list(range(len(inputs.shape) - 1))))
        context = tf.distribute.get_replica_context()
        # Added up, what is in one row for each replica is gathered.
        row = tf.one_hot(
            context.replica_id_in_sync_group, context.num_replicas_in_sync, dtype=exact.dtype
        )
        gathered = context.all_reduce(tf.distribute.ReduceOp.SUM, row[:, None, None] * statistics)
        means, variances = tf.unstack(gathered, axis=1)
        mean = tf.reduce_mean(means, 0)
        variance = tf.reduce_mean(variances + (means - mean) ** 2, 0)
        self._record(mean, variance)
        outputs = tf.nn.batch_normalization(
            exact, mean, variance, self.beta, self.gamma, self.epsilon
        )
        return tf.cast(outputs, self.compute_dtype)

    def _record(self, mean: tf.Tensor, variance: tf.Tensor) -> None:
        """Moves the moving statistics towards a batch's."""
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + batch * (1 - self.momentum))


class Dropout(keras.layers.Dropout):
    """Keras's dropout, with another mask on each replica: Keras draws the same on all."""

    def call(self, inputs, training=False):
        if not training or not self.rate:
            return inputs
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        seed = tf.random.experimental.stateless_fold_in(self.seed_generator.next(), replica)
        return tf.nn.experimental.stateless_dropout(inputs, self.rate, seed)


class ConvBatchNorm(keras.layers.Layer):
    """A convolution, batch normalization and an activation, "same"-padded and without bias.

    Where the batch's own statistics are not asked for (evaluation, serving, frozen layers,
    pretrained backbones) the normalization is folded into the filters, which leaves one
    kernel to run.
    """

    def __init__(
        self,
        filters: int | None,
        kernel_size: int,
        strides: int = 1,
        activation: str | None = None,
        epsilon: float = 1e-3,
        momentum: float = 0.99,
        synchronized: bool = True,
        **kwargs,
    ):
        """Without `filters`, each channel is filtered for itself (depthwise)."""
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.activation = keras.activations.get(activation)
        self.normalization = FusedBatchNormalization(
            synchronized=synchronized,
            epsilon=epsilon,
            momentum=momentum,
            dtype=self.dtype_policy,
            name="normalization",
        )

    def build(self, input_shape):
        """Makes the filters, [k, k, C, filters] or, depthwise, [k, k, C, 1]."""
        sides = (self.kernel_size, self.kernel_size)
        self.kernel = self.add_weight(
            shape=(*sides, input_shape[-1], self.filters or 1),
            initializer="glorot_uniform" if self.filters is None else "he_normal",
            autocast=False,  # It is folded in float32.
            name="kernel",
        )
        self.normalization.build(self.compute_output_shape(input_shape))

    def call(self, inputs, training=None):
        """Filters [N, H, W, C] to [N, H', W', D], in the layer's compute dtype."""
        normalization = self.normalization
        kernel = tf.convert_to_tensor(self.kernel)
        if training and normalization.trainable:
            outputs = normalization(self._filter(inputs, kernel), training=True)
        else:
            scale = normalization.gamma * tf.math.rsqrt(
                normalization.moving_variance + normalization.epsilon
            )
            offset = normalization.beta - normalization.moving_mean * scale
            # A depthwise filter's channel is its third axis.
            folded = kernel * (scale if self.filters else scale[:, None])
            outputs = tf.nn.bias_add(
                self._filter(inputs, folded), tf.cast(offset, self.compute_dtype)
            )
        return self.activation(outputs)

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape
        sides = (side and -(-side // self.strides) for side in (height, width))
        return (batch, *sides, self.filters or channels)

    def _filter(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        kernel = tf.cast(kernel, self.compute_dtype)
        strides = [1, self.strides, self.strides, 1]
        convolve = tf.nn.conv2d if self.filters else tf.nn.depthwise_conv2d
        return convolve(inputs, kernel, strides, "SAME")


class InferenceModel(keras.Model):
    """A functional model that answers in training as it does in evaluation.

    Normalization goes by the moving statistics and leaves them as they are; weights can be
    trained all the same. To call a model with `training=False`, as Keras's guide to transfer
    learning has it, is not enough: the model around it overrules that.
    """

    def call(self, inputs, training=None, mask=None):
        del training
        return super().call(inputs, training=False, mask=mask)


def _num_replicas() -> int:
    return tf.distribute.get_strategy().num_replicas_in_sync
