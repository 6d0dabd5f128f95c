"""How good a model is: every example counted once, beside the constant predictor.

Label accuracy alone says little here: most genres are absent from most posters, so
answering "none" is right for 0.9077 of the reference test split's labels.
"""

import numpy as np
import tensorflow as tf
from sklearn import metrics as sklearn_metrics

METRICS = ("loss", "label_accuracy", "macro_ap", "micro_ap", "lrap")
_EPSILON = 1e-7


def compute_metrics(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Scores predictions.

    Args:
        labels: [N, G], 0 or 1.
        logits: float [N, G].

    Returns:
        loss: binary cross-entropy in nats, the mean over all labels.
        label_accuracy: share of labels on the right side of probability 0.5.
        macro_ap: average precision, the mean over the genres that occur.
        micro_ap: average precision over all (poster, genre) pairs.
        lrap: label ranking average precision; a poster without genres counts as 1.
        Average precision is NaN where no genre occurs.
    """
    labels = np.asarray(labels) > 0.5
    logits = np.asarray(logits, np.float64)
    occurring = labels.any(axis=0)
    nan = float("nan")
    average_precision = sklearn_metrics.average_precision_score
    return {
        # -y log s(x) - (1 - y) log(1 - s(x)), without overflow.
        "loss": float(np.mean(np.logaddexp(0, logits) - labels * logits)),
        "label_accuracy": float(np.mean((logits > 0) == labels)),
        "macro_ap": float(average_precision(labels[:, occurring], logits[:, occurring]))
        if occurring.any()
        else nan,
        "micro_ap": float(average_precision(labels, logits, average="micro"))
        if occurring.any()
        else nan,
        "lrap": float(sklearn_metrics.label_ranking_average_precision_score(labels, logits)),
    }


def compute_constant_metrics(labels: np.ndarray, base_rates: np.ndarray) -> dict[str, float]:
    """Scores the constant predictor, which answers the same for every poster.

    Its probabilities are the genres' shares of the train split. For label accuracy it
    answers "none", which is the best constant unless a genre is on most posters.

    Args:
        labels: [N, G], 0 or 1.
        base_rates: float [G], probabilities.
    """
    rates = np.clip(base_rates, _EPSILON, 1 - _EPSILON)
    logits = np.broadcast_to(np.log(rates / (1 - rates)), labels.shape)
    return {
        **compute_metrics(labels, logits),
        "label_accuracy": float(np.mean(np.asarray(labels) < 0.5)),
    }


def make_eval_step(model, strategy: tf.distribute.Strategy):
    """Returns a compiled function that predicts the next batch of an iterator.

    It gives `labels` and `logits` [B, G] and `weight` [B] of all replicas together.
    """

    def replica_step(batch):
        logits = model(batch["image"], training=False)
        return {"labels": batch["genres"], "logits": logits, "weight": batch["weight"]}

    return make_step(replica_step, strategy)


def make_step(replica_step, strategy: tf.distribute.Strategy, jit_compile: bool = False):
    """Returns a compiled function that takes an iterator's next batches through all replicas.

    Args:
        replica_step: takes a replica's part of a batch and returns tensors whose first
            axis is the example's; they are joined.
        strategy: where the replicas are.
        jit_compile: whether XLA compiles `replica_step`.

    Returns:
        Function of the iterator and of the number of batches, 1 unless said otherwise.
    """
    if jit_compile:
        replica_step = tf.function(replica_step, jit_compile=True)

    @tf.function
    def step(iterator):
        outputs = strategy.run(replica_step, args=(next(iterator),))
        if strategy.num_replicas_in_sync == 1:
            return outputs
        return {name: strategy.gather(value, axis=0) for name, value in outputs.items()}

    @tf.function
    def steps(iterator, num_steps):
        outputs = step(iterator)
        # The last batch of an epoch may be smaller than the others.
        arrays = {
            name: tf.TensorArray(
                value.dtype, num_steps, infer_shape=False, element_shape=[None, *value.shape[1:]]
            ).write(0, value)
            for name, value in outputs.items()
        }
        for i in tf.range(1, num_steps):
            outputs = step(iterator)
            arrays = {name: array.write(i, outputs[name]) for name, array in arrays.items()}
        return {name: array.concat() for name, array in arrays.items()}

    def take_steps(iterator, num_steps: int = 1):
        return step(iterator) if num_steps == 1 else steps(iterator, tf.constant(num_steps))

    return take_steps


def collect(outputs: list[dict[str, tf.Tensor]]) -> tuple[np.ndarray, np.ndarray]:
    """Joins what steps returned, leaving out what only filled up a batch (weight 0).

    Returns:
        labels and logits, float32 [N, G].
    """
    joined = {
        key: np.concatenate([output[key].numpy() for output in outputs]) for key in outputs[0]
    }
    real = joined["weight"] > 0
    return joined["labels"][real], joined["logits"][real]
