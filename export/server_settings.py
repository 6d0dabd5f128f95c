"""The server's settings: files beside the versions, and numbers that are chosen together.

The model of the numbers, for C cores of which a poster takes S milliseconds:

- A batch has at most 32 posters: 12 MB of pixels at 350, and on a CPU one of 8 costs hardly more
  a poster. A request of more is refused.
- T batches are in work. On CPUs T = C, as the server's guide advises: the operations of one batch
  leave cores idle, which others take. On a GPU the batches are decoded by C cores, up to four
  posters of each at a time: T = C / 4, but 2, so that one is decoded while one is computed.
- The first request of a batch waits for others S / C, in which the machine would compute one
  poster: a poster that is alone takes at most twice its time.
- R = 2 x 32 x T requests are in flight, so that single posters fill the batches in work and those
  that follow. Each takes a thread, by gRPC and by REST, which mostly waits. gRPC's pool refuses
  beyond its threads, and keeps some for itself: it has the server's default, 4 C, besides.
- Batches wait at most half a minute, half of what our clients allow: 30 s x C / (32 S) of them, or
  R. Beyond them the server answers "unavailable", and clients try again.
- The REST port gives a request the 60 s of our clients, where the server's default is 30.

S is of the largest model measured, EfficientNet-Lite0 at 320 pixels, on a CPU; with a GPU it is the
decoding alone.
"""

import os
import pathlib
from typing import NamedTuple

CPU, GPU = PROFILES = ("cpu", "gpu")
MAX_BATCH_SIZE = 32
_CORE_MS = {CPU: 25, GPU: 1.5}  # A poster, on 1 core: BUILD_NOTES, "Serving".
_SHORTEST_WAIT_MS = 1
_LONGEST_QUEUE_S = 30
_REST_TIMEOUT_S = 60

# The server's files are text protocol buffers, which take comments.
_MODELS_CONFIG = """# tensorflow_model_server --model_config_file=THIS
model_config_list {{
  config {{
    name: "{name}"
    base_path: "{base_path}"
    model_platform: "tensorflow"
    # The newest version only; the old one serves while it is loaded.
    model_version_policy {{ latest {{ num_versions: 1 }} }}
  }}
}}
"""
_BATCHING_CONFIG = """# tensorflow_model_server --enable_batching --batching_parameters_file=THIS
# For {cores} cores, profile {profile}: {core_ms:g} ms of a core a poster. The numbers belong
# together, and to server_flags.txt: `python -m export --cores=N --batching_profile=cpu|gpu`.

# The largest batch; a request of more posters is refused.
max_batch_size {{ value: {max_batch_size} }}
# How long the first request waits for others: what the cores take for one poster, 1 ms at least.
batch_timeout_micros {{ value: {wait_micros} }}
# Batches in work at a time.
num_batch_threads {{ value: {num_batch_threads} }}
# Batches that may wait, half a minute at most; beyond them the server answers "unavailable" and
# clients try again.
max_enqueued_batches {{ value: {max_enqueued_batches} }}
"""
_MONITORING_CONFIG = """# tensorflow_model_server --rest_api_port=8501 --monitoring_config_file=THIS
# Prometheus reads http://HOST:8501/monitoring/prometheus/metrics
prometheus_config { enable: true path: "/monitoring/prometheus/metrics" }
"""
_SERVER_FLAGS = """--port=8500
--rest_api_port=8501
--model_config_file={base_path}/models.config
--enable_batching
--batching_parameters_file={base_path}/batching.config
--monitoring_config_file={base_path}/monitoring.config
--grpc_max_threads={grpc_max_threads}
--rest_api_num_threads={requests_in_flight}
--rest_api_timeout_in_ms={rest_timeout_ms}
"""


class Capacity(NamedTuple):
    """How much a server takes at a time."""

    wait_micros: int  # How long the first request of a batch waits for others, in microseconds.
    num_batch_threads: int  # Batches in work.
    max_enqueued_batches: int  # Batches that wait.
    requests_in_flight: int  # Requests that are answered or wait.
    grpc_max_threads: int


def plan_capacity(profile: str, cores: int) -> Capacity:
    """Returns the numbers of the model above."""
    machine_ms = _CORE_MS[profile] / cores  # A poster.
    num_batch_threads = cores if profile == CPU else max(2, cores // 4)
    requests_in_flight = 2 * MAX_BATCH_SIZE * num_batch_threads
    full_batches = int(1000 * _LONGEST_QUEUE_S / (MAX_BATCH_SIZE * machine_ms))
    return Capacity(
        wait_micros=round(1000 * max(machine_ms, _SHORTEST_WAIT_MS)),
        num_batch_threads=num_batch_threads,
        max_enqueued_batches=min(full_batches, requests_in_flight),
        requests_in_flight=requests_in_flight,
        grpc_max_threads=requests_in_flight + 4 * cores,
    )


def write_server_files(
    export_dir: str | os.PathLike, profile: str, cores: int, replace: bool = False
) -> None:
    """Writes the server's settings beside the versions, each unless it is there.

    With `replace` it writes those that depend on profile and cores over.
    """
    from trainer.run import directory  # Imports TensorFlow.

    export_dir = pathlib.Path(export_dir).resolve()
    capacity = plan_capacity(profile, cores)
    sized = {
        "batching.config": _BATCHING_CONFIG.format(
            cores=cores,
            profile=profile,
            core_ms=_CORE_MS[profile],
            max_batch_size=MAX_BATCH_SIZE,
            **capacity._asdict(),
        ),
        "server_flags.txt": _SERVER_FLAGS.format(
            base_path=export_dir, rest_timeout_ms=1000 * _REST_TIMEOUT_S, **capacity._asdict()
        ),
    }
    for file, content in {
        "models.config": _MODELS_CONFIG.format(name=export_dir.name, base_path=export_dir),
        "monitoring.config": _MONITORING_CONFIG,
        **sized,
    }.items():
        if not (export_dir / file).exists() or (replace and file in sized):
            directory.write_atomically(export_dir / file, content)
