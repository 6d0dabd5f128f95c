"""Posters are as alike as the features say that the model makes of them."""

import io
import json
import shutil
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from export import clients, similarity
from tests import conftest
from trainer import config
from trainer.data import preprocessing
from trainer.models import ends, registry
from trainer.run import checkpoints


@pytest.fixture(scope="module")
def client(version):
    return similarity.EmbeddingClient(clients.LocalClient.of_version(version))


@pytest.fixture(scope="module")
def posters(synthetic_posters):
    return sorted((synthetic_posters / "Images").glob("*.jpg"))[:24]


@pytest.fixture(scope="module")
def features(client, posters):
    """float32 [N, F], of the posters."""
    return np.stack([found.features for found in client.ask([p.read_bytes() for p in posters])])


def compare(*arguments, returncode=0):
    command = (sys.executable, "-m", "export.neighbours", *map(str, arguments))
    result = conftest.run(*command, check=False)
    assert result.returncode == returncode, result.stderr
    assert "Traceback" not in result.stderr
    return result


def cosines(features, others):
    features, others = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (features, others))
    return features @ others.T


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "reference_cnn"},
        {"model": "compact_cnn"},
        {"model": "efficientnet_lite0", "pretrained_weights": "imagenet"},
        {"model": "keras:MobileNetV3Small"},
    ],
    ids=lambda settings: settings["model"],
)
def test_features_are_what_the_last_layer_makes_logits_of(settings):
    model = registry.create_model(config.Config(**settings, image_size=48), 5, "float32")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3)).astype(np.uint8)
    extractor = ends.feature_extractor(model)
    head = model.layers[-1]
    weights, bias = (variable.numpy() for variable in head.trainable_variables[-2:])
    found = extractor(pixels, training=False).numpy() @ weights + bias
    np.testing.assert_allclose(found, model(pixels, training=False), rtol=1e-4, atol=1e-5)
    assert {id(v) for v in extractor.weights} < {id(v) for v in model.weights}


def test_an_export_gives_the_features_of_the_runs_own_layers(decided_run, posters, features):
    model, facts = checkpoints.restore_model(decided_run)
    size = facts["image_size"]
    x = np.stack([preprocessing.decode_and_resize(p.read_bytes(), size) for p in posters])
    for layer in model.layers[:-1]:
        x = layer(x, training=False)
    np.testing.assert_allclose(features, x, atol=1e-5)


def test_a_bad_image_has_no_features_and_harms_nobody(client, posters, features):
    good, bad = client.ask([posters[0].read_bytes(), b"junk"])
    np.testing.assert_allclose(good.features, features[0], atol=1e-5)
    assert bad.features is None and bad.error.startswith("neither a JPEG nor a PNG")


def test_neighbours_are_those_of_the_largest_cosines():
    rng = np.random.default_rng(0)
    paths = [conftest.PROJECT / f"{i}.jpg" for i in range(40)]
    index = similarity.Embedded(paths[:30], rng.normal(size=(30, 8)).astype(np.float32))
    # The last five of the index are asked about, too.
    others = rng.normal(size=(10, 8)).astype(np.float32)
    asked = similarity.Embedded(paths[25:], np.concatenate([index.features[25:], others]))
    expected = cosines(asked.features, index.features)
    expected[range(5), range(25, 30)] = -1
    for k in (4, 100):
        groups = similarity.find_neighbours(asked, index, k)
        for group, poster, row in zip(groups, asked.posters, expected, strict=True):
            best = [i for i in np.argsort(-row) if paths[i] != poster][:k]
            assert group.poster == poster
            assert [path for path, _ in group.others] == [paths[i] for i in best]
            np.testing.assert_allclose([alike for _, alike in group.others], row[best], atol=1e-6)


def test_duplicates_are_groups_that_pairs_hold_together():
    """Directions in a plane, in degrees: cos(10 degrees) is 0.985."""
    degrees = [0, 90, 9, 200, 18, 98.9, 111, 200, 300]
    paths = [conftest.PROJECT / f"{angle}-{i}.jpg" for i, angle in enumerate(degrees)]
    angles = np.radians(degrees)
    features = 7 * np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    groups = similarity.find_duplicates(similarity.Embedded(paths, features), 0.985)
    found = [[paths.index(p) for p in (g.poster, *(o for o, _ in g.others))] for g in groups]
    assert found == [[0, 2, 4], [1, 5], [3, 7]]
    alike = [alike for group in groups for _, alike in group.others]
    np.testing.assert_allclose(alike, np.cos(np.radians([9, 18, 8.9, 0])), atol=1e-6)


def test_equal_features_are_duplicates_whatever_rounding_says():
    paths = [conftest.PROJECT / f"{i}.jpg" for i in range(100)]
    features = np.random.default_rng(0).normal(size=(50, 1280)).astype(np.float32)
    index = similarity.Embedded(paths, features.repeat(2, axis=0))
    groups = similarity.find_duplicates(index, 1)
    assert [group.poster for group in groups] == paths[::2]
    assert [poster for group in groups for poster, _ in group.others] == paths[1::2]


def test_the_threshold_is_how_alike_copies_of_half_the_size_are(client, posters, features):
    copies = []
    for poster in posters:
        copy = io.BytesIO()
        Image.open(poster).reduce(2).save(copy, "JPEG", quality=90)
        copies.append(copy.getvalue())
    of_copies = np.stack([found.features for found in client.ask(copies)])
    found = similarity.measure_copies(client, similarity.Embedded(posters, features))
    assert found == pytest.approx(np.median(np.diag(cosines(features, of_copies))), abs=1e-5)


@pytest.fixture(scope="module")
def folder(posters, tmp_path_factory):
    """The posters, one of them again in another file and format, and what is none."""
    folder = tmp_path_factory.mktemp("posters")
    for poster in posters:
        shutil.copy(poster, folder)
    (folder / "deeper").mkdir()
    Image.open(posters[5]).save(folder / "deeper" / "copy.webp", quality=60)
    (folder / "bad.jpg").write_bytes(b"junk")
    (folder / "notes.txt").write_text("no poster")
    return folder


def assert_bad_files_are_named(result, folder):
    assert f"{folder / 'bad.jpg'}: not an image that can be read" in result.stderr
    passed_over = f"Files passed over, no images by their names: 1 ({folder / 'notes.txt'})."
    assert passed_over in result.stderr.splitlines()


def test_neighbours_come_with_their_genres(version, folder, posters, features, tmp_path):
    png = tmp_path / "neighbours.png"
    asked = (folder / posters[0].name, folder / posters[7].name, tmp_path / "none.jpg")
    flags = (f"--model={version.parent}", f"--index={folder}", "--k=3", f"--picture={png}")
    result = compare(*flags, "--json", "--top_k=2", *asked, returncode=1)
    assert_bad_files_are_named(result, folder)
    assert f"{tmp_path / 'none.jpg'}: No such file" in result.stderr
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["poster"] for record in records] == list(map(str, asked[:2]))
    served = tf.saved_model.load(str(version)).signatures["serving_default"]
    answer = served(image_bytes=tf.constant([poster.read_bytes() for poster in posters]))
    names, scores = answer["genres"][0].numpy(), answer["scores"].numpy()
    expected = cosines(features, features)
    for record, row in zip(records, (0, 7), strict=True):
        # But for itself, and the copy, whose features are not known here.
        best = [i for i in np.argsort(-expected[row]) if i != row]
        similar = [s for s in record["similar"] if not s["poster"].endswith("copy.webp")]
        assert len(record["similar"]) == 3
        for found, i in zip([record, *similar], [row, *best[: len(similar)]], strict=True):
            assert found["poster"] == str(folder / posters[i].name)
            top = np.argsort(-scores[i])[:2]
            assert list(found["genres"]) == [names[g].decode() for g in top]
            assert list(found["genres"].values()) == pytest.approx(scores[i][top], abs=1e-5)
            assert found.get("similarity", 1) == pytest.approx(expected[row, i], abs=1e-5)
    with Image.open(png) as sheet, Image.open(posters[7]) as poster:
        width, height = sheet.size[0] // 4, sheet.size[1] // 2
        cell = np.asarray(sheet.crop((0, height, width, 2 * height)))
        poster = np.asarray(poster)
        assert (cell[-50 - len(poster) : -50, : poster.shape[1]] == poster).all()


def test_a_copy_is_found_and_nothing_else(version, folder, posters):
    result = compare(f"--model={version}", f"--index={folder}", returncode=1)
    assert_bad_files_are_named(result, folder)
    assert "1 among 25 posters" in result.stderr
    first, copy = result.stdout.splitlines()
    assert first == str(folder / "deeper" / "copy.webp")
    assert copy.split()[1:] == [str(folder / posters[5].name)]


def test_what_cannot_be_compared_is_said(version, folder, tmp_path):
    result = compare(f"--model={version}", f"--index={folder}", "--picture=a.jpg", returncode=1)
    assert "--picture=a.jpg: it is a PNG; give it a name that ends in .png." in result.stderr
    result = compare(f"--model={version}", f"--index={tmp_path / 'gone'}", returncode=1)
    assert f"{tmp_path / 'gone'}: No such file" in result.stderr
    assert f"--index={tmp_path / 'gone'}: no poster in it can be read." in result.stderr


def test_an_export_from_before_features_says_what_to_do(folder, tmp_path):
    module = tf.Module()
    module.serve = tf.function(lambda image_bytes: {"ok": image_bytes == ""})
    spec = tf.TensorSpec([None], tf.string, name="image_bytes")
    signatures = {"serving_default": module.serve.get_concrete_function(spec)}
    tf.saved_model.save(module, str(tmp_path / "1"), signatures)
    result = compare(f"--model={tmp_path}", f"--index={folder}", returncode=1)
    assert "The model has no signature `embed`" in result.stderr
    assert "Export its run again with `python -m export`." in result.stderr
