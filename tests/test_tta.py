"""Answers for variants of a poster are averaged alike in evaluation and in the export."""

import sys

import numpy as np
import pytest
import tensorflow as tf

from tests import conftest, test_export, test_preprocessing
from trainer import config
from trainer.data import pipeline, run_data, splits, test_time
from trainer.reports import evaluated, page, report
from trainer.run import checkpoints, directory


@pytest.fixture(scope="module")
def posters(run_dir, data_dir):
    """JPEGs of the test split, their pixels and the run's model."""
    settings, _ = directory.RunDirectory(run_dir).read_config()
    split = splits.open_split("poster_tfds/synthetic", str(data_dir), "test")
    pixels = pipeline.first_posters(run_data.make_spec(settings, split), split.num_examples)
    jpegs = [example["image"] for example in split.read().as_numpy_iterator()]
    model, _ = checkpoints.restore_model(run_dir)
    return jpegs, pixels, model


def middles(pixels):
    """What lies 80% of the way from the centre to the border, resized to the whole."""
    size = pixels.shape[1]
    margin = round(size / 10)
    return np.stack(
        [
            test_preprocessing.bilinear(image[margin:-margin, margin:-margin], size).round()
            for image in pixels
        ]
    )


def expected_logits(model, pixels, tta):
    """The mean of a call for each variant."""
    of_sizes = [pixels, middles(pixels)] if "sizes" in tta else [pixels]
    mirrored = [image[:, :, ::-1] for image in of_sizes] if "mirror" in tta else []
    answers = [model(image.astype(np.uint8)).numpy() for image in of_sizes + mirrored]
    assert len(answers) == {"none": 1, "mirror": 2, "sizes": 2, "mirror,sizes": 4}[tta]
    return np.mean(answers, axis=0)


@pytest.mark.parametrize("tta", config.TTA)
def test_an_answer_is_the_mean_of_the_variants_logits(posters, tta):
    _, pixels, model = posters
    found = test_time.averaged(model, tta)(pixels, training=False).numpy()
    tolerance = 2e-4
    np.testing.assert_allclose(found, expected_logits(model, pixels, tta), atol=tolerance)
    # How far variants are apart depends on what the model has learned.
    for other in set(config.TTA) - {tta}:
        assert np.abs(found - expected_logits(model, pixels, other)).max() > 20 * tolerance
    of_two = test_time.averaged(model, tta)(pixels[:2], training=False)
    np.testing.assert_allclose(of_two, found[:2], atol=1e-5)


def test_variants_begin_with_the_posters_and_are_rounded_alike(posters):
    _, pixels, _ = posters
    variants = test_time.variants(tf.constant(pixels), "mirror,sizes")
    found = [variant.numpy().astype(int) for variant in variants]
    np.testing.assert_array_equal(found[0], pixels)
    assert np.abs(found[1] - middles(pixels)).max() <= 1
    assert (found[1] != middles(pixels)).mean() < 0.01  # Halves, which rounding errors move.
    for image, mirrored in zip(found[:2], found[2:], strict=True):
        np.testing.assert_array_equal(mirrored, image[:, :, ::-1])


def test_an_export_answers_with_the_mean_and_says_so(posters, run_dir, tmp_path):
    jpegs, pixels, model = posters
    flags = (f"--run_dir={run_dir}", f"--export_dir={tmp_path}", "--tta=mirror")
    conftest.run(sys.executable, "-m", "export", *flags)
    expected = tf.sigmoid(expected_logits(model, pixels, "mirror"))
    answer = test_export.serve(tmp_path / "1", jpegs)
    assert answer["ok"].all()
    np.testing.assert_allclose(answer["scores"], expected, atol=1e-5)
    served = tf.saved_model.load(str(tmp_path / "1"))
    of_pixels = served.signatures["pixels"](pixels=tf.constant(pixels))["scores"]
    np.testing.assert_allclose(of_pixels, expected, atol=1e-5)
    # Features are of the posters as they are: `logits` makes of them what it does of those.
    features = served.signatures["embed"](image_bytes=tf.constant(jpegs))["features"]
    of_posters = model.get_layer("logits")(features)
    np.testing.assert_allclose(of_posters, expected_logits(model, pixels, "none"), atol=1e-4)
    card = (tmp_path / "1" / "model_card.md").read_text()
    assert "- Answers: mean logits of each poster and its mirror image (--tta=mirror)." in card
    assert "trainer.report_page --tta=mirror`\nmeasures" in card


def test_a_report_is_of_the_mean_and_says_so(posters, run_dir, data_dir):
    _, pixels, model = posters
    answers = evaluated.evaluate_run(run_dir, "test", str(data_dir), tta="mirror")
    np.testing.assert_allclose(answers.logits, expected_logits(model, pixels, "mirror"), atol=1e-4)
    assert "Answers: mean logits of each poster and its mirror image" in page.describe(
        report.Report(answers)
    )
