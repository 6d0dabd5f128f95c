"""Genres are predicted alike by trainer, SavedModel, client and card, and read as annotations."""

import csv
import io
import json
import sys

import numpy as np
import pytest
import tensorflow as tf

import export
from export import answers, saved_model
from tests import conftest, stand_in_server, test_export
from trainer.data import preprocessing
from trainer.decisions import decision
from trainer.run import checkpoints, directory


@pytest.fixture(scope="module")
def posters(synthetic_posters):
    return sorted((synthetic_posters / "Images").glob("*.jpg"))[:12]


@pytest.fixture(scope="module")
def expected(decided_run, posters):
    """The run's own logits for the posters, and its decision."""
    model, facts = checkpoints.restore_model(decided_run)
    pixels = [preprocessing.decode_and_resize(p.read_bytes(), facts["image_size"]) for p in posters]
    run = directory.RunDirectory(decided_run)
    return model(np.stack(pixels), training=False).numpy(), decision.read(run.thresholds)


def predict(*arguments):
    return conftest.run(sys.executable, "-m", "export.predict", *map(str, arguments)).stdout


def test_a_session_answers_with_what_the_run_has_decided(version, posters, expected):
    logits, decided = expected
    answer = test_export.serve(version, [poster.read_bytes() for poster in posters])
    np.testing.assert_allclose(answer["calibrated"], decided.calibrate(logits), atol=1e-6)
    np.testing.assert_array_equal(answer["predicted"], decided.predict(logits))
    assert 0 < answer["predicted"].mean() < 1
    # Neither is what it would be without a decision.
    assert np.abs(answer["calibrated"] - answer["scores"]).max() > 0.01
    assert (answer["predicted"] != (answer["scores"] >= 0.5)).any()


def test_the_best_genres_have_their_own_decision(version, posters, expected):
    logits, decided = expected
    images = tf.constant([poster.read_bytes() for poster in posters])
    best = tf.saved_model.load(str(version)).signatures["top_k"](image_bytes=images)
    order = np.argsort(-logits, axis=1)[:, :3]
    for name, of_all in (
        ("calibrated", decided.calibrate(logits)),
        ("predicted", decided.predict(logits)),
    ):
        np.testing.assert_allclose(best[name], np.take_along_axis(of_all, order, 1), atol=1e-6)


def test_a_bad_image_has_no_genres(version):
    answer = test_export.serve(version, [b"junk"])
    assert not answer["calibrated"].any() and not answer["predicted"].any()


def test_the_files_beside_the_model_have_the_decision(version, expected):
    _, decided = expected
    kept = decision.read(version / "thresholds.json")
    assert kept.how == decided.how and kept.how.startswith("Chosen on 128 posters of train[75%:]:")
    card = (version / "model_card.md").read_text()
    assert decided.how in " ".join(card.split())
    for genre, row in decided.table.iterrows():
        (line,) = [line for line in card.splitlines() if line.startswith(f"| {genre} ")]
        numbers = [float(cell) for cell in line.split("|")[2:5]]
        assert numbers == pytest.approx(row[["threshold", "slope", "intercept"]], abs=1e-6)


def test_the_client_marks_predicted_genres_or_those_over_a_threshold(version, posters, expected):
    logits, decided = expected
    names, predicted = decided.table.index.to_numpy(), decided.predict(logits)
    lines = predict(f"--model={version}", "--json", "--top_k=8", *posters).splitlines()
    for line, row, of_poster in zip(lines, decided.calibrate(logits), predicted, strict=True):
        record = json.loads(line)
        assert set(record["predicted"]) == set(names[of_poster])
        assert [record["calibrated"][name] for name in names] == pytest.approx(row, abs=1e-6)
    table = predict(f"--model={version}", "--top_k=8", "--threshold=0.3", *posters).splitlines()
    for line, row in zip(table, decided.calibrate(logits), strict=True):
        marked = {name for name in names if f"{name} " in line and "*" in line.split(name)[1][:20]}
        assert marked == set(names[row >= 0.3])


def test_predictions_are_annotations_that_a_dataset_is_built_from(
    version, synthetic_posters, posters, expected, tmp_path
):
    logits, decided = expected
    (tmp_path / "posters").mkdir()
    (tmp_path / "posters" / "Images").symlink_to(synthetic_posters / "Images")
    (tmp_path / "bad.jpg").write_bytes(b"junk")
    command = (sys.executable, "-m", "export.predict", f"--model={version}", "--annotations")
    result = conftest.run(*command, tmp_path / "bad.jpg", *posters, check=False)
    assert f"{tmp_path / 'bad.jpg'}: not an image that can be read" in result.stderr
    (tmp_path / "posters" / "train.csv").write_text(result.stdout)
    settings = {"name": "predicted", "split": "hashed"}
    builder = conftest.build(tmp_path / "posters", tmp_path / "data", settings)
    genres = builder.info.features["genres"].feature.names
    found = {
        example["poster_id"].decode(): {genres[i] for i in example["genres"]}
        for split in builder.info.splits
        for example in builder.as_dataset(split).as_numpy_iterator()
    }
    names, predicted = decided.table.index.to_numpy(), decided.predict(logits)
    assert found == {
        poster.stem: set(names[row]) for poster, row in zip(posters, predicted, strict=True)
    }
    rows = list(csv.reader(io.StringIO(result.stdout)))
    assert rows[0][0] == "Id" and len(rows) == 13


def test_without_thresholds_all_are_a_half_and_it_says_so(run_dir, tmp_path):
    flags = (f"--run_dir={run_dir}", f"--export_dir={tmp_path}")
    printed = conftest.run(sys.executable, "-m", "export", *flags).stdout
    assert "Thresholds: Not chosen: each threshold is 0.5" in printed
    assert f"`python -m trainer.cross_fit --run_dir={run_dir} --tta=none` chooses" in printed
    kept = decision.read(tmp_path / "1" / "thresholds.json")
    assert set(kept.table["threshold"]) == {0.5}


def test_thresholds_of_other_answers_are_not_exported(decided_run, tmp_path):
    """Of variants' mean, or of another checkpoint."""
    version = saved_model.export_saved_model(decided_run, tmp_path, tta="mirror")
    assert decision.read(version / "thresholds.json").how.startswith("Not chosen")


def test_an_export_from_before_thresholds_is_understood():
    outputs = {"genres": [["a", "b"]], "scores": [[0.2, 0.7]], "ok": [True], "error": [""]}
    (answer,) = answers.from_outputs(outputs)
    assert answer.genres == [answers.Genre("b", 0.7, 0.7, None), answers.Genre("a", 0.2, 0.2, None)]


def test_an_export_from_before_thresholds_gives_no_annotations(version, posters):
    """Without a word it would say that no poster has any genre."""
    model = stand_in_server.Model(version)
    model.run, run = lambda *name, **inputs: without(run(*name, **inputs)), model.run

    def without(outputs):
        return {name: value for name, value in outputs.items() if name != "predicted"}

    with stand_in_server.SERVE["rest"]("old", model) as address:
        command = (sys.executable, "-m", "export.predict", f"--server={address}", "--name=old")
        result = conftest.run(*command, "--annotations", posters[0], check=False)
        assert result.returncode == 1 and "give --threshold." in result.stderr
        assert not result.stdout and "Traceback" not in result.stderr
        taken = conftest.run(*command, "--annotations", "--threshold=0.5", posters[0])
        assert len(taken.stdout.splitlines()) == 2


def test_a_table_has_what_the_model_answers_for_each_poster(
    decided_run, version, posters, expected, tmp_path
):
    """Of an export and of the run itself; a poster twice is two rows, a bad one has a reason."""
    logits, decided = expected
    (tmp_path / "bad.jpg").write_bytes(b"junk")
    paths = [*posters, tmp_path / "bad.jpg", posters[0]]
    for path in (version.parent, decided_run):
        frame = export.load(path)(map(str, paths), batch_size=5)
        assert frame.index.tolist() == paths
        names = list(decided.table.index)
        scores = 1 / (1 + np.exp(-logits[[*range(12), 0]]))
        good = frame[frame["error"] == ""]
        np.testing.assert_allclose(good["score"][names], scores, atol=1e-5)
        calibrated = decided.calibrate(logits)
        np.testing.assert_allclose(good["calibrated"][names][:12], calibrated, atol=1e-5)
        np.testing.assert_array_equal(good["predicted"][names][:12], decided.predict(logits))
        assert frame["predicted"].to_numpy().dtype == bool
        bad = frame.iloc[12]
        assert bad["score"].isna().all() and not bad["predicted"].any()
        assert bad[("error", "")].startswith("not an image that can be read")


def test_a_table_without_any_answer_says_why_of_each(version, tmp_path):
    predictor = export.load(version)
    (tmp_path / "bad.jpg").write_bytes(b"junk")
    frame = predictor([tmp_path / "bad.jpg", tmp_path / "gone.jpg"])
    assert frame["error"].str.len().min() > 0
    assert predictor([]).empty


def test_a_run_is_asked_without_an_export(decided_run, version, posters):
    of_run = predict(f"--run_dir={decided_run}", "--csv", *posters[:3])
    assert of_run == predict(f"--model={version}", "--csv", *posters[:3])
