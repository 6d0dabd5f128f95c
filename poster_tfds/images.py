"""Images in any usual format, made into the JPEGs that datasets store and models are asked about.

A sound JPEG in RGB or grey, upright and small enough, is taken byte for byte. Whatever else can be
read is converted once; the builder and the clients do it with the same function, so that a poster
has one answer, whichever way it comes.
"""

import io
import re
from typing import NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageCms
import PIL.ImageOps
import simplejpeg
import tensorflow as tf

MAX_BYTES = 32 << 20
MAX_PIXELS = 64 << 20
# An entry of EXIF data that asks for a turn or a mirror image: tag, type, count and orientations 2
# to 8, in either byte order. The served model looks for the same bytes; they are ASCII, so that
# Python and TensorFlow understand one expression.
TURN = (
    r"(\x01\x12\x00\x03\x00\x00\x00\x01\x00[\x02-\x08]"
    r"|\x12\x01\x03\x00\x01\x00\x00\x00[\x02-\x08]\x00)"
)
EXIF = r"Exif\x00\x00"
HEADER_BYTES = 1 << 16  # EXIF data come first in a file, in a segment of 64 KB at most.
JPEG_QUALITY = 95

_JPEG_MAGIC = b"\xff\xd8\xff"
_TURNED = re.compile(f"{EXIF}.*?{TURN}".encode("ascii"), re.DOTALL)
_STORED_SPACES = ("YCbCr", "RGB", "Gray")
# At one row and column of eight the whole entropy-coded data are gone through in less time.
_QUICK = {"min_height": 1, "min_width": 1, "min_factor": 8}
# JPEG includes a phone's MPO, of which Pillow takes the first picture.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
_REDUCING_GAP = 3.0  # Pillow: nearly as good as without, in a fraction of the time.
# Space of a colour profile's values -> mode of the pictures that it is for.
_PROFILE_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}


class ImageError(ValueError):
    """An image that cannot be a poster; the message says why."""


class Poster(NamedTuple):
    """An image as a dataset stores it.

    Attributes:
        jpeg: an upright JPEG in RGB or grey.
        converted: whether it was made from another image.
        damaged: whether a part of the picture is lost.
    """

    jpeg: bytes
    converted: bool = False
    damaged: bool = False


def as_stored(image: bytes, max_side: int = 0, keep_damaged: bool = False) -> Poster:
    """Returns an image as a dataset stores it; the same bytes each time.

    What is converted becomes RGB as sRGB has it, by the image's colour profile if there is one,
    upright, transparent parts on white, with a quality of 95 and without metadata. Of several
    pictures the first counts. Sizes are read from the header first, so that a few KB cannot ask
    for gigabytes. The longer side is reduced to `max_side` pixels, unless that is 0.

    Raises:
        ImageError: it is no image, too large, cut off or damaged.
    """
    if not image:
        raise ImageError("the file is empty")
    if len(image) > MAX_BYTES:
        raise ImageError(f"larger than {MAX_BYTES >> 20} MB")
    damaged = False
    if image.startswith(_JPEG_MAGIC) and (header := _read_header(image)):
        width, height, space = header
        _check_size(width, height)
        damaged = _is_damaged(image, keep_damaged)
        fits = not max_side or max(width, height) <= max_side
        if fits and space in _STORED_SPACES and not _TURNED.search(image[:HEADER_BYTES]):
            return Poster(image, damaged=damaged)
    return Poster(_convert(image, max_side), converted=True, damaged=damaged)


def _read_header(jpeg: bytes) -> tuple[int, int, str] | None:
    """Returns width, height and colour space; None for what only Pillow may know how to read."""
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(jpeg, strict=False)
    except (ValueError, KeyError):
        return None
    return width, height, space


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"{width}x{height} is more than {MAX_PIXELS >> 20} million pixels")


def _is_damaged(jpeg: bytes, keep_damaged: bool) -> bool:
    """Returns whether libjpeg warns of a JPEG's data, which other decoders fill up in silence."""
    try:
        simplejpeg.decode_jpeg(jpeg, **_QUICK)
        return False
    except ValueError as error:
        warning = str(error)
    try:
        tf.io.decode_jpeg(jpeg, ratio=8)  # What training could not read cannot be kept.
    except tf.errors.InvalidArgumentError as error:
        raise ImageError(f"the JPEG does not decode ({warning})") from error
    if not keep_damaged:
        raise ImageError(f"the JPEG is damaged inside ({warning}); `on_damage: keep` takes it")
    return True


def _convert(image: bytes, max_side: int) -> bytes:
    try:
        with PIL.Image.open(io.BytesIO(image), formats=_FORMATS) as picture:
            _check_size(*picture.size)
            picture = _to_rgb(PIL.ImageOps.exif_transpose(picture))
        if max_side:
            picture.thumbnail(
                (max_side, max_side), PIL.Image.Resampling.LANCZOS, reducing_gap=_REDUCING_GAP
            )
        jpeg = io.BytesIO()
        picture.save(jpeg, "JPEG", quality=JPEG_QUALITY)
    except ImageError:
        raise
    except PIL.UnidentifiedImageError as error:
        raise ImageError(f"not an image that can be read (begins with {image[:8]!r})") from error
    except PIL.Image.DecompressionBombError as error:
        raise ImageError(f"more than {MAX_PIXELS >> 20} million pixels") from error
    except Exception as error:  # Damaged files raise errors of many kinds in Pillow's readers.
        reason = str(error) or type(error).__name__
        raise ImageError(f"the image cannot be read ({reason})") from error
    return jpeg.getvalue()


def _to_rgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Returns a picture in RGB, on white, without metadata."""
    profile = picture.info.get("icc_profile")
    alpha = None
    if picture.mode.startswith("I;16"):  # Pillow would clip it.
        picture = PIL.Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    elif picture.mode in ("I", "F"):
        raise ImageError("its values have 32 bits, of an unknown range; convert it to 8")
    elif picture.has_transparency_data:
        picture = picture.convert("RGBA")
        alpha = picture.getchannel("A")
    rgb = _by_profile(picture, profile) or picture.convert("RGB")
    canvas = PIL.Image.new("RGB", rgb.size, "white")
    canvas.paste(rgb, mask=alpha)
    return canvas


def _by_profile(picture: PIL.Image.Image, profile: bytes | None) -> PIL.Image.Image | None:
    """Returns a picture's colours as sRGB has them; None if no profile for them can be read."""
    if not profile:
        return None
    try:
        profile = PIL.ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _PROFILE_MODES.get(profile.profile.xcolor_space.strip())
        if mode is None or (mode == "CMYK") != (picture.mode == "CMYK"):
            return None
        srgb = PIL.ImageCms.createProfile("sRGB")
        return PIL.ImageCms.profileToProfile(picture.convert(mode), profile, srgb, outputMode="RGB")
    except (OSError, PIL.ImageCms.PyCMSError):
        return None
