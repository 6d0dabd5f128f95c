"""Every poster with its own pixels and genres, in one order whatever is kept and whoever reads."""

import io
import itertools
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from poster_tfds import machine
from tests import conftest, test_preprocessing
from trainer import config, runtime
from trainer.data import batching, caching, order, pipeline, run_data, splits

SIZE, BATCH, STEPS = 32, 16, 3  # Of 54 posters an epoch leaves 6 out.
NUM_TRAIN, NUM_TEST = conftest.NUM_TRAIN, conftest.NUM_TEST


@pytest.fixture(scope="module")
def split(data_dir):
    return splits.open_split("poster_tfds/synthetic", str(data_dir), "train")


@pytest.fixture(scope="module")
def evaluated(split):
    return splits.Split(split.builder, "test")


@pytest.fixture
def copy(split, tmp_path):
    """The split in a copy of the dataset, whose shards can be taken away."""
    shutil.copytree(split.builder.data_path, tmp_path / split.builder.info.full_name)
    return splits.open_split("poster_tfds/synthetic", str(tmp_path), "train")


def make_spec(split, **settings):
    return pipeline.PipelineSpec(
        split, SIZE, **{"batch_size": BATCH, "shuffle_buffer": 24, "seed": 3, **settings}
    )


def take(dataset, count):
    return list(itertools.islice(dataset.as_numpy_iterator(), count))


def assert_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, ours, theirs)


def content(*batches):
    """The examples of batches, in an order of their own."""
    return sorted(
        image.tobytes() + genres.tobytes()
        for batch in batches
        for image, genres in zip(batch["image"], batch["genres"], strict=True)
    )


@pytest.fixture(scope="module")
def whole(split):
    """Four epochs, read anew each time."""
    return take(pipeline.train_batches(make_spec(split)), 4 * STEPS)


def test_each_epoch_leaves_other_posters_out_and_has_an_order_of_its_own(whole):
    assert {len(batch["image"]) for batch in whole} == {BATCH}
    epochs = [content(*whole[i : i + STEPS]) for i in range(0, len(whole), STEPS)]
    for epoch in epochs:
        assert len(set(epoch)) == STEPS * BATCH
    assert len({*epochs[0], *epochs[1], *epochs[2], *epochs[3]}) == NUM_TRAIN
    assert all(a != b for a, b in itertools.pairwise(epochs))
    assert content(whole[0]) != content(whole[STEPS])


def test_a_poster_comes_with_its_own_pixels_and_genres(split, whole):
    """As decoded by Pillow and resized by the textbook."""
    images, genres = (np.concatenate([batch[k] for batch in whole]) for k in ("image", "genres"))
    decoders = {"image": tfds.decode.SkipDecoding()}
    for example in tfds.as_numpy(split.builder.as_dataset("train[:8]", decoders=decoders)):
        with Image.open(io.BytesIO(example["image"])) as image:
            exact = test_preprocessing.bilinear(np.asarray(image), SIZE)
        distances = np.abs(images - exact).max(axis=(1, 2, 3))
        assert distances.min() <= 0.51
        expected = np.isin(np.arange(len(split.genres)), example["genres"])
        np.testing.assert_array_equal(genres[distances.argmin()], expected)


@pytest.mark.parametrize("cache", ["encoded", "decoded", "disk"])
def test_what_is_kept_is_not_read_again_and_gives_the_same_batches(copy, whole, cache, tmp_path):
    file = str(tmp_path / "posters") if cache == "disk" else ""
    batches = pipeline.train_batches(make_spec(copy, cache=cache, cache_file=file))
    batches = batches.as_numpy_iterator()
    found = list(itertools.islice(batches, STEPS + 1))  # And a look at the next.
    for shard in {piece.path for piece in copy.pieces(0, copy.num_examples)}:
        os.unlink(shard)
    found += itertools.islice(batches, 3 * STEPS - 1)
    assert_same(found, whole)


@pytest.mark.parametrize("start_step", [2, STEPS, STEPS + 1])
def test_a_resumed_pipeline_goes_on_where_the_other_stopped(split, whole, start_step):
    spec = make_spec(split, start_step=start_step)
    assert_same(take(pipeline.train_batches(spec), 4), whole[start_step : start_step + 4])


def test_another_seed_gives_another_order(split, whole):
    (other,) = take(pipeline.train_batches(make_spec(split, seed=4)), 1)
    assert content(other) != content(whole[0])


@pytest.mark.parametrize("name", ["train[13%:71%]", "test+train[:40]", "train[:9]"])
def test_every_poster_of_a_part_is_in_the_order_once_and_moves(split, name):
    part = splits.Split(split.builder, name)
    expected = [example["poster_id"] for example in part.read().as_numpy_iterator()]
    in_order = order.in_order(order.lanes(part), batching.Batching(len(expected), 8))
    records = tf.data.Dataset.range(2).flat_map(in_order).map(part.parse)
    ids = [example["poster_id"] for example in records.as_numpy_iterator()]
    epochs = ids[: len(expected)], ids[len(expected) :]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(expected)
    assert len(expected) < 10 or epochs[0] != epochs[1]


def parts_of(create, spec, workers, replicas, steps):
    """What each worker's replicas are given one after the other, joined for each step."""
    contexts = [tf.distribute.InputContext(workers, i, workers * replicas) for i in range(workers)]
    given = [take(create(spec, context), steps * replicas) for context in contexts]
    for step in range(steps):
        parts = [part for worker in given for part in worker[step * replicas :][:replicas]]
        assert len({len(part["genres"]) for part in parts}) == 1
        yield {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.mark.parametrize(("workers", "replicas", "batch_size"), [(3, 1, 24), (2, 2, 16)])
def test_workers_together_see_what_one_device_would(
    split, evaluated, workers, replicas, batch_size
):
    for create, name, cache in (
        (pipeline.train_batches, split, "decoded"),
        (pipeline.eval_batches, evaluated, "encoded"),
    ):
        spec = make_spec(name, batch_size=batch_size, cache=cache)
        expected = take(create(spec), 3)
        found = parts_of(create, spec, workers, replicas, 3)
        if workers == 2 and name is split:  # Each reads lanes of its own.
            assert [content(batch) for batch in found] == [content(batch) for batch in expected]
        else:
            assert_same(found, expected)


def test_a_worker_reads_no_shard_of_anothers(split, copy):
    shards = [{os.path.basename(piece.path) for piece in split.pieces(*r)} for r in HALVES]
    assert not shards[0] & shards[1]
    for shard in shards[1]:
        os.unlink(copy.builder.data_path / shard)
    first = tf.distribute.InputContext(2, 0, 2)
    batches = take(pipeline.train_batches(make_spec(copy), first), 2 * STEPS)
    assert {len(batch["image"]) for batch in batches} == {BATCH // 2}


HALVES = (0, NUM_TRAIN // 2), (NUM_TRAIN // 2, NUM_TRAIN)


@pytest.mark.parametrize("cache", ["encoded", "none"])
def test_an_evaluation_pass_counts_each_poster_once(evaluated, cache):
    dataset = pipeline.eval_batches(make_spec(evaluated, batch_size=4, cache=cache))
    assert dataset.element_spec["image"].shape == (4, SIZE, SIZE, 3)
    passes = take(dataset, 6)
    weight = np.concatenate([batch["weight"] for batch in passes[:3]])
    np.testing.assert_array_equal(weight, [1] * NUM_TEST + [0] * 2)
    assert len(set(content(*passes[:3]))) == NUM_TEST + 1
    assert_same(passes[:3], passes[3:])


@pytest.mark.parametrize("name", ["train", "train[10%:85%]", "train+test"])
def test_base_rates_are_the_genres_shares(split, name):
    """Those of a whole split without reading it."""
    part = splits.Split(split.builder, name)
    expected = part.read_labels().mean(axis=0)
    np.testing.assert_allclose(part.base_rates, expected)
    assert part.num_examples == len(part.read_labels())


def test_a_split_whose_genres_the_build_has_counted_is_not_read(copy):
    expected = copy.read_labels().sum(axis=0)
    for piece in copy.pieces(0, copy.num_examples):
        os.unlink(piece.path)
    np.testing.assert_array_equal(splits.Split(copy.builder, "train").genre_counts, expected)


def test_a_batch_that_a_split_does_not_fill_is_refused_with_the_largest_that_it_does(data_dir):
    settings = {"dataset": "poster_tfds/synthetic", "data_dir": str(data_dir)}
    with pytest.raises(
        config.UsageError, match=r"--batch_size=64: train has 54 .* --batch_size=54 or less"
    ):
        run_data.open_data(config.Config(**settings, batch_size=64))
    with pytest.raises(
        config.UsageError, match=r"--accumulate_steps=4: train has 54 posters, fewer than the 56 "
    ):
        run_data.open_data(config.Config(**settings, batch_size=14, accumulate_steps=4))
    full = config.Config(**settings, batch_size=13, accumulate_steps=4)
    assert run_data.open_data(full).steps_per_epoch == 1


def test_cache_auto_takes_what_fits_in_half_of_the_free_memory_and_says_so(split, monkeypatch):
    encoded, size = split.num_bytes, 64
    decoded = NUM_TRAIN * size * size * 3
    assert encoded < decoded

    def choose(name, free):
        monkeypatch.setattr(caching.machine, "available_memory", lambda: free)
        return caching.choose_cache(name, split, size)

    assert choose("auto", 2 * decoded).name == "decoded"
    assert choose("auto", 2 * decoded - 2).name == "encoded"
    assert choose("auto", 2 * encoded).name == "encoded"
    assert choose("auto", 2 * encoded - 2).name == "none"
    # What is asked for by name may take all, but no more than there is.
    assert choose("decoded", decoded) == ("decoded", "as --cache=decoded says")
    assert choose("decoded", decoded - 1).name == "encoded"
    assert choose("decoded", decoded - 1).reason.startswith("WARNING, not --cache=decoded: ")
    assert choose("encoded", encoded - 1).name == "none"
    assert choose("disk", 0).name == "disk"
    assert choose("auto", 10**10).reason == (
        "0.00 GB of decoded posters fit in half of the 10.0 GB of free memory"
    )
    assert "--cache=disk" in choose("auto", 0).reason


@pytest.mark.parametrize(
    ("num_cores", "num_gpus", "expected"), [(2, 0, 16), (8, 1, 56), (8, 4, 32), (2, 4, 8)]
)
def test_the_threads_of_a_pipeline_leave_a_core_for_each_gpu(num_cores, num_gpus, expected):
    assert runtime.num_pipeline_threads(num_cores, num_gpus) == expected
    assert runtime.num_pipeline_threads() == 8 * machine.num_cores()


def test_an_unknown_split_is_refused_by_name(split):
    with pytest.raises(
        config.UsageError, match=r"no split 'dev'; it has (train, test|test, train)"
    ):
        splits.Split(split.builder, "dev")
