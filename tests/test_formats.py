"""The model in other formats answers as the run's own, asked by each format's own interpreter."""

import re
import shutil
import sys

import numpy as np
import pytest
import sklearn.metrics
import tensorflow as tf

from export import formats, saved_model
from trainer import config
from trainer.data import pipeline, splits
from trainer.models import registry
from trainer.run import checkpoints

onnxruntime = pytest.importorskip("onnxruntime", reason="NOT TESTED: needs the extra `onnx`")


def ask_tflite(path, pixels):
    runner = tf.lite.Interpreter(model_path=str(path)).get_signature_runner()
    return runner(pixels=pixels)["scores"]


def ask_onnx(path, pixels):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (scores,) = session.run(["scores"], {"pixels": pixels})
    return scores


ASK = {"model.tflite": ask_tflite, "model_int8.tflite": ask_tflite, "model.onnx": ask_onnx}


@pytest.fixture(scope="module")
def converted(run_dir, tmp_path_factory):
    """A version with all formats."""
    directory = tmp_path_factory.mktemp("formats")
    names = ["tflite", "tflite_int8", "onnx"]
    return saved_model.export_saved_model(run_dir, directory, formats=names)


@pytest.fixture(scope="module")
def answered(run_dir, data_dir):
    """The test split's pixels and labels, and the scores of the run's own model."""
    split = splits.open_split("poster_tfds/synthetic", str(data_dir), "test")
    model, facts = checkpoints.restore_model(run_dir)
    pixels = pipeline.first_posters(split, facts["image_size"], split.num_examples)
    return pixels, split.read_labels(), tf.sigmoid(model(pixels, training=False)).numpy()


@pytest.mark.parametrize("file", ["model.tflite", "model.onnx"])
def test_a_file_in_float32_answers_as_the_run(converted, answered, file):
    pixels, _, expected = answered
    for size in (1, 7):  # Of a batch.
        found = ASK[file](converted / file, pixels[:size])
        np.testing.assert_allclose(found, expected[:size], atol=1e-4)
    assert np.ptp(expected[:7], axis=0).max() > 1e-3
    card = (converted / "model_card.md").read_text()
    (difference,) = re.findall(rf"`{file}`\s*\| [\d.]+\s*\| ([\d.e-]+)", card)
    assert float(difference) <= 1e-4


def test_the_card_says_how_good_the_model_is_in_integers(converted, answered):
    pixels, labels, expected = answered
    path = converted / "model_int8.tflite"
    found = np.concatenate([ask_tflite(path, image[None]) for image in pixels])
    ours, theirs = (
        sklearn.metrics.average_precision_score(labels, scores) for scores in (found, expected)
    )
    card = (converted / "model_card.md").read_text()
    words = r"\| ([\d.]+) \(SavedModel ([\d.]+); (\d+) posters of test\)"
    ((of_file, of_model, count),) = re.findall(words, card)
    assert int(count) == len(labels)
    assert float(of_file) == pytest.approx(ours, abs=2e-3)
    assert float(of_model) == pytest.approx(theirs, abs=1e-4)
    details = tf.lite.Interpreter(model_path=str(path)).get_tensor_details()
    assert any(detail["dtype"] == np.int8 and len(detail["shape"]) == 4 for detail in details)


def test_a_file_that_answers_otherwise_is_an_error(version):
    model = registry.create_model(config.Config(model="tiny_cnn", image_size=32), 8, "float32")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    with pytest.raises(RuntimeError, match=r"model\.tflite does not answer as the SavedModel does"):
        formats.convert(["tflite"], version, model, pixels, "images")


def test_what_cannot_be_converted_says_what_to_do(run_dir, tmp_path, monkeypatch):
    with pytest.raises(config.UsageError, match=r"--format=tflite,coreml: there is no 'coreml'"):
        saved_model.export_saved_model(run_dir, tmp_path, formats=["tflite", "coreml"])
    run_copy = tmp_path / "run"
    shutil.copytree(run_dir, run_copy)
    settings = run_copy / "config.json"
    settings.write_text(settings.read_text().replace("poster_tfds/synthetic", "poster_tfds/gone"))
    with pytest.raises(config.UsageError, match=r"tflite_int8 needs posters .* Build it there"):
        saved_model.export_saved_model(run_copy, tmp_path / "out", formats=["tflite_int8"])
    assert saved_model.published_versions(tmp_path / "out") == []
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(config.UsageError, match=r"pip install -e '\.\[onnx\]'"):
        saved_model.export_saved_model(run_dir, tmp_path, formats=["onnx"])
