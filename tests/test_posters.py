"""Which images are posters: accepted and right, or refused by name."""

import base64
import contextlib
import io
import os
import pathlib
import re
import tempfile

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from poster_tfds import annotations, faults, posters
from tests.test_preprocessing import make_jpeg
from trainer.data import preprocessing


def reencode(image_format, mode="RGB", **options):
    image = Image.open(io.BytesIO(make_jpeg(60, 80))).convert(mode)
    content = io.BytesIO()
    image.save(content, image_format, **options)
    return content.getvalue()


def patch_frame_header(jpeg, precision=None, size=None):
    """Rewrites what a baseline JPEG's frame header says of itself."""
    start = jpeg.index(b"\xff\xc0")
    frame = bytearray(jpeg[start : start + 9])
    if precision:
        frame[4] = precision
    if size:
        frame[5:9] = size[1].to_bytes(2, "big") + size[0].to_bytes(2, "big")
    return jpeg[:start] + bytes(frame) + jpeg[start + 9 :]


def rotated(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return make_jpeg(60, 80, exif=exif)


NOBODY = 65534
JPEG = make_jpeg(60, 80)
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
    "arithmetic coding": ARITHMETIC,
    "1x1": make_jpeg(1, 1),
    "EXIF that asks for no turn": rotated(1),
    "EXIF without a known orientation": rotated(0),
    "EXIF that ends in its header": make_jpeg(60, 80, exif=b"Exif\0\0II*\0", dpi=(72, 72)),
    "bytes after the end": JPEG + b"trailing",
}
REFUSED = {
    "empty": (b"", "the file is empty"),
    "truncated": (JPEG[: len(JPEG) // 2], "does not decode"),
    "without its end": (JPEG[:-20], "does not decode"),
    "magic and junk": (b"\xff\xd8\xff" + bytes(range(200)), "header cannot be read"),
    "text": (b"not a picture", r"not a JPEG \(begins with b'not a pi'\)"),
    "PNG": (reencode("PNG"), "not a JPEG"),
    "GIF": (reencode("GIF", "P"), "not a JPEG"),
    "CMYK": (reencode("JPEG", "CMYK"), r"4 colour channels \(CMYK\?\); convert it to RGB"),
    "12-bit": (patch_frame_header(JPEG, precision=12), "header cannot be read"),
    "turned by EXIF": (rotated(6), r"asks for a turn \(orientation 6\)"),
    "20000x20000": (
        patch_frame_header(JPEG, size=(20000, 20000)),
        "20000x20000 is more than 64 million pixels",
    ),
    "9000x9000": (patch_frame_header(JPEG, size=(9000, 9000)), "9000x9000 is more than 64"),
    "65535x65535": (
        patch_frame_header(JPEG, size=(65535, 65535)),
        "header cannot be read",
    ),
    "100 MB": (JPEG + bytes(100 << 20), "larger than 32 MB"),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted_posters_are_decoded_as_pillow_does(name):
    jpeg = ACCEPTED[name]
    assert posters.find_fault(jpeg) is None
    expected = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))
    np.testing.assert_array_equal(preprocessing.decode(tf.constant(jpeg)), expected)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_posters_are_refused_by_name(name):
    image, reason = REFUSED[name]
    assert re.search(reason, posters.find_fault(image))


def damaged_jpegs(count):
    rng = np.random.default_rng(0)
    jpegs = [make_jpeg(120, 180), make_jpeg(97, 61, progressive=True), make_jpeg(64, 64, mode="L")]
    for _ in range(count):
        damaged = bytearray(jpegs[rng.integers(len(jpegs))])
        for position in rng.integers(2, len(damaged), size=rng.integers(1, 4)):
            damaged[position] = rng.integers(256)
        if rng.random() < 0.3:
            del damaged[rng.integers(len(damaged) // 2, len(damaged)) :]
        yield bytes(damaged)


def test_what_is_accepted_can_be_decoded_whole():
    accepted = [jpeg for jpeg in damaged_jpegs(600) if posters.find_fault(jpeg) is None]
    assert 20 < len(accepted) < 580
    for jpeg in accepted:
        assert preprocessing.decode(tf.constant(jpeg)).shape.rank == 3


def read(path_maker, tmp_path):
    """What `read_one` says of a poster that `path_maker` has put in place."""
    path_maker(tmp_path / "poster.jpg")
    return posters.read_one(annotations.Annotation(7, "poster", (0,)), tmp_path)


def test_a_poster_is_read_as_it_is(tmp_path):
    assert read(lambda path: path.write_bytes(JPEG), tmp_path) == JPEG


@pytest.mark.parametrize(
    ("path_maker", "reason"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "directory"),
        (lambda path: path.symlink_to("nowhere.jpg"), "No such file"),
    ],
    ids=["missing", "a folder", "a dangling link"],
)
def test_what_cannot_be_read_is_named_with_its_line(path_maker, reason, tmp_path):
    fault = read(path_maker, tmp_path)
    assert isinstance(fault, faults.Fault)
    assert (fault.line, fault.poster_id) == (7, "poster")
    assert str(tmp_path / "poster.jpg") in fault.reason
    assert reason in fault.reason


def test_a_link_to_a_poster_is_followed(tmp_path):
    (tmp_path / "elsewhere").write_bytes(JPEG)
    assert read(lambda path: path.symlink_to("elsewhere"), tmp_path) == JPEG


@contextlib.contextmanager
def as_nobody():
    """Root may read every file: as root, becomes a user who may not."""
    user = os.geteuid()
    os.seteuid(NOBODY if user == 0 else user)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_poster_without_permission_is_named():
    with tempfile.TemporaryDirectory() as directory:  # tmp_path is closed to other users.
        images_dir = pathlib.Path(directory)
        images_dir.chmod(0o755)
        rows = [annotations.Annotation(line, name, ()) for line, name in ((2, "a"), (3, "b"))]
        for row in rows:
            (images_dir / f"{row.poster_id}.jpg").write_bytes(JPEG)
        # What TensorFlow imports late may be closed to nobody.
        assert list(posters.read_checked(rows, images_dir))
        (images_dir / "b.jpg").chmod(0)
        with as_nobody():
            checked = list(posters.read_checked(rows, images_dir))
    (_, image), (_, fault) = checked
    assert image == JPEG
    assert (fault.line, fault.poster_id) == (3, "b")
    assert "b.jpg: Permission denied" in fault.reason


def test_a_file_larger_than_memory_is_named_before_it_is_read(tmp_path):
    rows = [annotations.Annotation(line, name, ()) for line, name in ((2, "a"), (3, "b"))]
    (tmp_path / "a.jpg").write_bytes(JPEG)
    with open(tmp_path / "b.jpg", "wb") as file:
        file.write(JPEG)
        file.truncate(1 << 40)  # Without taking room on the disk.
    (_, image), (_, fault) = posters.read_checked(rows, tmp_path)
    assert image == JPEG
    assert "b.jpg: larger than 32 MB" in fault.reason


def test_reading_many_says_of_each_what_reading_one_says(tmp_path):
    """Over more posters than are read at a time, with rows that are faults among them."""
    images = [*ACCEPTED.values(), *(image for image, _ in REFUSED.values()), *damaged_jpegs(600)]
    rows = []
    for i, image in enumerate(images):
        if i % 50 == 7:
            rows.append(faults.Fault(i, "", "bad row"))
        else:
            rows.append(annotations.Annotation(i, f"p{i}", ()))
            if i % 50 != 8:  # Every fiftieth is missing.
                (tmp_path / f"p{i}.jpg").write_bytes(image)
    assert len(rows) > posters._CHUNK
    checked = list(posters.read_checked(iter(rows), tmp_path))
    assert [row for row, _ in checked] == rows
    assert [image for _, image in checked] == [posters.read_one(row, tmp_path) for row in rows]
    assert {type(image) for _, image in checked} == {bytes, faults.Fault}
