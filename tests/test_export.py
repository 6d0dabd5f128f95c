"""What is exported answers as what was trained, and is published whole or not at all."""

import json
import shutil
import signal
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from export import clients, loading, saved_model
from tests import conftest
from tests.test_preprocessing import make_jpeg
from trainer import config, steps
from trainer.data import pipeline, splits, stream
from trainer.decisions import decision
from trainer.run import checkpoints, directory


def serve(version, images, signature="serving_default", name="image_bytes"):
    """Answers as TensorFlow Serving does: a session over the tag `serve`."""
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        meta_graph = tf.compat.v1.saved_model.load(session, ["serve"], str(version))
        signature = meta_graph.signature_def[signature]
        return session.run(
            {name: tensor.name for name, tensor in signature.outputs.items()},
            {signature.inputs[name].name: images},
        )


@pytest.fixture(scope="module")
def evaluated(run_dir, data_dir):
    """The test split's JPEGs, and its pixels and logits as the trainer's evaluation has them."""
    settings, _ = directory.RunDirectory(run_dir).read_config()
    split = splits.open_split(settings.dataset, str(data_dir), "test")
    model, _ = checkpoints.restore_model(run_dir)
    assert model.compute_dtype == "float32"
    eval_step = steps.make_eval_step(model, tf.distribute.get_strategy())
    size = settings.image_size
    batches = iter(stream.eval_batches(split, size, settings.batch_size))
    num_steps = pipeline.num_eval_steps(split.num_examples, settings.batch_size)
    answers = [eval_step(batches) for _ in range(num_steps)]
    _, logits = steps.collect(answers)
    jpegs = [example["image"] for example in split.read().as_numpy_iterator()]
    assert len(jpegs) == len(logits) == conftest.NUM_TEST
    return jpegs, pipeline.first_posters(split, size, len(jpegs)), logits


def test_every_signature_answers_as_the_model_does(run_dir, version, evaluated):
    """In a session, as the server does; the genres are those that the run has decided."""
    jpegs, pixels, logits = evaluated
    run = directory.RunDirectory(run_dir)
    decided = decision.read(run.thresholds)
    genres = np.array([name.encode() for name in decided.table.index])
    scores = 1 / (1 + np.exp(-logits))
    calibrated, predicted = decided.calibrate(logits), decided.predict(logits)

    answer = serve(version, jpegs)
    np.testing.assert_allclose(answer["scores"], scores, atol=1e-5)
    np.testing.assert_allclose(answer["calibrated"], calibrated, atol=1e-5)
    np.testing.assert_array_equal(answer["predicted"], predicted)
    assert answer["ok"].all() and (answer["genres"] == genres).all()
    # Neither is what it would be without a decision.
    assert np.abs(calibrated - scores).max() > 0.01
    assert (predicted != (scores >= 0.5)).any()

    best = serve(version, jpegs, "top_k")
    order = np.argsort(-scores, axis=1)[:, :3]
    for name, of_all in (("scores", scores), ("calibrated", calibrated), ("predicted", predicted)):
        np.testing.assert_allclose(best[name], np.take_along_axis(of_all, order, 1), atol=1e-5)
    np.testing.assert_array_equal(best["genres"], genres[order])

    of_pixels = serve(version, pixels, "pixels", "pixels")
    np.testing.assert_allclose(of_pixels["scores"], scores, atol=1e-5)

    model, _ = checkpoints.restore_model(run_dir)
    features = serve(version, jpegs, "embed")["features"]
    np.testing.assert_allclose(model.get_layer("logits")(features), logits, atol=1e-4)


def test_a_mixed_precision_run_is_exported_in_float32_and_without_thresholds(data_dir, tmp_path):
    run_dir = tmp_path / "run"
    conftest.train(data_dir, run_dir, precision="mixed_float16", max_steps=2)
    opened = saved_model.open_run(run_dir)
    graph = opened.module.serving_default.get_concrete_function().graph
    dtypes = {output.dtype for op in graph.get_operations() for output in op.outputs}
    assert not dtypes & {tf.bfloat16, tf.float16}
    assert opened.decision.how.startswith("Not chosen: each threshold is 0.5")
    assert "--validation_split" in opened.decision.how
    assert set(opened.decision.table["threshold"]) == {0.5}


def test_weights_are_stored_once(run_dir, version):
    model, _ = checkpoints.restore_model(run_dir)
    size = sum(f.stat().st_size for f in (version / "variables").glob("*.data*"))
    assert size <= 1.05 * 4 * model.count_params() + 1000


def test_the_files_beside_the_model_say_what_it_is(version, run_dir):
    run = directory.RunDirectory(run_dir)
    _, facts = checkpoints.restore_model(run_dir)
    assert (version / "labels.txt").read_text().split() == facts["genres"]
    signatures = (version / "signatures.txt").read_text()
    assert "input  image_bytes  string (None,)" in signatures
    assert "input  pixels       uint8 (None, None, None, 3)" in signatures
    card = (version / "model_card.md").read_text()
    assert "| test, constant " in card
    assert f"step {facts['step']} of" in card
    assert "at most 1,000,000 pixels and 200,000 bytes" in card
    decided, kept = decision.read(run.thresholds), decision.read(version / "thresholds.json")
    assert kept.how == decided.how and kept.how.startswith("Chosen on ")
    assert decided.how in " ".join(card.split())
    for genre, row in decided.table.iterrows():
        (line,) = [line for line in card.splitlines() if line.startswith(f"| {genre} ")]
        numbers = [float(cell) for cell in line.split("|")[2:5]]
        assert numbers == pytest.approx(row[["threshold", "slope", "intercept"]], abs=1e-6)
    models = (version.parent / "models.config").read_text()
    assert f'base_path: "{version.parent}"' in models


def test_the_mean_of_views_has_no_thresholds_of_other_answers_and_a_version_of_its_own(
    run_dir, evaluated, version, tmp_path
):
    """Those of the run are of each poster alone. Numbers in use are avoided, old versions go."""
    jpegs, pixels, _ = evaluated
    shutil.copytree(version, tmp_path / "1")
    (tmp_path / "7").mkdir()  # Not a version: it is empty.
    published = saved_model.export_saved_model(run_dir, tmp_path, tta="mirror", keep_versions=1)
    assert published == tmp_path / "8"
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"7", "8"}
    model, _ = checkpoints.restore_model(run_dir)
    logits = (model(pixels) + model(pixels[:, :, ::-1])) / 2
    answer = serve(published, jpegs)
    np.testing.assert_allclose(answer["scores"], tf.sigmoid(logits), atol=1e-5)
    np.testing.assert_array_equal(answer["scores"], answer["calibrated"])
    kept = decision.read(published / "thresholds.json")
    assert "trainer.report_page" in kept.how and "--tta=mirror" in kept.how
    assert "its mirror image (--tta=mirror)" in (published / "model_card.md").read_text()


def test_a_model_that_answers_otherwise_is_not_published(run_dir, version, tmp_path, monkeypatch):
    def save(module, path, signatures):
        shutil.copytree(version, path)  # Of the same model, before the next line.
        module._variables[-1].assign_add([0.01] * 8)  # The bias of the logits.

    monkeypatch.setattr(tf.saved_model, "save", save)
    with pytest.raises(RuntimeError, match="does not answer as the model does"):
        saved_model.export_saved_model(run_dir, tmp_path / "e")
    assert list((tmp_path / "e").iterdir()) == []


def test_the_side_to_which_the_dataset_reduced_is_a_limit(run_dir, data_dir, tmp_path):
    """The run is asked without an export, as if its dataset had been built with `max_side`."""
    shutil.copytree(data_dir / "poster_tfds", tmp_path / "data" / "poster_tfds")
    metadata = tmp_path / "data/poster_tfds/synthetic/1.0.0/metadata.json"
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "max_side": 150}))
    shutil.copytree(run_dir, tmp_path / "run")
    settings = tmp_path / "run" / "config.json"
    settings.write_text(settings.read_text().replace(str(data_dir), str(tmp_path / "data")))
    client = clients.LocalClient.of_run(tmp_path / "run")
    answered, refused = client.ask([make_jpeg(100, 150), make_jpeg(100, 151)])
    assert answered.genres and not answered.error
    assert "python -m export.predict --max_side=150" in refused.error


def test_what_cannot_be_exported_is_refused_by_name(run_dir, tmp_path):
    for flag in ("--run_dir", "--export_dir"):
        folders = {"--run_dir": run_dir, "--export_dir": "e", flag: "gs://bucket/folder"}
        with pytest.raises(config.UsageError, match=f"{flag}=gs://bucket/folder: give a folder of"):
            saved_model.export_saved_model(*folders.values())
    with pytest.raises(config.UsageError, match="there is no run"):
        saved_model.export_saved_model(tmp_path, tmp_path / "e")
    with pytest.raises(config.UsageError, match="neither a SavedModel nor"):
        saved_model.resolve_version(tmp_path)
    with pytest.raises(config.UsageError, match="--max_image_pixels=100: these refuse every"):
        saved_model.export_saved_model(run_dir, tmp_path, limits=loading.Limits(max_pixels=100))
    assert saved_model.published_versions(tmp_path) == []


@pytest.mark.slow
def test_a_version_is_complete_or_not_there_while_exports_are_killed(run_dir, tmp_path):
    """Polls as the server does; kills an export while it writes and lets the next one end."""
    seen = set()
    command = (sys.executable, "-m", "tests.with_tiny_model", "export")
    for written in ("saved_model.pb", None):
        process = conftest.start(*command, f"--run_dir={run_dir}", f"--export_dir={tmp_path}")
        while process.poll() is None:
            time.sleep(0.01)
            if written and list(tmp_path.glob(f"incomplete-{process.pid}/{written}")):
                process.kill()
            for path in tmp_path.iterdir():
                if path.name.isdecimal() and path not in seen:
                    assert (path / "model_card.md").exists()
                    assert serve(path, [make_jpeg(60, 90)])["ok"].all()
                    seen.add(path)
        out, _ = process.communicate()
        assert process.returncode == (-signal.SIGKILL if written else 0)
    assert f"Published {tmp_path / '1'}\nThresholds: Chosen on " in out
    assert saved_model.published_versions(tmp_path) == [1]
    assert not list(tmp_path.glob("incomplete-*"))
