"""The order of an epoch: a permutation of row numbers, a function of (seed, epoch) alone.

So it is the same wherever the rows are and however many workers share them, and going on at a step
is arithmetic.
"""

import tensorflow as tf

_LARGEST_TENSOR = 1 << 24  # Rows of which a permutation is made as one tensor, of 128 MB.


def steps(num_rows: int, batch_size: int, seed: int, start_step: int = 0) -> tf.data.Dataset:
    """Returns the row numbers of all global batches from a step on, epoch after epoch, endless.

    An epoch has `num_rows // batch_size` batches; what remains is left out, other rows in each.

    Args:
        num_rows: N.
        batch_size: B, at most N.
        seed: of the run.
        start_step: steps that an interrupted run has taken.

    Yields:
        The step, an int64 scalar, and its row numbers, int64 [B].
    """
    steps_per_epoch = num_rows // batch_size
    start_epoch, start_batch = divmod(start_step, steps_per_epoch)

    @tf.autograph.experimental.do_not_convert
    def one_epoch(epoch):
        first = tf.where(epoch == start_epoch, tf.constant(start_batch, tf.int64), 0)
        batches = tf.range(first, steps_per_epoch, dtype=tf.int64)
        numbers = epoch * steps_per_epoch + batches
        if num_rows > _LARGEST_TENSOR:
            return tf.data.Dataset.from_tensor_slices((numbers, batches)).map(
                lambda number, batch: (number, _large(epoch, batch))
            )
        rows = tf.random.experimental.stateless_shuffle(
            tf.range(num_rows, dtype=tf.int64), tf.stack([tf.constant(seed, tf.int64), epoch])
        )
        rows = tf.reshape(rows[: steps_per_epoch * batch_size], [steps_per_epoch, batch_size])
        return tf.data.Dataset.from_tensor_slices((numbers, rows[first:]))

    @tf.autograph.experimental.do_not_convert
    def _large(epoch, batch):
        places = batch * batch_size + tf.range(batch_size, dtype=tf.int64)
        key = tf.cast(tf.stack([tf.constant(seed, tf.int64), epoch]), tf.uint32)
        return tf.random.experimental.index_shuffle(
            places, key, tf.constant(num_rows - 1, tf.int64)
        )

    return tf.data.Dataset.counter(start_epoch).flat_map(one_epoch)


def rows_of_step(num_rows: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Returns the row numbers of one global batch; `step` is counted from 0."""
    _, rows = next(iter(steps(num_rows, batch_size, seed, step)))
    return rows.numpy().tolist()
