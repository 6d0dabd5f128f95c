"""The dataset holds what the CSV and the JPEGs hold, or is not built."""

import ast
import collections
import csv
import hashlib
import json
import re
import sys

import PIL.Image
import pytest
import sklearn.model_selection
import tensorflow as tf
import tensorflow_datasets as tfds

import poster_tfds  # noqa: F401
from poster_tfds import directory_lock, faults, synthetic
from poster_tfds.built import numbers
from tests import conftest


def read_csv(path):
    """An independent reading: [(Id, [genre, ...]), ...] from the `Genre` column."""
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


def test_synthetic_splits_hold_every_row_and_every_byte(data_dir, synthetic_posters):
    assert_splits_are_the_reference("poster_tfds/synthetic", data_dir, synthetic_posters)


def test_genres_keep_the_order_of_the_columns(data_dir):
    info = tfds.builder("poster_tfds/synthetic", data_dir=data_dir).info
    assert info.features["genres"].feature.names == list(synthetic.GENRES)


def test_metadata_count_what_is_in_each_split(data_dir):
    folder = data_dir / "poster_tfds/synthetic/1.0.0"
    sums = sha256_of_files(folder)
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
        lines = (
            f"{sums[path.name]}  {path.name}  {length}\n"
            for path, length in zip(shards, records, strict=True)
        )
        digest = hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
        assert counts["sha256"] == digest


def test_builds_in_two_processes_give_byte_identical_files(data_dir, tmp_path):
    conftest.build(None, tmp_path, "synthetic")
    first, second = (
        sha256_of_files(directory / "poster_tfds/synthetic/1.0.0")
        for directory in (data_dir, tmp_path)
    )
    assert len(first) > 32
    assert first == second


def test_the_real_posters_give_the_reference_split(real_posters, tmp_path):
    conftest.tfds_build("--config=imdb", f"--manual_dir={real_posters}", f"--data_dir={tmp_path}")
    assert_splits_are_the_reference("poster_tfds/imdb", tmp_path, real_posters)
    info = tfds.builder("poster_tfds/imdb", data_dir=tmp_path).info
    assert {name: split.num_examples for name, split in info.splits.items()} == {
        "train": 6165,
        "test": 1089,
    }
    columns = read_csv(real_posters / "train.csv")[0][2]
    assert info.features["genres"].feature.names == columns[2:]
    assert info.splits["train"].num_shards >= 16
    assert info.splits["test"].num_shards >= 16


@pytest.fixture
def posters(tmp_path):
    """A fresh set of posters, to be damaged."""
    directory = tmp_path / "posters"
    synthetic.ensure_posters(directory, count=40, seed=1)
    return directory


def test_num_shards_is_obeyed(posters, tmp_path):
    builder = conftest.build(posters, tmp_path / "data", "imdb", num_shards=3)
    assert [split.num_shards for split in builder.info.splits.values()] == [3, 3]


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


def test_all_faults_are_named_in_one_message_and_nothing_is_left(posters, tmp_path):
    damage(posters)
    result = conftest.tfds_build(
        "--config=imdb", f"--manual_dir={posters}", f"--data_dir={tmp_path / 'data'}", check=False
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    message = result.stderr[result.stderr.index("6 faults in") :]
    for line, poster in ((5, 3), (7, 5), (9, 7), (11, 9), (13, 11)):
        assert f"line {line} (synthetic{poster:07d}): " in message
    assert "line 15: 11 fields, the header has 10" in message
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


def test_a_header_that_cannot_be_used_stops_the_build(posters, tmp_path):
    (posters / "train.csv").write_text("Id,Title\nsynthetic0000000,Alien\n")
    with pytest.raises(faults.UserError, match="there is no genre column"):
        conftest.build(posters, tmp_path / "data", "imdb")


def test_without_posters_the_message_tells_how_to_fetch_them(tmp_path):
    clone = "git clone https://github.com/laxmimerit/Movies-Poster_Dataset"
    with pytest.raises(faults.UserError, match=clone):
        conftest.build(None, tmp_path, "imdb")
    (tmp_path / "file").touch()
    with pytest.raises(faults.UserError, match=clone):
        conftest.build(tmp_path, tmp_path, "imdb")


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
    conftest.train(
        f"--dataset={name}", "--epochs=1", data_dir=tmp_path / "data", run_dir=tmp_path / "run"
    )
    facts = json.loads((tmp_path / "run" / "config.json").read_text())
    assert facts["genres"] == ["Noir", "Heist"]


def test_the_page_tells_what_the_dataset_holds(data_dir, tmp_path):
    result = conftest.run(
        sys.executable,
        *("-m", "poster_tfds", "--config=synthetic"),
        *(f"--data_dir={data_dir}", f"--output_dir={tmp_path}"),
    )
    rows = read_csv(data_dir / "downloads" / "poster_tfds_synthetic" / "train.csv")
    counts = collections.Counter(genre for _, genres, _ in rows for genre in genres)
    for genre, count in counts.items():
        assert re.search(rf"^{re.escape(genre)} +{count} ", result.stdout, re.MULTILINE)
    assert re.search(r"^train +510 ", result.stdout, re.MULTILINE)
    page = (tmp_path / "dataset.html").read_text()
    assert page.count("<figure>") == 24
    assert not re.search(r'(src|href)="(?!data:)', page)
    for name in ("genres", "labels_per_poster", "together", "sizes"):
        PIL.Image.open(tmp_path / f"{name}.png").verify()


def test_a_dataset_that_is_not_built_has_no_page(tmp_path):
    command = (sys.executable, "-m", "poster_tfds", "--config=mine", f"--data_dir={tmp_path}")
    result = conftest.run(*command, check=False)
    assert result.returncode == 1
    assert "poster_tfds/mine is not built in" in result.stderr
    assert "Traceback" not in result.stderr


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


def test_leaks_and_repeats_are_counted(posters, tmp_path):
    """The reference split of a CSV with each row twice has most posters in both splits."""
    path = posters / "train.csv"
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header, *lines, *lines]) + "\n")
    builder = conftest.build(posters, tmp_path, "imdb")
    found = numbers.collect(builder)
    train, test = (
        [poster for poster, _, _ in read_split("poster_tfds/imdb", split, tmp_path)]
        for split in ("train", "test")
    )
    shared = len(set(train) & set(test))
    assert shared > 0
    leaks = numbers.find_leaks(found)
    assert leaks.loc["train and test"].tolist() == [shared, shared]
    repeated = numbers.describe_splits(found)["repeated posters"]
    assert repeated["train"] == len(train) - len(set(train))
