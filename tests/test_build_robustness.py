"""Damaged data, killed builds, and Beam, which writes the same files."""

import contextlib
import csv
import json
import os
import pathlib
import random
import shlex
import shutil
import signal
import sys
import time
from collections import Counter

import pandas as pd
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from poster_tfds import directory_lock, faults, synthetic
from tests import conftest, runs, test_faults, test_images
from tests.test_dataset_builder import posters, read_split  # noqa: F401

CUSTOM = {"name": "mine", "test_fraction": 0.25, "validation_fraction": 0.25}
SKIP = {**CUSTOM, "on_error": "skip"}


def build_with_beam(posters_dir, data_dir, config, *options):
    from apache_beam.options import pipeline_options  # Slow to import.

    options = pipeline_options.PipelineOptions(list(options))
    return conftest.build(posters_dir, data_dir, config, beam_options=options)


def examples(name, data_dir):
    """All examples of a dataset: split -> a counter of (Id, genres, image)."""
    builder = tfds.builder(name, data_dir=data_dir)
    return {split: Counter(read_split(name, split, data_dir)) for split in builder.info.splits}


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
    found = sum(examples("poster_tfds/mine", tmp_path).values(), Counter())
    assert len(found) == found.total() == 38
    pictures = Counter(image for _, _, image in found)
    assert max(pictures.values()) == 1


@pytest.mark.parametrize(
    "options",
    [
        (),
        pytest.param(
            ("--direct_num_workers=2", "--direct_running_mode=multi_processing"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_beam_writes_the_same_records_into_the_same_splits(options, posters, tmp_path):  # noqa: F811
    """Of stratified groups, with faults, repeated and converted posters; in other shards."""
    damage_csv(posters)
    table = pd.read_csv(posters / "train.csv", dtype=str)
    table["Film"] = [f"film {i // 3}" if i % 4 else "" for i in range(len(table))]
    table.to_csv(posters / "train.csv", index=False)
    config = {**SKIP, "split": "stratified", "group_column": "Film", "max_side": 200}
    one = conftest.build(posters, tmp_path / "one", config)
    beam = build_with_beam(posters, tmp_path / "beam", config, *options)
    assert set(one.info.splits) == {"train", "validation", "test"}
    assert beam.info.metadata == one.info.metadata
    for name, split in one.info.splits.items():
        ours, theirs = (
            sorted(tf.data.TFRecordDataset(info.filepaths).as_numpy_iterator())
            for info in (split, beam.info.splits[name])
        )
        assert ours and ours == theirs
    rejected = (builder.data_path / "rejected.csv" for builder in (one, beam))
    assert len({path.read_bytes() for path in rejected}) == 1


def test_beam_names_all_faults_and_leaves_nothing(posters, tmp_path):  # noqa: F811
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


@pytest.mark.slow
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


def test_leftovers_of_a_killed_build_are_cleared_away(posters, tmp_path):  # noqa: F811
    leftover = tmp_path / "poster_tfds/mine/incomplete.ABCDEF_1.0.0"
    leftover.mkdir(parents=True)
    (leftover / "poster_tfds-train.tfrecord-00000-of-00016").write_bytes(b"half")
    builder = conftest.build(posters, tmp_path, CUSTOM)
    assert [path.name for path in builder.data_path.parent.iterdir()] == ["1.0.0"]
    assert builder.info.splits.total_num_examples == 40


def build_command(posters_dir, data_dir):
    tool = pathlib.Path(sys.executable).with_name("tfds")
    return [
        *(str(tool), "build", "poster_tfds", f"--config={json.dumps(CUSTOM)}"),
        *(f"--manual_dir={posters_dir}", f"--data_dir={data_dir}"),
    ]


@pytest.fixture(scope="module")
def many_posters(tmp_path_factory):
    """Enough posters for a build to be interrupted while it writes."""
    directory = tmp_path_factory.mktemp("many") / "posters"
    synthetic.ensure_posters(directory, count=2000)
    return directory


@contextlib.contextmanager
def begun_build(posters_dir, data_dir):
    """A build in a process of its own, which writes; what one before it has left is gone."""
    directory = data_dir / "poster_tfds/mine"
    before = set(directory.glob("incomplete.*"))
    process = conftest.start(*build_command(posters_dir, data_dir))
    try:
        assert runs.wait_for(lambda: set(directory.glob("incomplete.*")) - before, process)
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_builds_that_are_killed_or_interrupted_harm_nothing(many_posters, tmp_path):
    version = tmp_path / "poster_tfds/mine/1.0.0"
    with begun_build(many_posters, tmp_path) as process:
        time.sleep(random.random() * 0.4)
        process.kill()
        process.communicate()
        assert not version.exists()
        assert list(version.parent.glob("incomplete.*"))
    with begun_build(many_posters, tmp_path) as process:
        assert len(list(version.parent.glob("incomplete.*"))) == 1
        process.send_signal(signal.SIGINT)
        process.communicate()
        assert process.returncode
        assert not list(version.parent.iterdir())
    with begun_build(many_posters, tmp_path) as process:
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(directory_lock.HeldError, match="Another process is at work"):
            conftest.build(many_posters, tmp_path, CUSTOM)
        process.send_signal(signal.SIGCONT)
        runs.finish(process)
    assert [path.name for path in version.parent.iterdir()] == ["1.0.0"]
    assert sum(examples("poster_tfds/mine", tmp_path).values(), Counter()).total() == 2000


LITTLE_DISK = """
mount -t tmpfs -o size=6m tmpfs {data_dir}
{build} > /dev/null && exit 10
ls -A {data_dir}/poster_tfds/mine
"""


@pytest.mark.slow
def test_a_full_disk_leaves_nothing_half_built(many_posters, tmp_path):
    build = shlex.join(build_command(many_posters, tmp_path))
    result = test_faults.run_in_own_mounts(LITTLE_DISK.format(data_dir=tmp_path, build=build))
    assert "No space left on device" in result.stderr
    assert result.stdout == ""
