"""A training step that fails is named; what is random or decays is what it should be."""

import json
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import conftest
from trainer import config, flops, learner, runtime, steps
from trainer.data import run_data
from trainer.models import layers, losses, optimizer as optimizer_lib, registry
from trainer.reports import answers as answers_lib, run_log, scores, tables
from trainer.run import checkpoints, directory, state as state_lib, stopping

REPLICA = tf.distribute.get_strategy()


def without_gradient(labels, logits):
    """A finite loss whose gradient is not a number."""
    del labels
    lose = tf.custom_gradient(lambda x: (tf.identity(x), lambda upstream: upstream * np.nan))
    return tf.reduce_mean(lose(logits), axis=1)


def make_step(precision, loss, computation=steps.Computation()):  # noqa: B008
    """Returns a model of one layer, its optimizer and its step."""
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Dense(3)(inputs))
    optimizer = optimizer_lib.create_optimizer(config.Config(), precision, 10, model)
    optimizer.build(model.trainable_variables)
    step = steps.make_train_step(model, optimizer, REPLICA, loss, computation=computation)
    return model, optimizer, step


def endless(image=(1.0, 2.0)):
    batch = {"image": [image] * 4, "genres": [[1.0, 0.0, 0.0]] * 4}
    return iter(tf.data.Dataset.from_tensor_slices(batch).batch(4).repeat())


def make_state(directory_path, model, optimizer, precision, **settings):
    phase = state_lib.Phase(
        config.Config(checkpoint_every_seconds=1e9, **settings),
        directory.RunDirectory(directory_path),
        runtime.Devices(REPLICA, runtime.Choice("one_device", ""), precision, is_chief=True),
        stopping.StopRequest(),
    )
    kept = answers_lib.Kept(np.zeros(3))
    return state_lib.RunState(
        phase,
        checkpoints.Checkpoints(phase.run.checkpoints, model, optimizer, kept.arrays, num_kept=2),
        kept,
        lambda step: f"posters of step {step}",
        wait_for_records=lambda: None,
    )


def test_gradients_that_are_not_finite_are_seen_beside_a_finite_loss():
    *_, step = make_step("float32", without_gradient)
    outputs = step(endless())
    assert np.isfinite(outputs["logits"]).all()
    assert outputs["finite"].numpy().tolist() == [0.0]


@pytest.mark.parametrize("calls", [(1, 1, 1, 1, 1, 1), (2, 4), (6,)])
def test_a_failing_step_is_named_whatever_the_calls(tmp_path, calls):
    """The fifth of six; nothing looks at them before all are taken."""
    model, optimizer, step = make_step("float32", losses.binary_crossentropy)
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
    model, optimizer, step = make_step("mixed_float16", without_gradient)
    before = model.get_weights()
    batches = endless()
    state = make_state(tmp_path, model, optimizer, "mixed_float16")
    for _ in range(15):
        state.advance(1, step(batches), save=True)
    facts = learner.Learner(model, None, optimizer, "").facts(15)
    assert (facts["loss_scale"], facts["skipped_steps"]) == (1.0, 15)
    with pytest.raises(config.UsageError, match=r"float16.* not finite at step 16\. "):
        state.advance(1, step(batches), save=True)
    for found, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_skipped_steps_are_told_where_there_are_some():
    record = {"epoch": 1, "step": 9, "images_per_second": 5.0, "loss": 0.5, "loss_scale": 4096.0}
    line = tables.format_epoch({**record, "skipped_steps": 3}, 2, [], is_best=False)
    assert line.endswith("  3 steps skipped, loss scale 4096")
    assert "skipped" not in tables.format_epoch({**record, "skipped_steps": 0}, 2, [], False)


def test_skipped_steps_are_counted_epoch_by_epoch(data_dir, tmp_path):
    """By the optimizer they are counted over the whole run, of which here one epoch is done."""
    chosen = config.Config("poster_tfds/synthetic", str(data_dir), image_size=46)
    data = run_data.open_data(chosen)
    devices = runtime.Devices(REPLICA, runtime.Choice("one_device", ""), "mixed_float16", True)
    model = registry.create_model(chosen, 8, "float32")
    run = directory.RunDirectory(tmp_path)
    kept = answers_lib.Kept(data.train.base_rates)
    kept.add(np.eye(8, dtype=np.float32), np.zeros([8, 8], np.float32))
    answers = answers_lib.Answered(kept, 50.0)
    done = {"epoch": 1, "step": 16, "split": "train", "seconds": 1.0, "skipped_steps": 3}
    run.append_metrics([{**done, **dict.fromkeys(scores.METRICS, 0.5)}])
    log = run_log.RunLog(chosen, run, devices, data, learner.Learner(model, None, None, ""))
    log.begin(16, start_time=0.0)
    for step, skipped in ((32, 5), (48, 10)):
        facts = {"learning_rate": 0.1, "loss_scale": 2.0, "skipped_steps": skipped}
        log.record(step, facts, {"train": answers, "test": answers})
    log.wait()
    of_train = run.read_metrics().query("split == 'train'")
    assert of_train["skipped_steps"].tolist() == [3, 2, 5]
    assert of_train["flops_per_second"].tolist()[1:] == [50.0 * flops.training_flops(model)] * 2


@pytest.mark.parametrize(
    ("seconds", "count"), [(2.0, 1), (0.01, 1), (0.0099, 5), (0.001, 50), (0.0003, 166)]
)
def test_short_steps_are_taken_several_a_call(seconds, count):
    assert state_lib.choose_steps_per_call(seconds) == count


ON_TWO_DEVICES = """
import json, os, pathlib, tempfile
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras, numpy as np, tensorflow as tf
from trainer import runtime
from trainer.models import layers
from trainer.run import checkpoints
strategy = runtime.create_strategy("mirrored", logical_cpus=2)
with strategy.scope():
    dropout = layers.Dropout(0.3, seed=1)
drop = tf.function(lambda: strategy.run(lambda: dropout(tf.ones([100, 100]), training=True)))
masks = [mask.numpy() > 0 for mask in strategy.experimental_local_results(drop())]
with tf.device("/cpu:1"):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    directory, optimizer = pathlib.Path(tempfile.mkdtemp()), keras.optimizers.SGD()
    none = dict.fromkeys(("labels", "logits"), np.zeros([0, 3], np.float32))
    kept = checkpoints.Checkpoints(directory, model, optimizer, none, num_kept=1)
of_model = tf.DeviceSpec.from_string(model.weights[0].value.device).device_index
answers = [kept._step, *kept._answers.values()]
print(json.dumps({
    "kept": [float(mask.mean()) for mask in masks],
    "kept by both": float((masks[0] & masks[1]).mean()),
    "of the model": of_model,
    "of the answers": [tf.DeviceSpec.from_string(v.device).device_index for v in answers],
}))
"""


@pytest.fixture(scope="module")
def on_two_devices():
    return json.loads(conftest.run(sys.executable, "-c", ON_TWO_DEVICES).stdout)


def test_replicas_drop_other_features(on_two_devices):
    """Independent masks agree by chance: 0.7 squared."""
    assert on_two_devices["kept"] == pytest.approx([0.7, 0.7], abs=0.02)
    assert on_two_devices["kept by both"] == pytest.approx(0.49, abs=0.02)


def test_answers_wait_for_a_checkpoint_in_the_cpus_memory(on_two_devices):
    """Whatever device is the default where they are made, as a GPU is."""
    assert on_two_devices["of the model"] == 1
    assert on_two_devices["of the answers"] == [0, 0, 0]


@pytest.mark.parametrize("warmup_epochs", [0.0, 0.5])
def test_the_cosine_schedule_ends_at_0_with_the_last_epoch(warmup_epochs):
    chosen = config.Config(
        epochs=3,
        learning_rate=0.2,
        learning_rate_schedule="cosine",
        warmup_epochs=warmup_epochs,
    )
    optimizer = optimizer_lib.create_optimizer(chosen, "float32", 20, keras.Sequential())
    optimizer.build([])
    found = []
    for step in range(61):
        optimizer.iterations.assign(step)
        found.append(float(optimizer.learning_rate))
    warmup = round(20 * warmup_epochs)
    decay = 0.1 * (1 + np.cos(np.pi * np.arange(61 - warmup) / (60 - warmup)))
    expected = np.concatenate([0.2 * np.arange(warmup) / max(warmup, 1), decay])
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_biases_and_normalization_do_not_decay(precision):
    """Gradients of 0 move nothing in Adam: what is left is the decay, rate times weight."""
    model = registry.create_model(config.Config(image_size=46), 4, "float32")
    chosen = config.Config(learning_rate=0.1, weight_decay=0.5)
    optimizer = optimizer_lib.create_optimizer(chosen, precision, 10, model)
    optimizer.build(model.trainable_variables)
    model.set_weights([weight + 1 for weight in model.get_weights()])  # None is 0.
    before = [variable.numpy() for variable in model.trainable_variables]
    optimizer.apply([tf.zeros_like(v) for v in model.trainable_variables])
    kinds = set()
    for variable, old in zip(model.trainable_variables, before, strict=True):
        decayed = variable.name == "kernel"
        kinds.add((variable.name, decayed))
        expected = old * (1 - 0.1 * 0.5) if decayed else old
        np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-6, err_msg=variable.path)
    assert kinds == {("kernel", True), ("bias", False), ("gamma", False), ("beta", False)}


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
        ("NVIDIA A100 80GB PCIe", "mixed_bfloat16", 312e12),
        ("Tesla V100-PCIE-16GB", "mixed_float16", 112e12),
        ("Tesla T4", "mixed_float16", 65e12),
        ("NVIDIA H100 PCIe", "mixed_bfloat16", 756e12),
        ("NVIDIA H100 80GB HBM3", "mixed_bfloat16", 989e12),
        ("NVIDIA L4", "mixed_bfloat16", 121e12),
        ("NVIDIA L40S", "mixed_bfloat16", None),
        ("NVIDIA A100-SXM4-40GB", "float32", None),
    ],
)
def test_the_peak_of_a_gpu_is_known_by_its_name(name, precision, peak):
    assert flops.peak_flops(name, precision) == peak


def test_steps_say_how_long_they_waited_for_their_batches():
    timed = steps.Computation(timed=True)
    *_, step = make_step("float32", losses.binary_crossentropy, timed)

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
