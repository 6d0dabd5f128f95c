"""One process at a time in a directory."""

import contextlib
import os
import sys

import filelock
from etils import epath

from poster_tfds import faults, object_stores


class HeldError(faults.UserError):
    """Another process holds the directory."""


@contextlib.contextmanager
def hold(directory: os.PathLike):
    """Holds a directory for this process; makes it if need be.

    The lock goes with the process, however it ends, and leaves no file. Object stores have none,
    and some network file systems: there a warning asks the user to see to it.

    Yields:
        Whether it is held.

    Raises:
        HeldError: another process holds the directory.
    """
    if object_stores.is_on_one(directory):
        yield False
        return
    epath.Path(directory).mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        is_held = True
        try:
            if not filelock.lock_descriptor(descriptor, blocking=False):
                raise HeldError(
                    f"Another process is at work in {directory}. Wait until it has ended."
                )
        except OSError as error:  # NFS without its lock daemon, Lustre mounted without locks.
            is_held = False
            print(
                f"WARNING: the file system of {directory} has no locks ({error.strerror}). Make "
                "sure that no other process works there.",
                file=sys.stderr,
                flush=True,
            )
        yield is_held
    finally:
        os.close(descriptor)
