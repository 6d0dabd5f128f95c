"""What is in a version beside the SavedModel: warmup records, labels, the model's card."""

import json
import pathlib
import textwrap
from typing import Any

import tensorflow as tf

from export import loading, server_settings
from trainer import config as config_lib
from trainer.decisions import decision as decision_lib
from trainer.reports import tables
from trainer.run import directory

_WARMUP = "assets.extra/tf_serving_warmup_requests"
# Alone, a usual batch, and the largest that the server makes.
_WARMUP_BATCHES = (1, 8, server_settings.MAX_BATCH_SIZE)


def write_version_files(
    version: pathlib.Path,
    signatures: dict[str, Any],
    facts: dict[str, Any],
    run: directory.RunDirectory,
    limits: loading.Limits,
    decision: decision_lib.Decision,
    image: bytes,
) -> None:
    """Writes what belongs to one version, into its directory.

    Args:
        signatures: its concrete functions, by name.
        facts: of the run, as `checkpoints.restore_model` returns them, and the export's `tta` and
            what is to be said of other `formats`.
        image: a JPEG for the warmup requests.
    """
    (version / "labels.txt").write_text("".join(f"{name}\n" for name in facts["genres"]))
    (version / "signatures.txt").write_text(describe_signatures(signatures))
    (version / "model_card.md").write_text(describe_model(facts, run, limits, decision))
    decision_lib.write(version / directory.THRESHOLDS, decision, facts["step"], facts["tta"])
    try:
        requests = warmup_requests(image, facts["image_size"])
    except ImportError:
        print("No warmup requests: they need `pip install tensorflow-serving-api`.")
        return
    (version / _WARMUP).parent.mkdir()
    with tf.io.TFRecordWriter(str(version / _WARMUP)) as writer:
        for request in requests:
            writer.write(request.SerializeToString())


def describe_signatures(signatures: dict[str, Any]) -> str:
    """Returns inputs and outputs of each signature, with dtypes and shapes, as text."""
    lines = []
    for name, function in signatures.items():
        lines.append(name)
        inputs = {spec.name: spec for spec in tf.nest.flatten(function.structured_input_signature)}
        for kind, specs in (("input", inputs), ("output", function.structured_outputs)):
            lines += [
                f"  {kind:<7}{key:<12} {spec.dtype.name} {spec.shape}"
                for key, spec in sorted(specs.items())
            ]
    return "\n".join(lines) + "\n"


def describe_model(
    facts: dict[str, Any],
    run: directory.RunDirectory,
    limits: loading.Limits,
    decision: decision_lib.Decision,
) -> str:
    """Returns the model's card: what it is, how good it is, and what it is not for."""
    config, _ = run.read_config()
    step = facts["step"]
    records = run.read_metrics()
    records = records[records["step"] == step]
    scores = "This checkpoint is from the middle of an epoch and was not evaluated."
    if not records.empty:
        scores = tables.make_summary(records).to_markdown(floatfmt=".4f", missingval="-")
    return f"""# Poster genres: {config.model}

Scores of {len(facts["genres"])} genres for a movie poster: {", ".join(facts["genres"])}.

- Data: `{config.dataset}`, trained on {facts["num_train"]} posters of `{config.train_split}`.
- Checkpoint: step {step} of `{run.path.name}`, trained in {facts["precision"]}, served in float32.
- Input: JPEG or PNG of at most {limits.max_pixels:,} pixels and {limits.max_bytes:,} bytes,
  resized to a square with sides of {config.image_size} pixels.{_max_side(limits)}
- Answers: {config_lib.describe_tta(facts["tta"])}.
- A PNG is answered as the JPEG that a dataset stores of it, transparent parts on white. CMYK, EXIF
  data that ask for a turn, a PNG with 16 bits or a colour profile and all other formats are
  refused: `python -m export.predict` converts them first, as the dataset does.

## How good it is

{scores}{_of_posters_alone(facts["tta"])}

The constant predictor gives every poster the genres' shares in the train split. A score near its
score says that little was learned; label accuracy alone says nothing, since most genres are absent
from most posters.

## Which genres it predicts

A genre is predicted where its calibrated score, 1 / (1 + exp(-(slope * logit + intercept))), is at
least its threshold.
{textwrap.fill(decision.how, 100)}

{decision.table.to_markdown(floatfmt=".7f")}
{_other_formats(facts["formats"])}
## What it is not for

It knows the genres of its data as they were labelled, and nothing else: not photographs, not
people. Scores of genres with few posters are not reliable. Of damage inside a JPEG it names what
lets the data end too early.

## Settings

```json
{json.dumps(config.to_json(), indent=2)}
```
"""


def warmup_requests(image: bytes, image_size: int) -> list[Any]:
    """Returns requests that the server sends itself before it serves a version.

    Without them the first clients wait for TensorFlow to prepare each batch size. The
    server's log says "Finished reading warmup data" when they have run.

    Returns:
        `PredictionLog` messages: each signature with each of the usual batch sizes.

    Raises:
        ImportError: the messages' package, of the extra `serving`, is not installed.
    """
    from tensorflow_serving.apis import classification_pb2, predict_pb2, prediction_log_pb2

    requests = []
    for size in _WARMUP_BATCHES:
        images = tf.constant([image] * size)
        pixels = tf.zeros([size, image_size, image_size, 3], tf.uint8)
        for signature, name, value in (
            ("serving_default", "image_bytes", images),
            ("top_k", "image_bytes", images),
            ("pixels", "pixels", pixels),
            ("embed", "image_bytes", images),
        ):
            request = predict_pb2.PredictRequest()
            request.model_spec.signature_name = signature
            request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
            log = prediction_log_pb2.PredictLog(request=request)
            requests.append(prediction_log_pb2.PredictionLog(predict_log=log))
        request = classification_pb2.ClassificationRequest()
        request.model_spec.signature_name = "classify"
        request.input.example_list.examples.extend([example(image)] * size)
        log = prediction_log_pb2.ClassifyLog(request=request)
        requests.append(prediction_log_pb2.PredictionLog(classify_log=log))
    return requests


def example(image: bytes) -> tf.train.Example:
    """Returns the tf.Example that the signature `classify` takes."""
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[image]))
    return tf.train.Example(features=tf.train.Features(feature={"image_bytes": feature}))


def _of_posters_alone(tta: str) -> str:
    if tta == config_lib.NO_TTA:
        return ""
    return (
        "\n\nThese are of the answers to each poster alone; "
        f"`python -m trainer.report_page --tta={tta}`\nmeasures the averaged ones."
    )


def _other_formats(described: str) -> str:
    return f"\n## Other formats\n\n{described}" if described else ""


def _max_side(limits: loading.Limits) -> str:
    side = limits.max_side
    return f"\n  No side of more than {side} pixels, to which the dataset reduced." if side else ""
