"""A tf.data service: other machines read, decode and change posters for the trainer.

    python -m trainer.data_service --port=5050                                # the dispatcher
    python -m trainer.data_service --port=5051 --dispatcher=HOST:5050         # on each machine
    python -m trainer --data_service=grpc://HOST:5050 ...                     # the trainer

It pays where the trainer's own cores cannot keep its GPUs busy. The dataset must be on
storage that all of them reach under the same `--data_dir`.
"""

import os
import signal
import socket

from absl import flags

from trainer import command_line

_PORT = flags.DEFINE_integer("port", 0, "Port to listen on; 0: one that is free.")
_DISPATCHER = flags.DEFINE_string(
    "dispatcher", "", "Be a worker of the dispatcher at HOST:PORT; empty: be the dispatcher."
)
_HOST = flags.DEFINE_string(
    "host", socket.gethostname(), "Name under which the trainer reaches this worker."
)


def main(arguments: list[str]) -> None:
    """Serves until it is asked to stop."""
    del arguments
    stops = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)  # For the threads to come, too.
    command_line.import_tensorflow()
    from tensorflow.data.experimental import service

    from trainer import runtime

    if _DISPATCHER.value:
        runtime.check_reachable("--dispatcher", f"grpc://{_DISPATCHER.value}")
        server = service.WorkerServer(
            service.WorkerConfig(
                dispatcher_address=_DISPATCHER.value,
                worker_address=f"{_HOST.value}:%port%",
                port=_PORT.value,
            )
        )
        print(f"A worker of {_DISPATCHER.value} is ready.", flush=True)
    else:
        server = service.DispatchServer(service.DispatcherConfig(port=_PORT.value))
        port = server.target.rsplit(":", 1)[1]
        print(f"The dispatcher is ready: --data_service=grpc://{_HOST.value}:{port}", flush=True)
    signal.sigwait(stops)
    print("Stopped.", flush=True)
    os._exit(0)  # To take the server down takes it seconds, and keeps nothing.


if __name__ == "__main__":
    command_line.run(main)
