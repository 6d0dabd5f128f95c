"""One process at a time in a directory."""

import contextlib
import fcntl
import os

from etils import epath

from poster_tfds import faults


class HeldError(faults.UserError):
    """Another process holds the directory."""


@contextlib.contextmanager
def hold(directory: os.PathLike):
    """Holds a directory of a local file system for this process; makes it if need be.

    The lock goes with the process, however it ends. Object stores have no locks.

    Yields:
        Whether it is held: false on an object store.

    Raises:
        HeldError: another process holds the directory.
    """
    if "://" in os.fspath(directory):
        yield False
        return
    epath.Path(directory).mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HeldError(
                f"Another process is at work in {directory}. Wait until it has ended."
            ) from None
        yield True
    finally:
        os.close(descriptor)
