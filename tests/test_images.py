"""Which images are posters: taken as they are, converted, or refused by name."""

import base64
import collections
import io
import random

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageCms

from poster_tfds import images
from tests.test_preprocessing import make_jpeg
from trainer.data import preprocessing


def encode(image, image_format, **options):
    content = io.BytesIO()
    image.save(content, image_format, **options)
    return content.getvalue()


def pixels(image):
    return np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))


def patch_frame_header(jpeg, precision=None, size=None):
    """Rewrites what a baseline JPEG's frame header says of itself."""
    start = jpeg.index(b"\xff\xc0")
    frame = bytearray(jpeg[start : start + 9])
    if precision:
        frame[4] = precision
    if size:
        frame[5:9] = size[1].to_bytes(2, "big") + size[0].to_bytes(2, "big")
    return jpeg[:start] + bytes(frame) + jpeg[start + 9 :]


def turned(orientation, byte_order="<"):
    exif = Image.Exif()
    exif.endian = byte_order
    exif[0x010F], exif[0x0112] = "Phone", orientation
    return make_jpeg(60, 80, exif=exif)


def cut_ended(jpeg):
    """A JPEG cut at 30%, with an end marker after the cut."""
    return jpeg[: len(jpeg) * 3 // 10] + b"\xff\xd9"


def lost_middle(jpeg):
    middle = len(jpeg) // 2
    return jpeg[: middle - len(jpeg) // 10] + jpeg[middle:]


JPEG = make_jpeg(60, 80)
LARGE = make_jpeg(300, 444)
PICTURE = Image.open(io.BytesIO(JPEG))
# A colour ramp of 24x16, made by `jpegtran -arithmetic`; Pillow cannot write such a file.
ARITHMETIC = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZG"
    "NywtQFdBRkxOUlNSMj5aYVpQYEpRUk//2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09P"
    "T09PT09PT09PT09PT09PT09PT09PT09PT0//yQARCAAQABgDASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIR"
    "AxEAPwD/AHFDi8muOiEMNL+m6HC9bgJQDgK+SOFH1pBFObyN/wDQXMIdIexH+2mA/9k="
)
ACCEPTED = {
    "baseline": JPEG,
    "grey": make_jpeg(60, 80, mode="L"),
    "progressive": make_jpeg(60, 80, progressive=True),
    "restart markers": make_jpeg(60, 80, restart_marker_rows=1),
    "RGB without YCbCr": make_jpeg(60, 80, keep_rgb=True),
    "arithmetic coding": ARITHMETIC,
    "1x1": make_jpeg(1, 1),
    "EXIF that asks for no turn": turned(1),
    "EXIF without a known orientation": turned(0),
    "EXIF that ends in its header": make_jpeg(60, 80, exif=b"Exif\0\0II*\0", dpi=(72, 72)),
    "bytes after the end": JPEG + b"trailing",
    "MPO": encode(PICTURE, "MPO", quality=90, save_all=True, append_images=[PICTURE.rotate(90)]),
}
REFUSED = {
    "empty": (b"", "the file is empty"),
    "truncated": (JPEG[: len(JPEG) // 2], "does not decode .*Premature end"),
    "without its end": (JPEG[:-20], "does not decode .*Premature end"),
    "cut, with an end": (cut_ended(LARGE), "damaged inside.*`on_damage: keep`"),
    "progressive, cut, with an end": (
        cut_ended(make_jpeg(300, 444, progressive=True)),
        "damaged inside",
    ),
    "bytes lost in the middle": (lost_middle(LARGE), "damaged inside"),
    "bytes lost between restart markers": (
        lost_middle(make_jpeg(300, 444, restart_marker_rows=1)),
        "damaged inside",
    ),
    "turned and damaged": (lost_middle(turned(6)), "damaged inside"),
    "magic and junk": (b"\xff\xd8\xff" + bytes(range(200)), r"begins with b'\\xff\\xd8\\xff"),
    "text": (b"not a picture", r"not an image that can be read \(begins with b'not a pi'\)"),
    "truncated PNG": (encode(PICTURE, "PNG")[:900], "the image cannot be read"),
    "12-bit": (patch_frame_header(JPEG, precision=12), "does not decode .*precision 12"),
    "20000x20000": (
        patch_frame_header(JPEG, size=(20000, 20000)),
        "20000x20000 is more than 64 million pixels",
    ),
    "9000x9000": (patch_frame_header(JPEG, size=(9000, 9000)), "9000x9000 is more than 64"),
    "65535x65535": (patch_frame_header(JPEG, size=(65535, 65535)), "more than 64 million pixels"),
    "9000x9000 PNG": (encode(Image.new("1", (9000, 9000)), "PNG"), "9000x9000 is more than 64"),
    "20000x20000 PNG": (encode(Image.new("1", (20000, 20000)), "PNG"), "more than 64 million"),
    "32-bit": (encode(PICTURE.convert("F"), "TIFF"), "its values have 32 bits"),
    "100 MB": (JPEG + bytes(100 << 20), "larger than 32 MB"),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_sound_jpeg_stays_as_it_is_and_is_decoded_as_pillow_does(name):
    jpeg = ACCEPTED[name]
    assert images.as_stored(jpeg) == (jpeg, False, False)
    np.testing.assert_array_equal(preprocessing.decode(tf.constant(jpeg)), pixels(jpeg))


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_poster_is_refused_by_name(name):
    image, reason = REFUSED[name]
    with pytest.raises(images.ImageError, match=reason):
        images.as_stored(image)


def assert_stored_as(image, expected):
    """Compares with RGB pixels that Pillow encodes."""
    stored = images.as_stored(image)
    assert stored.converted
    expected = encode(Image.fromarray(np.asarray(expected, np.uint8)), "JPEG", quality=95)
    np.testing.assert_array_equal(pixels(stored.jpeg), pixels(expected))
    np.testing.assert_array_equal(preprocessing.decode(tf.constant(stored.jpeg)), pixels(expected))
    assert images.as_stored(image) == stored
    with Image.open(io.BytesIO(stored.jpeg)) as written:
        assert (written.format, written.mode) == ("JPEG", "RGB")
        assert not written.info.keys() & {"exif", "icc_profile", "comment", "xmp"}


RGB = np.asarray(PICTURE)
SMALL_PALETTE = PICTURE.quantize(16)
TWO_FRAMES = encode(SMALL_PALETTE, "GIF", save_all=True, append_images=[SMALL_PALETTE.rotate(180)])


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (encode(PICTURE, "PNG"), RGB),
        (encode(PICTURE.convert("L"), "PNG"), PICTURE.convert("L").convert("RGB")),
        (encode(PICTURE.convert("1"), "PNG"), PICTURE.convert("1").convert("RGB")),
        (encode(SMALL_PALETTE, "PNG"), SMALL_PALETTE.convert("RGB")),
        (encode(PICTURE, "WEBP", lossless=True), RGB),
        (encode(PICTURE, "BMP"), RGB),
        (encode(PICTURE, "TIFF", compression="tiff_lzw"), RGB),
        (TWO_FRAMES, SMALL_PALETTE.convert("RGB")),
        (encode(PICTURE.convert("CMYK"), "TIFF"), PICTURE.convert("CMYK").convert("RGB")),
        (cmyk := make_jpeg(60, 80, mode="CMYK"), pixels(cmyk)),
        (encode(PICTURE, "PNG", comment="x", dpi=(300, 300)), RGB),
    ],
    ids=[
        "PNG",
        "grey",
        "1-bit",
        "palette",
        "WebP",
        "BMP",
        "TIFF",
        "GIF",
        "CMYK-TIFF",
        "CMYK-JPEG",
        "metadata",
    ],
)
def test_other_formats_are_converted_once(image, expected):
    assert_stored_as(image, expected)


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_comes_to_stand_on_white(mode, image_format):
    alpha = np.tile(np.linspace(0, 255, 60).astype(np.uint8), (80, 1))
    image = PICTURE.convert(mode)
    image.putalpha(Image.fromarray(alpha))
    image = encode(image, image_format, lossless=True, exact=True)
    base = np.asarray(PICTURE.convert(mode).convert("RGB"), np.float64)
    share = alpha[..., None] / 255
    assert_stored_as(image, np.floor(base * share + 255 * (1 - share) + 0.5))


@pytest.mark.parametrize("orientation", range(2, 9))
def test_turns_of_exif_are_applied(orientation):
    jpeg = turned(orientation, "<>"[orientation % 2])
    # The orientations as the EXIF standard names them: where row 0 and column 0 belong.
    views = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a),
    }
    assert_stored_as(jpeg, views[orientation](pixels(jpeg)))


def swapped_profile():
    """sRGB with the primaries of red and green exchanged."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for i in range(int.from_bytes(profile[128:132], "big")):
        tag = 132 + 12 * i
        swap = {b"rXYZ": b"gXYZ", b"gXYZ": b"rXYZ"}
        profile[tag : tag + 4] = swap.get(bytes(profile[tag : tag + 4]), profile[tag : tag + 4])
    return bytes(profile)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colour_profiles_are_honoured(mode):
    image = SMALL_PALETTE if mode == "P" else PICTURE.convert(mode)
    stored = images.as_stored(encode(image, "PNG", icc_profile=swapped_profile()))
    expected = pixels(
        encode(
            Image.fromarray(np.asarray(image.convert("RGB"))[..., [1, 0, 2]]), "JPEG", quality=95
        )
    )
    difference = np.abs(pixels(stored.jpeg).astype(int) - expected)
    assert difference.mean() < 1
    assert np.abs(pixels(stored.jpeg).astype(int) - RGB).mean() > 10


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_larger_posters_are_reduced_without_aliasing(image_format):
    stripes = np.zeros([1200, 800, 3], np.uint8)
    stripes[:, ::3] = 255
    stored = images.as_stored(encode(Image.fromarray(stripes), image_format, quality=95), 300)
    assert stored.converted
    reduced = pixels(stored.jpeg)
    assert reduced.shape == (300, 200, 3)
    exact = np.asarray(Image.fromarray(stripes).resize((200, 300), Image.Resampling.LANCZOS))
    assert np.abs(reduced.astype(int) - exact).mean() < 4
    assert reduced[8:-8, 8:-8].std() < 4


def test_a_poster_that_is_small_enough_is_not_reduced():
    assert images.as_stored(LARGE, max_side=444).jpeg == LARGE
    assert pixels(images.as_stored(LARGE, max_side=443).jpeg).shape[0] == 443
    assert_stored_as(encode(PICTURE, "PNG"), RGB)
    assert pixels(images.as_stored(encode(PICTURE, "PNG"), max_side=80).jpeg).shape == RGB.shape
    turned_poster = images.as_stored(turned(6), max_side=40)
    assert pixels(turned_poster.jpeg).shape == (30, 40, 3)


def test_damage_can_be_kept():
    for damaged in (cut_ended(LARGE), lost_middle(LARGE)):
        assert images.as_stored(damaged, keep_damaged=True) == (damaged, False, True)
        np.testing.assert_array_equal(preprocessing.decode(tf.constant(damaged)), pixels(damaged))
    turned_poster = images.as_stored(lost_middle(turned(6)), keep_damaged=True)
    assert (turned_poster.converted, turned_poster.damaged) == (True, True)
    with pytest.raises(images.ImageError, match="does not decode"):
        images.as_stored(LARGE[:-20], keep_damaged=True)


@pytest.mark.slow
def test_none_of_the_real_posters_is_damaged_or_converted(real_posters):
    paths = sorted((real_posters / "Images").glob("*.jpg"))
    assert len(paths) == 7242
    for path in paths:
        content = path.read_bytes()
        assert images.as_stored(content) == (content, False, False), path


def mutated(content, rng):
    """Changes, removes or inserts some bytes, or puts a JPEG's marker among them."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 2, 8, 40))):
        kind, at = rng.randrange(4), rng.randrange(len(content))
        if kind == 0:
            content[at] = rng.randrange(256)
        elif kind == 1:
            del content[at : at + rng.randrange(1, 60)]
        elif kind == 2:
            content[at:at] = rng.randbytes(rng.randrange(1, 20))
        else:
            content[at : at + 2] = b"\xff" + bytes([rng.randrange(0xC0, 0xFF)])
        if not content:
            content = bytearray(b"x")
    return bytes(content)


def originals():
    """Returns an image of each kind."""
    kinds = [jpeg for name, jpeg in ACCEPTED.items() if name != "1x1"]
    kinds += [encode(PICTURE, kind) for kind in ("BMP", "PNG", "TIFF", "WEBP")]
    kinds += [TWO_FRAMES, make_jpeg(60, 80, mode="CMYK"), turned(6)]
    kinds.append(encode(PICTURE, "PNG", icc_profile=swapped_profile()))
    kinds.append(encode(PICTURE.convert("LA"), "PNG"))
    kinds.append(encode(PICTURE, "TIFF", compression="tiff_lzw"))
    kinds.append(encode(Image.new("I;16", (40, 30), 40000), "PNG"))
    return kinds


def look(image, max_side, keep_damaged):
    """Returns what becomes of an image, a word: a poster that training decodes, or a reason."""
    try:
        poster = images.as_stored(image, max_side, keep_damaged)
    except images.ImageError as error:
        assert str(error), image
        assert "\n" not in str(error) and " at 0x" not in str(error), str(error)
        return "refused"
    assert poster == images.as_stored(image, max_side, keep_damaged)
    height, width, _ = preprocessing.decode(tf.constant(poster.jpeg)).shape
    assert not max_side or max(height, width) <= max_side
    assert images.as_stored(poster.jpeg, max_side, keep_damaged).jpeg == poster.jpeg
    return "converted" if poster.converted else "damaged" if poster.damaged else "taken"


@pytest.mark.parametrize("count", [400, pytest.param(5_000, marks=pytest.mark.slow)])
def test_mutations_end_in_a_poster_that_training_decodes_or_in_a_reason(count):
    rng, kinds = random.Random(count), originals()
    found = collections.Counter(
        look(mutated(rng.choice(kinds), rng), rng.choice((0, 64)), rng.random() < 0.5)
        for _ in range(count)
    )
    assert found.keys() == {"refused", "converted", "damaged", "taken"}
    assert min(found.values()) > count / 100
