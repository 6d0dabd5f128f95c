"""Losses and smoothed labels are those of their papers."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer import config
from trainer.models import losses

BASE_RATES = np.array([0.5, 0.1, 0.01, 0.0])


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    labels = (rng.random((6, 4)) < 0.4).astype(np.float32)
    logits = rng.normal(0, 3, (6, 4)).astype(np.float32)
    return labels, logits


def make(**settings):
    return losses.make_loss(config.Config(**settings), BASE_RATES)


def test_the_default_is_kerass_binary_crossentropy(batch):
    expected = keras.losses.BinaryCrossentropy(from_logits=True, reduction=None)(*batch)
    np.testing.assert_allclose(make()(*batch), expected, rtol=1e-6)


def test_focal_is_kerass_focal_loss(batch):
    focal = keras.losses.BinaryFocalCrossentropy(gamma=2, from_logits=True, reduction=None)
    np.testing.assert_allclose(make(loss="focal")(*batch), focal(*batch), rtol=1e-4)


def test_asymmetric_is_the_papers(batch):
    labels, logits = (values.astype(np.float64) for values in batch)
    p = 1 / (1 + np.exp(-logits))
    shifted = np.maximum(p - 0.05, 0)
    expected = -(labels * np.log(p) + (1 - labels) * shifted**4 * np.log(1 - shifted))
    np.testing.assert_allclose(make(loss="asymmetric")(*batch), expected.mean(-1), rtol=1e-4)
    surely_absent = tf.constant([[-3.0]])  # A probability of 0.047, below the margin.
    assert losses.asymmetric_loss(tf.zeros([1, 1]), surely_absent, 0.0, 4.0, 0.05) == 0


@pytest.mark.parametrize("loss", config.LOSSES)
def test_gradients_are_finite_however_wrong_the_logits(loss):
    labels = tf.constant([[1.0, 0.0, 1.0, 0.0]])
    logits = tf.constant([[-100.0, 100.0, 100.0, -100.0]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = make(loss=loss)(labels, logits)
    gradient = tape.gradient(value, logits).numpy()
    assert np.isfinite(value).all() and np.isfinite(gradient).all()
    assert gradient[0, 0] < 0  # A genre that is surely missed is learned,
    np.testing.assert_allclose(gradient[0, 2:], 0, atol=1e-6)  # what is right is left alone.


def test_labels_are_smoothed_towards_their_genres_share(batch):
    labels, logits = batch
    soft = 0.8 * labels + 0.2 * BASE_RATES
    expected = keras.losses.BinaryCrossentropy(from_logits=True, reduction=None)(soft, logits)
    np.testing.assert_allclose(make(label_smoothing=0.2)(labels, logits), expected, rtol=1e-5)
