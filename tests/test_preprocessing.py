"""The decode equals Pillow's and the resize equals the textbook's."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from trainer.data import preprocessing


def make_jpeg(width, height, mode="RGB", **options):
    rng = np.random.default_rng([width, height])
    small = rng.integers(0, 256, (height // 6 + 1, width // 6 + 1, 3), dtype=np.uint8)
    jpeg = io.BytesIO()
    Image.fromarray(small).resize((width, height)).convert(mode).save(jpeg, "JPEG", **options)
    return jpeg.getvalue()


def bilinear(image, size):
    """Bilinear interpolation with half-pixel centres, written from its definition."""

    def neighbours(length):
        position = (np.arange(size) + 0.5) * length / size - 0.5
        low = np.floor(position).astype(int)
        return (
            low.clip(0, length - 1),
            (low + 1).clip(0, length - 1),
            (position - low).astype(np.float64),
        )

    (y0, y1, y), (x0, x1, x) = neighbours(image.shape[0]), neighbours(image.shape[1])
    x, y = x[None, :, None], y[:, None, None]
    image = image.astype(np.float64)
    top = image[y0][:, x0] * (1 - x) + image[y0][:, x1] * x
    bottom = image[y1][:, x0] * (1 - x) + image[y1][:, x1] * x
    return top * (1 - y) + bottom * y


@pytest.mark.parametrize(
    "jpeg",
    [
        make_jpeg(300, 444),
        make_jpeg(89, 132, quality=30),
        make_jpeg(301, 77, subsampling=0),
        make_jpeg(200, 300, progressive=True),
        make_jpeg(64, 80, mode="L"),
    ],
    ids=["4:2:0", "low quality", "4:4:4", "progressive", "grey"],
)
def test_decode_equals_pillows_bit_for_bit(jpeg):
    expected = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))
    np.testing.assert_array_equal(preprocessing.decode(tf.constant(jpeg)), expected)


@pytest.mark.parametrize(("height", "width", "size"), [(444, 300, 350), (40, 60, 90), (90, 31, 20)])
def test_resize_is_bilinear_and_rounded(height, width, size):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    exact = bilinear(image, size)
    resized = preprocessing.resize(tf.constant(image), size).numpy()
    assert resized.dtype == np.uint8
    # Rounded to nearest: off by half a level, and by float32's error in the position.
    assert np.abs(resized - exact).max() <= 0.5 + 1e-2


def test_resize_to_its_own_size_changes_nothing():
    image = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    np.testing.assert_array_equal(preprocessing.resize(tf.constant(image), 50), image)


def test_a_poster_is_decoded_whole_and_resized():
    jpeg = tf.constant(make_jpeg(400, 600))
    expected = preprocessing.resize(preprocessing.decode(jpeg), 48)
    np.testing.assert_array_equal(preprocessing.decode_and_resize(jpeg, 48), expected)
