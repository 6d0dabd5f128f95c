"""The exported model in files for programs without TensorFlow: LiteRT (TFLite) and ONNX.

They take `pixels`, uint8 [N, S, S, 3]: posters that are decoded and resized to the side S of the
run. They answer with `scores`, float32 [N, G], as the SavedModel's signature `pixels` does.
"""

import contextlib
import logging
import os
import pathlib
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import tensorflow as tf
from tensorflow.python.framework import convert_to_constants

from poster_tfds import machine
from trainer import config as config_lib, inference
from trainer.data import splits, stream
from trainer.reports import scores as scores_lib

SAVED_MODEL = "saved_model"  # Every version has it.
INT8 = "tflite_int8"
SAMPLE_SIZE = 100  # Posters to compare on, and to choose the ranges of int8 by.
_MAX_EVALUATED = 2000  # Posters, for the macro AP of int8.
_BATCH_SIZE = 32
_BATCH_SIZE = 20

_DESCRIPTION = """\
Each takes `pixels`, uint8 [N, {size}, {size}, 3], and answers with `scores`, float32 [N, G], of the
genres in the order of `labels.txt`. Compared with the SavedModel's on {count} {origin}:

{table}
"""

_Scorer = Callable[[np.ndarray], np.ndarray]  # uint8 [N, S, S, 3] to float32 [N, G].


class Format(NamedTuple):
    """A format, and how it is made and asked."""

    file: str
    convert: Callable[[tf.types.experimental.GenericFunction, np.ndarray], bytes]
    load: Callable[[bytes], _Scorer]
    tolerance: float  # How far a score may be from the SavedModel's.


class Converted(NamedTuple):
    """The model in other formats."""

    files: dict[str, bytes]  # By their names.
    described: str  # What the model's card says of them.


def check_names(names: Sequence[str]) -> None:
    """Raises a `UsageError` where a format is not known, or what it needs is not installed."""
    known = (SAVED_MODEL, *FORMATS)
    if unknown := set(names) - set(known):
        raise config_lib.UsageError(
            f"--format={','.join(names)}: there is no {', '.join(sorted(unknown))!r}; choose of "
            f"{', '.join(known)}."
        )
    if "onnx" in names:
        try:
            import onnxruntime  # noqa: F401
            import tf2onnx  # noqa: F401
        except ImportError as error:
            raise config_lib.UsageError(
                f"--format=onnx needs more packages ({error}): pip install -e '.[onnx]'"
            ) from error


def convert(
    names: Sequence[str],
    version: pathlib.Path,
    answer: Callable[..., tf.Tensor],
    posters: np.ndarray,
    origin: str,
    evaluated: splits.Split | None = None,
) -> Converted:
    """Converts a model, and compares each file's answers with those of its SavedModel.

    Args:
        names: of `FORMATS`; `SAVED_MODEL` is passed over.
        answer: the model, or what `test_time.averaged` makes of it.
        posters: uint8 [N, S, S, 3], to compare on. For int8 they are of the train split: the
            ranges of the activations are theirs.
        origin: of the posters, in words.
        evaluated: whose macro AP is computed for int8.

    Raises:
        config.UsageError: a converter does not know an operation of the model.
        RuntimeError: a file in float32 does not answer as the SavedModel does.
    """
    signature = tf.saved_model.load(os.fspath(version)).signatures["pixels"]
    ask_saved_model = _in_batches(lambda pixels: signature(tf.constant(pixels))["scores"].numpy())
    expected = ask_saved_model(posters)
    frozen = freeze(answer, posters.shape[1])
    files, rows = {}, {}
    for name, form in FORMATS.items():
        if name not in names:
            continue
        print(f"{form.file}: converting, comparing", flush=True)
        try:
            content = form.convert(frozen, posters)
            ask = _in_batches(form.load(content))
            found = ask(posters)
        except Exception as error:  # Each library has its own.
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise config_lib.UsageError(
                f"--format={name}: this model cannot be converted ({reason}); nothing was "
                "published. Leave the format out."
            ) from error
        difference = np.abs(found - expected).max()
        if not difference <= form.tolerance:
            raise RuntimeError(
                f"{form.file} does not answer as the SavedModel does (scores differ by "
                f"{difference}); nothing was published."
            )
        files[form.file] = content
        rows[f"`{form.file}`"] = {
            "MB": f"{len(content) / 1e6:.1f}",
            "largest difference": f"{difference:.1g}",
            "macro AP": _compare_macro_ap(ask, ask_saved_model, evaluated, posters.shape[1])
            if name == INT8
            else "",
        }
    table = pd.DataFrame.from_dict(rows, "index").rename_axis("file")
    described = _DESCRIPTION.format(
        table=table.to_markdown(disable_numparse=True),
        **{"count": len(posters), "origin": origin, "size": posters.shape[1]},
    )
    return Converted(files, described)


def freeze(answer: Callable[..., tf.Tensor], size: int) -> tf.types.experimental.GenericFunction:
    """Returns a model as a function of `pixels` to `scores` in which each weight is a constant.

    Neither converter takes a Keras 3 model as it is: LiteRT's leaves variables in it that nobody
    sets, and tf2onnx makes inputs of the constants that a `Normalization` layer holds.
    """
    spec = tf.TensorSpec([None, size, size, 3], tf.uint8, name="pixels")

    @tf.function(input_signature=[spec])
    def scores(pixels):
        return tf.sigmoid(answer(pixels, training=False))

    constant = convert_to_constants.convert_variables_to_constants_v2(
        scores.get_concrete_function()
    )
    return tf.function(lambda pixels: {"scores": constant(pixels)[0]}, input_signature=[spec])


def _to_tflite(
    frozen: tf.types.experimental.GenericFunction, posters: np.ndarray, is_int8: bool = False
) -> bytes:
    module = tf.Module()
    module.scores = frozen
    with tempfile.TemporaryDirectory(prefix="to-tflite-") as path:
        # The gradient of `layers.Conv2D` cannot be saved with it, and is not needed.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        tf.saved_model.save(module, path, frozen, options)
        converter = tf.lite.TFLiteConverter.from_saved_model(path)
        if is_int8:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: (
                {"pixels": poster[None]} for poster in posters
            )
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        with _no_warnings():
            return converter.convert()


def _to_int8(frozen: tf.types.experimental.GenericFunction, posters: np.ndarray) -> bytes:
    return _to_tflite(frozen, posters, is_int8=True)


def _to_onnx(frozen: tf.types.experimental.GenericFunction, posters: np.ndarray) -> bytes:
    del posters
    import tf2onnx

    # What it complains of it does otherwise, or onnxruntime refuses the file.
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)
    model, _ = tf2onnx.convert.from_function(frozen, frozen.input_signature)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    return model.SerializeToString()


@contextlib.contextmanager
def _no_warnings():
    """Leaves out that another package will have the interpreter: this one is TensorFlow's own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _load_tflite(content: bytes) -> _Scorer:
    with _no_warnings():
        interpreter = tf.lite.Interpreter(model_content=content, num_threads=machine.num_cores())
    run = interpreter.get_signature_runner()
    return lambda pixels: run(pixels=pixels)["scores"]


def _load_onnx(content: bytes) -> _Scorer:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(["scores"], {"pixels": pixels})[0]


# In the order in which they are made.
FORMATS = {
    "tflite": Format("model.tflite", _to_tflite, _load_tflite, 1e-4),
    # Any probability: of int8 the macro AP says how good it is.
    INT8: Format("model_int8.tflite", _to_int8, _load_tflite, 1),
    "onnx": Format("model.onnx", _to_onnx, _load_onnx, 1e-4),
}


def _in_batches(ask: _Scorer) -> _Scorer:
    """Returns what asks with some posters at a time, which bounds the memory."""
    return lambda pixels: np.concatenate(
        [ask(pixels[i : i + _BATCH_SIZE]) for i in range(0, len(pixels), _BATCH_SIZE)]
    )


def _compare_macro_ap(
    ask: _Scorer, ask_saved_model: _Scorer, evaluated: splits.Split, image_size: int
) -> str:
    """Returns the macro AP of a file beside the SavedModel's, on the first posters of a split."""

    def answer(batches: Iterator) -> dict[str, tf.Tensor]:
        batch = next(batches)
        pixels = batch["image"].numpy()
        both = tf.stack([ask(pixels), ask_saved_model(pixels)], axis=1)
        return {"labels": batch["genres"], "logits": both, "weight": batch["weight"]}

    num_steps = -(-min(evaluated.num_examples, _MAX_EVALUATED) // _BATCH_SIZE)
    batches = iter(stream.eval_batches(evaluated, image_size, _BATCH_SIZE))
    with evaluated.damage_named():
        labels, both, _ = inference.predict(answer, batches, num_steps, f"int8 on {evaluated}")
    ours, theirs = (scores_lib.macro_ap(labels, both[:, i]) for i in range(2))
    return f"{ours:.4f} (SavedModel {theirs:.4f}; {len(labels)} posters of {evaluated})"
