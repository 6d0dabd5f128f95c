"""Layers that Keras has, on the fastest kernels that TensorFlow has.

Variables, checkpoints and results are those of the Keras classes; the floating-point
operations come in another order.
"""

import contextlib
import contextvars

import keras
import tensorflow as tf

from poster_tfds import machine
from trainer import runtime

# With fewer, as the three colours, the products are too narrow to be faster.
_FEWEST_CHANNELS = 16
_statistics_weight = contextvars.ContextVar("statistics_weight", default=1.0)
_put_off = contextvars.ContextVar("put_off", default=None)


@contextlib.contextmanager
def statistics_weighted(weight: tf.Tensor):
    """Weighs this replica's part of the batch in batch normalization over several replicas.

    Args:
        weight: float32 scalar; 0 leaves the part out.
    """
    token = _statistics_weight.set(weight)
    try:
        yield
    finally:
        _statistics_weight.reset(token)


@contextlib.contextmanager
def statistics_put_off():
    """Has batch normalization leave its moving statistics as they are, and gives what to record.

    A function that XLA compiles cannot reach other replicas. What it has put off is recorded
    outside: `layer.record(mean, variance)` for each of the list's (layer, mean, variance).
    """
    put_off = []
    token = _put_off.set(put_off)
    try:
        yield put_off
    finally:
        _put_off.reset(token)


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
        """Describes the layer, of `keras.layers.BatchNormalization`'s arguments."""
        super().__init__(synchronized=synchronized, **kwargs)

    def call(self, inputs, training=None, mask=None):
        """Normalizes a batch.

        Args:
            inputs: [N, H, W, C], float32, bfloat16 or float16.
            training: whether to use and record the batch's own statistics.
            mask: not supported by the kernel; sends the batch to Keras's code.

        Returns:
            Tensor of the inputs' shape in the layer's compute dtype.
        """
        is_shared = training and self.trainable and _num_replicas() > 1
        if is_shared and self.synchronized:
            return self._normalize_together(inputs)
        if is_shared and len(inputs.shape) == 2:
            return self._normalize(inputs[:, None, None, :], training)[:, 0, 0, :]
        if len(inputs.shape) != 4 or mask is not None or self.axis not in (-1, 3):
            return super().call(inputs, training=training, mask=mask)
        return self._normalize(inputs, training)

    def record(self, mean: tf.Tensor, variance: tf.Tensor) -> None:
        """Moves the moving statistics towards a batch's, the mean of all replicas' parts."""
        if _num_replicas() > 1 and not self.synchronized:
            mean, variance = _mean_over_replicas(mean, variance)
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + batch * (1 - self.momentum))

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
            if _put_off.get() is None:
                self.record(mean, variance)
            else:
                _put_off.get().append((self, mean, variance))
        return outputs

    def _normalize_together(self, inputs: tf.Tensor) -> tf.Tensor:
        """Normalizes [N, ..., C] with the statistics of all replicas' parts of the batch.

        Each replica's mean and squared deviations from it are combined as by Chan, Golub and
        LeVeque (1979): nothing large is squared, so nothing cancels.
        """
        axes = list(range(len(inputs.shape) - 1))
        exact = tf.cast(inputs, self.moving_mean.dtype)
        mean = tf.reduce_mean(exact, axes)
        squares = tf.reduce_sum((exact - mean) ** 2, axes)
        weight = tf.cast(_statistics_weight.get(), exact.dtype)
        count = tf.fill(tf.shape(mean), tf.cast(tf.size(inputs[..., 0]), exact.dtype))
        context = tf.distribute.get_replica_context()
        # Added up, what is in one row for each replica is gathered.
        row = tf.one_hot(
            context.replica_id_in_sync_group, context.num_replicas_in_sync, dtype=exact.dtype
        )
        statistics = row[:, None, None] * tf.stack([weight * count, mean, weight * squares])
        statistics = context.all_reduce(tf.distribute.ReduceOp.SUM, statistics)
        counts, means, squares = tf.unstack(statistics, axis=1)
        total = tf.reduce_sum(counts, 0)
        mean = tf.reduce_sum(counts * means, 0) / total
        variance = tf.reduce_sum(squares + counts * (means - mean) ** 2, 0) / total
        self.record(mean, variance)
        outputs = tf.nn.batch_normalization(
            exact, mean, variance, self.beta, self.gamma, self.epsilon
        )
        return tf.cast(outputs, self.compute_dtype)


class Dropout(keras.layers.Dropout):
    """Keras's dropout on 16 random bits an element instead of 32.

    Drawing the bits is most of what dropout costs on a CPU. The rate is rounded to
    1/65536 (0.3 becomes 0.300003) and what is kept is scaled by that rate, so that the
    expected output is the input.
    """

    def call(self, inputs, training=False):
        """Zeroes a random share of the elements and scales the others up.

        Args:
            inputs: floating-point tensor of any shape.
            training: whether to drop anything.
        """
        if not training or not self.rate:
            return inputs
        threshold = round(self.rate * 2**16)
        size = tf.size(inputs)
        seed, draw = tf.unstack(tf.cast(self.seed_generator.next(), tf.int64))
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        bits = tf.random.stateless_uniform(
            [(size + 1) // 2],
            [seed, draw * _num_replicas() + tf.cast(replica, tf.int64)],
            minval=None,
            maxval=None,
            dtype=tf.int32,
        )
        bits = tf.reshape(tf.reshape(tf.bitcast(bits, tf.int16), [-1])[:size], tf.shape(inputs))
        kept = tf.cast(bits >= threshold - 2**15, inputs.dtype)
        return inputs * (kept * (2**16 / (2**16 - threshold)))


class Conv2D(keras.layers.Conv2D):
    """Keras's convolution whose filters' gradient is, where that is faster, a matrix product.

    Without AVX-512 oneDNN computes that gradient at a third of the speed of a matrix
    product, and it was half of a training step.
    """

    def convolution_op(self, inputs, kernel):
        """Convolves; the gradient of the filters is by matrix products if need be."""
        if not self._has_slow_filter_gradient():
            return super().convolution_op(inputs, kernel)
        return _convolve(inputs, tf.convert_to_tensor(kernel))

    def _has_slow_filter_gradient(self) -> bool:
        return (
            runtime.lacks_fast_filter_gradient()
            and self.compute_dtype == "float32"
            and self.kernel.shape[2] >= _FEWEST_CHANNELS
            and (self.strides, self.dilation_rate) == ((1, 1), (1, 1))
            and (self.padding, self.data_format, self.groups) == ("valid", "channels_last", 1)
        )


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
        """Describes the layer.

        Args:
            filters: width of the result; None filters each channel for itself (depthwise).
            kernel_size: side of the filters, in pixels.
            strides: step of the filters, in pixels.
            activation: name of a Keras activation; None for none.
            epsilon: added to the variance.
            momentum: of the moving statistics.
            synchronized: whether several replicas share the batch's statistics.
            **kwargs: name, dtype.
        """
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
        """Returns [N, H', W', D]."""
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
        """Calls the model's layers with `training=False`."""
        del training
        return super().call(inputs, training=False, mask=mask)


def _num_replicas() -> int:
    return tf.distribute.get_strategy().num_replicas_in_sync


def _mean_over_replicas(*values: tf.Tensor) -> list[tf.Tensor]:
    """Returns the mean of [C] of all replicas that have a part of the batch."""
    context = tf.distribute.get_replica_context()
    weight = tf.cast(_statistics_weight.get(), tf.float32)
    total, *sums = context.all_reduce(
        tf.distribute.ReduceOp.SUM, [weight, *(weight * value for value in values)]
    )
    return [value / total for value in sums]


@tf.custom_gradient
def _convolve(inputs: tf.Tensor, kernel: tf.Tensor):
    """Convolves [N, H, W, C] with [h, w, C, D], stride 1, without padding."""

    def gradient(upstream):
        inputs_gradient = tf.raw_ops.Conv2DBackpropInput(
            input_sizes=tf.shape(inputs),
            filter=kernel,
            out_backprop=upstream,
            strides=[1, 1, 1, 1],
            padding="VALID",
        )
        return inputs_gradient, _filter_gradient(inputs, upstream, kernel.shape)

    return tf.nn.conv2d(inputs, kernel, 1, "VALID"), gradient


def _filter_gradient(inputs: tf.Tensor, upstream: tf.Tensor, shape: tf.TensorShape) -> tf.Tensor:
    """Returns the filters' gradient [h, w, C, D], a matrix product for each of their pixels.

    With a poster's pixels in one row, [H * W, C], a filter's pixel (i, j) saw pixel
    p + i * W + j where the result is pixel p: the same rows, shifted, which takes no
    copy. The upstream gradient is widened to W by zeros, so that both count alike.
    """
    rows, columns, channels, filters = shape
    width = tf.shape(inputs)[2]
    length = tf.shape(upstream)[1] * width - (columns - 1)

    def of_one_poster(n):
        pixels = tf.reshape(inputs[n], [-1, channels])
        widened = tf.pad(upstream[n], [[0, 0], [0, columns - 1], [0, 0]])
        result = tf.reshape(widened, [-1, filters])[:length]
        shifts = [i * width + j for i in range(rows) for j in range(columns)]
        return tf.stack(
            [tf.matmul(pixels[k : k + length], result, transpose_a=True) for k in shifts]
        )

    # One poster stays in the processor's cache for all its products.
    of_all = tf.map_fn(
        of_one_poster,
        tf.range(tf.shape(inputs)[0]),
        parallel_iterations=machine.num_cores(),
        fn_output_signature=tf.TensorSpec([rows * columns, channels, filters]),
    )
    return tf.reshape(tf.reduce_sum(of_all, axis=0), shape)
