"""What has to be settled before TensorFlow is imported."""

import contextlib
import ctypes
import os
import sys
import tempfile

from absl import logging


def import_tensorflow(verbose: bool) -> None:
    """Imports TensorFlow: with oneDNN's kernels and, unless `verbose`, without its messages."""
    _keep_posters_out_of_the_heap()
    import_stock_tensorflow(verbose)


def import_stock_tensorflow(verbose: bool) -> None:
    """Imports TensorFlow and leaves how memory is allocated as it is.

    TensorFlow leaves oneDNN off on CPUs without AVX512-VNNI, where it doubles the speed
    of the reference CNN all the same.
    """
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    if verbose:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.set_verbosity(logging.ERROR)
    with _held_back_stderr():
        import tensorflow  # noqa: F401


def _keep_posters_out_of_the_heap() -> None:
    """Has glibc map every block of 256 KB or more on its own, and give it back when freed.

    Otherwise its threshold grows to 32 MB and each thread's heap is left with holes of
    decoded posters: 1 GB more for the cache of the real ones.
    """
    m_mmap_threshold = -3  # As in <malloc.h>.
    with contextlib.suppress(OSError, AttributeError):  # Another C library.
        ctypes.CDLL(None).mallopt(m_mmap_threshold, 256 << 10)


@contextlib.contextmanager
def _held_back_stderr():
    """Keeps what is written to file descriptor 2 and shows it only if an error follows.

    Some messages come before TF_CPP_MIN_LOG_LEVEL is read, from C++ code that does not
    know `sys.stderr`.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held_back:
        os.dup2(held_back.fileno(), 2)
        try:
            yield
        except BaseException:
            held_back.seek(0)
            os.write(stderr, held_back.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
