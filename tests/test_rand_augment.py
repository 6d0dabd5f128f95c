"""Each change of RandAugment is what it says, two of them for a poster."""

import functools

import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf

from trainer.data import rand_augment

SIZE = 48
CHANGES = rand_augment._CHANGES


def smooth_posters(count):
    noise = np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3)).astype(float)
    blurred = scipy.ndimage.gaussian_filter(noise, (0, 3, 3, 0))
    return np.clip(128 + 8 * (blurred - 128), 20, 235).astype(np.uint8)


def apply(images, **strengths):
    of_posters = np.zeros([len(images), len(CHANGES)], np.float32)
    for name, strength in strengths.items():
        of_posters[:, CHANGES.index(name.replace("_", " "))] = strength
    return rand_augment.augment_batch(tf.constant(images), of_posters).numpy()


def warped(image, matrix, offset=(0, 0)):
    """By SciPy, of rows and columns counted from the poster's centre."""
    centre = np.full(2, (SIZE - 1) / 2)
    offset = centre + np.array(offset) - matrix @ centre
    planes = [
        scipy.ndimage.affine_transform(
            plane, matrix, offset, order=1, mode="grid-constant", cval=128
        )
        for plane in np.moveaxis(image.astype(float), -1, 0)
    ]
    return np.stack(planes, axis=-1)


@functools.cache
def draws(magnitude=10, count=500, seed=0, step=3):
    return rand_augment.draw(magnitude, tf.constant([seed, step], tf.int64), count).numpy()


ROTATED = np.array(
    [[np.cos(np.pi / 6), -np.sin(np.pi / 6)], [np.sin(np.pi / 6), np.cos(np.pi / 6)]]
)


@pytest.mark.parametrize(
    ("strengths", "matrix", "offset"),
    [
        ({"rotate": 1}, ROTATED, (0, 0)),
        ({"shear_x": -0.5}, np.array([[1, 0], [-0.15, 1]]), (0, 0)),
        ({"shear_y": 1}, np.array([[1, 0.3], [0, 1]]), (0, 0)),
        ({"translate_x": 1}, np.eye(2), (0, 0.45 * SIZE)),
        ({"translate_y": -0.3}, np.eye(2), (-0.3 * 0.45 * SIZE, 0)),
        ({"rotate": 1, "shear_x": 1}, ROTATED @ [[1, 0], [0.3, 1]], (0, 0)),
        ({"rotate": 1, "shear_y": 1}, ROTATED @ [[1, 0.3], [0, 1]], (0, 0)),
    ],
)
def test_shapes_are_scipys(strengths, matrix, offset):
    (image,) = smooth_posters(1)
    (found,) = apply(image[None], **strengths)
    assert np.abs(found - warped(image, matrix, offset)).max() <= 0.6
    assert (found == 128).mean() > 0.01


def test_colours_are_scaled_and_levels_lost():
    images = np.random.default_rng(0).integers(100, 140, (2, SIZE, SIZE, 3)).astype(np.uint8)
    assert np.abs(apply(images, brightness=0.5) - images * 1.45).max() <= 0.51
    luma = images @ np.array([0.299, 0.587, 0.114])
    grey = luma[..., None]
    assert np.abs(apply(images, color=-1) - (grey + 0.1 * (images - grey))).max() <= 0.51
    mean = luma[:, ::8, ::8].mean(axis=(1, 2))[:, None, None, None]
    assert np.abs(apply(images, contrast=-1) - (mean + 0.1 * (images - mean))).max() <= 0.51
    every_level = np.arange(256, dtype=np.uint8).repeat(9).reshape(1, SIZE, SIZE)[..., None]
    every_level = np.repeat(every_level, 3, axis=-1)
    found = apply(every_level, solarize=-0.25)
    np.testing.assert_array_equal(
        found, np.where(every_level >= 192, 255 - every_level, every_level)
    )
    np.testing.assert_array_equal(apply(every_level, solarize=1), 255 - every_level)
    np.testing.assert_array_equal(apply(every_level, posterize=0.5), every_level // 4 * 4)
    np.testing.assert_array_equal(apply(every_level, posterize=-1), every_level // 16 * 16)


def test_no_strength_changes_nothing():
    images = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3)).astype(np.uint8)
    np.testing.assert_array_equal(apply(images), images)


def test_two_different_changes_are_drawn_or_one_and_none():
    found = draws(magnitude=7)
    assert set(np.unique(found.round(6))) == {np.float32(-0.7), 0, np.float32(0.7)}
    numbers = (found != 0).sum(axis=1)
    assert set(numbers) == {1, 2}
    # One of 11 is none: of the posters, 2 / 11 have it among their two.
    assert 0.12 < (numbers == 1).mean() < 0.25
    assert ((found != 0).mean(axis=0) > 0.12).all() and ((found != 0).mean(axis=0) < 0.25).all()
    assert 0.4 < (found[found != 0] > 0).mean() < 0.6


def test_seed_and_step_each_count():
    first = draws(count=40)
    assert len(np.unique(first, axis=0)) > 30
    for other in (draws(count=40, seed=1), draws(count=40, step=4)):
        assert (first != other).any(axis=1).mean() > 0.8


def test_xla_changes_posters_alike():
    images = smooth_posters(40)
    expected = rand_augment.augment_batch(tf.constant(images), draws(count=40)).numpy()
    compiled = tf.function(rand_augment.augment_batch, jit_compile=True)
    found = compiled(tf.constant(images), draws(count=40)).numpy()
    # Where rounding moves a level over a threshold of its poster it is another.
    assert (np.abs(found.astype(int) - expected) > 1).mean() < 1e-3
    assert (expected != images).any(axis=(1, 2, 3)).mean() > 0.9
