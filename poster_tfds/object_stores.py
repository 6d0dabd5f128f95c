"""Object stores: which of them TensorFlow reads."""

import os

import tensorflow as tf

from poster_tfds import faults


def is_on_one(path: os.PathLike | str) -> bool:
    return "://" in os.fspath(path)


def check_readable(path: os.PathLike | str, flag: str) -> None:
    """Raises a `faults.UserError` if TensorFlow does not read the object store of a path."""
    scheme = os.fspath(path).partition("://")[0]
    if is_on_one(path) and scheme not in tf.io.gfile.get_registered_schemes():
        raise faults.UserError(
            f"{flag}={path}: TensorFlow {tf.__version__} reads no {scheme}://, of object stores "
            "gs:// only. Mount the bucket as a folder (s3fs, rclone mount), and give that."
        )
