"""Predictions for variants of a poster are averaged alike in evaluation and in the export."""

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from export import saved_model
from trainer import config
from trainer.data import pipeline, splits, test_time
from trainer.reports import evaluated, page, report
from trainer.run import checkpoints, directory


@pytest.fixture(scope="module")
def posters(run_dir, data_dir):
    """JPEGs of the test split, their pixels and the run's model."""
    settings, _ = directory.RunDirectory(run_dir).read_config()
    split = splits.open_split("poster_tfds/synthetic", str(data_dir), "test")
    pixels = pipeline.first_posters(split, settings.image_size, split.num_examples)
    jpegs = [example["image"] for example in split.read().as_numpy_iterator()]
    model, _ = checkpoints.restore_model(run_dir)
    return jpegs, pixels, model


def middles(pixels):
    """What lies 80% of the way from the centre to the border, resized to the whole by Pillow."""
    size = pixels.shape[1]
    margin = round(size / 10)
    channels = np.float32(pixels[:, margin:-margin, margin:-margin]).transpose(0, 3, 1, 2)
    resized = [
        [PIL.Image.fromarray(c).resize((size, size), PIL.Image.Resampling.BILINEAR) for c in image]
        for image in channels
    ]
    return np.array([list(map(np.asarray, image)) for image in resized]).transpose(0, 2, 3, 1)


def expected_logits(model, pixels, tta):
    """The mean of a call for each variant."""
    of_sizes = [pixels, middles(pixels).round()] if "sizes" in tta else [pixels]
    mirrored = [image[:, :, ::-1] for image in of_sizes] if "mirror" in tta else []
    answers = [model(image.astype(np.uint8)).numpy() for image in of_sizes + mirrored]
    assert len(answers) == {"none": 1, "mirror": 2, "sizes": 2, "mirror,sizes": 4}[tta]
    return np.mean(answers, axis=0)


@pytest.mark.parametrize("tta", config.TTA)
def test_a_prediction_is_the_mean_of_the_variants_logits(posters, tta):
    _, pixels, model = posters
    found = test_time.averaged(model, tta)(pixels, training=False).numpy()
    # A pixel may be rounded the other way.
    np.testing.assert_allclose(found, expected_logits(model, pixels, tta), atol=2e-4)
    of_two = test_time.averaged(model, tta)(pixels[:2], training=False)
    np.testing.assert_allclose(of_two, found[:2], atol=1e-5)


def test_variants_begin_with_the_posters_and_are_rounded_alike(posters):
    _, pixels, _ = posters
    variants = test_time.variants(tf.constant(pixels), "mirror,sizes")
    found = [variant.numpy().astype(int) for variant in variants]
    np.testing.assert_array_equal(found[0], pixels)
    assert np.abs(found[1] - middles(pixels)).max() <= 0.51
    for image, mirrored in zip(found[:2], found[2:], strict=True):
        np.testing.assert_array_equal(mirrored, image[:, :, ::-1])


def test_report_and_export_have_the_mean_and_say_so(posters, run_dir, data_dir, tmp_path):
    jpegs, pixels, model = posters
    expected = expected_logits(model, pixels, "mirror")
    answers = evaluated.evaluate_run(run_dir, "test", str(data_dir), tta="mirror")
    np.testing.assert_allclose(answers.logits, expected, atol=1e-4)
    described = page.describe(report.Report(answers, num_resamples=3))
    assert "Answers: mean logits of each poster and its mirror image" in described
    version = saved_model.export_saved_model(run_dir, tmp_path, tta="mirror")
    served = tf.saved_model.load(str(version)).signatures
    for found in (
        served["serving_default"](image_bytes=tf.constant(jpegs))["scores"],
        served["pixels"](pixels=tf.constant(pixels))["scores"],
    ):
        np.testing.assert_allclose(found, tf.sigmoid(expected), atol=1e-5)
    # Features are of the posters as they are: `logits` makes of them what it does of those.
    features = served["embed"](image_bytes=tf.constant(jpegs))["features"]
    of_posters = model.get_layer("logits")(features)
    np.testing.assert_allclose(of_posters, expected_logits(model, pixels, "none"), atol=1e-4)
    card = (version / "model_card.md").read_text()
    assert "- Answers: mean logits of each poster and its mirror image (--tta=mirror)." in card
