"""How far posters move from epoch to epoch, in one order whatever is kept and whoever reads."""

import itertools
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

from tests import conftest
from trainer.data import batching, order, pipeline, splits

SIZE, NUM_POSTERS, NUM_SHARDS, BATCH = 16, 500, 48, 32


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    """A dataset whose train split has 425 posters in 48 shards, six for each lane."""
    directory = tmp_path_factory.mktemp("many_shards")
    settings = {"name": "many_shards", "num_synthetic": NUM_POSTERS, "split": "reference"}
    return conftest.build(directory, directory, settings, num_shards=NUM_SHARDS)


@pytest.fixture(scope="module")
def split(builder):
    return splits.Split(builder, "train")


@pytest.fixture(scope="module")
def synthetic_split(data_dir):
    """Of 16 shards, as are all splits of less than 2 GB."""
    return splits.open_split("poster_tfds/synthetic", str(data_dir), "train")


def epochs(split, count, **settings):
    """The Ids of the posters of the first epochs, each in its order."""
    settings = batching.Batching(split.num_examples, BATCH, **settings)
    in_order = order.in_order(order.lanes(split), settings)
    records = tf.data.Dataset.range(count).flat_map(in_order).map(split.parse)
    ids = [example["poster_id"] for example in records.as_numpy_iterator()]
    assert len(ids) == count * split.num_examples
    return [list(epoch) for epoch in np.split(np.array(ids), count)]


def places(ids, of):
    """For each poster of `of`, its place among `ids` from 0 to 1."""
    found = {poster_id: place for place, poster_id in enumerate(ids)}
    return np.array([found[poster_id] for poster_id in of]) / len(ids)


@pytest.fixture(params=[16, 4])
def sections(request, monkeypatch):
    """Of a lane, at most: of six shards each is one, or of four some have two."""
    monkeypatch.setattr(order, "_SECTIONS", request.param)


@pytest.mark.parametrize("name", ["train", "train[13%:71%]", "test+train[:40]", "train[:9]"])
@pytest.mark.parametrize("shuffle_buffer", [1, 100])
def test_every_poster_comes_once_an_epoch(builder, sections, name, shuffle_buffer):
    split = splits.Split(builder, name)
    expected = sorted(example["poster_id"] for example in split.read().as_numpy_iterator())
    for epoch in epochs(split, 2, shuffle_buffer=shuffle_buffer):
        assert sorted(epoch) == expected


def mean_move(split, **settings):
    """How far posters move from epoch to epoch, as a share of it."""
    return np.mean(
        [
            np.abs(places(after, before) - places(before, before)).mean()
            for before, after in itertools.pairwise(epochs(split, 6, **settings))
        ]
    )


def test_where_a_lane_has_two_shards_posters_move_too(synthetic_split):
    """In half of the epochs the two change places, by half of the epoch."""
    assert 0.17 < mean_move(synthetic_split) < 0.33


def test_posters_move_through_all_of_the_epoch_whatever_the_buffer(split, sections):
    """Two independent random orders differ by a third of the epoch on average."""
    assert 0.28 < mean_move(split, seed=5) < 0.38
    # A shard's posters are apart too: its first two are never neighbours.
    shard = split.pieces(0, 8)[0]
    first, second = [
        example["poster_id"] for example in split.read(in_parts=True).take(2).as_numpy_iterator()
    ]
    assert shard.take >= 6
    for epoch in epochs(split, 6, seed=5):
        assert abs(epoch.index(first) - epoch.index(second)) > 1


def test_lanes_do_not_move_alike(split):
    """Were their shards permuted alike, the lanes' n-th posters would always be neighbours."""
    numbers = {poster_id: number for number, poster_id in enumerate(in_split_order(split))}
    turns = [[numbers[i] for i in epoch[:8]] for epoch in epochs(split, 2)]
    within_lane = np.mod(turns, split.num_examples / 8)
    assert (np.ptp(within_lane, axis=1) > 10).all()


def in_split_order(split):
    lanes = order.lanes(split)
    pieces = itertools.chain(*(section for lane in lanes for section in lane.sections))
    records = tf.data.TFRecordDataset([piece.path for piece in pieces])
    return [example["poster_id"] for example in records.map(split.parse).as_numpy_iterator()]


def test_the_order_is_one_whatever_is_kept(builder, sections, tmp_path):
    split = splits.Split(builder, "train[13%:71%]")
    steps = -(-split.num_examples // BATCH)
    passes = {}
    for cache in ("none", "encoded", "decoded", "disk"):
        spec = pipeline.PipelineSpec(
            split,
            SIZE,
            BATCH,
            seed=2,
            shuffle_buffer=50,
            cache=cache,
            cache_file=str(tmp_path / "posters") if cache == "disk" else "",
        )
        batches = pipeline.train_batches(spec).as_numpy_iterator()
        passes[cache] = list(itertools.islice(batches, 2 * steps))
    for cache in ("encoded", "decoded", "disk"):
        for expected, found in zip(passes["none"], passes[cache], strict=True):
            tf.nest.map_structure(np.testing.assert_array_equal, expected, found)


@pytest.fixture
def copy(builder, tmp_path):
    """A copy of the dataset, whose shards can be taken away."""
    shutil.copytree(builder.data_path, tmp_path / builder.info.full_name)
    return splits.open_split("poster_tfds/many_shards", str(tmp_path), "train")


@pytest.mark.parametrize(
    ("cache", "shuffle_buffer"), [("encoded", 1), ("decoded", 50), ("disk", 1)]
)
def test_what_is_kept_is_not_read_again(copy, sections, cache, shuffle_buffer, tmp_path):
    kept = {"cache": cache, "cache_file": str(tmp_path / "posters") if cache == "disk" else ""}
    spec = pipeline.PipelineSpec(copy, SIZE, BATCH, shuffle_buffer=shuffle_buffer, **kept)
    batches = pipeline.train_batches(spec).as_numpy_iterator()
    steps = spec.batching.steps_per_epoch
    first = list(itertools.islice(batches, steps + 1))  # And a look at the next.
    for shard in {piece.path for piece in copy.pieces(0, copy.num_examples)}:
        os.unlink(shard)
    rest = [next(batches) for _ in range(2 * steps - 1)]
    assert sum(len(batch["image"]) for batch in first + rest) == 3 * copy.num_examples


@pytest.mark.parametrize("cache", ["none", "decoded"])
def test_workers_read_their_own_shards_and_see_what_one_device_would(split, copy, cache):
    """Each of two workers has none of the other's shards: of an epoch's last batch, too."""
    workers = 2
    steps = 2 * -(-split.num_examples // BATCH)

    def batches(split, count, context=batching.WHOLE):
        spec = pipeline.PipelineSpec(split, SIZE, BATCH, shuffle_buffer=50, cache=cache)
        found = pipeline.train_batches(spec, context).as_numpy_iterator()
        return list(itertools.islice(found, count))

    of_worker = []
    ends = [0, round(split.num_examples / workers), split.num_examples]
    names = [
        {os.path.basename(piece.path) for piece in split.pieces(start, end)}
        for start, end in itertools.pairwise(ends)
    ]
    assert not names[0] & names[1]
    folder = copy.builder.data_path
    for index in range(workers):
        for name in names[1 - index]:
            (folder / name).rename(folder / f"{name}.away")
        context = tf.distribute.InputContext(workers, index, workers)
        of_worker.append(batches(copy, steps, context))
        for name in names[1 - index]:
            (folder / f"{name}.away").rename(folder / name)
    for expected, *parts in zip(batches(split, steps), *of_worker, strict=True):
        assert all(len(part["image"]) <= BATCH // workers for part in parts)
        assert content(expected) == content(*parts)


def content(*parts):
    """The examples of a batch, in an order of their own."""
    return sorted(
        image.tobytes() + genres.tobytes()
        for part in parts
        for image, genres in zip(part["image"], part["genres"], strict=True)
    )
