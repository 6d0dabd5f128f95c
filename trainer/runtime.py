"""Devices: how a run is spread over them and in which precision they compute."""

import os
import pathlib

import tensorflow as tf

from trainer import config

_CPU_FLAGS_WITH_BFLOAT16 = {"avx512_bf16", "amx_bf16"}


def create_strategy(name: str, tpu: str = "", logical_cpus: int = 1) -> tf.distribute.Strategy:
    """Chooses how replicas are placed. Call it before anything runs on a device.

    Args:
        name: auto, one_device, mirrored, multi_worker or tpu. `auto` follows TF_CONFIG,
            then the number of GPUs.
        tpu: the TPU's name or address, for `tpu`.
        logical_cpus: logical devices to divide the CPU into.

    Raises:
        config.UsageError: the strategy cannot be had on this machine.
    """
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        # Otherwise TensorFlow takes all of the GPU's memory at once.
        tf.config.experimental.set_memory_growth(gpu, True)
    if logical_cpus > 1:
        (cpu,) = tf.config.list_physical_devices("CPU")
        devices = [tf.config.LogicalDeviceConfiguration()] * logical_cpus
        tf.config.set_logical_device_configuration(cpu, devices)
    if name == "auto":
        name = _default_strategy(len(gpus))
    if name == "mirrored":
        kind = "GPU" if gpus else "CPU"
        return tf.distribute.MirroredStrategy(
            [device.name for device in tf.config.list_logical_devices(kind)]
        )
    if name == "multi_worker":
        if not _has_cluster():
            raise config.UsageError(
                "--strategy=multi_worker: set TF_CONFIG to the cluster and this worker's index, "
                'e.g. {"cluster": {"worker": ["host1:2222", "host2:2222"]}, '
                '"task": {"type": "worker", "index": 0}}.'
            )
        return tf.distribute.MultiWorkerMirroredStrategy()
    if name == "tpu":
        return _tpu_strategy(tpu)
    return tf.distribute.get_strategy()


def choose_precision(name: str) -> str:
    """Returns the Keras dtype policy for this machine's devices.

    `auto` is mixed_bfloat16 where the hardware computes in it (GPUs of compute capability
    8.0, CPUs with AVX512-BF16 or AMX, TPUs), mixed_float16 on GPUs of 7.0, else float32.
    """
    if name != "auto":
        return name
    if tf.config.list_logical_devices("TPU"):
        return "mixed_bfloat16"
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
        capability = min(detail.get("compute_capability", (0, 0)) for detail in details)
        if capability >= (8, 0):
            return "mixed_bfloat16"
        return "mixed_float16" if capability >= (7, 0) else "float32"
    return "mixed_bfloat16" if _cpu_flags() & _CPU_FLAGS_WITH_BFLOAT16 else "float32"


def lacks_fast_filter_gradient() -> bool:
    """Returns whether convolutions run on a CPU for which oneDNN has no fast filter gradient."""
    devices = tf.config.list_logical_devices()
    return {device.device_type for device in devices} == {"CPU"} and "avx512f" not in _cpu_flags()


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether this process writes what all workers share: metrics and reports."""
    resolver = strategy.cluster_resolver
    if resolver is None or not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return True
    return resolver.task_type in (None, "chief") or (
        resolver.task_type == "worker"
        and resolver.task_id == 0
        and "chief" not in resolver.cluster_spec().jobs
    )


def _default_strategy(num_gpus: int) -> str:
    if _has_cluster():
        return "multi_worker"
    return "mirrored" if num_gpus > 1 else "one_device"


def _has_cluster() -> bool:
    return bool(tf.distribute.cluster_resolver.TFConfigClusterResolver().cluster_spec().jobs)


def _tpu_strategy(tpu: str) -> tf.distribute.Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=tpu)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, tf.errors.OpError) as error:
        raise config.UsageError(
            f"--strategy=tpu: no TPU answers at --tpu={tpu!r} ({error}). Name a Cloud TPU, "
            "its grpc:// address, or `local` on a TPU VM."
        ) from error
    return tf.distribute.TPUStrategy(resolver)


def _cpu_flags() -> set[str]:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def available_memory() -> int:
    """Returns the bytes that this process may still take: of the machine or of its cgroup."""
    available = _read_int(pathlib.Path("/proc/meminfo"), "MemAvailable:") * 1024
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        if limit_bytes := _read_int(pathlib.Path(limit)):
            available = min(available, limit_bytes - _read_int(pathlib.Path(used)))
    return max(available, 0)


def _read_int(path: pathlib.Path, field: str = "") -> int:
    """Returns the number that follows `field` in a file, or 0 if there is none."""
    try:
        words = path.read_text().split()
        return int(words[words.index(field) + 1 if field else 0])
    except (OSError, ValueError, IndexError):
        return 0


def num_cores() -> int:
    """Returns the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
