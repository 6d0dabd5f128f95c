"""Whether the training step is right on this machine: each check is a function to a finding."""

import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

# What kernels there are is in no public API of TensorFlow. This module also lists those of GPUs
# where there is no GPU.
from tensorflow.python.framework import kernels

from trainer import config as config_lib, presets, steps
from trainer.benchmark import stages
from trainer.doctor import findings
from trainer.models import layers, losses, optimizer as optimizer_lib, registry

_GENRES = 8
_STEPS = 4
_SMALL = {
    "image_size": 64,
    "batch_size": 16,
    # Adam's first steps go by the signs of gradients, and those near 0 have another in another
    # arithmetic: with the presets' rates that grows faster than the rounding that is looked for.
    "learning_rate": 1e-4,
    "learning_rate_schedule": "constant",
}
# Of the norm of the difference of all logits to the norm of those in float32. Four steps change
# the logits by about their own norm.
TOLERANCES = {"mixed_bfloat16": 0.2, "mixed_float16": 0.2, "XLA": 0.05, "replicas": 0.01}


class Training(NamedTuple):
    """A model and what trains it, on one batch again and again."""

    model: keras.Model
    optimizer: keras.optimizers.Optimizer
    strategy: tf.distribute.Strategy
    batches: Iterator
    batch: dict[str, tf.Tensor]  # The one that the batches are, of all replicas.

    def make_step(self, loss=losses.binary_crossentropy, jit_compile: bool = False):
        computation = steps.Computation(jit_compile)
        trained = (self.model, self.optimizer, self.strategy)
        return steps.make_train_step(*trained, loss, computation=computation)

    def resident_step(self):
        """Returns a function without arguments: the step, on a batch that is there already."""
        # No dataset's iterator: the function is traced with the batch in it and reads nothing.
        step, again = self.make_step(), (self.batch for _ in itertools.count())
        return tf.function(lambda: step(again))

    def weights(self) -> list[np.ndarray]:
        return [np.asarray(weight) for weight in self.model.weights]


def small_config(preset: str, **changes) -> config_lib.Config:
    """Returns a preset's settings, for small posters and few of them."""
    return config_lib.Config(**{**presets.PRESETS[preset], **_SMALL, **changes})


def begin_training(
    config: config_lib.Config, precision: str, strategy: tf.distribute.Strategy | None = None
) -> Training:
    """Returns a model with weights from one seed, and a batch of noise for it."""
    strategy = strategy or tf.distribute.get_strategy()
    keras.utils.set_random_seed(1)
    with strategy.scope():
        model = registry.create_model(config, _GENRES, precision)
        optimizer = optimizer_lib.create_optimizer(config, precision, 1)
        optimizer.build(model.trainable_variables)
    _let_posters_through(model)
    batch = stages.resident_batch(config.image_size, config.batch_size, _GENRES)
    draws = tf.random.stateless_uniform(batch["genres"].shape, (0, 1))
    batch["genres"] = tf.cast(draws < 0.3, tf.float32)
    per_replica = config.batch_size // strategy.num_replicas_in_sync
    batches = strategy.distribute_datasets_from_function(
        lambda context: tf.data.Dataset.from_tensor_slices(batch).batch(per_replica).repeat()
    )
    return Training(model, optimizer, strategy, iter(batches), batch)


def check_kernels_exist(preset: str, precision: str) -> findings.Finding:
    """Looks whether TensorFlow has a GPU kernel for every operation of a preset's training step.

    It is asked of TensorFlow's list of kernels, also where there is no GPU.
    """
    if not _has_gpu_kernel("Conv2D", {}):
        return findings.Finding(
            findings.LEFT_OUT, "this build of TensorFlow has no kernels for GPUs"
        )
    training = begin_training(small_config(preset), precision)
    graph = training.resident_step().get_concrete_function().graph.as_graph_def()
    missing = find_missing_gpu_kernels(graph)
    for variable in (*training.model.variables, *training.optimizer.variables):
        dtype = tf.as_dtype(variable.dtype)
        if not _has_gpu_kernel("VarHandleOp", {"dtype": dtype.as_datatype_enum}):
            missing.add(f"a variable of {dtype.name}")
    num_nodes = sum(len(function.node_def) for function in graph.library.function)
    if missing:
        return findings.judge(False, f"no GPU kernel for {', '.join(sorted(missing))}")
    return findings.judge(True, f"a GPU kernel for each of {num_nodes} operations in {precision}")


def check_kernels_run(preset: str, precision: str) -> findings.Finding:
    """Takes a preset's training step on the GPU, where nothing may go to the CPU instead."""
    if not tf.config.list_physical_devices("GPU"):
        return findings.Finding(findings.LEFT_OUT, "there is no GPU")
    step = begin_training(small_config(preset), precision).resident_step()
    soft = tf.config.get_soft_device_placement()
    tf.config.set_soft_device_placement(False)
    try:
        with tf.device("/gpu:0"):
            outputs = step()
    finally:
        tf.config.set_soft_device_placement(soft)
    device = tf.DeviceSpec.from_string(outputs["loss"].device).device_type
    return findings.judge(device == "GPU", f"a step in {precision}, without soft placement")


def check_arithmetic(preset: str) -> findings.Finding:
    """Compares a few steps of a preset in 16 bits, and compiled by XLA, with float32."""
    expected = train(preset, "float32")
    errors = {
        precision: relative_error(train(preset, precision), expected)
        for precision in ("mixed_bfloat16", "mixed_float16")
    }
    errors["XLA"] = relative_error(train(preset, "float32", jit_compile=True), expected)
    return judge_errors(errors)


def check_replicas(strategy: tf.distribute.Strategy) -> findings.Finding:
    """Compares a few steps of several replicas with those of one."""
    if strategy.num_replicas_in_sync == 1:
        return findings.Finding(findings.LEFT_OUT, "there is one GPU")
    # Each replica drops other features; without, all together do what one does.
    replicas = strategy.num_replicas_in_sync
    device_type = tf.DeviceSpec.from_string(strategy.extended.worker_devices[0]).device_type
    changes = {"dropout": 0.0, "batch_size": 8 * replicas}
    expected = train("compact", "float32", **changes)
    error = relative_error(train("compact", "float32", strategy, **changes), expected)
    return judge_errors({"replicas": error}, f", {replicas} {device_type}s")


def check_overflow() -> findings.Finding:
    """Lets gradients overflow in float16: the step is skipped, the scale halved, the next taken."""
    training = begin_training(small_config("compact"), "mixed_float16")
    optimizer = training.optimizer
    scale = float(optimizer.dynamic_scale)

    def trained_weights():
        return [np.asarray(weight) for weight in training.model.trainable_weights]

    def huge(labels, logits):
        return 1e30 * losses.binary_crossentropy(labels, logits)

    before = trained_weights()
    training.make_step(huge)(training.batches)
    skipped = all(map(np.array_equal, trained_weights(), before))
    halved = float(optimizer.dynamic_scale) == scale / 2
    finite_step = training.make_step()
    # The scale halves until the gradients fit.
    for _ in range(_STEPS):
        finite_step(training.batches)
    moved = not all(map(np.array_equal, trained_weights(), before))
    finite = all(np.isfinite(weight).all() for weight in training.weights())
    return findings.judge(
        skipped and halved and moved and finite,
        f"overflow {'skipped' if skipped else 'NOT skipped'}, "
        f"scale {scale:g} to {float(optimizer.dynamic_scale):g}, then weights "
        f"{'moved' if moved else 'did NOT move'} and are {'finite' if finite else 'NOT finite'}",
    )


def check_determinism(precision: str) -> findings.Finding:
    """Trains twice from one seed and compares all weights, bit for bit.

    TensorFlow stays deterministic, and slower, in this process: let it be the last check.
    """
    tf.config.experimental.enable_op_determinism()
    runs = []
    for _ in range(2):
        training = begin_training(small_config("compact"), precision)
        step = training.make_step()
        for _ in range(_STEPS):
            step(training.batches)
        runs.append(training.weights())
    different = sum(not np.array_equal(a, b) for a, b in zip(*runs, strict=True))
    what = f"weights differ between two runs of {_STEPS} steps in {precision}"
    return findings.judge(not different, f"{different} of {len(runs[0])} {what}")


def train(
    preset: str,
    precision: str,
    strategy: tf.distribute.Strategy | None = None,
    jit_compile: bool = False,
    **changes,
) -> np.ndarray:
    """Trains for a few steps and returns what the model then makes of the batch: logits [B, G]."""
    training = begin_training(small_config(preset, **changes), precision, strategy)
    step = training.make_step(jit_compile=jit_compile)
    for _ in range(_STEPS):
        step(training.batches)
    return training.model(training.batch["image"], training=False).numpy()


def relative_error(values: np.ndarray, expected: np.ndarray) -> float:
    """Returns the norm of the difference over the norm of what is expected."""
    return float(np.linalg.norm(values - expected) / np.linalg.norm(expected))


def judge_errors(errors: dict[str, float], note: str = "") -> findings.Finding:
    """Returns whether relative errors are within `TOLERANCES`, whose names they have."""
    # Written so that nan is not.
    is_right = all(error <= TOLERANCES[name] for name, error in errors.items())
    told = (f"{name} {error:.1g} of {TOLERANCES[name]:g}" for name, error in errors.items())
    return findings.judge(is_right, f"{'; '.join(told)} in {_STEPS} steps{note}")


def find_missing_gpu_kernels(graph: tf.compat.v1.GraphDef) -> set[str]:
    """Returns the operations of a concrete function's graph that have no GPU kernel."""
    functions = {function.signature.name for function in graph.library.function}
    nodes = [node for function in graph.library.function for node in function.node_def]
    missing = set()
    for node in (*graph.node, *nodes):
        if node.op in functions:
            continue
        types = {
            name: value.type
            for name, value in node.attr.items()
            if value.WhichOneof("value") == "type"
        }
        if not _has_gpu_kernel(node.op, types):
            named = ", ".join(tf.as_dtype(dtype).name for dtype in types.values())
            missing.add(f"{node.op}({named})")
    return missing


@functools.cache
def _kernels_of(op: str):
    return [
        kernel
        for kernel in kernels.get_registered_kernels_for_op(op).kernel
        if kernel.device_type in ("GPU", "DEFAULT")
    ]


def _has_gpu_kernel(op: str, types: dict[str, int]) -> bool:
    def suits(kernel) -> bool:
        return all(
            constraint.name not in types
            or types[constraint.name] in constraint.allowed_values.list.type
            for constraint in kernel.constraint
        )

    return any(map(suits, _kernels_of(op)))


def _let_posters_through(model: keras.Model) -> None:
    """Makes a pretrained backbone's fresh depthwise filters as large as their few inputs ask for.

    It normalizes by statistics that nothing was recorded in: 16 layers of filters that are too
    small would leave nothing of a poster, and any two arithmetics would agree.
    """
    for layer in model._flatten_layers():
        if isinstance(layer, layers.ConvBatchNorm) and layer.filters is None:
            layer.kernel.assign(layer.kernel * layer.kernel.shape[2] ** 0.5)
