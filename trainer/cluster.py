"""The workers of a run: which there are, waiting for them, votes among them, losing one."""

import contextlib
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
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
_SECONDS_BETWEEN_VOTES = 1


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

    Args:
        worker_timeout: seconds to wait at most; 0: for ever.

    Raises:
        config.UsageError: TF_CONFIG names no workers, this one's port is in use, or the others
            have not started in time.
    """
    if not has_cluster():
        raise config_lib.UsageError(
            f"--strategy=multi_worker: set TF_CONFIG to the cluster. {_TF_CONFIG}"
        )
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    cluster = resolver.cluster_spec()
    own = cluster.task_address(resolver.task_type, resolver.task_id)
    others = [a for job in cluster.jobs for a in cluster.job_tasks(job) if a != own]
    _wait_for(others, own, worker_timeout)
    return tf.distribute.MultiWorkerMirroredStrategy()


def _wait_for(others: Sequence[str], own: str, timeout: float) -> None:
    """Waits until all workers listen, and says which are missing.

    TensorFlow waits too, but in silence and in a call that neither a signal nor another thread
    interrupts. Until all are there each worker listens at its own address, for the others to see.
    """
    port = int(own.rpartition(":")[2])
    try:
        listener = socket.create_server(("", port))
    except OSError as error:
        raise config_lib.UsageError(
            f"TF_CONFIG: this worker is to listen at {own}, and port {port} cannot be had "
            f"({error.strerror}). End what uses it, or name another port to all workers."
        ) from error
    start = time.monotonic()
    next_line = start + _SECONDS_TO_FIRST_LINE
    missing = list(others)
    with listener:
        listener.settimeout(_SECONDS_BETWEEN_LOOKS)
        while missing := [address for address in missing if not _answers(address)]:
            with contextlib.suppress(TimeoutError):
                listener.accept()[0].close()
            now = time.monotonic()
            if timeout and now - start >= timeout:
                raise config_lib.UsageError(
                    f"No worker answers at {', '.join(missing)} after --worker_timeout={timeout:g} "
                    "seconds. Start all that TF_CONFIG names, with the same TF_CONFIG but for "
                    "their index."
                )
            if now >= next_line:
                next_line = now + _SECONDS_BETWEEN_LINES
                names = ", ".join(missing)
                print(f"Waiting for the workers at {names}.", file=sys.stderr, flush=True)


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), _SECONDS_BETWEEN_LOOKS).close()
    except OSError:
        return False
    return True


class Vote:
    """What any worker wants, all of them do: put to the vote about once a second.

        if vote.is_due(num_steps):
            stop, save = vote.hold(stop_requested, save_is_due)

    A vote is a collective operation and each waits for the step before it, so one a step would
    keep the devices waiting. All workers must make the same calls. How many steps there are to
    the next vote they agree on in the one before, since their clocks differ.

    Attributes:
        seconds_per_step: of the slowest worker, from the last vote to the one before it.
    """

    def __init__(
        self, strategy: tf.distribute.Strategy, clock: Callable[[], float] = time.monotonic
    ):
        """Makes the first vote due after the first step.

        Args:
            strategy: where the workers are; there may be one.
            clock: tells the seconds.
        """
        self._is_alone = not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        self._gather = (lambda row: np.array([row])) if self._is_alone else _make_gather(strategy)
        self._clock = clock
        self.seconds_per_step = math.inf
        self.begin()

    def begin(self) -> None:
        """Forgets how fast steps were: those that follow are of another kind."""
        self._steps, self._steps_to_next = 0, 1
        self._last = self._clock()

    def is_due(self, steps: int) -> bool:
        """Counts steps; returns whether a vote is to be held after them."""
        self._steps += steps
        is_late = self._is_alone and self._clock() - self._last >= _SECONDS_BETWEEN_VOTES
        return is_late or self._steps >= self._steps_to_next

    def hold(self, *opinions: bool) -> tuple[bool, ...]:
        """Returns for each opinion whether any worker has it."""
        now = self._clock()
        microseconds = math.ceil(1e6 * (now - self._last) / max(self._steps, 1))
        *agreed, slowest = self._gather([*opinions, max(microseconds, 1)]).max(axis=0)
        self.seconds_per_step = slowest / 1e6
        # At most twice as many as before: the first steps may be quicker than those that follow.
        steps_to_next = min(2 * self._steps_to_next, _SECONDS_BETWEEN_VOTES / self.seconds_per_step)
        self._steps, self._steps_to_next, self._last = 0, max(int(steps_to_next), 1), now
        return tuple(map(bool, agreed))


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
def lost_workers_told(strategy: tf.distribute.Strategy):
    """Turns TensorFlow's errors of a worker that is gone into one message.

    Raises:
        config.UsageError: another worker does not answer.
    """
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError) as error:
        if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            raise
        raise config_lib.UsageError(
            f"Another worker is gone: {str(error).splitlines()[0]}\n"
            "Start all of them again to go on from the last checkpoint."
        ) from error


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
