"""Rows are what one pass through the records gives, in an order of (seed, epoch), anywhere."""

import dataclasses
import os
import resource
import shutil

import numpy as np
import pytest
import tensorflow as tf

from tests import conftest
from trainer import config, run_data
from trainer.data import order, pipeline, preprocessing, rows as rows_lib, splits
from trainer.models import registry

BATCH = 9
SPEC = pipeline.TrainSpec(
    32,
    BATCH,
    seed=3,
    augment=("flip", "crop", "color", "erase"),
    randaugment=5,
    mixup=0.2,
    cutmix=1,
)
PLAIN = pipeline.TrainSpec(32, BATCH, seed=3)


@pytest.fixture(scope="module")
def train(data_dir):
    return splits.open_split("poster_tfds/synthetic", str(data_dir), "train")


@pytest.fixture(scope="module")
def rows(train):
    return rows_lib.in_memory(rows_lib.decode(train, 32), train.num_examples)


def take(batches, count):
    return list(batches.take(count).as_numpy_iterator())


def assert_same(found, expected):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            np.testing.assert_array_equal(ours[name], value, err_msg=name)


def numbers_of(num_rows, batch_size, count, start_step=0, seed=0):
    steps = order.steps(num_rows, batch_size, seed, start_step)
    return [(int(step), numbers.tolist()) for step, numbers in take(steps, count)]


@pytest.mark.parametrize("largest", [1 << 24, 10])
def test_an_epoch_is_a_permutation_of_its_own_less_a_remainder_of_its_own(monkeypatch, largest):
    monkeypatch.setattr(order, "_LARGEST_TENSOR", largest)
    found = numbers_of(50, 8, 12)
    assert [step for step, _ in found] == list(range(12))
    first, second = (np.concatenate([n for _, n in found[i : i + 6]]).tolist() for i in (0, 6))
    assert len(set(first)) == len(set(second)) == 48
    assert set(first) | set(second) <= set(range(50))
    assert first != second and set(first) != set(second)
    # Far from each other: a poster's place in one epoch says nothing of that in the next.
    places = [np.argsort(epoch) / 48 for epoch in (first, second)]
    assert np.mean(abs(places[0] - places[1])) == pytest.approx(1 / 3, abs=0.12)
    assert numbers_of(50, 8, 12, seed=1) != found


@pytest.mark.parametrize("largest", [1 << 24, 10])
@pytest.mark.parametrize("start", [1, 5, 6, 17])
def test_going_on_at_a_step_gives_the_batches_from_there_on(monkeypatch, start, largest):
    monkeypatch.setattr(order, "_LARGEST_TENSOR", largest)
    assert numbers_of(50, 8, 4, start) == numbers_of(50, 8, start + 4)[start:]
    assert order.rows_of_step(50, 8, 0, start) == numbers_of(50, 8, 1, start)[0][1]


def test_rows_are_what_one_pass_through_the_records_gives(train, rows):
    examples = list(train.read().as_numpy_iterator())
    assert len(examples) == len(rows.genres) == conftest.NUM_TRAIN
    for i, example in enumerate(examples):
        expected = preprocessing.decode_and_resize(example["image"], 32)
        np.testing.assert_array_equal(rows.values[i], expected)
        np.testing.assert_array_equal(rows.genres[i], np.isin(np.arange(8), example["genres"]))
    assert train.read_ids() == [example["poster_id"].decode() for example in examples]
    found = take(rows_lib.train_batches(rows, PLAIN, start_step=2), 3)
    for step, batch in enumerate(found, start=2):
        numbers = order.rows_of_step(len(rows.genres), BATCH, PLAIN.seed, step)
        np.testing.assert_array_equal(batch["image"], rows.values[numbers])
        np.testing.assert_array_equal(batch["genres"], rows.genres[numbers])


def test_tensors_share_the_memory_of_the_rows(rows):
    shared = rows_lib.Rows(np.copy(rows.values), rows.genres)
    tensor = rows_lib.in_memory(iter([tuple(shared)]), len(rows.genres))
    tensors = tensor.tensors()
    tensor.values[5] = 7
    assert (tensors.values[5].numpy() == 7).all()


@pytest.fixture
def settings(data_dir, tmp_path):
    return config.Config(
        **{**conftest.SETTINGS, "data_dir": str(data_dir), "cache_dir": str(tmp_path / "cache")},
        augment="flip,crop",
        augment_on="device",
        mixup=0.2,
    )


def open_inputs(settings, start_step=0, **changes):
    settings = dataclasses.replace(settings, **changes)
    data = run_data.open_data(settings)
    model = registry.create_model(settings, 8, "float32")
    return run_data.open_inputs(settings, data, model, tf.distribute.get_strategy(), start_step)


def of_step(inputs, count):
    """Returns what the training step makes of its batches."""
    context = tf.distribute.InputContext()
    batches = inputs.train(context).take(count)
    return [{k: v.numpy() for k, v in inputs.augment(batch).items()} for batch in batches]


def test_all_caches_give_the_same_batches_also_from_a_step_on(settings, monkeypatch):
    expected = of_step(open_inputs(settings, cache="memory"), 8)
    for cache in ("disk", "device"):
        assert_same(of_step(open_inputs(settings, cache=cache), 8), expected)
    # The next run decodes nothing.
    monkeypatch.setattr(rows_lib, "decode", lambda *_: pytest.fail("a poster was decoded"))
    assert_same(of_step(open_inputs(settings, 5, cache="disk"), 3), expected[5:])
    with pytest.raises(pytest.fail.Exception):
        open_inputs(settings, cache="disk", image_size=40)


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("replicas_of_worker", [1, 2])
def test_workers_and_replicas_see_slices_of_the_batches_of_one(rows, workers, replicas_of_worker):
    spec = dataclasses.replace(SPEC, batch_size=16)
    expected = take(rows_lib.train_batches(rows, spec), 4)
    of_workers = []
    for worker in range(workers):
        context = tf.distribute.InputContext(workers, worker, workers * replicas_of_worker)
        batches = rows_lib.train_batches(rows, spec, context)
        of_workers.append(take(batches, 4 * replicas_of_worker))
    for step, batch in enumerate(expected):
        parts = [
            found[step * replicas_of_worker + replica]
            for found in of_workers
            for replica in range(replicas_of_worker)
        ]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in batch}
        assert_same([joined], [batch])


@pytest.mark.parametrize("workers", [1, 2])
def test_evaluation_counts_each_poster_once_and_masks_the_rest(rows, workers):
    num_steps = pipeline.num_eval_steps(conftest.NUM_TRAIN, 16)
    of_workers = [
        take(rows_lib.eval_batches(rows, 16, tf.distribute.InputContext(workers, w, workers)), 8)
        for w in range(workers)
    ]
    assert num_steps == 4
    joined = [np.concatenate([p["weight"] for p in parts]) for parts in zip(*of_workers)]  # noqa: B905
    assert np.concatenate(joined[:4]).tolist() == [1.0] * 54 + [0.0] * 10
    images = [np.concatenate([p["image"] for p in parts]) for parts in zip(*of_workers)]  # noqa: B905
    np.testing.assert_array_equal(np.concatenate(images[:4])[:54], rows.values)
    np.testing.assert_array_equal(images[4], images[0])  # The next pass.


def test_a_full_disk_is_an_error_and_leaves_nothing(train, tmp_path):
    about = rows_lib.describe(train, 32)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(config.UsageError, match=r"could not be written .* Make room"):
            rows_lib.on_disk(rows_lib.decode(train, 32), 54, tmp_path, about)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_a_stop_while_rows_are_filled_leaves_nothing(train, tmp_path):
    about = rows_lib.describe(train, 32)
    stopped = rows_lib.decode(train, 32, lambda: True)
    assert rows_lib.on_disk(stopped, 55, tmp_path, about) is None
    assert list(tmp_path.iterdir()) == []
    assert rows_lib.find(tmp_path, about) is None


def test_damaged_files_are_named_and_another_split_has_others(train, rows, tmp_path):
    about = rows_lib.describe(train, 32)
    kept = rows_lib.on_disk(iter([tuple(rows)]), 54, tmp_path, about)
    assert_same([rows_lib.find(tmp_path, about)._asdict()], [kept._asdict()])
    part = splits.Split(train.builder, "train[:50%]")
    assert rows_lib.find(tmp_path, rows_lib.describe(part, 32)) is None
    (folder,) = tmp_path.iterdir()
    content = (folder / "values.npy").read_bytes()
    (folder / "values.npy").write_bytes(content[:-100])
    with pytest.raises(config.UsageError, match=f"{folder} is damaged.*Remove it"):
        rows_lib.find(tmp_path, about)


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_features_are_rows_of_both_views_and_evaluated_as_posters_are(settings, rows, cache):
    head = {"model": "tiny_backbone", "freeze": "backbone", "augment": "flip", "mixup": 0.0}
    chosen = dataclasses.replace(settings, **head, cache=cache, augment_on="auto")
    data = run_data.open_data(chosen)
    model = registry.create_model(chosen, 8, "float32")
    inputs = run_data.open_inputs(chosen, data, model, tf.distribute.get_strategy())
    backbone = model.get_layer("backbone")
    views = [backbone(images).numpy() for images in (rows.values, rows.values[:, :, ::-1])]
    is_mirrored = []
    for step, batch in enumerate(take(inputs.train(tf.distribute.InputContext()), 12)):
        numbers = order.rows_of_step(54, BATCH, chosen.seed, step)
        np.testing.assert_array_equal(batch["genres"], rows.genres[numbers])
        errors = [abs(batch["image"] - view[numbers]).max(axis=1) for view in views]
        assert np.minimum(*errors).max() < 1e-5
        is_mirrored.append(errors[1] < errors[0])
    assert 0.3 < np.mean(is_mirrored) < 0.7
    assert (np.array(is_mirrored[:6]) != np.array(is_mirrored[6:])).any()
    test = splits.Split(data.train.builder, "test")
    posters = rows_lib.in_memory(rows_lib.decode(test, 32), 10)
    batch, *_ = take(inputs.evaluated["test"](tf.distribute.InputContext()), 1)
    np.testing.assert_allclose(batch["image"], backbone(posters.values)[:BATCH], atol=1e-5)


def test_auto_takes_the_first_place_with_room(settings, monkeypatch):
    def choose(memory, disk, device=0, **changes):
        monkeypatch.setattr(run_data.machine, "available_memory", lambda: memory)
        monkeypatch.setattr(run_data.machine, "free_disk", lambda path: disk)
        monkeypatch.setattr(run_data, "_free_on_device", lambda: device)
        return run_data.choose_cache(dataclasses.replace(settings, **changes), 100, 10)

    assert choose(2000, 0).name == "memory"
    assert choose(2000, 0, device=4000).name == "device"
    assert choose(1999, 2000).name == "disk"
    found = choose(1999, 1999)
    assert found.name == "none" and "no room in memory or on disk" in found.reason
    assert choose(0, 0, cache="disk") == ("disk", "as --cache=disk says")
    with pytest.raises(config.UsageError, match=r"--cache=memory: .* do not fit"):
        choose(999, 0, cache="memory")


def test_a_split_smaller_than_a_batch_is_refused(settings):
    with pytest.raises(config.UsageError, match="Give --batch_size=27 or less"):
        open_inputs(settings, batch_size=32, accumulate_steps=2)


@pytest.mark.parametrize("name", ["train", "train[10%:85%]", "train+test"])
def test_base_rates_are_the_genres_shares(train, name):
    part = splits.Split(train.builder, name)
    labels = part.read_labels()
    np.testing.assert_allclose(part.base_rates, labels.mean(axis=0))
    assert part.num_examples == len(labels)


def test_a_split_whose_genres_the_build_has_counted_is_not_read(train, tmp_path):
    shutil.copytree(train.builder.data_path, tmp_path / train.builder.info.full_name)
    copy = splits.open_split("poster_tfds/synthetic", str(tmp_path), "train")
    expected = copy.read_labels().sum(axis=0)
    for piece in copy.pieces():
        os.unlink(piece.path)
    np.testing.assert_array_equal(splits.Split(copy.builder, "train").genre_counts, expected)


def test_an_unknown_split_is_refused_by_name(train):
    said = r"no split 'dev'; it has (train, test|test, train)"
    with pytest.raises(config.UsageError, match=said):
        splits.Split(train.builder, "dev")
