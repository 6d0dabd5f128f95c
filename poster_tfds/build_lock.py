"""One build of a dataset at a time."""

import contextlib
import fcntl
import os

from etils import epath


@contextlib.contextmanager
def build_lock(directory: epath.Path):
    """Holds a directory of a local file system for this process; makes it if need be.

    The lock goes with the process, however it ends. Object stores have no locks: there
    nothing is held.

    Raises:
        RuntimeError: another process holds the directory.
    """
    if "://" in os.fspath(directory):
        yield
        return
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(
                f"Another process is building in {directory}. Wait until it has ended."
            ) from None
        yield
    finally:
        os.close(descriptor)
