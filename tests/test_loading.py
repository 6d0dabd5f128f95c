"""A poster's pixels are those of the stored poster, whichever way it comes, or it is refused."""

import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from export import loading
from poster_tfds import images
from tests import test_images
from tests.test_images import encode
from tests.test_preprocessing import make_jpeg
from trainer.data import preprocessing

SIZE = 48


@pytest.fixture(scope="module")
def load():
    """Returns the words for each image and its pixels."""
    loader = loading.ImageLoader(SIZE, loading.Limits())
    return load_with(loader)


def load_with(loader):
    function = tf.function(loader.load, input_signature=[tf.TensorSpec([None], tf.string)])

    def run(sent):
        status, pixels = function(tf.constant(sent, tf.string))
        return [loader.reasons[code] for code in status], pixels.numpy()

    return run


def png(image, **options):
    return encode(image, "PNG", **options)


def deep_png(kind, num_values):
    """A PNG of 16 bits a value, of which Pillow can write grey ones only."""
    values = np.random.default_rng(0).integers(0, 1 << 16, (40, 30, num_values)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    header = struct.pack(">IIBBBBB", 30, 40, 16, kind, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def transparent(mode):
    image = test_images.PICTURE.convert(mode)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


PICTURE, PALETTE = test_images.PICTURE, test_images.SMALL_PALETTE
TURNED = Image.Exif()
TURNED[0x0112] = 6
ANSWERED = {
    **test_images.ACCEPTED,
    **{f"{mode} PNG": png(PICTURE.convert(mode)) for mode in ("RGB", "L", "1")},
    **{f"{mode} PNG": png(transparent(mode)) for mode in ("RGBA", "LA")},
    "interlaced PNG": png(PICTURE, interlace=1),
    "palette PNG": png(PALETTE),
    "256 colours PNG": png(PICTURE.quantize(256)),
    "palette PNG, transparent colour": png(PALETTE, transparency=3),
    "grey PNG, transparent colour": png(PICTURE.convert("L"), transparency=120),
    "RGB PNG, transparent colour": png(PICTURE, transparency=PICTURE.getpixel((5, 5))),
    **{f"16-bit PNG {kind}": deep_png(kind, n) for kind, n in ((0, 1), (2, 3), (4, 2), (6, 4))},
}
NOT_ANSWERED = {
    "CMYK": (make_jpeg(60, 80, mode="CMYK"), "CMYK"),
    **{
        f"turned {i}{order}": (test_images.turned(i, order), "EXIF")
        for i in range(2, 9)
        for order in "<>"
    },
    "PNG with a profile": (png(PICTURE, icc_profile=test_images.swapped_profile()), "profile"),
    "turned PNG": (png(PICTURE, exif=TURNED), "EXIF"),
    **{
        kind: (encode(PICTURE, kind), "neither a JPEG nor a PNG")
        for kind in ("GIF", "BMP", "TIFF", "WEBP")
    },
    **{
        name: (test_images.REFUSED[name][0], "damaged")
        for name in (
            "cut, with an end",
            "progressive, cut, with an end",
            "bytes lost in the middle",
        )
    },
}


@pytest.mark.parametrize("together", [1, 3])
def test_a_poster_has_one_answer_whichever_way_it_comes(load, together):
    names = list(ANSWERED)
    for i in range(0, len(names), together):
        sent = [ANSWERED[name] for name in names[i : i + together]]
        reasons, pixels = load(sent)
        for name, image, reason, found in zip(names[i:], sent, reasons, pixels, strict=False):
            assert not reason, name
            stored = images.as_stored(image).jpeg
            expected = preprocessing.decode_and_resize(tf.constant(stored), SIZE)
            np.testing.assert_array_equal(found, expected, name)


@pytest.mark.parametrize("name", NOT_ANSWERED)
def test_what_a_dataset_would_store_otherwise_is_refused_by_name(load, name):
    image, reason = NOT_ANSWERED[name]
    for batch in ([image], [test_images.JPEG, image]):
        reasons, pixels = load(batch)
        assert reason in reasons[-1]
        assert not pixels[-1].any()
        assert not any(reasons[:-1])


def test_sides_that_the_dataset_reduced_are_refused_by_name():
    load = load_with(loading.ImageLoader(SIZE, loading.Limits(max_side=100)))
    sizes = ((100, 80), (80, 100), (101, 80), (80, 101))
    sent = [make_jpeg(*size) for size in sizes]
    sent += [png(Image.new("RGB", size)) for size in sizes]
    for batch in (sent, sent[:4], sent[3:4]):
        for image, reason in zip(batch, load(batch)[0], strict=True):
            width, height = Image.open(io.BytesIO(image)).size
            assert ("--max_side=100" in reason) == (max(width, height) > 100)


def test_grey_corners_and_several_scans_are_no_damage(load):
    """They are what makes a JPEG be decoded twice."""
    grey = Image.new("RGB", (60, 90), (128, 128, 128))
    sent = [encode(grey, "JPEG", progressive=progressive) for progressive in (False, True)]
    sent += [sent[0] + b"trailing", make_jpeg(300, 444, progressive=True), test_images.JPEG]
    assert not any(load(sent)[0])


def test_jpegs_whose_data_end_too_early_are_named(load):
    """Cut wherever it may be, each with an end marker; a neighbour's pixels are as ever."""
    jpegs = [make_jpeg(300, 444), make_jpeg(97, 151, mode="L"), make_jpeg(200, 300, subsampling=0)]
    jpegs += [make_jpeg(200, 301, progressive=True), make_jpeg(200, 302, restart_marker_rows=2)]
    cut = [
        jpeg[: int(len(jpeg) * share)] + b"\xff\xd9"
        for jpeg in jpegs
        for share in (0.45, 0.6, 0.8, 0.9)
    ]
    reasons, pixels = load([*cut, test_images.LARGE])
    assert reasons == ["damaged: its data end too early"] * len(cut) + [""]
    assert not pixels[:-1].any()
    expected = preprocessing.decode_and_resize(tf.constant(test_images.LARGE), SIZE)
    np.testing.assert_array_equal(pixels[-1], expected)
