"""Adam with decay and clipping against a plain NumPy AdamW, and averages of weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer import config, runtime
from trainer.models import optimizer as optimizer_lib, registry


def make_optimizer(model, precision="float32", **settings):
    optimizer = optimizer_lib.create_optimizer(config.Config(**settings), precision, 10)
    optimizer.build(model.trainable_variables)
    return optimizer


class NumpyAdam:
    """AdamW, of https://arxiv.org/abs/1711.05101, with Keras's defaults."""

    def __init__(self, value):
        self.value, self.mean, self.square, self.step = value.astype(np.float64), 0.0, 0.0, 0

    def update(self, gradient, rate, weight_decay):
        self.step += 1
        self.mean = 0.9 * self.mean + 0.1 * gradient
        self.square = 0.999 * self.square + 0.001 * gradient**2
        moved = self.mean / (1 - 0.9**self.step)
        # Keras's epsilon is "epsilon hat", which the second moment is not yet corrected for.
        correction = np.sqrt(1 - 0.999**self.step)
        scale = (np.sqrt(self.square) + 1e-7) / correction
        self.value = self.value * (1 - rate * weight_decay) - rate * moved / scale


def random_gradients(model, rng):
    return [rng.normal(size=v.shape).astype(np.float32) for v in model.trainable_variables]


def make_model():
    """Dense layers and a normalization, of whose weights the kernels alone decay."""
    layers = [keras.layers.Dense(3), keras.layers.BatchNormalization(), keras.layers.Dense(2)]
    return keras.Sequential([keras.Input((4,)), *layers])


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
@pytest.mark.parametrize("clip_norm", [0.0, 2.0])
def test_steps_are_those_of_adamw_on_clipped_gradients(precision, clip_norm):
    """By the norm of all gradients together, as they are without the scale of float16."""
    model = make_model()
    optimizer = make_optimizer(model, precision, clip_norm=clip_norm, weight_decay=0.1)
    rng = np.random.default_rng(0)
    expected = [NumpyAdam(v.numpy()) for v in model.trainable_variables]
    for size in (10.0, 0.01, 3.0):
        gradients = [size * gradient for gradient in random_gradients(model, rng)]
        norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients))
        optimizer.apply([optimizer.scale_loss(tf.constant(g)) for g in gradients])
        factor = min(1, clip_norm / norm) if clip_norm else 1
        for adam, gradient, v in zip(expected, gradients, model.trainable_variables, strict=True):
            adam.update(gradient * factor, 1e-3, 0.1 if v.name == "kernel" else 0.0)
    for adam, v in zip(expected, model.trainable_variables, strict=True):
        np.testing.assert_allclose(v.numpy(), adam.value, atol=1e-6, err_msg=v.path)


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_what_is_clipped_is_the_sum_over_replicas(precision):
    """The second replica's gradients alone are above the norm; their sum is far above it."""
    strategy = runtime.create_strategy("mirrored")
    with strategy.scope():
        model = make_model()
        optimizer = make_optimizer(model, precision, clip_norm=2.0)
    expected = [NumpyAdam(v.numpy()) for v in model.trainable_variables]
    rng = np.random.default_rng(0)

    @tf.function
    def step(gradients):
        def of_replica():
            index = tf.distribute.get_replica_context().replica_id_in_sync_group
            of_index = [optimizer.scale_loss(tf.gather(g, index)) for g in gradients]
            optimizer.apply(of_index, model.trainable_variables)

        strategy.run(of_replica)

    for _ in range(3):
        parts = [np.stack([g * 0.1, g * 3]) for g in random_gradients(model, rng)]
        step(parts)
        summed = [part.sum(0) for part in parts]
        norm = np.sqrt(sum((gradient**2).sum() for gradient in summed))
        assert norm > 4
        for adam, gradient in zip(expected, summed, strict=True):
            adam.update(gradient * 2.0 / norm, 1e-3, 0.0)
    for adam, v in zip(expected, model.trainable_variables, strict=True):
        for copy in strategy.experimental_local_results(v.value):
            np.testing.assert_allclose(copy, adam.value, atol=1e-6, err_msg=v.path)


def test_the_cosine_schedule_rises_and_falls_to_0_at_the_end_of_the_last_epoch():
    settings = {"learning_rate": 0.1, "epochs": 5, "warmup_epochs": 2.0}
    optimizer = make_optimizer(make_model(), learning_rate_schedule="cosine", **settings)
    rates = []
    for step in (0, 10, 20, 35, 50):
        optimizer.iterations.assign(step)
        rates.append(float(optimizer.learning_rate))
    np.testing.assert_allclose(rates, [0, 0.05, 0.1, 0.05, 0], atol=1e-7)


def test_clipping_leaves_checkpoints_adams(tmp_path):
    model = make_model()
    path = tf.train.Checkpoint(optimizer=make_optimizer(model)).write(str(tmp_path / "adam"))
    clipped = make_optimizer(model, clip_norm=1.0)
    tf.train.Checkpoint(optimizer=clipped).read(path).assert_consumed()


def test_the_average_of_the_weights_is_numpys_and_has_the_statistics_too():
    """But of what is frozen, and of whole numbers, it has the weights as they are."""

    def make():
        chosen = config.Config(model="tiny_backbone", image_size=32, freeze="stem")
        return registry.create_model(chosen, 3, "float32")

    average, model = make(), make()
    frozen = {weight.path for weight in model.get_layer("backbone").get_layer("stem").weights}
    assert len(frozen) == 5  # Filters, scale and offset, mean and variance.
    begun = model.get_weights()
    average.set_weights([weight - 1 for weight in begun])
    expected = average.get_weights()
    running = optimizer_lib.WeightAverage(average, model, momentum=0.3)
    rng = np.random.default_rng(0)
    for step in range(1, 8):
        model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
        running.update(tf.constant(step))
        momentum = min(0.3, (1 + step) / (10 + step))  # 2/11, 3/12, and from then on 0.3.
        expected = [
            momentum * mean + (1 - momentum) * weight
            for mean, weight in zip(expected, model.get_weights(), strict=True)
        ]
    assert any("moving_variance" in weight.path for weight in average.weights)
    for found, weight, value, old in zip(
        average.get_weights(), model.weights, expected, begun, strict=True
    ):
        np.testing.assert_allclose(found, old if weight.path in frozen else value, atol=1e-5)


def test_whole_numbers_stand_in_the_average_as_they_are():
    """As the positions of CLIP and SigLIP in KerasHub."""
    average, model = keras.Model(), keras.Model()
    for of_model, values in ((average, [0, 1]), (model, [2, 7])):
        weight = of_model.add_weight(shape=(2,), dtype="int64", trainable=False)
        weight.assign(values)
    optimizer_lib.WeightAverage(average, model, momentum=0.5).update(tf.constant(100))
    np.testing.assert_array_equal(average.get_weights(), [[2, 7]])
