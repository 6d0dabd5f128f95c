"""Devices: how a run is spread over them and in which precision they compute."""

import contextlib
import os
import pathlib
import socket
import urllib.parse
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from trainer import config as config_lib

_TF_CONFIG = (
    "It names all workers and this one's index, e.g. "
    '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}.'
)
_SECONDS_TO_CONNECT = 10
# tf.data's default pool has one thread a core, and threads that wait for a decoded
# poster take part of it: 2 cores stood 27% idle. More threads than cores keep all busy.
_PIPELINE_THREADS_PER_CORE = 8
_CPU_FLAGS_WITH_BFLOAT16 = {"avx512_bf16", "amx_bf16"}


class WorkerLostError(RuntimeError):
    """Another worker of the cluster does not answer."""


class Choice(NamedTuple):
    """A strategy, and why it is that one."""

    name: str
    reason: str


class Devices(NamedTuple):
    """Where a run computes."""

    strategy: tf.distribute.Strategy
    choice: Choice  # Of the strategy.
    precision: str  # Keras dtype policy.
    is_chief: bool  # Whether this process writes what all workers share.

    @property
    def num_replicas(self) -> int:
        """Replicas of all workers together."""
        return self.strategy.num_replicas_in_sync


def open_devices(config: config_lib.Config) -> Devices:
    """Chooses strategy and precision as the settings ask for, and makes TensorFlow ready.

    Call it before anything runs on a device.

    Raises:
        config.UsageError: the settings do not suit this machine.
    """
    choice = choose_strategy(config.strategy)
    strategy = create_strategy(choice.name, config.tpu, config.logical_cpus)
    check_replicas(strategy, config.batch_size, config.jit_compile)
    return Devices(strategy, choice, choose_precision(config.precision), is_chief(strategy))


def choose_strategy(name: str) -> Choice:
    """Resolves `--strategy=auto`: TF_CONFIG first, then the number of GPUs."""
    if name != "auto":
        return Choice(name, f"as --strategy={name} says")
    if _has_cluster():
        return Choice("multi_worker", "TF_CONFIG names a cluster")
    num_gpus = len(tf.config.list_physical_devices("GPU"))
    if num_gpus > 1:
        return Choice("mirrored", f"there are {num_gpus} GPUs")
    return Choice("one_device", "there is one GPU" if num_gpus else "there is no GPU")


def create_strategy(name: str, tpu: str = "", logical_cpus: int = 1) -> tf.distribute.Strategy:
    """Chooses how replicas are placed. Call it before anything runs on a device.

    Args:
        name: one_device, mirrored, multi_worker or tpu.
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
    if name == "mirrored":
        kind = "GPU" if gpus else "CPU"
        return tf.distribute.MirroredStrategy(
            [device.name for device in tf.config.list_logical_devices(kind)]
        )
    if name == "multi_worker":
        if not _has_cluster():
            raise config_lib.UsageError(
                f"--strategy=multi_worker: set TF_CONFIG to the cluster. {_TF_CONFIG}"
            )
        return tf.distribute.MultiWorkerMirroredStrategy()
    if name == "tpu":
        return _tpu_strategy(tpu)
    # In the scope of a device its batches are copied ahead; a CPU has them already.
    return tf.distribute.OneDeviceStrategy("/gpu:0") if gpus else tf.distribute.get_strategy()


def check_replicas(strategy: tf.distribute.Strategy, batch_size: int, jit_compile: bool) -> None:
    """Checks that the settings suit the number of replicas.

    Raises:
        config.UsageError: they do not.
    """
    replicas = strategy.num_replicas_in_sync
    if batch_size % replicas:
        lower = batch_size - batch_size % replicas
        raise config_lib.UsageError(
            f"--batch_size={batch_size} does not divide over {replicas} replicas; take "
            f"{f'{lower} or ' if lower else ''}{lower + replicas}."
        )
    if jit_compile and replicas > 1:
        raise config_lib.UsageError(
            f"--jit_compile is for one replica; here are {replicas}. Leave it out, or choose "
            "--strategy=one_device."
        )


def check_reachable(flag: str, address: str) -> None:
    """Checks that a server answers at `grpc://host:port`; TensorFlow would wait for it for ever.

    Raises:
        config.UsageError: none does.
    """
    try:
        url = urllib.parse.urlsplit(address)
        if url.scheme != "grpc" or not url.port:
            raise ValueError("it is not grpc://host:port")
        socket.create_connection((url.hostname, url.port), _SECONDS_TO_CONNECT).close()
    except (OSError, ValueError) as error:
        raise config_lib.UsageError(
            f"{flag}={address}: no server answers there ({error})."
        ) from error


def make_vote(strategy: tf.distribute.Strategy) -> Callable[..., tuple[bool, ...]]:
    """Returns a function of booleans that tells for each whether any worker says so.

    All workers must call it equally often. With one worker it returns what it is given.
    """
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return lambda *opinions: opinions
    gather = _make_gather(strategy)

    def vote(*opinions):
        return tuple(bool(of_all.any()) for of_all in gather(opinions).T)

    return vote


def check_same_step(strategy: tf.distribute.Strategy, step: int) -> None:
    """Checks that all workers go on from the same step, which all of them must call.

    Raises:
        config.UsageError: they do not.
    """
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return
    steps = sorted({int(of_worker) for of_worker in _make_gather(strategy)([step])[:, 0]})
    if len(steps) > 1:
        raise config_lib.UsageError(
            f"The workers found checkpoints of different steps, {' and '.join(map(str, steps))} "
            f"(this one: {step}). --run_dir must be on storage that all of them reach; if it is, "
            "start all of them again."
        )


def _make_gather(strategy: tf.distribute.Strategy):
    """Returns a function of N whole numbers that gives those of all replicas, [replicas, N]."""

    @tf.function
    def gather(numbers):
        of_replicas = strategy.run(lambda numbers: numbers[None], args=(numbers,))
        return strategy.gather(of_replicas, axis=0)

    return lambda numbers: gather(tf.constant(numbers, tf.int64)).numpy()


@contextlib.contextmanager
def lost_workers_named(strategy: tf.distribute.Strategy):
    """Turns the errors that come when another worker is gone into one.

    Raises:
        WorkerLostError: another worker does not answer.
    """
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.InternalError) as error:
        if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            raise
        raise WorkerLostError(str(error)) from error


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


def _has_cluster() -> bool:
    try:
        resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
        return bool(resolver.cluster_spec().jobs)
    except (ValueError, TypeError, AttributeError) as error:
        raise config_lib.UsageError(
            f"TF_CONFIG={os.environ.get('TF_CONFIG')} cannot be read ({error}). {_TF_CONFIG}"
        ) from error


def _tpu_strategy(tpu: str) -> tf.distribute.Strategy:
    if tpu.startswith("grpc://"):
        for address in tpu.split(","):
            check_reachable("--tpu", address)
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=tpu)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, tf.errors.OpError) as error:
        raise config_lib.UsageError(
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
    for directory, limit, used, cached in (
        ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        (
            "/sys/fs/cgroup/memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ):
        directory = pathlib.Path(directory)
        if limit_bytes := _read_int(directory / limit):
            # What files left in memory is given back when it is wanted.
            reclaimable = _read_int(directory / "memory.stat", cached)
            available = min(available, limit_bytes - _read_int(directory / used) + reclaimable)
    return max(available, 0)


def _read_int(path: pathlib.Path, field: str = "") -> int:
    """Returns the number that follows `field` in a file, or 0 if there is none."""
    try:
        words = path.read_text().split()
        return int(words[words.index(field) + 1 if field else 0])
    except (OSError, ValueError, IndexError):
        return 0


def num_cores() -> int:
    """Returns the cores that this process may use: of the machine or of its cgroup."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = map(int, pathlib.Path("/sys/fs/cgroup/cpu.max").read_text().split())
    except (OSError, ValueError):  # There is no cgroup, or it may use all.
        return cores
    return min(cores, max(1, quota // period))


def num_pipeline_threads() -> int:
    """Returns the threads that a pipeline runs on, and its calls in parallel."""
    return _PIPELINE_THREADS_PER_CORE * num_cores()
