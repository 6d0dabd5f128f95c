"""Object stores: which of them TensorFlow reads."""

import os

import tensorflow as tf

from poster_tfds import faults


def is_on_one(path: os.PathLike | str) -> bool:
    """Returns whether a path is not of a file system."""
    return "://" in os.fspath(path)


def check_readable(path: os.PathLike | str, flag: str) -> None:
    """Does nothing if a path is of a file system, or of an object store that is read.

    Args:
        path: what was given.
        flag: with which, for the message.

    Raises:
        faults.UserError: TensorFlow does not read this object store.
    """
    scheme = os.fspath(path).partition("://")[0]
    if is_on_one(path) and scheme not in tf.io.gfile.get_registered_schemes():
        raise faults.UserError(
            f"{flag}={path}: TensorFlow {tf.__version__} reads no {scheme}://, of object stores "
            "gs:// only. Mount the bucket as a folder (s3fs, rclone mount), and give that."
        )
