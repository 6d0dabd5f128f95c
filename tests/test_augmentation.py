"""Each augmentation is what it says, and depends on (seed, step) alone."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import conftest, test_preprocessing, with_tiny_model
from trainer import config, run_data, steps
from trainer.data import augmentation, pipeline, rows as rows_lib, splits

SIZE = 32


def poster(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)


def draw(count, seed=0, step=3):
    return augmentation.draw(SIZE, tf.constant([seed, step], tf.int64), count)


def variants(changes, count=40, image=None, **seeds):
    image = tf.constant(poster() if image is None else image)
    augment = tf.function(lambda draws: augmentation.augment(image, changes, draws))
    return [augment(draws).numpy() for draws in draw(count, **seeds)]


def test_nothing_chosen_changes_nothing():
    for variant in variants((), count=3):
        np.testing.assert_array_equal(variant, poster())


def test_flip_mirrors_about_half():
    mirrored = [np.array_equal(variant, poster()[:, ::-1]) for variant in variants(("flip",))]
    same = [np.array_equal(variant, poster()) for variant in variants(("flip",))]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 10 <= sum(mirrored) <= 30


def test_crop_is_a_part_of_the_poster_resized():
    """On a ramp of columns and rows the corners say what was cut out."""
    ramp = np.stack(np.broadcast_arrays(*np.ogrid[0:SIZE, 0:SIZE], 0), axis=-1).astype(np.uint8)
    areas = []
    for variant in variants(("crop",), image=ramp):
        top, left = variant[0, 0, :2].astype(int)
        bottom, right = variant[-1, -1, :2].astype(int)
        cut = ramp[top : bottom + 1, left : right + 1]
        expected = test_preprocessing.bilinear(cut, SIZE)
        assert np.abs(variant - expected).max() <= 0.51
        areas.append(cut.shape[0] * cut.shape[1] / SIZE**2)
    assert 0.55 < min(areas) < 0.75
    assert 0.85 < max(areas) <= 1


def test_color_scales_saturation_contrast_and_brightness():
    """The factors are found again by least squares from the definition."""
    # Far from black and white, so that nothing is clipped.
    image = np.random.default_rng(0).integers(80, 160, (SIZE, SIZE, 3)).astype(np.uint8)
    luma = image.astype(float) @ [0.299, 0.587, 0.114]
    found = []
    for variant in variants(("color",), image=image):
        # brightness * (mean + contrast * (luma + saturation * (image - luma) - mean))
        basis = np.stack(
            [
                (image - luma[..., None]).ravel(),
                np.repeat(luma - luma[::8, ::8].mean(), 3),
                np.full(image.size, luma[::8, ::8].mean()),
            ],
            axis=1,
        )
        solution, *_ = np.linalg.lstsq(basis, variant.ravel().astype(float), rcond=None)
        assert np.abs(basis @ solution - variant.ravel()).max() <= 0.75
        by_both, by_contrast, brightness = solution
        found.append((by_both / by_contrast, by_contrast / brightness, brightness))
    for factor in np.transpose(found):
        assert 0.7 < factor.min() < 0.85
        assert 1.15 < factor.max() < 1.3


def test_erase_greys_a_rectangle_of_about_half():
    shares = []
    for variant in variants(("erase",)):
        changed = (variant != poster()).any(axis=-1)
        assert (variant[changed] == 128).all()
        if changed.any():
            rows, columns = changed.any(axis=1), changed.any(axis=0)
            # Noise that happens to be grey already may be missing from it.
            assert changed.sum() >= rows.sum() * columns.sum() * 0.97
            shares.append(changed.mean())
    assert 10 <= len(shares) <= 30
    assert 0.01 < min(shares) < 0.08
    assert 0.1 < max(shares) < 0.25


def test_seed_and_step_each_count():
    changes = config.AUGMENTATIONS
    first, again = variants(changes, 2), variants(changes, 2)
    np.testing.assert_array_equal(first, again)
    others = [variants(changes, 1, seed=1)[0], variants(changes, 1, step=4)[0], first[1]]
    for a, b in itertools.combinations([first[0], *others], 2):
        assert (a != b).any()


def test_choosing_one_more_change_leaves_the_others():
    for flipped, both in zip(variants(("flip",)), variants(("flip", "erase")), strict=True):
        kept = (both != 128).any(axis=-1)
        np.testing.assert_array_equal(flipped[kept], both[kept])


@pytest.fixture(scope="module")
def split(data_dir):
    return splits.open_split("poster_tfds/synthetic", str(data_dir), "train")


@pytest.mark.parametrize(
    "changes", [*((name,) for name in config.AUGMENTATIONS), config.AUGMENTATIONS]
)
def test_a_batch_is_changed_as_its_posters_are_one_by_one(changes):
    """To a level, since both round; and all change something."""
    posters = np.stack([poster(seed) for seed in range(60)])
    draws = draw(60)
    expected = [
        augmentation.augment(tf.constant(image), changes, of_poster)
        for image, of_poster in zip(posters, draws, strict=True)
    ]
    found = tf.function(augmentation.augment_batch)(changes, tf.constant(posters), draws)
    assert found.dtype == tf.uint8
    assert np.abs(found.numpy().astype(int) - np.stack(expected)).max() <= 1
    assert (found.numpy() != posters).any(axis=(1, 2, 3)).mean() > 0.3
    compiled = tf.function(augmentation.augment_batch, jit_compile=True)
    by_xla = compiled(changes, tf.constant(posters), draws).numpy()
    assert np.abs(by_xla.astype(int) - np.stack(expected)).max() <= 1


def batches(split, count, start_step=0, **settings):
    """The first batches of a training, four an epoch."""
    spec = pipeline.TrainSpec(SIZE, 13, seed=5, **settings)
    rows = rows_lib.in_memory(rows_lib.decode(split, SIZE), split.num_examples)
    dataset = rows_lib.train_batches(rows, spec, start_step=start_step)
    return spec, list(dataset.take(count).as_numpy_iterator())


def test_what_is_left_to_the_device_is_what_the_pipeline_would_have_made(split):
    _, on_cpu = batches(split, 8, augment=config.AUGMENTATIONS)
    spec, on_device = batches(split, 8, augment=config.AUGMENTATIONS, augment_on_device=True)
    images = {image.tobytes() for batch in on_cpu for image in batch["image"]}
    assert len(images) == 8 * 13  # Drawn anew in each epoch.
    for expected, batch in zip(on_cpu, on_device, strict=True):
        np.testing.assert_array_equal(batch["genres"], expected["genres"])
        changed = spec.augment_batch(batch)["image"].numpy()
        assert np.abs(changed.astype(int) - expected["image"]).max() <= 1


def test_a_step_trains_on_what_it_makes_of_a_batch_and_a_resumed_run_on_the_same(split):
    """The step's result, not the batch that it is given, is what the weights follow from."""
    changes = {"augment": ("erase",), "augment_on_device": True}
    changes |= {"randaugment": 5, "mixup": 0.2, "cutmix": 1.0}
    spec, drawn = batches(split, 6, **changes)
    assert drawn[0].keys() == {"image", "genres", "draws", "strengths", "mixing"}
    _, resumed = batches(split, 1, start_step=5, **changes)
    tf.nest.map_structure(np.testing.assert_array_equal, resumed, drawn[5:])
    changed = {name: value.numpy() for name, value in spec.augment_batch(drawn[5]).items()}
    assert np.mean((changed["genres"] > 0) & (changed["genres"] < 1)) > 0.1
    found = []
    for batch, augment in ((drawn[5], spec.augment_batch), (changed, None), (drawn[5], None)):
        keras.utils.set_random_seed(1)
        model = with_tiny_model.smooth_cnn(config.Config(image_size=SIZE), 8, "float32")
        optimizer = keras.optimizers.SGD(1.0)
        optimizer.build(model.trainable_variables)
        step = steps.make_train_step(
            model, optimizer, tf.distribute.get_strategy(), augment=augment
        )
        step(iter(tf.data.Dataset.from_tensors(batch)))
        found.append(np.concatenate([w.ravel() for w in model.get_weights()]))
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    assert np.abs(found[0] - found[2]).max() > 1e-3


@pytest.mark.parametrize(
    ("settings", "on_device"),
    [
        ({"augment_on": "device"}, True),
        ({"augment_on": "cpu"}, False),
        ({}, False),  # Without a GPU.
        ({"augment_on": "cpu", "cache": "device"}, True),  # Where the posters are.
    ],
)
def test_the_settings_say_where_posters_are_changed(settings, on_device):
    chosen = config.Config(augment="flip", **settings)
    spec = run_data.make_spec(chosen, run_data.Cache(chosen.cache, ""))
    assert spec.augment_on_device == on_device


def test_a_run_changes_its_posters_wherever_it_is_told_to(data_dir, tmp_path):
    """The first step's loss, of the same weights, says what was trained on."""
    found = []
    settings = {"augment": ",".join(config.AUGMENTATIONS)}
    for name in ("cpu", "device"):
        settings["augment_on"] = name
        conftest.train(data_dir, tmp_path / name, max_steps=1, test_split="", dropout=0, **settings)
        (record,) = conftest.read_metrics(tmp_path / name)
        found.append(record["loss"])
    on_cpu, on_device = found
    assert on_device == pytest.approx(on_cpu, rel=1e-3)  # Without any it is 0.004 off.


def test_an_unknown_change_is_refused_by_name():
    with pytest.raises(config.UsageError, match="--augment=flip,blur: there is no 'blur'"):
        config.Config(augment="flip,blur")
    assert config.Config(augment="flip, erase").augmentations == ("flip", "erase")
