"""Every poster once an epoch, its own pixels, its own genres, in a repeatable order."""

import io
import itertools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from poster_tfds import machine
from tests import conftest, test_preprocessing
from trainer import config, runtime
from trainer.data import caching, pipeline, splits

SIZE = 48
NUM_TRAIN, NUM_TEST, BATCH = 510, 90, 32
STEPS = 16
CACHES = ["decoded", "encoded", "none"]  # `disk` needs a file: see its own test.


@pytest.fixture(scope="module")
def split(data_dir):
    return splits.open_split("poster_tfds/synthetic", str(data_dir), "train")


@pytest.fixture(scope="module")
def evaluated(data_dir):
    return splits.open_split("poster_tfds/synthetic", str(data_dir), "test")


def train_batches(split, num_batches, **overrides):
    settings = {
        "image_size": SIZE,
        "batch_size": BATCH,
        "shuffle_buffer": NUM_TRAIN,
        **overrides,
    }
    dataset = pipeline.train_batches(pipeline.PipelineSpec(split, **settings))
    return list(itertools.islice(dataset.as_numpy_iterator(), num_batches))


def content(batches):
    """The examples of some batches as a sorted list of bytes."""
    return sorted(
        image.tobytes() + genres.tobytes()
        for batch in batches
        for image, genres in zip(batch["image"], batch["genres"], strict=True)
    )


@pytest.fixture(scope="module")
def expected_train(split):
    """All of the train split, decoded by Pillow and resized by the textbook."""
    examples = []
    names = split.genres
    for example in tfds.as_numpy(
        split.builder.as_dataset("train", decoders={"image": tfds.decode.SkipDecoding()})
    ):
        genres = np.zeros(len(names), np.float32)
        genres[example["genres"]] = 1
        examples.append((example["image"], genres))
    return examples


def test_a_poster_comes_with_its_own_pixels_and_genres(split, expected_train, synthetic_posters):
    batches = train_batches(split, STEPS)
    images = np.concatenate([batch["image"] for batch in batches])
    genres = np.concatenate([batch["genres"] for batch in batches])
    for jpeg, expected_genres in expected_train[:10]:
        with Image.open(io.BytesIO(jpeg)) as image:
            exact = test_preprocessing.bilinear(np.asarray(image), SIZE)
        distances = np.abs(images - exact).max(axis=(1, 2, 3))
        assert distances.min() <= 0.51
        np.testing.assert_array_equal(genres[distances.argmin()], expected_genres)


@pytest.mark.parametrize("cache", CACHES)
def test_each_epoch_has_every_poster_once_and_an_order_of_its_own(split, cache):
    batches = train_batches(split, 2 * STEPS, cache=cache)
    assert [len(b["image"]) for b in batches] == ([BATCH] * (STEPS - 1) + [NUM_TRAIN % BATCH]) * 2
    first, second = batches[:STEPS], batches[STEPS:]
    assert content(first) == content(second)
    assert len(set(content(first))) == NUM_TRAIN
    assert any(
        (a["image"] != b["image"]).any() for a, b in zip(first[:-1], second[:-1], strict=True)
    )


def test_the_order_depends_on_the_seed_alone(split):
    decoded, encoded, other = (
        train_batches(split, STEPS + 2, cache=cache, seed=seed)
        for cache, seed in (("decoded", 3), ("encoded", 3), ("encoded", 4))
    )
    for a, b in zip(decoded, encoded, strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, a, b)
    assert any((a["genres"] != b["genres"]).any() for a, b in zip(encoded[:9], other, strict=False))


@pytest.mark.parametrize("start_step", [5, STEPS, STEPS + 3])
def test_a_resumed_pipeline_goes_on_where_the_other_stopped(split, start_step):
    whole = train_batches(split, start_step + 4)
    resumed = train_batches(split, 4, start_step=start_step)
    for a, b in zip(whole[start_step:], resumed, strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, a, b)


def test_a_global_seed_is_no_hindrance_and_gives_one_order(split):
    """`shuffle` does not take a tensor as seed beside every global seed."""
    batches = []
    for _ in range(2):
        tf.random.set_seed(1)
        batches += train_batches(split, 1)
    tf.nest.map_structure(np.testing.assert_array_equal, *batches)


@pytest.mark.parametrize("cache", ["encoded", "none"])
def test_an_evaluation_pass_counts_each_poster_once(evaluated, cache):
    spec = pipeline.PipelineSpec(evaluated, SIZE, BATCH, cache=cache)
    dataset = pipeline.eval_batches(spec)
    assert dataset.element_spec["image"].shape == (BATCH, SIZE, SIZE, 3)
    passes = list(itertools.islice(dataset.as_numpy_iterator(), 6))
    for batches in (passes[:3], passes[3:]):
        weight = np.concatenate([batch["weight"] for batch in batches])
        np.testing.assert_array_equal(weight, [1] * NUM_TEST + [0] * (3 * BATCH - NUM_TEST))
    for a, b in zip(passes[:3], passes[3:], strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def one_shard(tmp_path_factory):
    """A dataset of 40 posters in one shard a split."""
    settings = {"name": "one_shard", "num_synthetic": 40, "validation_fraction": 0}
    directory = tmp_path_factory.mktemp("one_shard")
    builder = conftest.build(directory, directory, settings, num_shards=1)
    assert {split.num_shards for split in builder.info.splits.values()} == {1}
    return builder


def joined(workers, step, replicas):
    """A global batch, of the parts that each worker's replicas are given one after the other."""
    parts = [batch for worker in workers for batch in worker[step * replicas :][:replicas]]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.mark.parametrize(("workers", "replicas"), [(3, 1), (2, 2), (1, 4)])
def test_workers_together_see_what_one_device_would(one_shard, workers, replicas):
    """From one shard; of an epoch's last batch one replica has few posters, others none."""
    specs = {
        pipeline.train_batches: ("train", {"cache": "decoded", "shuffle_buffer": 40}),
        pipeline.eval_batches: ("test", {"cache": "encoded"}),
    }
    for create, (name, settings) in specs.items():
        spec = pipeline.PipelineSpec(splits.Split(one_shard, name), SIZE, 24, **settings)

        def batches(count, create=create, spec=spec, **context):
            dataset = create(spec, **context)
            return list(itertools.islice(dataset.as_numpy_iterator(), count))

        steps = 2 * spec.batching.steps_per_epoch
        contexts = [
            tf.distribute.InputContext(workers, index, workers * replicas)
            for index in range(workers)
        ]
        parts = [batches(steps * replicas, context=context) for context in contexts]
        sizes = {len(part["genres"]) for worker in parts for part in worker}
        assert (0 in sizes) == (name == "train")  # Evaluation fills up.
        for step, expected in enumerate(batches(steps)):
            found = joined(parts, step, replicas)
            if workers == 2 and name == "train":  # Each reads lanes of its own.
                assert content([found]) == content([expected])
            else:
                tf.nest.map_structure(np.testing.assert_array_equal, found, expected)


def test_base_rates_are_the_genres_shares(split, expected_train):
    expected = np.mean([genres for _, genres in expected_train], axis=0)
    np.testing.assert_allclose(split.base_rates, expected)


def test_decoded_posters_on_disk_are_read_again_from_there(split, tmp_path):
    file = tmp_path / "posters"
    batches = train_batches(split, 2 * STEPS, cache="disk", cache_file=str(file))
    kept = sum(part.stat().st_size for part in tmp_path.iterdir())
    assert kept > NUM_TRAIN * SIZE * SIZE * 3
    for expected, batch in zip(train_batches(split, 2 * STEPS), batches, strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, expected, batch)


def test_cache_auto_takes_what_fits_in_half_of_the_free_memory_and_says_so(split, monkeypatch):
    decoded = NUM_TRAIN * SIZE * SIZE * 3
    encoded = split.builder.info.splits["train"].num_bytes
    assert encoded < decoded

    def choose(name, free):
        monkeypatch.setattr(caching.machine, "available_memory", lambda: free)
        return caching.choose_cache(name, split, SIZE)

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
    ("num_cores", "num_gpus", "expected"),
    [(2, 0, 16), (8, 0, 64), (8, 1, 56), (8, 4, 32), (2, 4, 8)],
)
def test_the_threads_of_a_pipeline_leave_a_core_for_each_gpu(num_cores, num_gpus, expected):
    assert runtime.num_pipeline_threads(num_cores, num_gpus) == expected
    assert runtime.num_pipeline_threads() == 8 * machine.num_cores()


@pytest.mark.parametrize("threads", [1, 5])
def test_parallelism_changes_nothing(split, threads, monkeypatch):
    augmented = {"augment": config.AUGMENTATIONS, "cache": "encoded"}
    expected = train_batches(split, 3, **augmented)
    monkeypatch.setattr(runtime, "num_pipeline_threads", lambda: threads)
    for a, b in zip(expected, train_batches(split, 3, **augmented), strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, a, b)


def test_an_unknown_split_is_refused_by_name(split):
    with pytest.raises(
        config.UsageError, match=r"no split 'dev'; it has (train, test|test, train)"
    ):
        splits.Split(split.builder, "dev")
