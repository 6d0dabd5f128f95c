"""MixUp and CutMix are what their papers say, and depend on (seed, step) alone."""

import functools

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from trainer import config
from trainer.data import mixing

SIZE = 40


@functools.cache
def draws(mixup, cutmix, count=600, seed=0, step=3):
    return mixing.draw(SIZE, mixup, cutmix, tf.constant([seed, step], tf.int64), count).numpy()


def mix(batch, of_batch):
    """Returns images, not rounded, and genres, poster by poster."""
    images, genres = batch["image"].astype(float), batch["genres"]
    mixed_images, mixed_genres = [], []
    for i, (share, top, left, height, width) in enumerate(of_batch):
        partner = (i + 1) % len(images)
        mixed_genres.append(share * genres[i] + (1 - share) * genres[partner])
        if height * width:
            image = images[i].copy()
            part = np.s_[int(top) : int(top + height), int(left) : int(left + width)]
            image[part] = images[partner][part]
        else:
            image = share * images[i] + (1 - share) * images[partner]
        mixed_images.append(image)
    return np.stack(mixed_images), np.stack(mixed_genres)


@pytest.mark.parametrize("parameter", [0.2, 1.0])
def test_the_share_of_mixup_has_its_beta_distribution(parameter):
    found = draws(parameter, 0.0)
    assert (found[:, 1:] == 0).all()
    test = scipy.stats.kstest(found[:, 0], scipy.stats.beta(parameter, parameter).cdf)
    assert test.pvalue > 0.01


def test_the_rectangle_of_cutmix_has_the_area_that_its_genres_weigh():
    share, top, left, height, width = draws(0.0, 1.0).T
    assert (top >= 0).all() and (top + height <= SIZE).all()
    assert (left >= 0).all() and (left + width <= SIZE).all()
    np.testing.assert_allclose(share, 1 - height * width / SIZE**2, atol=1e-6)
    # Cut at the poster's border or not, its centre is anywhere.
    whole = (top > 0) & (left > 0) & (top + height < SIZE) & (left + width < SIZE)
    np.testing.assert_allclose(height[whole], width[whole], atol=1)
    test = scipy.stats.kstest((height / SIZE)[whole] ** 2, "uniform")
    assert test.statistic > 0.1  # The small ones: large ones are cut at a border.
    rng = np.random.default_rng(0)
    half = SIZE * np.sqrt(1 - rng.random((100_000, 1))) / 2
    middle = SIZE * rng.random((100_000, 2))
    edges = [np.clip(middle + side, 0, SIZE).round() for side in (-half, half)]
    expected = 1 - np.prod(edges[1] - edges[0], axis=1) / SIZE**2
    assert scipy.stats.ks_2samp(share, expected).pvalue > 0.01


def test_of_both_each_has_half_of_the_posters():
    is_cut = draws(0.2, 1.0)[:, 3:].prod(axis=1) > 0
    assert 0.43 < is_cut.mean() < 0.57


def test_seed_and_step_each_count():
    first = draws(0.2, 1.0, count=10)
    assert len(np.unique(first[:, 0])) == 10
    for other in (draws(0.2, 1.0, count=10, seed=1), draws(0.2, 1.0, count=10, step=4)):
        assert (first[:, 0] != other[:, 0]).all()


@pytest.mark.parametrize("jit_compile", [False, True])
def test_posters_and_genres_are_mixed_with_the_next_ones(jit_compile):
    mix_batch = tf.function(mixing.mix_batch, jit_compile=jit_compile)
    for size in (6, 1):
        rng = np.random.default_rng(0)
        batch = {
            "image": rng.integers(0, 256, (size, SIZE, SIZE, 3)).astype(np.uint8),
            "genres": (rng.random((size, 4)) < 0.4).astype(np.float32),
        }
        images, genres = mix_batch(batch["image"], batch["genres"], draws(1.0, 1.0)[:size])
        expected_images, expected_genres = mix(batch, draws(1.0, 1.0)[:size])
        assert images.dtype == tf.uint8
        assert np.abs(images.numpy() - expected_images).max() <= 0.501
        np.testing.assert_allclose(genres, expected_genres, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"mixup": -0.1}, "--mixup=-0.1: must be at least 0"),
        ({"cutmix": 1.0, "freeze": "backbone"}, "leave out --cutmix=1.0"),
        ({"randaugment": 11.0}, "--randaugment=11.0: must be at most 10"),
    ],
)
def test_what_cannot_be_mixed_is_refused(settings, match):
    with pytest.raises(config.UsageError, match=match):
        config.Config(**settings)
