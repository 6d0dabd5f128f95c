"""What the server is asked is answered row by row, whatever else is in the batch."""

import io
import pathlib
import random
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from export import serving_files
from tests import conftest, stand_in_server
from tests.test_images import mutated
from tests.test_preprocessing import make_jpeg
from trainer.benchmark import stages


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
    """The others' scores are, bit for bit, those they have beside a good image in its place."""
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
    before = stages.peak_memory()
    for batch in (images, images[:1], images[1:2], [images[0], images[2]]):
        answer = served.run("serving_default", image_bytes=batch)
        assert [b"pixels" in error for error in answer["error"]] == [i != images[2] for i in batch]
    assert stages.peak_memory() - before < 50e6


@pytest.mark.parametrize("num_images", [0, 1, 5])
def test_every_signature_answers_any_batch(served, num_images):
    images = [make_jpeg(60 + 50 * i, 90 + 10 * i) for i in range(num_images)]
    answer = served.run("serving_default", image_bytes=images)
    assert answer["scores"].shape == answer["genres"].shape == (num_images, 8)
    assert answer["ok"].shape == answer["error"].shape == (num_images,)
    for image, scores in zip(images, answer["scores"], strict=True):
        alone = served.run("serving_default", image_bytes=[image])["scores"][0]
        np.testing.assert_allclose(scores, alone, atol=1e-6)
    assert served.run("top_k", image_bytes=images)["genres"].shape == (num_images, 3)
    examples = [serving_files.example(image).SerializeToString() for image in images]
    classified = served.run("classify", inputs=examples)
    np.testing.assert_array_equal(classified["classes"], answer["genres"])
    np.testing.assert_allclose(classified["scores"], answer["scores"], atol=1e-6)
    embedded = served.run("embed", image_bytes=[*images, b"junk"])
    assert not embedded["features"][-1].any() and embedded["error"][-1].startswith(b"neither a")
    embedded = {name: value[:-1] for name, value in embedded.items()}
    assert embedded["features"].shape == (num_images, 16) and embedded["ok"].all()
    pixels = np.zeros([num_images, 50, 70, 3], np.uint8)
    assert served.run("pixels", pixels=pixels)["scores"].shape == (num_images, 8)


def test_an_example_without_an_image_scores_nothing_and_harms_nobody(served):
    good = serving_files.example(make_jpeg(60, 90)).SerializeToString()
    answer = served.run("classify", inputs=[good, b"", b"junk", good])
    assert (answer["scores"][[1, 2]] == 0).all()
    np.testing.assert_allclose(answer["scores"][0], answer["scores"][3], atol=1e-6)
    assert answer["scores"][0].min() > 0
    assert not served.run("classify", inputs=[b"junk"])["scores"].any()


@pytest.mark.parametrize(
    "num_batches", [pytest.param(8, id="100"), pytest.param(350, id="4900", marks=pytest.mark.slow)]
)
def test_mutated_images_raise_nothing_change_no_neighbour_and_keep_no_memory(served, num_batches):
    rng = random.Random(num_batches)
    good = [make_jpeg(80, 120), make_jpeg(90, 60, progressive=True)]
    good += [png(Image.effect_noise((60, 70), 50)), png(Image.new("RGBA", (40, 50), "red"))]
    expected = served.run("serving_default", image_bytes=good * 4)["scores"][[0, 2]]
    bad = halfway = 0
    for number in range(num_batches):
        batch = [mutated(rng.choice(good), rng) for _ in range(14)]
        answer = served.run("serving_default", image_bytes=[good[0], *batch, good[2]])
        assert answer["ok"][[0, -1]].all()
        np.testing.assert_array_equal(answer["scores"][[0, -1]], expected)
        assert (answer["scores"][~answer["ok"]] == 0).all()
        bad += (~answer["ok"]).sum()
        if number == num_batches // 2:
            halfway = stages.peak_memory()
    assert 0.2 < bad / (14 * num_batches) < 0.95
    assert stages.peak_memory() - halfway < 200e6


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
