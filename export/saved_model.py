"""Write, check and publish a version of the SavedModel."""

import contextlib
import io
import os
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from export import formats as formats_lib, loading, serving_files, serving_model
from poster_tfds import directory_lock
from trainer import config as config_lib
from trainer.data import pipeline, splits, test_time
from trainer.decisions import decision as decision_lib
from trainer.run import checkpoints, directory

_TOLERANCE = 1e-5
_LIMITS = loading.Limits()
_INCOMPLETE = "incomplete-"
_NUM_RANDOM = 8  # Images to compare formats on where there are no posters.


def export_saved_model(
    run_dir: str | os.PathLike,
    export_dir: str | os.PathLike,
    *,
    top_k: int = 5,
    limits: loading.Limits = _LIMITS,
    tta: str = config_lib.NO_TTA,
    formats: Sequence[str] = (),
    keep_versions: int = 0,
) -> pathlib.Path:
    """Exports the best checkpoint of a run, in float32, as a new version.

    The version appears under its number only when it is complete and has answered as
    the run's own model does: a server that watches `export_dir` never sees part of it.

    Args:
        limits: what an image may cost; `max_side` is that of the run's dataset, if it is there.
        tta: of `config.TTA`.
        formats: what the version has beside the SavedModel, of `formats.FORMATS`.
        keep_versions: how many of the newest versions to keep; 0: all.

    Returns:
        The version's directory, `export_dir/<integer>`.

    Raises:
        config.UsageError: there is no run with a checkpoint in `run_dir`, or `limits` refuse
            every image that the export could be tried with, or the disk is full, or the model
            cannot be had in one of the formats.
        RuntimeError: the SavedModel does not answer as the model does, or another format as the
            SavedModel.
    """
    formats_lib.check_names(formats)
    run, opened = directory.RunDirectory(run_dir), open_run(run_dir, top_k, limits, tta)
    module, facts, limits = opened.module, opened.facts, opened.limits
    export_dir = directory.local_path(export_dir, "--export_dir")
    export_dir.mkdir(parents=True, exist_ok=True)
    with directory_lock.hold(export_dir):
        for leftover in export_dir.glob(f"{_INCOMPLETE}*"):
            shutil.rmtree(leftover)
        # A server takes only directories with integer names for versions.
        unfinished = export_dir / f"{_INCOMPLETE}{os.getpid()}"
        posters = [*_real_posters(opened.split), _drawn_jpeg(300, 444), _drawn_jpeg(97, 51)]
        posters = _accepted(module, posters, limits)
        try:
            signatures = {
                name: function.get_concrete_function()
                for name, function in module.signatures.items()
            }
            with _full_disk_named(export_dir):
                tf.saved_model.save(module, os.fspath(unfinished), signatures)
            _check_answers_alike(unfinished, module, posters)
            converted = _convert(formats, unfinished, opened, run, tta)
            with _full_disk_named(export_dir):
                for file, content in converted.files.items():
                    (unfinished / file).write_bytes(content)
                serving_files.write_version_files(
                    unfinished,
                    signatures,
                    {**facts, "tta": tta, "formats": converted.described},
                    run,
                    limits,
                    opened.decision,
                    posters[0],
                )
            numbers = [int(path.name) for path in export_dir.iterdir() if path.name.isdecimal()]
            version = export_dir / str(max(numbers, default=0) + 1)
            unfinished.rename(version)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        if keep_versions:
            for number in published_versions(export_dir)[:-keep_versions]:
                _remove(export_dir / str(number))
    return version


def published_versions(export_dir: str | os.PathLike) -> list[int]:
    """Returns the versions in a directory, ascending."""
    return sorted(
        int(path.name)
        for path in pathlib.Path(export_dir).iterdir()
        if path.name.isdecimal() and (path / "saved_model.pb").exists()
    )


class OpenRun(NamedTuple):
    """What is exported of a run."""

    model: keras.Model  # Of its best checkpoint, in float32.
    module: serving_model.ServingModel  # Of the model.
    facts: dict[str, Any]  # Of `checkpoints.restore_model`.
    decision: decision_lib.Decision
    limits: loading.Limits
    split: splits.Split | None  # That it was trained on, if it is still there.


def open_run(
    run_dir: str | os.PathLike,
    top_k: int = 5,
    limits: loading.Limits = _LIMITS,
    tta: str = config_lib.NO_TTA,
) -> OpenRun:
    """Returns what is exported of a run, to be asked without an export.

    Raises:
        config.UsageError: there is no run with a checkpoint in `run_dir`.
    """
    model, facts = checkpoints.restore_model(run_dir)
    run = directory.RunDirectory(run_dir)
    split = _find_split(run)
    if split and split.builder.info.metadata:
        limits = limits._replace(max_side=split.builder.info.metadata.get("max_side", 0))
    decision = decision_lib.read(run.thresholds, step=facts["step"], tta=tta)
    if not decision:
        why = decision_lib.RECOMMENDATION
        if facts["validation_split"]:
            why = f"`python -m trainer.report_page --run_dir={run_dir} --tta={tta}` chooses them."
        decision = decision_lib.undecided(facts["genres"], why)
    module = serving_model.ServingModel(model, decision, facts["image_size"], top_k, limits, tta)
    return OpenRun(model, module, facts, decision, limits, split)


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


@contextlib.contextmanager
def _full_disk_named(export_dir: pathlib.Path):
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise config_lib.UsageError(
            f"--export_dir={export_dir}: the version could not be written ({reason}); nothing was "
            "published. Make room, and give the same command again."
        ) from error


def _remove(version: pathlib.Path) -> None:
    """Removes a version, out of the server's sight first."""
    hidden = version.with_name(f"{_INCOMPLETE}{version.name}")
    version.rename(hidden)
    shutil.rmtree(hidden)


def _check_answers_alike(
    path: pathlib.Path, module: serving_model.ServingModel, posters: list[bytes]
) -> None:
    """Loads a SavedModel into a session, as the server does, and compares its answers."""
    expected = {k: v.numpy() for k, v in module.serving_default(tf.constant(posters)).items()}
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        meta_graph = tf.compat.v1.saved_model.load(session, ["serve"], os.fspath(path))
        signature = meta_graph.signature_def["serving_default"]
        answers = session.run(
            {name: tensor.name for name, tensor in signature.outputs.items()},
            {signature.inputs["image_bytes"].name: posters},
        )
    numbers = ("scores", "calibrated")
    difference = max(np.abs(answers[name] - expected[name]).max() for name in numbers)
    if not answers["ok"].all() or (answers["genres"] != expected["genres"]).any():
        difference = np.inf
    if not difference <= _TOLERANCE:
        raise RuntimeError(
            f"The SavedModel does not answer as the model does (scores differ by {difference}); "
            "nothing was published."
        )


def _convert(
    names: Sequence[str],
    version: pathlib.Path,
    opened: OpenRun,
    run: directory.RunDirectory,
    tta: str,
) -> formats_lib.Converted:
    """Returns the model of a SavedModel in the formats with these names."""
    if not set(names) - {formats_lib.SAVED_MODEL}:
        return formats_lib.Converted({}, "")
    config, facts = run.read_config()
    evaluated = None
    if opened.split:
        origin = f"posters of `{opened.split}`"
        with opened.split.damage_named():
            posters = pipeline.first_posters(
                opened.split, config.image_size, formats_lib.SAMPLE_SIZE
            )
        name = config.test_split or facts["validation_split"] or config.train_split
        evaluated = splits.Split(opened.split.builder, name)
    elif formats_lib.INT8 in names:
        raise config_lib.UsageError(
            f"--format={formats_lib.INT8} needs posters that the run was trained on, and "
            f"{config.dataset} is not in {config.data_dir}. Build it there, or leave the format "
            "out."
        )
    else:
        origin = "images of random pixels"
        shape = (_NUM_RANDOM, config.image_size, config.image_size, 3)
        posters = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    answer = test_time.averaged(opened.model, tta)
    return formats_lib.convert(names, version, answer, posters, origin, evaluated)


def _accepted(
    module: serving_model.ServingModel, posters: list[bytes], limits: loading.Limits
) -> list[bytes]:
    """Returns the images that the model does not refuse."""
    accepted = module.serving_default(tf.constant(posters))["ok"].numpy()
    if not accepted.any():
        raise config_lib.UsageError(
            f"--max_image_bytes={limits.max_bytes}, --max_image_pixels={limits.max_pixels}: these "
            "refuse every image that the export is tried with, down to 97x51. Raise them."
        )
    return [poster for poster, ok in zip(posters, accepted, strict=True) if ok]


def _find_split(run: directory.RunDirectory) -> splits.Split | None:
    """Returns the split that a run was trained on, if it is still there."""
    config, _ = run.read_config()
    try:
        return splits.open_split(config.dataset, config.data_dir, config.train_split)
    except config_lib.UsageError:
        return None


def _real_posters(split: splits.Split | None) -> list[bytes]:
    """Returns a poster of a split, if there is one."""
    if split is None:
        return []
    first = split.read(in_parts=True).take(1)
    return [example["image"] for example in first.as_numpy_iterator()]


def _drawn_jpeg(width: int, height: int) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3))
    jpeg = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).resize((width, height)).save(jpeg, "JPEG")
    return jpeg.getvalue()
