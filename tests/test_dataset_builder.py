"""The dataset holds what the CSV and the JPEGs hold, or is not built, and one message says why."""

import ast
import collections
import csv
import hashlib
import json
import pickle
import re
import shutil
import sys

import PIL.Image
import pytest
import sklearn.model_selection
import tensorflow as tf
import tensorflow_datasets as tfds

import poster_tfds
from poster_tfds import directory_lock, faults, synthetic, user_errors
from poster_tfds.built import verification
from tests import conftest


def read_csv(path):
    """An independent reading: [(Id, [genre, ...], [column, ...]), ...] from the `Genre` column."""
    with open(path, newline="") as file:
        return [
            (row["Id"], ast.literal_eval(row["Genre"]), list(row)) for row in csv.DictReader(file)
        ]


def read_split(name, split, data_dir):
    dataset, info = tfds.load(
        name,
        split=split,
        data_dir=data_dir,
        decoders={"image": tfds.decode.SkipDecoding()},
        with_info=True,
    )
    names = info.features["genres"].feature.names
    return [
        (
            example["poster_id"].decode(),
            frozenset(names[i] for i in example["genres"]),
            example["image"],
        )
        for example in tfds.as_numpy(dataset)
    ]


def sha256_of_files(directory):
    """Of a built dataset, without what other tests' runs have counted and kept beside it."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.iterdir())
        if not path.name.startswith("genre_counts-")
    }


def assert_splits_are_the_reference(name, data_dir, posters):
    rows = read_csv(posters / "train.csv")
    train, test = sklearn.model_selection.train_test_split(rows, random_state=0, test_size=0.15)
    for split, expected_rows in (("train", train), ("test", test)):
        expected = collections.Counter(
            (poster_id, frozenset(genres), (posters / "Images" / f"{poster_id}.jpg").read_bytes())
            for poster_id, genres, _ in expected_rows
        )
        assert collections.Counter(read_split(name, split, data_dir)) == expected


def test_splits_hold_every_row_and_every_byte(data_dir, synthetic_posters):
    assert_splits_are_the_reference("poster_tfds/synthetic", data_dir, synthetic_posters)
    info = tfds.builder("poster_tfds/synthetic", data_dir=data_dir).info
    assert info.features["genres"].feature.names == list(synthetic.GENRES)


def test_metadata_count_what_is_in_each_split(data_dir):
    folder = data_dir / "poster_tfds/synthetic/1.0.0"
    kept = json.loads((folder / "metadata.json").read_text())["splits"]
    assert list(kept) == ["train", "test"]
    for split, counts in kept.items():
        posters = read_split("poster_tfds/synthetic", split, data_dir)
        assert counts["posters"] == len(posters)
        assert counts["together"] == [
            [sum({a, b} <= genres for _, genres, _ in posters) for b in synthetic.GENRES]
            for a in synthetic.GENRES
        ]
        shards = sorted(folder.glob(f"*-{split}.tfrecord*"))
        records = [len(list(tf.data.TFRecordDataset(str(path)))) for path in shards]
        overhead = 16 * sum(records)  # Lengths and checksums.
        assert counts["bytes"] == sum(path.stat().st_size for path in shards) - overhead


@pytest.mark.slow
def test_the_real_posters_give_the_reference_split(real_posters, tmp_path):
    info = conftest.build(real_posters, tmp_path, "imdb").info
    assert_splits_are_the_reference("poster_tfds/imdb", tmp_path, real_posters)
    assert {name: split.num_examples for name, split in info.splits.items()} == {
        "train": 6165,
        "test": 1089,
    }
    columns = read_csv(real_posters / "train.csv")[0][2]
    assert info.features["genres"].feature.names == columns[2:]
    assert min(split.num_shards for split in info.splits.values()) >= 16


@pytest.fixture
def posters(tmp_path):
    """A fresh set of posters, to be damaged."""
    directory = tmp_path / "posters"
    synthetic.ensure_posters(directory, count=40, seed=1)
    return directory


def test_two_builds_give_byte_identical_files(posters, tmp_path):
    first, second = (
        sha256_of_files(conftest.build(posters, tmp_path / name, "imdb").data_path)
        for name in ("first", "second")
    )
    assert len(first) > 22
    assert first == second


def test_num_shards_is_obeyed(posters, tmp_path):
    builder = conftest.build(posters, tmp_path / "data", "imdb", num_shards=3)
    assert [split.num_shards for split in builder.info.splits.values()] == [3, 3]


@pytest.mark.parametrize(
    ("num_megabytes", "num_examples", "num_shards"),
    [(1, 5, 5), (1, 600, 16), (2048, 60_000, 16), (2049, 60_000, 17), (320_000, 10**7, 2500)],
)
def test_the_number_of_shards_follows_the_size(num_megabytes, num_examples, num_shards):
    """At least 16 where there are as many examples, and none over 128 MB."""
    shard_config = poster_tfds.poster_tfds_dataset_builder._ShardConfig()
    assert shard_config.get_number_shards(num_megabytes << 20, num_examples) == num_shards


def damage(posters):
    """Makes six faults, on lines 5, 7, 9, 11, 13 and 15."""
    images = posters / "Images"
    (images / "synthetic0000003.jpg").unlink()
    whole = (images / "synthetic0000005.jpg").read_bytes()
    (images / "synthetic0000005.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "synthetic0000007.jpg").write_bytes(b"\xff\xd8\xff" + bytes(range(200)))
    lines = (posters / "train.csv").read_text().splitlines()
    lines[10] = lines[10].replace(",0", ",2", 1)
    lines[12] = lines[12].replace("['", "['Crime', '", 1)
    lines[14] += ",0"
    (posters / "train.csv").write_text("\n".join(lines) + "\n")


def assert_all_are_named(message):
    message = message[message.index("6 faults in") :]
    for line, poster in ((5, 3), (7, 5), (9, 7), (11, 9), (13, 11)):
        assert f"line {line} (synthetic{poster:07d}): " in message
    assert "line 15: 11 fields, the header has 10" in message


def test_all_faults_are_named_in_one_message_and_nothing_is_left(posters, tmp_path):
    damage(posters)
    with pytest.raises(faults.PosterDataError) as error:
        conftest.build(posters, tmp_path / "data", "imdb")
    assert_all_are_named(str(error.value))
    assert not list((tmp_path / "data").rglob("*tfrecord*"))
    assert not list((tmp_path / "data").rglob("incomplete*"))


def test_of_many_faults_twenty_are_shown_and_all_counted(posters, tmp_path):
    for image in sorted((posters / "Images").iterdir())[:25]:
        image.write_bytes(b"")
    with pytest.raises(faults.PosterDataError) as error:
        conftest.build(posters, tmp_path / "data", "imdb")
    message = str(error.value)
    assert "25 faults in" in message
    assert "... and 5 more" in message
    assert message.count("the file is empty") == 20


def test_without_posters_the_message_tells_how_to_fetch_them(tmp_path):
    clone = "git clone https://github.com/laxmimerit/Movies-Poster_Dataset"
    with pytest.raises(faults.UserError, match=clone):
        conftest.build(None, tmp_path, "imdb")
    (tmp_path / "file").touch()
    with pytest.raises(faults.UserError, match=clone):
        conftest.build(tmp_path, tmp_path, "imdb")
    with pytest.raises(faults.UserError, match="nowhere does not exist or is empty"):
        conftest.build(tmp_path / "nowhere", tmp_path, "imdb")


def test_a_mistake_ends_tfds_build_in_words_and_any_other_error_with_its_traceback(monkeypatch):
    handler = user_errors._MistakeHandler()
    errors = []
    for text in ('{"name": "mine", ', "{"):
        with pytest.raises(json.JSONDecodeError) as error:
            json.loads(text)
        errors.append(error.value)
    monkeypatch.setattr(sys, "argv", ["tfds", '--config={"name": "mine", '])
    assert handler.wants(errors[0]) and handler.wants(faults.UserError("x"))
    assert user_errors._find_message(errors[0]).startswith(
        '--config: {"name": "mine",  is not JSON'
    )
    assert not handler.wants(errors[1])
    assert not handler.wants(IndexError())


def test_several_processes_can_hand_a_message_on():
    """One that cannot be pickled would have `tfds build` wait for ever."""
    fault = faults.Fault(3, "a", "broken")
    for error in (
        faults.PosterDataError("train.csv", [fault]),
        directory_lock.HeldError("at work"),
    ):
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error)
        assert str(copy) == str(error)
        assert vars(copy) == vars(error)


@pytest.mark.slow
def test_the_readmes_five_posters_are_built_and_trained_on(tmp_path):
    readme = (conftest.PROJECT / "poster_tfds/README.md").read_text()
    annotations = re.search(r"```\n(Id,Genre,Noir.*?)```", readme, re.DOTALL)[1]
    config = json.loads(re.search(r"--config='(\{\"name\": \"mine\", .*?\})'", readme)[1])
    (tmp_path / "mine" / "Images").mkdir(parents=True)
    (tmp_path / "mine" / "train.csv").write_text(annotations)
    for i, name in enumerate("abcde"):
        image = PIL.Image.new("RGB", (60, 90), (50 * i, 90, 120))
        image.save(tmp_path / "mine" / "Images" / f"{name}.jpg")
    conftest.build(tmp_path / "mine", tmp_path / "data", config)
    name = "poster_tfds/mine"
    for split, expected in (
        ("train", {"b": {"Noir", "Heist"}, "c": {"Heist"}, "e": {"Noir"}}),
        ("test", {"a": {"Noir"}, "d": set()}),
    ):
        found = {
            poster: set(genres) for poster, genres, _ in read_split(name, split, tmp_path / "data")
        }
        assert found == expected
    conftest.train(tmp_path / "data", tmp_path / "run", dataset=name, epochs=1, batch_size=3)
    facts = json.loads((tmp_path / "run" / "config.json").read_text())
    assert facts["genres"] == ["Noir", "Heist"]


def test_a_built_dataset_opens_while_another_process_is_at_work(posters, tmp_path):
    conftest.build(posters, tmp_path, "imdb")
    with directory_lock.hold(tmp_path / "poster_tfds" / "imdb") as held:
        assert held
        conftest.build(posters, tmp_path, "imdb")
        with pytest.raises(directory_lock.HeldError, match="Another process is at work"):
            conftest.build(
                posters, tmp_path, "imdb", download_mode=tfds.GenerateMode.REUSE_CACHE_IF_EXISTS
            )


def test_another_number_of_synthetic_posters_is_drawn_anew(tmp_path):
    for count in (3, 5, 5):
        synthetic.ensure_posters(tmp_path / "drawn", count)
        assert len(read_csv(tmp_path / "drawn" / "train.csv")) == count
        assert len(list((tmp_path / "drawn" / "Images").iterdir())) == count


@pytest.mark.slow
def test_the_commands_build_look_at_and_check_a_dataset_from_any_folder(posters, tmp_path):
    def run(module, *flags, check=True):
        command = (sys.executable, "-m", module, "--config=imdb", "--data_dir=data", *flags)
        project = str(conftest.PROJECT)
        result = conftest.run(*command, cwd=tmp_path, check=check, PYTHONPATH=project)
        assert "Traceback" not in result.stderr
        return result

    shutil.copytree(posters, tmp_path / "bad")
    damage(tmp_path / "bad")
    refused = conftest.tfds_build(
        *("--config=imdb", f"--manual_dir={tmp_path / 'bad'}", "--num_processes=2"),
        f"--data_dir={tmp_path / 'data'}",
        check=False,
    )
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
    assert_all_are_named(refused.stderr)

    folder = tmp_path / "data/poster_tfds/imdb/1.0.0"
    assert "8 genres from 0/1 columns" in run("poster_tfds.build", "--manual_dir=posters").stdout
    ours = conftest.build(posters, tmp_path / "ours", "imdb")
    assert sha256_of_files(folder) == sha256_of_files(ours.data_path)

    (posters / "Images").rename(posters / "gone")  # The dataset needs them no more.
    assert "Wrote data/pages/imdb/dataset.html" in run("poster_tfds").stdout
    assert len(list((tmp_path / "data/pages/imdb").glob("*.png"))) == 4
    assert verification.verify(tfds.builder("poster_tfds/imdb", data_dir=tmp_path / "data")) == []
    shard = min(folder.glob("*tfrecord*"))
    shard.unlink()
    wrong = run("poster_tfds.verify", check=False)
    assert wrong.returncode == 1
    assert f"poster_tfds/imdb/1.0.0: 1 problem\n  {shard.relative_to(tmp_path)}" in wrong.stderr
