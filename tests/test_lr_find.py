"""The sweep of the learning rate is what stock Keras would see, and leaves a picture alone."""

import re
import sys

import keras
import numpy as np
import pandas as pd
import PIL.Image
import pytest

from tests import conftest
from trainer import config, lr_sweep
from trainer.data import pipeline, rows as rows_lib, splits
from trainer.models import registry


@pytest.fixture
def settings(data_dir):
    return {**conftest.SETTINGS, "data_dir": str(data_dir), "model": "smooth_cnn"}


def test_losses_are_those_of_stock_keras_whose_rate_rises(settings):
    """Whatever schedule and average the run will have."""
    rates = np.geomspace(1e-4, 1e-2, 25)
    schedule = {"learning_rate_schedule": "cosine", "weight_average": 0.9}
    found = lr_sweep.sweep(config.Config(**settings, **schedule), rates.tolist())
    plain = config.Config(**settings)
    keras.utils.set_random_seed(plain.seed + 1)
    split = splits.open_split(plain.dataset, plain.data_dir, "train")
    model = registry.create_model(plain, len(split.genres), "float32")
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-4), loss=loss)
    rows = rows_lib.in_memory(rows_lib.decode(split, 32), split.num_examples)
    batches = rows_lib.train_batches(rows, pipeline.TrainSpec(32, plain.batch_size, plain.seed))
    expected = []
    for rate, batch in zip(rates, batches.as_numpy_iterator(), strict=False):
        model.optimizer.learning_rate = rate
        expected.append(float(model.train_on_batch(batch["image"], batch["genres"])))
    np.testing.assert_allclose(found.rates, rates)
    np.testing.assert_allclose(found.losses, expected, atol=1e-5)
    smoothed = pd.Series(expected).ewm(alpha=0.1).mean()  # Corrected for its beginning.
    np.testing.assert_allclose(found.smoothed, smoothed, atol=1e-5)
    falling = slice(smoothed.argmin() + 1)
    slopes = np.gradient(smoothed[falling], np.log(rates[falling]))
    assert found.proposed == pytest.approx(rates[10 + slopes[10:].argmin()])


def test_it_stops_where_the_loss_diverges(settings):
    rates = np.geomspace(1e-4, 1e6, 60).tolist()
    found = lr_sweep.sweep(config.Config(**settings), rates)
    assert 20 < len(found.rates) < 60
    above = found.smoothed > 4 * np.minimum.accumulate(found.smoothed)
    assert above.tolist() == [False] * (len(above) - 1) + [True]


def test_a_loss_that_only_rises_is_said_to(settings):
    with pytest.raises(config.UsageError, match=r"from the first rate on, 1000: .* lower --lowest"):
        lr_sweep.sweep(config.Config(**settings), [1e3, 1e4, 1e5])


def test_a_head_is_swept_on_features(settings):
    head = {"model": "tiny_backbone", "freeze": "backbone", "head_units": 8, "augment": "flip"}
    chosen = config.Config(**{**settings, **head})
    found = lr_sweep.sweep(chosen, np.geomspace(1e-3, 10, 40).tolist())
    assert found.smoothed[found.lowest] < 0.95 * found.losses[0]


@pytest.mark.slow
def test_the_command_proposes_a_rate_and_leaves_a_picture_alone(data_dir, tmp_path):
    result = conftest.run(
        *(sys.executable, "-m", "trainer.lr_find", "--preset=reference", "--image_size=48"),
        *("--dataset=poster_tfds/synthetic", f"--data_dir={data_dir}", "--steps=30"),
        *("--batch_size=9", "--plot=found.png"),
        **{"cwd": tmp_path, "PYTHONPATH": str(conftest.PROJECT)},
    )
    assert re.search(r"--learning_rate=\d\.\de-0\d\n\nWrote found\.png\n$", result.stdout)
    assert [path.name for path in tmp_path.iterdir()] == ["found.png"]
    with PIL.Image.open(tmp_path / "found.png") as picture:
        assert picture.size[0] > 500


def test_two_phases_have_no_rate_together(settings):
    with pytest.raises(config.UsageError, match=r"--head_epochs=3: .* Add --head_epochs=0"):
        lr_sweep.sweep(config.Config(**{**settings, "head_epochs": 3}), [1e-3, 1e-2])
