"""Posters are read from their folder in order; what is wrong with one is named with its line."""

import contextlib
import os
import pathlib
import tempfile

import pytest

from poster_tfds import annotations, faults, posters
from poster_tfds.poster_tfds_dataset_builder import PosterConfig
from tests import test_images
from tests.test_images import JPEG

NOBODY = 65534
CONFIG = PosterConfig(name="mine")


def read(path_maker, tmp_path):
    """What `read_one` says of a poster that `path_maker` has put in place."""
    path_maker(tmp_path / "poster.jpg")
    return posters.read_one(annotations.Annotation(7, "poster", (0,)), tmp_path, CONFIG)


def test_a_poster_is_read_as_it_is(tmp_path):
    assert read(lambda path: path.write_bytes(JPEG), tmp_path).jpeg == JPEG


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
    assert read(lambda path: path.symlink_to("elsewhere"), tmp_path).jpeg == JPEG


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
        (images_dir / "b.jpg").chmod(0)
        with as_nobody():
            checked = list(posters.read_checked(rows, images_dir, CONFIG))
    (_, poster), (_, fault) = checked
    assert poster.jpeg == JPEG
    assert (fault.line, fault.poster_id) == (3, "b")
    assert "b.jpg: Permission denied" in fault.reason


def test_a_file_larger_than_memory_is_named_before_it_is_read(tmp_path):
    rows = [annotations.Annotation(line, name, ()) for line, name in ((2, "a"), (3, "b"))]
    (tmp_path / "a.jpg").write_bytes(JPEG)
    with open(tmp_path / "b.jpg", "wb") as file:
        file.write(JPEG)
        file.truncate(1 << 40)  # Without taking room on the disk.
    (_, poster), (_, fault) = posters.read_checked(rows, tmp_path, CONFIG)
    assert poster.jpeg == JPEG
    assert "b.jpg: larger than 32 MB" in fault.reason


def test_no_more_rows_are_read_than_are_ahead(tmp_path):
    """However many there are; and the threads end with the one who asked."""
    (tmp_path / "a.jpg").write_bytes(JPEG)
    taken = 0

    def rows():
        nonlocal taken
        while True:
            taken += 1
            yield annotations.Annotation(taken, "a", ())

    checked = posters.read_checked(rows(), tmp_path, CONFIG)
    for given in range(1, 100):
        next(checked)
        assert taken - given <= posters._CHUNK * (posters._AHEAD + 1)
    checked.close()


def test_settings_reach_the_images(tmp_path):
    (tmp_path / "a.jpg").write_bytes(test_images.cut_ended(test_images.LARGE))
    row = annotations.Annotation(2, "a", ())
    fault = posters.read_one(row, tmp_path, CONFIG)
    assert "a.jpg: the JPEG is damaged inside" in fault.reason
    config = PosterConfig(name="mine", on_damage="keep", max_side=100)
    poster = posters.read_one(row, tmp_path, config)
    assert (poster.converted, poster.damaged) == (True, True)
    assert test_images.pixels(poster.jpeg).shape == (100, 68, 3)
