"""Features in files, which are mapped into memory: of as many posters as the disk has room for.

They are a folder, whose name is a digest of all that they follow from: the backbone's weights, how
posters are read, and the files of the split. `about.json` says it in words. So another head on the
same backbone and posters, with the same `--features_dir`, starts at once.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import uuid
from typing import Any, BinaryIO

import keras
import numpy as np
import tensorflow as tf

from trainer import config as config_lib
from trainer.data import features as features_lib, splits
from trainer.run import directory

_NAMES = [f"{name}.npy" for name in features_lib.Features._fields]


def describe(
    config: config_lib.Config, split: splits.Split, backbone: keras.Model, mirrored: bool
) -> dict[str, Any]:
    """Returns what features of a split follow from, as JSON has it.

    `mirrored`: whether they have those of the mirror images.
    """
    digest = hashlib.sha256()
    for weight in backbone.get_weights():
        digest.update(np.ascontiguousarray(weight).tobytes())
    info = split.builder.info.splits[split.name]
    files = [(path.name, tf.io.gfile.stat(os.fspath(path))) for path in info.filepaths]
    return {
        "dataset": split.builder.info.full_name,
        "split": split.name,
        "num_examples": split.num_examples,
        "files": [[name, status.length, status.mtime_nsec] for name, status in files],
        "model": config.model,
        "weights": digest.hexdigest(),
        "precision": sorted({layer.compute_dtype for layer in backbone.layers}),
        "image_size": config.image_size,
        "mirrored": mirrored,
        "batch_size": config.batch_size,  # Its kernels may round otherwise.
        "tensorflow": tf.__version__,
    }


def read(features_dir: str, about: dict[str, Any]) -> features_lib.Features | None:
    """Returns the features that are kept there, or None.

    Raises:
        config.UsageError: they are damaged.
    """
    folder = _folder(features_dir, about)
    if not folder.exists():
        return None
    try:
        return _open(folder)
    except (OSError, ValueError, EOFError) as error:
        raise config_lib.UsageError(
            f"{folder} is damaged ({error}). Remove it; the same command makes it anew."
        ) from error


class Collector:
    """Takes the features of a split into files as they are computed, all of them or none.

    They are written first and mapped then: a full disk is an error so, and not a signal.
    """

    def __init__(self, features_dir: str | os.PathLike, about: dict[str, Any]):
        """Begins with none, in a folder of what `describe` says; raises UsageError, as all here."""
        self._about = about
        self._folder = _folder(features_dir, about)
        self._incomplete = self._folder.with_name(f".{self._folder.name}.{uuid.uuid4().hex}")
        self._files: list[BinaryIO] = []
        with self._errors_named():
            self._incomplete.mkdir(parents=True)

    def take(self, labels: np.ndarray, values: np.ndarray) -> None:
        """Takes those of the next posters: float32 [M, G] and [M, V, F]."""
        arrays = [np.ascontiguousarray(array, "<f4") for array in (values, labels)]
        with self._errors_named():
            if not self._files:
                for name, array in zip(_NAMES, arrays, strict=True):
                    self._files.append((self._incomplete / name).open("wb"))
                    shape = (self._about["num_examples"], *array.shape[1:])
                    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(self._files[-1], header)
            for file, array in zip(self._files, arrays, strict=True):
                file.write(array.tobytes())

    def finish(self) -> features_lib.Features:
        with self._errors_named():
            self._close()
            (self._incomplete / "about.json").write_text(json.dumps(self._about, indent=2) + "\n")
            try:
                self._incomplete.rename(self._folder)
            except OSError:
                if not self._folder.exists():  # It does if another run was faster.
                    raise
        return _open(self._folder)

    def close(self) -> None:
        """Removes what is not finished."""
        with contextlib.suppress(OSError):
            self._close()
        shutil.rmtree(self._incomplete, ignore_errors=True)

    def _close(self) -> None:
        for file in self._files:
            file.close()

    @contextlib.contextmanager
    def _errors_named(self):
        try:
            yield
        except OSError as error:
            raise config_lib.UsageError(
                f"{self._folder.parent}: features could not be written: {error.strerror}. Make "
                "room, or name another --features_dir, and give the same command again."
            ) from error


def _open(folder: pathlib.Path) -> features_lib.Features:
    return features_lib.Features(*(np.load(folder / name, mmap_mode="r") for name in _NAMES))


def _folder(features_dir: str | os.PathLike, about: dict[str, Any]) -> pathlib.Path:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    return directory.local_path(features_dir, "--features_dir") / digest[:16]
