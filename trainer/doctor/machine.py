"""What a machine is: its devices, what drives them, its memory, cores and disk."""

import importlib.metadata
import os
import pathlib
import platform

import tensorflow as tf

from poster_tfds import machine
from trainer import runtime

_NOT_KNOWN = "not known"


def describe(precision: str) -> dict[str, str]:
    """Returns what can be known of this machine without trying anything.

    Args:
        precision: of `--precision`.
    """
    build = tf.sysconfig.get_build_info()
    facts = {
        "tensorflow": f"{tf.__version__}, Python {platform.python_version()}",
        "CUDA, cuDNN": f"built for {build.get('cuda_version', 'none')} and "
        f"{build.get('cudnn_version', 'none')}; installed cuDNN {_cudnn_version()}",
        "GPU driver": _first_line("/proc/driver/nvidia/version"),
    }
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        details = tf.config.experimental.get_device_details(gpu)
        facts[gpu.name.removeprefix("/physical_device:")] = (
            f"{details.get('device_name', _NOT_KNOWN)}, compute capability {_capability(details)}"
        )
    if not gpus:
        facts["GPU"] = "none that TensorFlow can use"
    strategy = runtime.choose_strategy("auto")
    return {
        **facts,
        "CPU": f"{_field('/proc/cpuinfo', 'model name')}, {machine.num_cores()} cores to use of "
        f"{os.cpu_count()}",
        "memory": f"{machine.available_memory() / 1e9:.1f} GB to use; the machine has "
        f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9:.1f} GB",
        "cgroup": _cgroups(),
        "precision": _explain_precision(precision, gpus),
        "strategy": f"{strategy.name}: {strategy.reason}",
    }


def _explain_precision(name: str, gpus: list[tf.config.PhysicalDevice]) -> str:
    precision = runtime.choose_precision(name)
    if name != "auto":
        return f"{precision}, as --precision={name} says"
    if gpus:
        details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
        return f"{precision}, for compute capability {', '.join(map(_capability, details))}"
    does = "computes" if precision == "mixed_bfloat16" else "does not compute"
    return f"{precision}: the CPU {does} in bfloat16"


def _capability(details: dict) -> str:
    return ".".join(map(str, details.get("compute_capability", (_NOT_KNOWN,))))


def _cudnn_version() -> str:
    """Returns the version of the wheel that `tensorflow[and-cuda]` brings."""
    for package in importlib.metadata.distributions():
        if (package.metadata["Name"] or "").startswith("nvidia-cudnn"):
            return package.version
    return _NOT_KNOWN


def _cgroups() -> str:
    """Returns the paths of the cgroups whose limits hold for this process, as cgroups(7) says."""
    try:
        lines = pathlib.Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return "none"
    return ", ".join(sorted({line.split(":", 2)[2] for line in lines})) or "none"


def _first_line(path: str) -> str:
    try:
        return pathlib.Path(path).read_text().splitlines()[0].strip()
    except (OSError, IndexError):
        return f"none: there is no {path}"


def _field(path: str, name: str) -> str:
    try:
        lines = pathlib.Path(path).read_text().splitlines()
    except OSError:
        lines = []
    values = (line.partition(":")[2].strip() for line in lines if line.startswith(name))
    return next(values, _NOT_KNOWN)
