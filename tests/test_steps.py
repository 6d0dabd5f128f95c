"""A training step does what Keras's own would do, in parts, on replicas, several a call."""

import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import conftest, with_tiny_model
from tests.runs import steps as saved_steps
from trainer import config, flops, learner, run_data, runtime, steps
from trainer.benchmark import peers
from trainer.models import layers, optimizer as optimizer_lib, registry
from trainer.reports import run_log, scores, tables
from trainer.reports.answers import Answers
from trainer.run import checkpoints, directory, state as state_lib, stopping

REPLICA = tf.distribute.get_strategy()
SETTINGS = {
    "image_size": 32,
    "learning_rate": 0.01,
    "learning_rate_schedule": "cosine",
    "weight_decay": 0.1,
    "clip_norm": 0.1,
}


def without_dropout(model):
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    return model


def with_dtype(model, dtype):
    def clone(layer):
        return type(layer).from_config({**layer.get_config(), "dtype": dtype})

    clone = keras.models.clone_model(model, clone_function=clone)
    clone.set_weights(model.get_weights())
    return clone


def make_batches(count, size, image_size=32, num_genres=3):
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (count, size, image_size, image_size, 3)).astype(np.uint8),
        "genres": (rng.random((count, size, num_genres)) < 0.4).astype(np.float32),
    }


def test_a_step_is_what_stock_keras_would_do():
    """Loss, gradients and moving statistics against Keras's `train_on_batch`.

    Plain gradient descent at rate 1: a weight moves by its gradient. In float32 a few
    units and maxima change sides, in stock Keras too, so gradients are held against
    stock Keras in float64: ours must be about as near to them as its float32 is.
    """
    keras.utils.set_random_seed(1)
    batches = make_batches(1, 8, 94, 4)
    batch = {name: value[0] for name, value in batches.items()}
    ours = without_dropout(registry.create_model(config.Config(image_size=94), 4, "float32"))
    stock = without_dropout(peers.with_stock_layers(ours))
    assert {type(layer).__module__.split(".")[0] for layer in stock.layers} == {"keras"}
    before = ours.get_weights()
    stock.set_weights(before)
    exact = with_dtype(stock, "float64")
    expected_loss = {}
    for model in (stock, exact):
        model.compile(
            keras.optimizers.SGD(1.0), loss=keras.losses.BinaryCrossentropy(from_logits=True)
        )
        expected_loss[model] = float(model.train_on_batch(batch["image"], batch["genres"]))

    optimizer = keras.optimizers.SGD(1.0)
    optimizer.build(ours.trainable_variables)
    outputs = steps.make_train_step(ours, optimizer, REPLICA)(
        iter(tf.data.Dataset.from_tensors(batch))
    )
    assert outputs["loss"].numpy() == pytest.approx([expected_loss[exact]], rel=2e-4)

    def errors(model):
        """Distance from float64's change of each variable, relative to its length."""
        return np.array(
            [
                np.linalg.norm(v.numpy() - e.numpy()) / np.linalg.norm(e.numpy() - old)
                for v, e, old in zip(model.weights, exact.weights, before, strict=True)
            ]
        )

    assert (errors(ours) < 0.05).all()
    assert np.median(errors(ours)) < 5 * np.median(errors(stock)) + 1e-4
    statistics = ["moving" in v.name for v in ours.weights]
    assert sum(statistics) == 12
    assert (errors(ours)[statistics] < 1e-3).all()


def train_on(batches, strategy=REPLICA, calls=(1, 1, 1), network="smooth_cnn", **computation):
    """Returns losses, and the weights and their average, of a fresh model."""
    keras.utils.set_random_seed(1)
    chosen = config.Config(**SETTINGS)
    with strategy.scope():
        make = getattr(with_tiny_model, network)
        model, average = (make(chosen, 3, "float32") for _ in range(2))
        optimizer = optimizer_lib.create_optimizer(chosen, "float32", 2)
        optimizer.build(model.trainable_variables)
    registry.copy_weights(model, average)
    step = steps.make_train_step(
        model,
        optimizer,
        strategy,
        average=optimizer_lib.WeightAverage(average, model, 0.5),
        computation=steps.Computation(**computation),
    )
    examples = {name: value.reshape(-1, *value.shape[2:]) for name, value in batches.items()}
    share = batches["genres"].shape[1] // strategy.num_replicas_in_sync
    iterator = iter(
        strategy.distribute_datasets_from_function(
            lambda context: tf.data.Dataset.from_tensor_slices(examples).batch(
                share, drop_remainder=True
            )
        )
    )
    outputs = [step(iterator, count) for count in calls]
    assert np.concatenate([o["finite"] for o in outputs]).tolist() == [True] * sum(calls)
    assert int(optimizer.iterations.numpy()) == sum(calls)
    losses = np.concatenate([o["loss"] for o in outputs])
    return [losses, *model.get_weights(), *average.get_weights()]


def assert_close(found, expected, atol=1e-6):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=atol)


def unnormalized_cnn(config, num_genres, precision):
    """Without batch normalization, whose statistics are of a part."""
    inputs = keras.Input((32, 32, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255, dtype=precision)(inputs)
    x = keras.layers.Conv2D(8, 3, 2, activation="tanh", dtype=precision)(x)
    x = keras.layers.GlobalAveragePooling2D(dtype=precision)(x)
    return keras.Model(inputs, keras.layers.Dense(num_genres, dtype="float32")(x))


@pytest.fixture(scope="module")
def whole():
    return train_on(make_batches(3, 16))


def test_several_steps_a_call_are_the_same_steps(whole):
    assert_close(train_on(make_batches(3, 16), calls=(1, 2)), whole)


def test_xla_takes_the_same_steps(whole):
    # XLA's arithmetic is coarser.
    assert_close(train_on(make_batches(3, 16), jit_compile=True), whole, atol=1e-4)


@pytest.fixture
def mirrored():
    return runtime.create_strategy("mirrored")


def test_a_batch_in_parts_is_learned_from_as_if_it_went_through_whole(monkeypatch, mirrored):
    """Clipped by the norm of the gradients' sum, decayed once, on one replica and on two."""
    monkeypatch.setattr(with_tiny_model, "unnormalized_cnn", unnormalized_cnn, raising=False)
    batches = make_batches(3, 16)
    whole = train_on(batches, network="unnormalized_cnn")
    for strategy, parts, calls in ((REPLICA, 4, (1, 2)), (mirrored, 1, (3,)), (mirrored, 4, (3,))):
        found = train_on(batches, strategy, calls, "unnormalized_cnn", accumulate_steps=parts)
        assert_close(found, whole)


def dense_model(precision, strategy=REPLICA, settings=None):
    with strategy.scope():
        inputs = keras.Input((2,))
        model = keras.Model(inputs, keras.layers.Dense(3)(inputs))
        optimizer = optimizer_lib.create_optimizer(settings or config.Config(), precision, 10)
        optimizer.build(model.trainable_variables)
    return model, optimizer


def without_gradient(labels, logits):
    """A finite loss whose gradient is not a number."""
    del labels
    lose = tf.custom_gradient(lambda x: (tf.identity(x), lambda upstream: upstream * np.nan))
    return tf.reduce_mean(lose(logits), axis=1)


def endless():
    batch = {"image": [(1.0, 2.0)] * 4, "genres": [[1.0, 0.0, 0.0]] * 4}
    return iter(tf.data.Dataset.from_tensor_slices(batch).batch(4).repeat())


def make_state(directory_path, model, optimizer, precision):
    phase = state_lib.Phase(
        config.Config(checkpoint_every_seconds=1e9),
        directory.RunDirectory(directory_path),
        runtime.Devices(REPLICA, runtime.Choice("one_device", ""), precision, is_chief=True),
        stopping.StopRequest(),
    )
    return state_lib.RunState(
        phase,
        checkpoints.Checkpoints(phase.run.checkpoints, model, optimizer, num_kept=2),
        lambda step: f"posters of step {step}",
        wait_for_records=lambda: None,
    )


def test_gradients_that_are_not_finite_are_seen_beside_a_finite_loss():
    model, optimizer = dense_model("float32")
    outputs = steps.make_train_step(model, optimizer, REPLICA, without_gradient)(endless())
    assert np.isfinite(outputs["loss"]).all()
    assert outputs["finite"].numpy().tolist() == [False]


@pytest.mark.parametrize("calls", [(1, 1, 1, 1, 1, 1), (2, 4), (6,)])
def test_a_failing_step_is_named_whatever_the_calls(tmp_path, calls):
    """The fifth of six; nothing looks at them before all are taken."""
    model, optimizer = dense_model("float32")
    step = steps.make_train_step(model, optimizer, REPLICA)
    images = np.ones([6, 4, 2], np.float32)
    images[4, 3, 1] = np.inf
    batches = {"image": images, "genres": np.zeros([6, 4, 3], np.float32)}
    batches = iter(tf.data.Dataset.from_tensor_slices(batches))
    state = make_state(tmp_path, model, optimizer, "float32")
    state._vote.is_due = lambda steps: False
    for count in calls[:-1]:
        state.advance(count, step(batches, count), save=False)
    with pytest.raises(config.UsageError, match=r"not finite at step 5\. .*: posters of step 5\."):
        state.advance(calls[-1], step(batches, calls[-1]), save=True)
    assert checkpoints.find(tmp_path / "checkpoints") is None


def test_float16_that_skips_every_step_is_a_stop(tmp_path):
    """From 2**15 the scale is under 1 after 16 steps; no weight has moved."""
    model, optimizer = dense_model("mixed_float16")
    step = steps.make_train_step(model, optimizer, REPLICA, without_gradient)
    before = model.get_weights()
    batches = endless()
    state = make_state(tmp_path, model, optimizer, "mixed_float16")
    for _ in range(15):
        state.advance(1, step(batches), save=False)
    facts = learner.Learner(model, None, optimizer, "").facts(15)
    assert (facts["loss_scale"], facts["skipped_steps"]) == (1.0, 15)
    with pytest.raises(config.UsageError, match=r"float16.* not finite at step 16\. "):
        state.advance(1, step(batches), save=True)
    for found, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("replicas", "parts"), [(1, 4), (2, 1)])
def test_an_overflow_in_one_part_or_replica_skips_the_step_on_all(mirrored, replicas, parts):
    strategy = mirrored if replicas == 2 else REPLICA
    model, optimizer = dense_model("mixed_float16", strategy, config.Config(learning_rate=0.1))
    computation = steps.Computation(accumulate_steps=parts)
    step = steps.make_train_step(model, optimizer, strategy, computation=computation)
    images = np.ones([2, 8, 2], np.float32)
    images[0, 5, 1] = np.inf  # In the third part, or the second replica's half, of the first batch.
    batches = {"image": images, "genres": np.zeros([2, 8, 3], np.float32)}
    batches = tf.data.Dataset.from_tensor_slices(batches)
    iterator = iter(strategy.experimental_distribute_dataset(batches))
    before, scale = model.get_weights(), float(tf.convert_to_tensor(optimizer.dynamic_scale))
    step(iterator)
    for value, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, old)
    assert float(tf.convert_to_tensor(optimizer.dynamic_scale)) == scale / 2
    assert step(iterator)["finite"].numpy().tolist() == [True]
    for value, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_allclose(value, old - 0.1, atol=1e-4)  # Adam's first step.


def test_a_run_in_parts_may_not_go_on_with_other_parts(data_dir, tmp_path):
    settings = {"batch_size": 9, "test_split": "", "max_steps": 1}
    conftest.train(data_dir, tmp_path, **settings, accumulate_steps=2)
    assert saved_steps(tmp_path) == [1]
    with pytest.raises(config.UsageError, match="--accumulate_steps: 2 then, 3 now"):
        conftest.train(data_dir, tmp_path, **settings, accumulate_steps=3, override=True)


def test_skipped_steps_are_counted_epoch_by_epoch(data_dir, tmp_path):
    """By the optimizer they are counted over the whole run, of which here one epoch is done."""
    chosen = config.Config(**{**conftest.SETTINGS, "data_dir": str(data_dir)})
    data = run_data.open_data(chosen)
    devices = runtime.Devices(REPLICA, runtime.Choice("one_device", ""), "mixed_float16", True)
    model = registry.create_model(chosen, 8, "float32")
    run = directory.RunDirectory(tmp_path)
    answers = Answers(np.eye(8, dtype=np.float32), np.zeros([8, 8], np.float32))
    done = {"epoch": 1, "step": 6, "split": "train", "seconds": 1.0, "skipped_steps": 3}
    run.append_metrics([{**done, **dict.fromkeys(scores.METRICS, 0.5)}])
    log = run_log.RunLog(chosen, run, devices, data, learner.Learner(model, None, None, ""))
    log.begin(6, start_time=0.0)
    for step, skipped in ((12, 5), (18, 10)):
        facts = {"learning_rate": 0.1, "loss_scale": 2.0, "skipped_steps": skipped}
        facts |= {"loss": 0.5, "images_per_second": 50.0}
        log.record(step, facts, {"test": run_log.Answered(answers, 50.0)})
    log.wait()
    of_train = run.read_metrics().query("split == 'train'")
    assert of_train["skipped_steps"].tolist() == [3, 2, 5]
    assert of_train["flops_per_second"].tolist()[1:] == [50.0 * flops.training_flops(model)] * 2


def test_skipped_steps_are_told_where_there_are_some():
    record = {"epoch": 1, "step": 9, "images_per_second": 5.0, "loss": 0.5, "loss_scale": 4096.0}
    line = tables.format_epoch({**record, "skipped_steps": 3}, 2, [], is_best=False)
    assert line.endswith("  3 steps skipped, loss scale 4096")
    assert "skipped" not in tables.format_epoch({**record, "skipped_steps": 0}, 2, [], False)


@pytest.mark.parametrize(
    ("seconds", "count"), [(2.0, 1), (0.01, 1), (0.0099, 5), (0.001, 50), (0.0003, 166)]
)
def test_short_steps_are_taken_several_a_call(seconds, count):
    assert state_lib.choose_steps_per_call(seconds) == count


def test_operations_of_depthwise_and_frozen_layers():
    """By hand, multiplications and additions of an 8x8 picture: stem, depthwise, head."""
    pixels = keras.Input((8, 8, 3))
    x = layers.ConvBatchNorm(4, 3, 2, name="stem")(pixels)
    x = layers.ConvBatchNorm(None, 5, name="depthwise")(x)
    x = keras.layers.SeparableConv2D(6, 3, padding="same", name="separable")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(pixels, keras.layers.Dense(7, name="head")(x))
    stem = 2 * 4 * 4 * 4 * 9 * 3
    depthwise = 2 * 4 * 4 * 4 * 25
    separable = 2 * 4 * 4 * (4 * 9 + 4 * 6)
    head = 2 * 6 * 7
    assert flops.training_flops(model) == 2 * stem + 3 * (depthwise + separable + head)
    model.get_layer("stem").trainable = False
    assert flops.training_flops(model) == stem + 2 * depthwise + 3 * (separable + head)


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA A100-SXM4-40GB", "mixed_bfloat16", 312e12),
        ("Tesla V100-PCIE-16GB", "mixed_float16", 112e12),
        ("NVIDIA H100 PCIe", "mixed_bfloat16", 756e12),
        ("NVIDIA L40S", "mixed_bfloat16", None),
        ("NVIDIA A100-SXM4-40GB", "float32", None),
    ],
)
def test_the_peak_of_a_gpu_is_known_by_its_name(name, precision, peak):
    assert flops.peak_flops(name, precision) == peak


def test_steps_say_how_long_they_waited_for_their_batches():
    timed = steps.Computation(timed=True)
    model, optimizer = dense_model("float32")
    step = steps.make_train_step(model, optimizer, REPLICA, computation=timed)

    def slow_batches():
        for _ in range(8):
            time.sleep(0.1)
            yield {"image": [[1.0, 2.0]] * 4, "genres": [[1.0, 0.0, 0.0]] * 4}

    spec = {name: tf.TensorSpec([4, size]) for name, size in (("image", 2), ("genres", 3))}
    slow = iter(tf.data.Dataset.from_generator(slow_batches, output_signature=spec))
    step(endless())  # What is compiled by then is no waiting.
    start = time.perf_counter()
    waited = np.concatenate([step(slow, count)["waited"] for count in (1, 1, 4)])
    seconds = time.perf_counter() - start
    assert waited.shape == (6,)
    # tf.data makes a batch ahead, at most two before the first call of each kind.
    assert 0.35 <= waited.sum() <= seconds
