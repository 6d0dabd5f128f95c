"""Anyone's posters, damaged data, killed builds and both engines."""

import collections
import csv
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import tensorflow_datasets as tfds

from poster_tfds import beam_engine, faults, images, synthetic
from tests import conftest, test_faults, test_images
from tests.test_dataset_builder import posters, read_split, sha256_of_files  # noqa: F401
from tests.test_preprocessing import make_jpeg

CUSTOM = {"name": "mine", "test_fraction": 0.25, "validation_fraction": 0.25}
SKIP = {**CUSTOM, "on_error": "skip"}
BEAM_OPTIONS = ["--direct_num_workers=2", "--direct_running_mode=multi_processing"]


def build_with_beam(posters_dir, data_dir, config):
    import apache_beam as beam

    options = beam.options.pipeline_options.PipelineOptions(BEAM_OPTIONS)
    conftest.build(posters_dir, data_dir, config, beam_options=options)


def examples(name, data_dir):
    """All examples of a dataset: split -> a counter of (Id, genres, image)."""
    builder = tfds.builder(name, data_dir=data_dir)
    return {
        split: collections.Counter(read_split(name, split, data_dir))
        for split in builder.info.splits
    }


def damage_csv(posters_dir):
    """Makes faults, duplicates of both kinds and a poster that is to be converted."""
    path = posters_dir / "train.csv"
    header, *rows = path.read_text().splitlines()
    rows[3] = rows[3].replace(",0", ",3", 1)
    twin = rows[7].replace("synthetic0000007", "twin")
    shutil.copy(posters_dir / "Images/synthetic0000007.jpg", posters_dir / "Images/twin.jpg")
    (posters_dir / "Images/synthetic0000011.jpg").write_bytes(b"broken")
    (posters_dir / "Images/synthetic0000013.jpg").write_bytes(test_images.turned(6))
    path.write_text("\n".join([header, *rows, rows[5], twin]) + "\n")


def test_anyones_posters_are_built_without_editing_code(posters, tmp_path):  # noqa: F811
    conftest.tfds_build(
        f"--config={json.dumps(CUSTOM)}", f"--manual_dir={posters}", f"--data_dir={tmp_path}"
    )
    found = examples("poster_tfds/mine", tmp_path)
    assert set(found) == {"train", "validation", "test"}
    assert sum(sum(split.values()) for split in found.values()) == 40


def test_skip_builds_the_rest_and_lists_what_it_left_out(posters, tmp_path):  # noqa: F811
    damage_csv(posters)
    conftest.build(posters, tmp_path, SKIP)
    directory = tmp_path / "poster_tfds/mine/1.0.0"
    rejected = list(csv.DictReader((directory / "rejected.csv").open()))
    assert [(row["row"], row["Id"]) for row in rejected] == [
        ("5", "synthetic0000003"),
        ("13", "synthetic0000011"),
    ]
    assert "not an image" in rejected[1]["reason"]
    metadata = json.loads((directory / "metadata.json").read_text())
    counts = {"rejected": 2, "duplicates": 2, "converted": 1, "damaged": 0}
    assert {name: metadata[name] for name in counts} == counts
    found = sum(examples("poster_tfds/mine", tmp_path).values(), collections.Counter())
    assert len(found) == found.total() == 38
    pictures = collections.Counter(image for _, _, image in found)
    assert max(pictures.values()) == 1


@pytest.mark.parametrize("build", [conftest.build, build_with_beam])
def test_what_is_no_plain_jpeg_is_converted_and_counted(build, posters, tmp_path):  # noqa: F811
    picture, folder = test_images.PICTURE, posters / "Images"
    contents = {
        "synthetic0000001": make_jpeg(60, 80, mode="CMYK"),
        "synthetic0000002": test_images.turned(6),
        "synthetic0000003": test_images.encode(picture, "PNG"),
        "synthetic0000004": test_images.cut_ended(make_jpeg(120, 180)),
        "synthetic0000005": test_images.LARGE,
    }
    for name, content in contents.items():
        (folder / f"{name}.jpg").write_bytes(content)
    build(posters, tmp_path, {**CUSTOM, "on_damage": "keep", "max_side": 200})
    expected = {
        path.stem: images.as_stored(path.read_bytes(), 200, keep_damaged=True)
        for path in folder.iterdir()
    }
    stored = sum(examples("poster_tfds/mine", tmp_path).values(), collections.Counter())
    assert {name: jpeg for name, _, jpeg in stored} == {
        name: poster.jpeg for name, poster in expected.items()
    }
    assert max(max(test_images.pixels(jpeg).shape) for _, _, jpeg in stored) == 200
    metadata = json.loads((tmp_path / "poster_tfds/mine/1.0.0/metadata.json").read_text())
    assert (metadata["converted"], metadata["damaged"], metadata["max_side"]) == (4, 1, 200)


@pytest.mark.parametrize("held", [beam_engine._ROWS_HELD, 7])
def test_both_engines_write_the_same_bytes(held, posters, tmp_path, monkeypatch):  # noqa: F811
    """With one bucket of rows and with six, whose borders are not those of the shards."""
    monkeypatch.setattr(beam_engine, "_ROWS_HELD", held)
    monkeypatch.setattr(beam_engine, "_ROWS_A_PART", 1)
    monkeypatch.setattr(beam_engine, "_MIN_CHUNKS", 3)  # So that each has several rows.
    damage_csv(posters)
    one, beam = tmp_path / "one", tmp_path / "beam"
    conftest.build(posters, one, SKIP)
    build_with_beam(posters, beam, SKIP)
    one, beam = (sha256_of_files(d / "poster_tfds/mine/1.0.0") for d in (one, beam))
    assert len(one) > 20
    assert one == beam


def test_parts_grow_with_the_rows_and_not_with_their_square():
    def num_parts(num_rows):
        held = beam_engine.rows_held(num_rows)
        return (-(-num_rows // held)) ** 2

    for num_rows in (10**6, 10**7, 10**8, 10**9):
        assert num_rows / 300 < num_parts(num_rows) < num_rows / 200
    assert num_parts(10**4) == 1


def test_the_beam_engine_names_all_faults_and_leaves_nothing(posters, tmp_path):  # noqa: F811
    damage_csv(posters)
    with pytest.raises(faults.PosterDataError) as error:
        build_with_beam(posters, tmp_path, CUSTOM)
    assert [(fault.line, fault.poster_id) for fault in error.value.faults] == [
        (5, "synthetic0000003"),
        (13, "synthetic0000011"),
    ]
    assert not list(tmp_path.rglob("*tfrecord*"))


def damage_of_25_kinds(posters_dir):
    """Damages a copy of the real posters and returns the lines on which it did."""
    path, folder = posters_dir / "train.csv", posters_dir / "Images"
    lines = path.read_bytes().decode().splitlines()

    def change(line, old, new):
        fields = lines[line - 1]
        assert old in fields
        lines[line - 1] = fields.replace(old, new, 1)

    def image_of(line):
        return folder / (lines[line - 1].split(",")[0] + ".jpg")

    def replace(line, content):
        image_of(line).unlink()
        if content is not None:
            image_of(line).write_bytes(content)

    expected = range(100, 2600, 100)
    at = iter(expected)
    change(next(at), ",0", ",2")
    change(next(at), ",0", ",-1")
    change(next(at), ",0", ",1.5")
    change(next(at), ",0,", ",,")
    line = next(at)
    lines[line - 1] += ",0"
    line = next(at)
    lines[line - 1] = lines[line - 1].rsplit(",", 1)[0]
    change(next(at), "['", "['Unknown', '")
    change(next(at), "['", "('")
    line = next(at)
    lines[line - 1] = "," + lines[line - 1].split(",", 1)[1]
    change(next(at), "tt", "Posters/tt")
    change(next(at), "tt", "../tt")
    change(next(at), "tt", "a/tt")
    line = next(at)  # The Id of line 2 with other genres.
    lines[line - 1] = f"{lines[1].split(',')[0]},['Western'],{'0,' * 24}1"
    line = next(at)
    lines[line - 1] = lines[line - 1].replace("tt", "tt\udce9", 1)
    line = next(at)
    lines[line - 1] = lines[line - 1].split(",")[0] + ',"[]"x' + ",0" * 25
    replace(next(at), None)
    replace(next(at), b"")
    whole = image_of(line := next(at)).read_bytes()
    replace(line, whole[: len(whole) // 2])
    for kind in (
        *("magic and junk", "text", "truncated PNG", "cut, with an end"),
        *("bytes lost in the middle", "20000x20000"),
    ):
        replace(next(at), test_images.REFUSED[kind][0])
    line = next(at)
    image_of(line).unlink()
    image_of(line).mkdir()
    assert next(at, None) is None
    path.write_bytes("\n".join(lines).encode(errors="surrogateescape") + b"\n")
    return list(expected)


def test_a_build_with_25_kinds_of_damage_names_all_and_nothing_else(real_posters, tmp_path):
    directory = tmp_path / "posters"
    shutil.copytree(real_posters, directory, copy_function=os.link)
    for path in (directory, directory / "Images"):
        path.chmod(0o755)
    shutil.copyfile(real_posters / "train.csv", tmp_path / "copy.csv")
    (directory / "train.csv").unlink()
    shutil.move(tmp_path / "copy.csv", directory / "train.csv")
    damaged = damage_of_25_kinds(directory)

    config = {"name": "damaged", "split": "reference", "drop_duplicates": False}
    with pytest.raises(faults.PosterDataError) as error:
        conftest.build(directory, tmp_path / "data", config)
    assert [fault.line for fault in error.value.faults] == damaged
    builder = conftest.build(directory, tmp_path / "data", {**config, "on_error": "skip"})
    assert sum(s.num_examples for s in builder.info.splits.values()) == 7254 - len(damaged)
    assert builder.info.metadata["rejected"] == len(damaged)


def build_command(posters_dir, data_dir):
    tool = pathlib.Path(sys.executable).with_name("tfds")
    return [
        *(str(tool), "build", "poster_tfds", f"--config={json.dumps(CUSTOM)}"),
        *(f"--manual_dir={posters_dir}", f"--data_dir={data_dir}"),
    ]


def start_build(posters_dir, data_dir):
    return subprocess.Popen(
        build_command(posters_dir, data_dir),
        cwd=conftest.PROJECT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def many_posters(tmp_path_factory):
    """Enough posters for a build to be interrupted while it writes."""
    directory = tmp_path_factory.mktemp("many") / "posters"
    synthetic.ensure_posters(directory, count=3000)
    return directory


def wait_for_incomplete(directory, process):
    deadline = time.monotonic() + 300
    while not (found := list(directory.glob("incomplete.*"))):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def test_a_killed_build_harms_nothing_and_the_next_one_clears_up(many_posters, tmp_path):
    version = tmp_path / "poster_tfds/mine/1.0.0"
    for delay in (0, 0.2, 0.5):
        process = start_build(many_posters, tmp_path)
        wait_for_incomplete(version.parent, process)
        time.sleep(delay)
        process.kill()
        process.wait()
        assert not version.exists()
        assert list(version.parent.glob("incomplete.*"))
    assert start_build(many_posters, tmp_path).wait() == 0
    assert not list(version.parent.glob("incomplete.*"))
    assert sum(sum(c.values()) for c in examples("poster_tfds/mine", tmp_path).values()) == 3000


def test_ctrl_c_leaves_nothing_half_built(many_posters, tmp_path):
    process = start_build(many_posters, tmp_path)
    wait_for_incomplete(tmp_path / "poster_tfds/mine", process)
    process.send_signal(signal.SIGINT)
    assert process.wait() != 0
    assert not list((tmp_path / "poster_tfds/mine").iterdir())


LITTLE_DISK = """
mount -t tmpfs -o size=8m tmpfs {data_dir}
{build} > /dev/null && exit 10
ls -A {data_dir}/poster_tfds/mine
mount -o remount,size=80m {data_dir}
{build} > /dev/null || exit 11
ls {data_dir}/poster_tfds/mine
"""


def test_a_full_disk_leaves_nothing_half_built_and_with_room_the_build_works(
    many_posters, tmp_path
):
    build = shlex.join(build_command(many_posters, tmp_path))
    result = test_faults.run_in_own_mounts(LITTLE_DISK.format(data_dir=tmp_path, build=build))
    assert "No space left on device" in result.stderr
    assert result.stdout == "1.0.0\n"


def test_a_second_build_of_the_same_dataset_is_refused(many_posters, tmp_path):
    first = start_build(many_posters, tmp_path)
    wait_for_incomplete(tmp_path / "poster_tfds/mine", first)
    first.send_signal(signal.SIGSTOP)
    try:
        second = start_build(many_posters, tmp_path)
        _, stderr = second.communicate()
        assert second.returncode != 0
        assert "Another process is at work" in stderr
        assert "Traceback" not in stderr
    finally:
        first.send_signal(signal.SIGCONT)
    assert first.wait() == 0
