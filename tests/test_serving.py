"""What the server is asked is answered row by row, whatever else is in the batch."""

import io
import pathlib
import random
import re
import signal
import struct
import sys
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from export import loading, saved_model, serving_files, serving_model
from tests import conftest, stand_in_server, test_images
from tests.test_preprocessing import make_jpeg
from trainer import config
from trainer.benchmark import turns
from trainer.data import preprocessing
from trainer.decisions import decision
from trainer.models import registry
from trainer.run import checkpoints


@pytest.fixture(scope="module")
def served(version):
    """The version in a session, as the server has it."""
    return stand_in_server.Model(version)


def png(image, **options):
    content = io.BytesIO()
    image.save(content, "PNG", **options)
    return content.getvalue()


def plain_jpeg(width, height):
    """A sound JPEG of many pixels in a few KB."""
    content = io.BytesIO()
    Image.new("L", (width, height)).save(content, "JPEG")
    return content.getvalue()


def png_header(width, height):
    """A PNG of any size in a few bytes, without its pixels."""
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + ihdr + struct.pack(">I", zlib.crc32(ihdr))


def jpeg_header(width, height):
    """A JPEG of any size in a few KB: another's header with the size written over."""
    content = bytearray(make_jpeg(64, 64))
    begin = content.index(b"\xff\xc0") + 5
    content[begin : begin + 4] = struct.pack(">HH", height, width)
    return bytes(content)


BAD = {
    "empty": b"",
    "text": b"hello",
    "three magic bytes": b"\xff\xd8\xff",
    "magic bytes and junk": b"\xff\xd8\xff" + bytes(range(200)),
    "junk between a JPEG's first and last bytes": b"\xff\xd8\xff" + bytes(200) + b"\xff\xd9",
    "truncated": make_jpeg(300, 444)[:2000],
    "truncated PNG": png(Image.new("RGB", (80, 90), "red"))[:60],
    "PNG's first bytes": b"\x89PNG\r\n\x1a\n",
    "GIF": b"GIF89a" + bytes(50),
    "30000x30000 JPEG": jpeg_header(30000, 30000),
    "2000x1000 JPEG": plain_jpeg(2000, 1000),
    "60000x60000 PNG": png_header(60000, 60000),
    "negative PNG": png_header(2**31 + 5, 2**31 + 5),
    "too many bytes": make_jpeg(300, 444) + bytes(conftest.MAX_BYTES),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_answered_with_its_reason_and_harms_nobody(served, name):
    """The others' scores are, bit for bit, those they have beside a good image in its place.

    Alone, too, the reference CNN's convolutions give the same bits, and its dense layers
    may not: the product of one row is summed in another order than that of several.
    """
    good = [make_jpeg(60 + 40 * i, 90 + 10 * i) for i in range(4)]
    for others in (good[:1], good[:3]):
        beside_good = served.run("serving_default", image_bytes=[good[3], *others])
        mixed = served.run("serving_default", image_bytes=[BAD[name], *others])
        assert mixed["ok"].tolist() == [False, *[True] * len(others)]
        assert (mixed["scores"][0] == 0).all()
        assert [len(error) > 0 for error in mixed["error"]] == [True, *[False] * len(others)]
        np.testing.assert_array_equal(mixed["scores"][1:], beside_good["scores"][1:])
        np.testing.assert_array_equal(mixed["genres"], beside_good["genres"])
    alone = [served.run("serving_default", image_bytes=[image])["scores"][0] for image in others]
    np.testing.assert_allclose(mixed["scores"][1:], alone, atol=1e-6)


def test_pixels_are_the_trainers_in_every_row_whatever_the_others_are():
    model = registry.create_model(config.Config(image_size=48), 8, "float32")
    limits = loading.Limits(conftest.MAX_BYTES, conftest.MAX_PIXELS)
    module = serving_model.ServingModel(model, decision.undecided("abcdefgh"), 48, 3, limits)
    good = [make_jpeg(60 + 40 * i, 90 + 10 * i) for i in range(len(BAD))]
    mixed = [image for pair in zip(BAD.values(), good, strict=True) for image in pair]
    expected = np.zeros([len(mixed), 48, 48, 3], np.uint8)
    expected[1::2] = [preprocessing.decode_and_resize(image, 48) for image in good]
    load = tf.function(module.load)
    status, pixels = load(tf.constant(good))
    assert set(status.numpy()) == {loading.LOADED}
    np.testing.assert_array_equal(pixels, expected[1::2])
    np.testing.assert_array_equal(load(tf.constant(mixed))[1], expected)
    for image, pixels in zip(mixed, expected, strict=True):
        np.testing.assert_array_equal(load(tf.constant([image]))[1], [pixels])


def test_the_reasons_are_right(served):
    errors = served.run("serving_default", image_bytes=list(BAD.values()))["error"]
    reasons = dict(zip(BAD, (error.decode() for error in errors), strict=True))
    assert reasons["empty"] == "empty"
    assert reasons["text"] == reasons["GIF"]
    assert reasons["text"].startswith("neither a JPEG nor a PNG; send a JPEG, or ask with")
    assert reasons["truncated"] == reasons["truncated PNG"] == "does not decode"
    assert reasons["too many bytes"] == f"more than {conftest.MAX_BYTES} bytes"
    for name in ("30000x30000 JPEG", "2000x1000 JPEG", "60000x60000 PNG"):
        assert reasons[name] == f"more than {conftest.MAX_PIXELS} pixels"
    for image, error in zip(BAD.values(), errors, strict=True):
        alone = served.run("serving_default", image_bytes=[image])
        assert (alone["ok"], alone["error"], alone["scores"].any()) == (False, error, False)


def test_an_image_that_is_refused_by_its_header_costs_no_memory(served):
    """A JPEG of 2.7 GB decoded, and a sound PNG of 0.4, both a few KB of file."""
    bomb = png(Image.new("1", (12000, 12000)))
    images = [jpeg_header(30000, 30000), bomb, make_jpeg(60, 90)]
    assert len(bomb) < conftest.MAX_BYTES
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # The peak begins anew.
    before = turns.peak_memory()
    for batch in (images, images[:1], images[1:2], [images[0], images[2]]):
        answer = served.run("serving_default", image_bytes=batch)
        assert [b"pixels" in error for error in answer["error"]] == [i != images[2] for i in batch]
    assert turns.peak_memory() - before < 50e6


@pytest.mark.parametrize("num_images", [0, 1, 5])
def test_every_signature_answers_any_batch(served, num_images):
    images = [make_jpeg(60 + 50 * i, 90 + 10 * i) for i in range(num_images)]
    answer = served.run("serving_default", image_bytes=images)
    assert answer["scores"].shape == answer["genres"].shape == (num_images, 8)
    assert answer["ok"].shape == answer["error"].shape == (num_images,)

    best = served.run("top_k", image_bytes=images)
    order = np.argsort(-answer["scores"], axis=1, kind="stable")[:, :3]
    np.testing.assert_allclose(
        best["scores"], np.take_along_axis(answer["scores"], order, 1), atol=1e-6
    )
    np.testing.assert_array_equal(best["genres"], np.take_along_axis(answer["genres"], order, 1))
    assert best["ok"].all()

    examples = [serving_files.example(image).SerializeToString() for image in images]
    classified = served.run("classify", inputs=examples)
    np.testing.assert_array_equal(classified["classes"], answer["genres"])
    np.testing.assert_allclose(classified["scores"], answer["scores"], atol=1e-6)

    embedded = served.run("embed", image_bytes=images)
    assert embedded["features"].shape == (num_images, 128) and embedded["ok"].all()

    noise = np.random.default_rng(0).integers(0, 256, (num_images, 50, 70, 3)).astype(np.uint8)
    jpegs = [test_images.encode(Image.fromarray(image), "JPEG") for image in noise]
    pixels = np.array([test_images.pixels(jpeg) for jpeg in jpegs]).reshape(noise.shape)
    from_pixels = served.run("pixels", pixels=pixels)
    from_jpeg = served.run("serving_default", image_bytes=jpegs)
    np.testing.assert_allclose(from_pixels["scores"], from_jpeg["scores"], atol=1e-6)


def test_an_example_without_an_image_scores_nothing_and_harms_nobody(served):
    good = serving_files.example(make_jpeg(60, 90)).SerializeToString()
    answer = served.run("classify", inputs=[good, b"", b"junk", good])
    assert (answer["scores"][[1, 2]] == 0).all()
    np.testing.assert_allclose(answer["scores"][0], answer["scores"][3], atol=1e-6)
    assert answer["scores"][0].min() > 0
    assert not served.run("classify", inputs=[b"junk"])["scores"].any()


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("progressive", [False, True])
def test_kinds_of_jpeg_are_read_as_pillow_reads_them(served, mode, progressive):
    image = Image.effect_noise((70, 50), 60).convert(mode)
    jpeg = test_images.encode(image, "JPEG", progressive=progressive)
    answer = served.run("serving_default", image_bytes=[jpeg])
    expected = served.run("pixels", pixels=test_images.pixels(jpeg)[None])
    assert answer["ok"].all()
    np.testing.assert_allclose(answer["scores"], expected["scores"], atol=1e-6)


def test_what_a_dataset_would_store_otherwise_is_refused_by_name(served):
    turned, cmyk = test_images.turned(6), make_jpeg(60, 80, mode="CMYK")
    sent = [turned, test_images.JPEG, cmyk, test_images.cut_ended(test_images.LARGE)]
    answer = served.run("serving_default", image_bytes=sent)
    assert answer["ok"].tolist() == [False, True, False, False]
    words = ("EXIF", "", "CMYK", "damaged")
    for error, word in zip(answer["error"], words, strict=True):
        assert word in error.decode()
    assert not answer["scores"][[0, 2, 3]].any()
    examples = [serving_files.example(image).SerializeToString() for image in sent]
    scores = served.run("classify", inputs=examples)["scores"]
    np.testing.assert_allclose(scores, answer["scores"], atol=1e-6)
    embedded = served.run("embed", image_bytes=sent)
    np.testing.assert_array_equal(embedded["error"], answer["error"])
    assert embedded["features"].any(axis=1).tolist() == embedded["ok"].tolist()
    assert embedded["ok"].tolist() == answer["ok"].tolist()


def mutated(content, rng):
    content = bytearray(content)
    for _ in range(rng.choice((1, 2, 8, 40))):
        kind, at = rng.randrange(4), rng.randrange(len(content))
        if kind == 0:
            content[at] = rng.randrange(256)
        elif kind == 1:
            del content[at : at + rng.randrange(1, 60)]
        elif kind == 2:
            content[at:at] = rng.randbytes(rng.randrange(1, 20))
        else:
            content[at : at + 2] = b"\xff" + bytes([rng.randrange(0xC0, 0xFF)])
        if not content:
            content = bytearray(b"x")
    return bytes(content)


def test_mutated_images_raise_nothing_and_change_no_neighbour(served):
    """A short form of `python -m tests.fuzz`."""
    rng = random.Random(0)
    good = [make_jpeg(80, 120), png(Image.effect_noise((60, 70), 50))]
    expected = served.run("serving_default", image_bytes=good * 8)["scores"][[0, -1]]
    bad = 0
    for _ in range(40):
        batch = [mutated(rng.choice(good), rng) for _ in range(14)]
        answer = served.run("serving_default", image_bytes=[good[0], *batch, good[1]])
        assert answer["ok"][[0, -1]].all()
        np.testing.assert_array_equal(answer["scores"][[0, -1]], expected)
        assert (answer["scores"][~answer["ok"]] == 0).all()
        bad += (~answer["ok"]).sum()
    assert 100 < bad < 560


def test_the_warmup_requests_are_answered(version, served, synthetic_posters):
    from tensorflow_serving.apis import prediction_log_pb2

    posters = {path.read_bytes() for path in (synthetic_posters / "Images").glob("*.jpg")}
    path = version / "assets.extra" / "tf_serving_warmup_requests"
    asked = set()
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        log = prediction_log_pb2.PredictionLog.FromString(record)
        if log.HasField("classify_log"):
            request = log.classify_log.request
            inputs = [e.SerializeToString() for e in request.input.example_list.examples]
            answer = served.run(request.model_spec.signature_name, inputs=inputs)
        else:
            request = log.predict_log.request
            inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
            answer = served.run(request.model_spec.signature_name, **inputs)
            assert answer.get("ok", np.array(True)).all()
            assert posters.issuperset(inputs.get("image_bytes", np.array([])).tolist())
        outputs = answer["features" if "features" in answer else "scores"]
        asked.add((request.model_spec.signature_name, len(outputs)))
        assert outputs.any(axis=1).all()
    signatures = {"serving_default", "top_k", "classify", "pixels", "embed"}
    assert asked == {(name, size) for name in signatures for size in (1, 8, 32)}


def test_the_signatures_are_those_of_readmes_table(served):
    table = (
        (conftest.PROJECT / "export/README.md")
        .read_text()
        .split("| signature |")[1]
        .split("\n\n")[0]
    )
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", table, re.MULTILINE)
    assert [row[0] for row in rows] == ["serving_default", "top_k", "classify", "pixels", "embed"]
    lengths = {"N": None, "H": None, "W": None, "3": 3, "G": 8, "K": 3, "F": 128}
    for name, *documented in rows:
        signature = served.signatures[name]
        for text, tensors in zip(documented, (signature.inputs, signature.outputs), strict=True):
            found = {
                name: (
                    tf.as_dtype(tensor.dtype).name,
                    tf.TensorShape(tensor.tensor_shape).as_list(),
                )
                for name, tensor in tensors.items()
            }
            assert found == {
                name: (dtype, [lengths[length] for length in shape.split(", ")])
                for name, dtype, shape in re.findall(r"`(\w+)` (\w+) \[(.*?)\]", text)
            }


def test_the_files_beside_the_model_say_what_it_is(version, run_dir):
    _, facts = checkpoints.restore_model(run_dir)
    assert (version / "labels.txt").read_text().split() == facts["genres"]
    signatures = (version / "signatures.txt").read_text()
    assert "input  image_bytes  string (None,)" in signatures
    assert "input  pixels       uint8 (None, None, None, 3)" in signatures
    card = (version / "model_card.md").read_text()
    assert "| test, constant " in card
    assert "step 32 of" in card
    assert "at most 1,000,000 pixels and 200,000 bytes" in card
    models = (version.parent / "models.config").read_text()
    assert f'base_path: "{version.parent}"' in models


def test_only_the_newest_versions_are_kept(run_dir, tmp_path):
    for _ in range(3):
        saved_model.export_saved_model(run_dir, tmp_path, keep_versions=2)
    assert saved_model.published_versions(tmp_path) == [2, 3]


def test_a_version_is_complete_or_not_there_while_exports_are_killed(run_dir, tmp_path):
    """Polls as the server does; kills two exports while they write and lets the third end."""
    seen = set()
    for written in ("saved_model.pb", "model_card.md", None):
        process = conftest.start(
            *(sys.executable, "-m", "export", f"--run_dir={run_dir}", f"--export_dir={tmp_path}")
        )
        while process.poll() is None:
            if written and list(tmp_path.glob(f"incomplete-{process.pid}/{written}")):
                process.kill()
            for path in tmp_path.iterdir():
                if path.name.isdecimal() and path not in seen:
                    stand_in_server.Model(path).run("serving_default", image_bytes=[])
                    assert (path / "model_card.md").exists()
                    seen.add(path)
        process.communicate()
        assert process.returncode == (-signal.SIGKILL if written else 0)
    assert saved_model.published_versions(tmp_path) == [1]
    assert not list(tmp_path.glob("incomplete-*"))
