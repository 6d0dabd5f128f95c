"""Write, check and publish a version of the SavedModel."""

import io
import os
import pathlib
import shutil
import uuid

import numpy as np
import tensorflow as tf
from PIL import Image

from export import serving_model
from trainer import checkpoints, config as config_lib

_TOLERANCE = 1e-5


def export_saved_model(run_dir: str | os.PathLike, export_dir: str | os.PathLike) -> pathlib.Path:
    """Exports the newest checkpoint of a run, in float32, as a new version.

    The version appears under its number only when it is complete and has answered as
    the run's own model does: a server that watches `export_dir` never sees part of it.

    Args:
        run_dir: directory of a run.
        export_dir: directory of versions, for TensorFlow Serving's `model_base_path`.

    Returns:
        The version's directory, `export_dir/<integer>`.

    Raises:
        config.UsageError: there is no run with a checkpoint in `run_dir`.
        RuntimeError: the SavedModel does not answer as the model does.
    """
    model, facts = checkpoints.restore_model(run_dir)
    module = serving_model.ServingModel(model, facts["genres"], facts["image_size"])
    export_dir = pathlib.Path(export_dir)
    export_dir.mkdir(parents=True, exist_ok=True)
    # A server takes only directories with integer names for versions.
    unfinished = export_dir / f"incomplete-{uuid.uuid4().hex}"
    try:
        tf.saved_model.save(
            module, os.fspath(unfinished), {"serving_default": module.serving_default}
        )
        _check_answers_alike(unfinished, module)
        numbers = [int(path.name) for path in export_dir.iterdir() if path.name.isdecimal()]
        version = export_dir / str(max(numbers, default=0) + 1)
        unfinished.rename(version)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return version


def published_versions(export_dir: str | os.PathLike) -> list[int]:
    """Returns the versions in a directory, ascending."""
    return sorted(
        int(path.name)
        for path in pathlib.Path(export_dir).iterdir()
        if path.name.isdecimal() and (path / "saved_model.pb").exists()
    )


def resolve_version(path: str | os.PathLike) -> pathlib.Path:
    """Returns a version's directory: `path` itself, or the newest version in it.

    Raises:
        config.UsageError: neither is there.
    """
    path = pathlib.Path(path)
    if (path / "saved_model.pb").exists():
        return path
    versions = published_versions(path) if path.is_dir() else []
    if not versions:
        raise config_lib.UsageError(
            f"--model={path}: neither a SavedModel nor a directory of versions. "
            "Make one with `python -m export`."
        )
    return path / str(versions[-1])


def _check_answers_alike(path: pathlib.Path, module: serving_model.ServingModel) -> None:
    """Loads a SavedModel into a session, as the server does, and compares its answers."""
    posters = [_example_jpeg(width, height) for width, height in ((300, 444), (97, 51))]
    expected = {k: v.numpy() for k, v in module.serving_default(tf.constant(posters)).items()}
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        meta_graph = tf.compat.v1.saved_model.load(session, ["serve"], os.fspath(path))
        signature = meta_graph.signature_def["serving_default"]
        answers = session.run(
            {name: tensor.name for name, tensor in signature.outputs.items()},
            {signature.inputs["image_bytes"].name: posters},
        )
    difference = np.abs(answers["scores"] - expected["scores"]).max()
    if difference > _TOLERANCE or (answers["genres"] != expected["genres"]).any():
        raise RuntimeError(
            f"The SavedModel does not answer as the model does (scores differ by {difference}); "
            "nothing was published."
        )


def _example_jpeg(width: int, height: int) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3))
    jpeg = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).resize((width, height)).save(jpeg, "JPEG")
    return jpeg.getvalue()
