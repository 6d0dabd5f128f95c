"""Features in files, so that another head on the same backbone and posters starts at once.

They are a folder of `--features_dir`, whose name is a digest of all that they follow from: the
backbone's weights, how posters are read, and the files of the split. `about.json` says it in words.
"""

import hashlib
import json
import os
import pathlib
import shutil
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer import config as config_lib
from trainer.data import features as features_lib, splits
from trainer.run import directory


def describe(
    config: config_lib.Config, split: splits.Split, backbone: keras.Model, mirrored: bool
) -> dict[str, Any]:
    """Returns what features follow from, as JSON has it.

    Args:
        config: the settings.
        split: whose features they are.
        backbone: model of posters to features.
        mirrored: whether they have those of the mirror images.
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
        "second_size": config.second_size,
        "resize": config.resize,
        "mirrored": mirrored,
        "batch_size": config.batch_size,  # Its kernels may round otherwise.
        "tensorflow": tf.__version__,
    }


def read(features_dir: str, about: dict[str, Any]) -> features_lib.Features | None:
    """Returns the features that are kept there, or None.

    Args:
        features_dir: `--features_dir`.
        about: of `describe`.

    Raises:
        config.UsageError: they are damaged.
    """
    folder = _folder(features_dir, about)
    if not folder.exists():
        return None
    try:
        values, labels = (np.load(folder / f"{name}.npy") for name in features_lib.Features._fields)
    except (OSError, ValueError, EOFError) as error:
        raise config_lib.UsageError(
            f"{folder} is damaged ({error}). Remove it; the same command makes it anew."
        ) from error
    return features_lib.Features(values, labels)


def write(features_dir: str, about: dict[str, Any], features: features_lib.Features) -> None:
    """Keeps features there, all of them or none.

    Args:
        features_dir: `--features_dir`.
        about: of `describe`.
        features: of the split.

    Raises:
        config.UsageError: they cannot be written.
    """
    folder = _folder(features_dir, about)
    incomplete = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        incomplete.mkdir(parents=True)
        for name, array in features._asdict().items():
            np.save(incomplete / f"{name}.npy", array)
        (incomplete / "about.json").write_text(json.dumps(about, indent=2) + "\n")
        incomplete.rename(folder)
    except OSError as error:
        if folder.exists():  # Another run was faster.
            return
        raise config_lib.UsageError(
            f"--features_dir={features_dir}: features could not be written: {error.strerror}. "
            "Make room, or leave the flag out, and give the same command again."
        ) from error
    finally:
        shutil.rmtree(incomplete, ignore_errors=True)


def _folder(features_dir: str, about: dict[str, Any]) -> pathlib.Path:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    return directory.local_path(features_dir, "--features_dir") / digest[:16]
