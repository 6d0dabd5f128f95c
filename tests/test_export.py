"""What is exported answers as what was trained, from any directory, in a session."""

import dataclasses
import json
import pathlib
import shutil
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from export import clients, loading, saved_model
from tests import conftest, test_preprocessing
from trainer import config, steps
from trainer.data import pipeline, run_data, splits
from trainer.run import checkpoints, directory


def serve(version, images):
    """Answers as TensorFlow Serving does: a session over the tag `serve`."""
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        meta_graph = tf.compat.v1.saved_model.load(session, ["serve"], str(version))
        signature = meta_graph.signature_def["serving_default"]
        return session.run(
            {name: tensor.name for name, tensor in signature.outputs.items()},
            {signature.inputs["image_bytes"].name: images},
        )


def assert_scores_are_the_trainers(run_dir, version, dataset, data_dir):
    """Compares with the trainer's own evaluation of the test split, in float32."""
    split = splits.open_split(dataset, str(data_dir), "test")
    model, facts = checkpoints.restore_model(run_dir)
    assert model.compute_dtype == "float32"
    spec = pipeline.PipelineSpec(split, facts["image_size"], batch_size=32)
    eval_step = steps.make_eval_step(model, tf.distribute.get_strategy())
    iterator = iter(pipeline.eval_batches(spec))
    num_batches = spec.batching.steps_per_epoch
    _, logits = steps.collect([eval_step(iterator) for _ in range(num_batches)])

    encoded = split.builder.as_dataset(
        "test",
        decoders={"image": tfds.decode.SkipDecoding()},
        read_config=tfds.ReadConfig(try_autocache=False),
    )
    answer = serve(version, [example["image"] for example in tfds.as_numpy(encoded)])

    assert answer["scores"].shape == (split.num_examples, len(facts["genres"]))
    np.testing.assert_allclose(answer["scores"], 1 / (1 + np.exp(-logits)), atol=1e-5)
    assert (answer["genres"] == [name.encode() for name in facts["genres"]]).all()


def test_scores_equal_the_trainers_float32_evaluation(run_dir, export_dir, data_dir):
    assert_scores_are_the_trainers(run_dir, export_dir / "1", "poster_tfds/synthetic", data_dir)


def test_a_model_of_antialiased_posters_is_served_antialiased(run_dir, data_dir, tmp_path):
    """As its run says: the pixels of its training, through the export, give the same scores."""
    shutil.copytree(run_dir, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    path.write_text(path.read_text().replace('"resize": "bilinear"', '"resize": "antialias"'))
    version = saved_model.export_saved_model(tmp_path / "run", tmp_path / "export")
    settings, _ = directory.RunDirectory(tmp_path / "run").read_config()
    split = splits.open_split("poster_tfds/synthetic", str(data_dir), "test")
    model, _ = checkpoints.restore_model(tmp_path / "run")
    jpegs = [example["image"] for example in split.read(in_parts=True).take(8).as_numpy_iterator()]
    found = serve(version, jpegs)["scores"]
    logits = model(pipeline.first_posters(run_data.make_spec(settings, split), 8))
    np.testing.assert_allclose(found, tf.sigmoid(logits), atol=1e-5)
    bilinear = dataclasses.replace(settings, resize="bilinear")
    logits = model(pipeline.first_posters(run_data.make_spec(bilinear, split), 8))
    assert np.abs(found - tf.sigmoid(logits)).max() > 1e-3


@pytest.fixture(scope="module")
def few_real_posters(real_posters, tmp_path_factory):
    """A data directory with `poster_tfds/few`, made of the first 80 real posters."""
    directory = tmp_path_factory.mktemp("few")
    (directory / "posters").mkdir()
    (directory / "posters" / "Images").symlink_to(real_posters / "Images")
    rows = (real_posters / "train.csv").read_text().splitlines()[:81]
    (directory / "posters" / "train.csv").write_text("\n".join(rows))
    config = {"name": "few", "validation_fraction": 0, "test_fraction": 0.5}
    conftest.build(directory / "posters", directory / "data", config)
    return directory / "data"


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_scores_of_real_posters_equal_the_trainers_float32_evaluation(
    precision, few_real_posters, tmp_path
):
    conftest.train(
        "--dataset=poster_tfds/few",
        "--image_size=350",
        "--batch_size=8",
        "--max_steps=2",
        f"--precision={precision}",
        data_dir=few_real_posters,
        run_dir=tmp_path / "run",
    )
    version = saved_model.export_saved_model(tmp_path / "run", tmp_path / "export")
    assert_scores_are_the_trainers(tmp_path / "run", version, "poster_tfds/few", few_real_posters)


@pytest.mark.parametrize("num_images", [0, 1, 3])
def test_a_batch_may_have_any_size_and_mix_image_sizes(num_images, export_dir):
    images = [test_preprocessing.make_jpeg(60 + 50 * i, 90 + 10 * i) for i in range(num_images)]
    answer = serve(export_dir / "1", images)
    assert answer["scores"].shape == answer["genres"].shape == (num_images, 8)
    for image, scores in zip(images, answer["scores"], strict=True):
        alone = serve(export_dir / "1", [image])["scores"][0]
        np.testing.assert_allclose(scores, alone, atol=1e-6)


def test_weights_are_stored_once_and_in_float32(run_dir, export_dir):
    model, _ = checkpoints.restore_model(run_dir)
    size = sum(f.stat().st_size for f in (export_dir / "1" / "variables").glob("*.data*"))
    assert size <= 1.05 * 4 * model.count_params()


def test_a_mixed_precision_run_is_exported_in_float32(data_dir, tmp_path):
    conftest.train(
        "--precision=mixed_float16", "--max_steps=2", data_dir=data_dir, run_dir=tmp_path / "run"
    )
    version = saved_model.export_saved_model(tmp_path / "run", tmp_path / "export")
    loaded = tf.saved_model.load(str(version))
    graph = loaded.signatures["serving_default"].graph
    dtypes = {output.dtype for op in graph.get_operations() for output in op.outputs}
    assert not dtypes & {tf.bfloat16, tf.float16}


def test_every_export_is_a_new_version_and_nothing_else_is_left(run_dir, export_dir, tmp_path):
    shutil.copytree(export_dir, tmp_path / "e")
    (tmp_path / "e" / "7").mkdir()  # Not a version: it is empty. Its number is still avoided.
    version = saved_model.export_saved_model(run_dir, tmp_path / "e")
    assert int(version.name) > 7
    directories = {path.name for path in (tmp_path / "e").iterdir() if path.is_dir()}
    assert directories == {"1", "7", version.name}


def damage_the_file(module, path):
    (data,) = (path / "variables").glob("*.data*")
    data.write_bytes(bytes(data.stat().st_size))


def change_the_model(module, path):
    module._variables[-1].assign_add([0.01] * 8)  # The bias of the logits.


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (damage_the_file, tf.errors.OpError, "Checksum does not match"),
        (change_the_model, RuntimeError, "does not answer as the model does"),
    ],
)
def test_a_model_that_answers_otherwise_is_not_published(
    run_dir, tmp_path, monkeypatch, change, error, said
):
    real_save = tf.saved_model.save

    def save(module, path, signatures):
        real_save(module, path, signatures)
        change(module, pathlib.Path(path))

    monkeypatch.setattr(tf.saved_model, "save", save)
    with pytest.raises(error, match=said):
        saved_model.export_saved_model(run_dir, tmp_path / "e")
    assert list((tmp_path / "e").iterdir()) == []


def test_low_limits_leave_images_to_check_the_export_with(run_dir, tmp_path):
    """The synthetic posters are of 90x131 pixels and more."""
    limits = loading.Limits(max_pixels=97 * 51)
    version = saved_model.export_saved_model(run_dir, tmp_path, limits=limits)
    assert (version / "saved_model.pb").exists()
    with pytest.raises(config.UsageError, match="--max_image_pixels=100: these refuse every"):
        saved_model.export_saved_model(run_dir, tmp_path, limits=loading.Limits(max_pixels=100))
    assert saved_model.published_versions(tmp_path) == [1]


def test_the_side_to_which_the_dataset_reduced_is_a_limit(run_dir, data_dir, tmp_path):
    """The run and its dataset, as if this had been built with `max_side`."""
    shutil.copytree(data_dir / "poster_tfds", tmp_path / "data" / "poster_tfds")
    metadata = tmp_path / "data/poster_tfds/synthetic/1.0.0/metadata.json"
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "max_side": 150}))
    shutil.copytree(run_dir, tmp_path / "run")
    settings = tmp_path / "run" / "config.json"
    settings.write_text(settings.read_text().replace(str(data_dir), str(tmp_path / "data")))
    version = saved_model.export_saved_model(tmp_path / "run", tmp_path / "exports")
    answer = serve(
        version, [test_preprocessing.make_jpeg(100, 150), test_preprocessing.make_jpeg(100, 151)]
    )
    assert answer["ok"].tolist() == [True, False]
    assert b"python -m export.predict --max_side=150" in answer["error"][1]
    assert "No side of more than 150 pixels" in (version / "model_card.md").read_text()
    # The run that is asked without an export refuses it too.
    client = clients.LocalClient.of_run(tmp_path / "run")
    (refused,) = client.ask([test_preprocessing.make_jpeg(100, 151)])
    assert refused.error == answer["error"][1].decode()


@pytest.mark.parametrize("flag", ["--run_dir", "--export_dir"])
def test_a_folder_on_an_object_store_is_refused(run_dir, flag):
    folders = {"--run_dir": run_dir, "--export_dir": "e", flag: "gs://bucket/folder"}
    with pytest.raises(config.UsageError, match=f"{flag}=gs://bucket/folder: give a folder of a"):
        saved_model.export_saved_model(*folders.values())


def test_a_directory_without_a_run_is_refused_by_name(tmp_path):
    with pytest.raises(config.UsageError, match="there is no run"):
        saved_model.export_saved_model(tmp_path, tmp_path / "e")
    with pytest.raises(config.UsageError, match="neither a SavedModel nor"):
        saved_model.resolve_version(tmp_path)


def predict(*arguments, check=True):
    return conftest.run(sys.executable, "-m", "export.predict", *arguments, check=check)


def test_predict_prints_the_most_probable_genres(export_dir, synthetic_posters):
    posters = [synthetic_posters / "Images" / f"synthetic000000{i}.jpg" for i in range(2)]
    answer = serve(export_dir / "1", [poster.read_bytes() for poster in posters])

    result = predict(f"--model={export_dir}", "--json", "--top_k=2", *posters)
    for line, poster, scores, genres in zip(
        result.stdout.splitlines(), posters, answer["scores"], answer["genres"], strict=True
    ):
        record = json.loads(line)
        best = np.argsort(-scores)[:2]
        assert record["poster"] == str(poster)
        assert list(record["genres"]) == [genres[i].decode() for i in best]
        assert list(record["genres"].values()) == pytest.approx(scores[best].tolist(), abs=1e-5)

    table = predict(f"--model={export_dir / '1'}", *posters).stdout.splitlines()
    assert len(table) == 2
    assert len(table[0].split()) == 7  # The poster, then three genres with their scores.


def test_predict_names_a_bad_poster_and_answers_for_the_others(
    export_dir, synthetic_posters, tmp_path
):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"\xff\xd8\xff not a picture")
    good = synthetic_posters / "Images" / "synthetic0000000.jpg"
    result = predict(f"--model={export_dir}", bad, tmp_path / "none.jpg", good, check=False)
    assert result.returncode == 1
    assert f"{bad}: not an image that can be read" in result.stderr
    assert f"{tmp_path / 'none.jpg'}: No such file" in result.stderr
    assert len(result.stdout.splitlines()) == 1
