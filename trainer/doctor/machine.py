"""What a machine is: its devices, what drives them, its memory, cores and disk."""

import importlib.metadata
import os
import pathlib
import platform

import tensorflow as tf

from poster_tfds import machine
from trainer import runtime

_NOT_KNOWN = "not known"
_NO_DRIVER = "none: there is no /proc/driver/nvidia/version"


def describe(precision: str) -> dict[str, str]:
    """Returns what can be known of this machine without trying anything; `precision` as a flag."""
    build = tf.sysconfig.get_build_info()
    facts = {
        "tensorflow": f"{tf.__version__}, Python {platform.python_version()}",
        "CUDA, cuDNN": f"built for {build.get('cuda_version', 'none')} and "
        f"{build.get('cudnn_version', 'none')}; installed cuDNN {_cudnn_version()}",
        "GPU driver": (_lines("/proc/driver/nvidia/version") or [_NO_DRIVER])[0].strip(),
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
    cgroups = {line.split(":", 2)[2] for line in _lines("/proc/self/cgroup")}  # See cgroups(7).
    return {
        **facts,
        "CPU": f"{_cpu_model()}, {machine.num_cores()} cores to use of {os.cpu_count()}",
        "memory": f"{machine.available_memory() / 1e9:.1f} GB to use; the machine has "
        f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9:.1f} GB",
        "cgroup": ", ".join(sorted(cgroups)) or "none",
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
    packages = ((p.metadata["Name"] or "", p.version) for p in importlib.metadata.distributions())
    versions = (version for name, version in packages if name.startswith("nvidia-cudnn"))
    return next(versions, _NOT_KNOWN)


def _cpu_model() -> str:
    models = (line for line in _lines("/proc/cpuinfo") if line.startswith("model name"))
    return next(models, f":{_NOT_KNOWN}").partition(":")[2].strip()


def _lines(path: str) -> list[str]:
    try:
        return pathlib.Path(path).read_text().splitlines()
    except OSError:
        return []
