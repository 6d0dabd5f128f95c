"""The workers of a run: which there are, waiting for them, votes among them, losing one."""

import contextlib
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence

import tensorflow as tf

from trainer import config as config_lib

_TF_CONFIG = (
    "It names all workers and this one's index, e.g. "
    '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}.'
)
_JOBS = {"chief", "worker"}
_SECONDS_TO_FIRST_LINE = 5
_SECONDS_BETWEEN_LINES = 30
_SECONDS_BETWEEN_LOOKS = 1
_STOPS = (signal.SIGTERM, signal.SIGINT)


class WorkerLostError(RuntimeError):
    """Another worker of the cluster does not answer."""


def has_cluster() -> bool:
    """Returns whether TF_CONFIG names the workers of a run.

    Raises:
        config.UsageError: it cannot be used.
    """
    try:
        resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
        cluster, task, index = resolver.cluster_spec(), resolver.task_type, resolver.task_id
        if not cluster.jobs:
            return False
        _check_cluster(cluster)
        if task not in cluster.jobs or not 0 <= index < cluster.num_tasks(task):
            raise ValueError(f"its cluster has no task {task} {index}")
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise config_lib.UsageError(
            f"TF_CONFIG={os.environ.get('TF_CONFIG')} cannot be used: {error}. {_TF_CONFIG}"
        ) from error
    return True


def _check_cluster(cluster: tf.train.ClusterSpec) -> None:
    if others := set(cluster.jobs) - _JOBS:
        raise ValueError(
            f"its cluster has tasks of type {', '.join(sorted(others))}; here are only workers and "
            "a chief, without parameter servers"
        )
    for job in cluster.jobs:
        for address in cluster.job_tasks(job):
            host, _, port = address.rpartition(":")
            if not host or not port.isdecimal():
                raise ValueError(f"{address!r} is not HOST:PORT")


def create_strategy(worker_timeout: float) -> tf.distribute.Strategy:
    """Waits for all workers that TF_CONFIG names and joins them.

    A first Ctrl-C or SIGTERM ends the wait.

    Args:
        worker_timeout: seconds to wait at most; 0: for ever.

    Raises:
        config.UsageError: TF_CONFIG names no workers, or this one's port is in use.
    """
    if not has_cluster():
        raise config_lib.UsageError(
            f"--strategy=multi_worker: set TF_CONFIG to the cluster. {_TF_CONFIG}"
        )
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    cluster = resolver.cluster_spec()
    own = cluster.task_address(resolver.task_type, resolver.task_id)
    _check_port_is_free(own)
    others = [a for job in cluster.jobs for a in cluster.job_tasks(job) if a != own]
    with _waiting_for(others, worker_timeout):
        return tf.distribute.MultiWorkerMirroredStrategy()


def _check_port_is_free(address: str) -> None:
    port = int(address.rpartition(":")[2])
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise config_lib.UsageError(
            f"TF_CONFIG: this worker is to listen at {address}, and port {port} cannot be had "
            f"({error.strerror}). End what uses it, or name another port to all workers."
        ) from error


@contextlib.contextmanager
def _waiting_for(addresses: Sequence[str], timeout: float):
    """Says which workers are missing while TensorFlow waits for them, and ends the wait.

    TensorFlow's own wait is inside a call that no signal interrupts, so signals are held back
    and a thread looks for them. It ends the process: there is nothing yet to be lost.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    is_over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(addresses, timeout, is_over), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        watcher.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _watch(addresses: Sequence[str], timeout: float, is_over: threading.Event) -> None:
    start = time.monotonic()
    next_line = start + _SECONDS_TO_FIRST_LINE
    end = start + timeout if timeout else math.inf
    while not is_over.is_set():
        stop = signal.sigtimedwait(_STOPS, _SECONDS_BETWEEN_LOOKS)
        if stop is None and time.monotonic() < min(next_line, end):
            continue
        next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
        missing = ", ".join(address for address in addresses if not _answers(address))
        if stop is not None:
            _end(f"{signal.Signals(stop.si_signo).name}: stopped while waiting for {missing}.")
        if missing and time.monotonic() >= end:
            _end(
                f"No worker answers at {missing} after --worker_timeout={timeout:g} seconds. Start "
                "all that TF_CONFIG names, with the same TF_CONFIG but for their index."
            )
        if missing:
            print(f"Waiting for the workers at {missing}.", file=sys.stderr, flush=True)


def _end(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
    os._exit(1)


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), _SECONDS_BETWEEN_LOOKS).close()
    except OSError:
        return False
    return True


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
