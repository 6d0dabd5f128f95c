"""One process at a time in a directory."""

import contextlib
import errno
import fcntl
import os
import sys

from etils import epath

from poster_tfds import faults, object_stores

# How a file system without locks answers: NFS without its lock daemon, Lustre mounted without them.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


class HeldError(faults.UserError):
    """Another process holds the directory."""


@contextlib.contextmanager
def hold(directory: os.PathLike):
    """Holds a directory for this process; makes it if need be.

    The lock goes with the process, however it ends. Object stores have none, and some network
    file systems: there a warning asks the user to see to it.

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
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HeldError(
                f"Another process is at work in {directory}. Wait until it has ended."
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            print(
                f"WARNING: the file system of {directory} has no locks ({error.strerror}). Make "
                "sure that no other process works there.",
                file=sys.stderr,
                flush=True,
            )
            is_held = False
        yield is_held
    finally:
        os.close(descriptor)
