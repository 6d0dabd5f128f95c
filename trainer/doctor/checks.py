"""Whether the training step is right on this machine: each check is a function to a finding."""

import functools
import itertools

import keras
import numpy as np
import tensorflow as tf

# What kernels there are is in no public API of TensorFlow. This module also lists those of GPUs
# where there is no GPU.
from tensorflow.python.framework import kernels

from trainer import config as config_lib, presets, steps
from trainer.benchmark import stages
from trainer.doctor.findings import LEFT_OUT, Finding, judge
from trainer.models import layers, losses, optimizer as optimizer_lib, registry

_GENRES = 8
_STEPS = 4
_LOSS_SCALE = 2.0**8
_SMALL = {
    "image_size": 64,
    "batch_size": 16,
    # Adam's first steps go by the signs of gradients, and those near 0 have another in another
    # arithmetic: with the presets' rates that grows faster than the rounding that is looked for.
    "learning_rate": 1e-4,
    "learning_rate_schedule": "constant",
}
# Of the norm of the difference of the logits after all steps to the norm of those in float32.
TOLERANCES = {"mixed_bfloat16": 0.2, "mixed_float16": 0.2, "XLA": 0.1, "replicas": 0.01}


class Training:
    """A preset's small model with weights from one seed, and what trains it on a batch of noise.

    Attributes:
        batch: `image` and `genres` of all replicas together, of which all batches are.
    """

    def __init__(self, preset, precision, strategy=None, **changes):
        config = small_config(preset, **changes)
        self._strategy = strategy = strategy or tf.distribute.get_strategy()
        keras.utils.set_random_seed(1)
        with strategy.scope():
            self.model = registry.create_model(config, _GENRES, precision)
            self.optimizer = optimizer_lib.create_optimizer(config, precision, 1)
            self.optimizer.build(self.model.trainable_variables)
        # A pretrained backbone normalizes by statistics that nothing was recorded in: 16 layers of
        # fresh depthwise filters, too small for their few inputs, would leave nothing of a poster,
        # and any two arithmetics would agree.
        for layer in self.model._flatten_layers():
            if isinstance(layer, layers.ConvBatchNorm) and layer.filters is None:
                layer.kernel.assign(layer.kernel * layer.kernel.shape[2] ** 0.5)
        batch = stages.resident_batch(config.image_size, config.batch_size, _GENRES)
        draws = tf.random.stateless_uniform(batch["genres"].shape, (0, 1))
        self.batch = {**batch, "genres": tf.cast(draws < 0.3, tf.float32)}
        dataset = tf.data.Dataset.from_tensor_slices(self.batch)
        batches = dataset.batch(config.batch_size // strategy.num_replicas_in_sync).repeat()
        self._batches = iter(strategy.distribute_datasets_from_function(lambda context: batches))

    def _make_step(self, loss=losses.binary_crossentropy, jit_compile=False):
        computation = steps.Computation(jit_compile)
        trained = (self.model, self.optimizer, self._strategy)
        return steps.make_train_step(*trained, loss, computation=computation)

    def take_steps(self, count: int = _STEPS, **settings) -> None:
        step = self._make_step(**settings)
        for _ in range(count):
            step(self._batches)

    def predict_in_training(self) -> np.ndarray:
        """Returns logits by the batch's own statistics; the moving ones are still of no data."""

        @tf.function
        def predict():
            return self.model(self.batch["image"], training=True)

        logits = self._strategy.run(predict)
        return self._strategy.experimental_local_results(logits)[0].numpy()

    def resident_step(self):
        """Returns a function without arguments: the step, on a batch that is there already."""
        # No dataset's iterator: the function is traced with the batch in it and reads nothing.
        step, again = self._make_step(), (self.batch for _ in itertools.count())
        return tf.function(lambda: step(again))


def small_config(preset: str, **changes) -> config_lib.Config:
    return config_lib.Config(**{**presets.PRESETS[preset], **_SMALL, **changes})


def check_kernels_exist(preset: str, precision: str) -> Finding:
    """Looks whether TensorFlow has a GPU kernel for every operation of a preset's training step.

    It is asked of TensorFlow's list of kernels, also where there is no GPU.
    """
    if not _has_gpu_kernel("Conv2D", {}):
        return Finding(LEFT_OUT, "this build of TensorFlow has no kernels for GPUs")
    training = Training(preset, precision)
    graph = training.resident_step().get_concrete_function().graph.as_graph_def()
    missing = find_missing_gpu_kernels(graph)
    for variable in (*training.model.variables, *training.optimizer.variables):
        dtype = tf.as_dtype(variable.dtype)
        if not _has_gpu_kernel("VarHandleOp", {"dtype": dtype.as_datatype_enum}):
            missing.add(f"a variable of {dtype.name}")
    num_nodes = sum(len(function.node_def) for function in graph.library.function)
    if missing:
        return judge(False, f"no GPU kernel for {', '.join(sorted(missing))}")
    return judge(True, f"a GPU kernel for each of {num_nodes} operations in {precision}")


def check_kernels_run(preset: str, precision: str) -> Finding:
    """Takes a preset's training step on the GPU, where nothing may go to the CPU instead."""
    if not tf.config.list_physical_devices("GPU"):
        return Finding(LEFT_OUT, "there is no GPU")
    step = Training(preset, precision).resident_step()
    soft = tf.config.get_soft_device_placement()
    tf.config.set_soft_device_placement(False)
    try:
        with tf.device("/gpu:0"):
            outputs = step()
    finally:
        tf.config.set_soft_device_placement(soft)
    device = tf.DeviceSpec.from_string(outputs["loss"].device).device_type
    return judge(device == "GPU", f"a step in {precision}, without soft placement")


def check_arithmetic(preset: str) -> Finding:
    """Compares a few steps of a preset in 16 bits, and compiled by XLA, with float32."""
    expected = train(preset, "float32")
    halves = ("mixed_bfloat16", "mixed_float16")
    found = {precision: train(preset, precision) for precision in halves}
    found["XLA"] = train(preset, "float32", jit_compile=True)
    return judge_errors({name: relative_error(v, expected) for name, v in found.items()})


def check_replicas(strategy: tf.distribute.Strategy) -> Finding:
    """Compares a few steps of several replicas with those of one."""
    if strategy.num_replicas_in_sync == 1:
        return Finding(LEFT_OUT, "there is one GPU")
    replicas = strategy.num_replicas_in_sync
    device_type = tf.DeviceSpec.from_string(strategy.extended.worker_devices[0]).device_type
    changes = {"batch_size": 8 * replicas}
    expected = train("compact", "float32", **changes)
    error = relative_error(train("compact", "float32", strategy, **changes), expected)
    return judge_errors({"replicas": error}, f", {replicas} {device_type}s")


def check_overflow() -> Finding:
    """Lets gradients overflow in float16: the step is skipped, the scale halved, the next taken."""
    training = Training("compact", "mixed_float16")
    optimizer, trained = training.optimizer, training.model.trainable_weights
    scale, before = float(optimizer.dynamic_scale), [np.array(weight) for weight in trained]

    def huge(labels, logits):
        return 1e30 * losses.binary_crossentropy(labels, logits)

    training.take_steps(1, loss=huge)
    skipped = all(map(np.array_equal, trained, before))
    halved = float(optimizer.dynamic_scale) == scale / 2
    training.take_steps()  # The scale halves until the gradients fit.
    moved = not all(map(np.array_equal, trained, before))
    finite = all(np.isfinite(weight).all() for weight in training.model.get_weights())
    return judge(
        skipped and halved and moved and finite,
        f"overflow {'skipped' if skipped else 'NOT skipped'}, "
        f"scale {scale:g} to {float(optimizer.dynamic_scale):g}, then weights "
        f"{'moved' if moved else 'did NOT move'} and are {'finite' if finite else 'NOT finite'}",
    )


def check_determinism(precision: str) -> Finding:
    """Trains twice from one seed and compares all weights, bit for bit.

    TensorFlow stays deterministic, and slower, in this process: let it be the last check.
    """
    tf.config.experimental.enable_op_determinism()
    runs = []
    for _ in range(2):
        training = Training("compact", precision)
        training.take_steps()
        runs.append(training.model.get_weights())
    different = sum(not np.array_equal(a, b) for a, b in zip(*runs, strict=True))
    what = f"weights differ between two runs of {_STEPS} steps in {precision}"
    return judge(not different, f"{different} of {len(runs[0])} {what}")


def train(preset: str, precision: str, strategy=None, jit_compile=False, **changes) -> np.ndarray:
    """Trains for a few steps and returns the logits [B, G] that the next would begin with.

    Nothing is dropped: masks are drawn otherwise in another precision, by XLA and on each replica.
    """
    training = Training(preset, precision, strategy, **changes)
    for layer in training.model._flatten_layers():
        if isinstance(layer, layers.Dropout):
            layer.rate = 0.0
    if precision == "mixed_float16":  # From Keras's scale the first steps may overflow.
        training.optimizer.dynamic_scale.assign(_LOSS_SCALE)
    training.take_steps(jit_compile=jit_compile)
    return training.predict_in_training()


def relative_error(values: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(values - expected) / np.linalg.norm(expected))


def judge_errors(errors: dict[str, float], note: str = "") -> Finding:
    """Returns whether relative errors are within `TOLERANCES`, whose names they have."""
    # Written so that nan is not.
    is_right = all(error <= TOLERANCES[name] for name, error in errors.items())
    told = (f"{name} {error:.1g} of {TOLERANCES[name]:g}" for name, error in errors.items())
    return judge(is_right, f"{'; '.join(told)} in {_STEPS} steps{note}")


def find_missing_gpu_kernels(graph: tf.compat.v1.GraphDef) -> set[str]:
    """Returns the operations of a concrete function's graph that have no GPU kernel."""
    functions = {function.signature.name for function in graph.library.function}
    nodes = [node for function in graph.library.function for node in function.node_def]
    missing = set()
    for node in (*graph.node, *nodes):
        if node.op in functions:
            continue
        attributes = node.attr.items()
        types = {name: v.type for name, v in attributes if v.WhichOneof("value") == "type"}
        if not _has_gpu_kernel(node.op, types):
            named = ", ".join(tf.as_dtype(dtype).name for dtype in types.values())
            missing.add(f"{node.op}({named})")
    return missing


def _has_gpu_kernel(op: str, types: dict[str, int]) -> bool:
    def suits(kernel) -> bool:
        return kernel.device_type in ("GPU", "DEFAULT") and all(
            types.get(constraint.name) in (None, *constraint.allowed_values.list.type)
            for constraint in kernel.constraint
        )

    return any(map(suits, _kernels_of(op)))


@functools.cache
def _kernels_of(op: str):
    return kernels.get_registered_kernels_for_op(op).kernel
