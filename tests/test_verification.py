"""A built dataset is whole, or what is wrong with it is named."""

import json
import shutil

import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from poster_tfds import faults, synthetic
from poster_tfds.built import opening, verification
from tests import conftest

CONFIG = {"name": "mine", "validation_fraction": 0.2, "test_fraction": 0.2}
NUM_POSTERS = 40
SHARD = "poster_tfds-train.tfrecord-00001-of-00003"
OTHER_SHARD = "poster_tfds-test.tfrecord-00000-of-00003"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A data directory with a small dataset, which is not to be changed."""
    directory = tmp_path_factory.mktemp("verification")
    synthetic.ensure_posters(directory / "posters", count=NUM_POSTERS)
    conftest.build(directory / "posters", directory / "data", CONFIG, num_shards=3)
    return directory / "data"


@pytest.fixture
def data_dir(built, tmp_path):
    """A copy of it, to be damaged."""
    return shutil.copytree(built, tmp_path / "data")


def folder(data_dir):
    return data_dir / "poster_tfds/mine/1.0.0"


def verify(data_dir):
    return verification.verify(tfds.builder("poster_tfds/mine", data_dir=data_dir))


def read(path):
    """Returns the records of a shard."""
    return list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())


def write(path, records):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)


def begins(records, number):
    """The byte at which a record begins: 16 bytes of each are lengths and checksums."""
    return sum(len(record) + 16 for record in records[:number])


def id_of(record):
    example = tf.train.Example.FromString(record)
    return example.features.feature["poster_id"].bytes_list.value[0].decode()


def with_feature(record, name, kind, values):
    """Returns a record with another value for a feature."""
    example = tf.train.Example.FromString(record)
    getattr(example.features.feature[name], kind).value[:] = values
    return example.SerializeToString(deterministic=True)


def test_a_whole_dataset_is_well(built):
    assert verify(built) == []


def test_a_shard_cut_off_within_a_record_is_named_with_record_and_byte(data_dir):
    path = folder(data_dir) / SHARD
    records = read(path)
    path.write_bytes(path.read_bytes()[: begins(records, 3) + 500])
    (problem,) = verify(data_dir)
    assert problem.startswith(f"{path}: record 3, at byte {begins(records, 3)}: truncated record")


def test_a_shard_cut_off_between_records_is_named(data_dir):
    path = folder(data_dir) / SHARD
    records = read(path)
    path.write_bytes(path.read_bytes()[: begins(records, 3)])
    (problem,) = verify(data_dir)
    assert problem == f"{path}: it contains 3 records and was built with {len(records)}"


@pytest.mark.parametrize("number", [0, 4])
def test_a_byte_flipped_inside_a_jpeg_is_named_with_its_record(number, data_dir):
    path = folder(data_dir) / SHARD
    records = read(path)
    content = bytearray(path.read_bytes())
    content[begins(records, number) + 12 + len(records[number]) // 2] ^= 1
    path.write_bytes(content)
    (problem,) = verify(data_dir)
    assert f"{path}: record {number}, at byte {begins(records, number)}: corrupted" in problem
    assert problem.endswith("what is behind it was not read")


def test_a_length_that_is_damaged_is_named(data_dir):
    path = folder(data_dir) / SHARD
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])
    (problem,) = verify(data_dir)
    assert f"{path}: record 0, at byte 0: corrupted record" in problem


def test_other_counts_than_those_of_the_build_are_named(data_dir):
    path = folder(data_dir) / "metadata.json"
    metadata = json.loads(path.read_text())
    metadata["splits"]["train"]["together"][1][1] += 1
    path.write_text(json.dumps(metadata))
    (problem,) = verify(data_dir)
    assert problem == "train: metadata.json says something else of the examples: together"


def test_a_missing_shard_is_named(data_dir):
    path = folder(data_dir) / SHARD
    path.unlink()
    assert verify(data_dir) == [f"{path} is missing"]


def broken_jpeg(record):
    example = tf.train.Example.FromString(record)
    jpeg = example.features.feature["image"].bytes_list.value[0]
    return with_feature(record, "image", "bytes_list", [jpeg[: len(jpeg) // 2]])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (broken_jpeg, "its JPEG does not decode"),
        (
            lambda r: with_feature(r, "image", "bytes_list", [b"no JPEG"]),
            "its JPEG does not decode",
        ),
        (lambda r: with_feature(r, "genres", "int64_list", [8]), "it has an index that is of no"),
        (lambda r: with_feature(r, "genres", "int64_list", [-1, 2]), "it has an index that is of"),
        (lambda r: with_feature(r, "genres", "int64_list", [2, 3, 2]), "it has a genre twice"),
        (lambda r: with_feature(r, "poster_id", "bytes_list", [b""]), "it has no Id"),
        (lambda r: b"\xff" + r, "it is no example of this dataset"),
        (lambda r: b"", "it is no example of this dataset"),
    ],
)
def test_an_example_that_cannot_be_trained_on_is_named(change, reason, data_dir):
    path = folder(data_dir) / SHARD
    records = read(path)
    changed = change(records[2])
    write(path, [*records[:2], changed, *records[3:]])
    (problem,) = verify(data_dir)
    assert problem.startswith(f"{path}: record 2, at byte {begins(records, 2)}")
    assert reason in problem
    if "JPEG" in reason or "genre" in reason:
        assert f"(Id {id_of(records[2])})" in problem


def test_all_shards_with_problems_are_named(data_dir):
    path, other = folder(data_dir) / SHARD, folder(data_dir) / OTHER_SHARD
    records = read(path)
    write(path, [*records[:1], broken_jpeg(records[1]), broken_jpeg(records[2]), *records[3:]])
    last = len(read(other)) - 1
    other.write_bytes(other.read_bytes()[:-2])
    problems = verify(data_dir)
    assert len(problems) == 3
    for number in (1, 2):
        assert any(f"{path}: record {number}, at byte " in problem for problem in problems)
    assert any(f"{other}: record {last}, at byte " in problem for problem in problems)


def test_numbers_that_are_not_those_of_the_dataset_are_named(data_dir):
    path = folder(data_dir) / "dataset_info.json"
    info = json.loads(path.read_text())
    (train,) = [split for split in info["splits"] if split["name"] == "train"]
    built_with = int(train["numBytes"])
    train["numBytes"] = str(built_with + 1)
    path.write_text(json.dumps(info))
    assert verify(data_dir) == [
        f"train: the examples have {built_with} bytes, dataset_info.json says {built_with + 1}"
    ]


def test_a_dataset_that_is_not_built_is_told_how_to_build(built):
    command = "tfds build poster_tfds --config=other --data_dir="
    with pytest.raises(faults.UserError, match=command):
        opening.open_built("other", str(built))


def test_a_description_that_is_damaged_is_told(data_dir):
    path = folder(data_dir) / "genres.labels.txt"
    path.unlink()
    with pytest.raises(faults.UserError, match="has lost genres"):
        opening.open_built("mine", str(data_dir))
    path = folder(data_dir) / "dataset_info.json"
    path.write_text(path.read_text()[:300])
    with pytest.raises(faults.UserError, match="has a damaged dataset_info"):
        opening.open_built("mine", str(data_dir))
