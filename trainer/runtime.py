"""Devices: how a run is spread over them and in which precision they compute."""

import functools
import pathlib
import socket
import urllib.parse
from collections.abc import Sequence, Set
from typing import NamedTuple

import tensorflow as tf

from trainer import cluster, config as config_lib

_SECONDS_TO_CONNECT = 10
_CPU_FLAGS_WITH_BFLOAT16 = {"avx512_bf16", "amx_bf16"}


class Choice(NamedTuple):
    """A strategy, and why it is that one."""

    name: str
    reason: str


class Hardware(NamedTuple):
    """What there is to compute in a precision."""

    capabilities: Sequence[tuple[int, int]]  # Compute capability of each GPU.
    cpu_flags: Set[str]  # As /proc/cpuinfo has them.


class Devices(NamedTuple):
    """Where a run computes."""

    strategy: tf.distribute.Strategy
    choice: Choice  # Of the strategy.
    precision: str  # Keras dtype policy.
    is_chief: bool  # Whether this process writes what all workers share.

    @property
    def num_workers(self) -> int:
        resolver = self.strategy.cluster_resolver
        if not isinstance(self.strategy, tf.distribute.MultiWorkerMirroredStrategy):
            return 1
        return sum(len(tasks) for tasks in resolver.cluster_spec().as_dict().values())

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
    strategy = create_strategy(choice.name, config.logical_cpus, config.worker_timeout)
    check_replicas(strategy, config)
    return Devices(strategy, choice, choose_precision(config.precision), cluster.is_chief(strategy))


def choose_strategy(name: str, num_gpus: int | None = None) -> Choice:
    """Resolves `--strategy=auto`: TF_CONFIG first, then the number of GPUs.

    Args:
        name: of `--strategy`.
        num_gpus: of this machine, which is looked at if it is not given.
    """
    if name != "auto":
        return Choice(name, f"as --strategy={name} says")
    if cluster.has_cluster():
        return Choice("multi_worker", "TF_CONFIG names a cluster")
    if num_gpus is None:
        num_gpus = len(tf.config.list_physical_devices("GPU"))
    if num_gpus > 1:
        return Choice("mirrored", f"there are {num_gpus} GPUs")
    return Choice("one_device", "there is one GPU" if num_gpus else "there is no GPU")


def create_strategy(
    name: str, logical_cpus: int = 1, worker_timeout: float = 0
) -> tf.distribute.Strategy:
    """Chooses how replicas are placed. Call it before anything runs on a device.

    Args:
        name: one_device, mirrored or multi_worker.
        logical_cpus: logical devices to divide the CPU into.
        worker_timeout: seconds to wait for the other workers, for `multi_worker`; 0: for ever.

    Raises:
        config.UsageError: the strategy cannot be had on this machine.
    """
    if logical_cpus > 1:
        _divide_cpu(logical_cpus)
    if name == "multi_worker":
        return cluster.create_strategy(worker_timeout)
    gpus, cpus = (
        tuple(device.name for device in tf.config.list_logical_devices(kind))
        for kind in ("GPU", "CPU")
    )
    return create_local_strategy(name, gpus, cpus)


@functools.cache
def create_local_strategy(
    name: str, gpus: tuple[str, ...], cpus: tuple[str, ...]
) -> tf.distribute.Strategy:
    """Places replicas on this machine's devices: on its GPUs, if it has any.

    A process has one strategy of its kind, since the collective operations of two would have the
    same keys.

    Args:
        name: one_device or mirrored.
        gpus: names of its logical GPUs.
        cpus: names of its logical CPUs.
    """
    if name == "mirrored":
        return tf.distribute.MirroredStrategy(list(gpus or cpus))
    # In the scope of a device its batches are copied ahead; a CPU has them already.
    return tf.distribute.OneDeviceStrategy(gpus[0]) if gpus else tf.distribute.get_strategy()


def _divide_cpu(count: int) -> None:
    (cpu,) = tf.config.list_physical_devices("CPU")
    devices = [tf.config.LogicalDeviceConfiguration()] * count
    if tf.config.get_logical_device_configuration(cpu) == devices:
        return  # An earlier run in this process has done it.
    try:
        tf.config.set_logical_device_configuration(cpu, devices)
    except RuntimeError as error:
        raise config_lib.UsageError(
            f"--logical_cpus={count}: TensorFlow has used the CPU in this process already, and "
            "cannot divide it any more. Start the run in a process of its own."
        ) from error


def check_replicas(strategy: tf.distribute.Strategy, config: config_lib.Config) -> None:
    """Checks that the settings suit the number of replicas.

    Raises:
        config.UsageError: they do not.
    """
    replicas, batch_size = strategy.num_replicas_in_sync, config.batch_size
    if batch_size % replicas:
        lower = batch_size - batch_size % replicas
        raise config_lib.UsageError(
            f"--batch_size={batch_size} does not divide over {replicas} replicas; take "
            f"{f'{lower} or ' if lower else ''}{lower + replicas}."
        )
    if config.jit_compile and replicas > 1:
        raise config_lib.UsageError(
            f"--jit_compile is for one replica, and here are {replicas}: leave it out, or give "
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


def choose_precision(name: str, hardware: Hardware | None = None) -> str:
    """Returns the Keras dtype policy for some hardware, this machine's if none is given.

    `auto` is mixed_bfloat16 where the hardware computes in it (GPUs of compute capability
    8.0, CPUs with AVX512-BF16 or AMX), mixed_float16 on GPUs of 7.0, else float32.
    """
    if name != "auto":
        return name
    hardware = hardware or find_hardware()
    if hardware.capabilities:
        capability = min(hardware.capabilities)
        if capability >= (8, 0):
            return "mixed_bfloat16"
        return "mixed_float16" if capability >= (7, 0) else "float32"
    return "mixed_bfloat16" if hardware.cpu_flags & _CPU_FLAGS_WITH_BFLOAT16 else "float32"


def find_hardware() -> Hardware:
    """Returns what this machine computes with."""
    details = map(tf.config.experimental.get_device_details, tf.config.list_physical_devices("GPU"))
    return Hardware(
        [detail.get("compute_capability", (0, 0)) for detail in details],
        _cpu_flags(),
    )


def _cpu_flags() -> set[str]:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())
