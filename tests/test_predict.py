"""From files to answers: what is taken, reduced, passed over and named, and how it is printed."""

import csv
import io
import json
import shutil
import signal
import socket
import sys

import numpy as np
import pytest
from etils import epath

pytest.importorskip("tensorflow_serving", reason="NOT TESTED: needs the extra `serving`")

import export
from export import answers as answers_lib, clients, poster_files
from poster_tfds import images, poster_tfds_dataset_builder, source
from tests import conftest, stand_in_server, test_images
from tests.test_preprocessing import make_jpeg
from trainer import config
from trainer.data import preprocessing
from trainer.decisions import decision
from trainer.run import checkpoints, directory

# Runs the command once for each list of arguments, as new flags, in one process.
MANY = """
import contextlib, io, json, sys
from absl import flags
from export import predict
from tests import with_tiny_model
with_tiny_model.register()
results = []
for arguments in json.loads(sys.argv[1]):
    flags.FLAGS.unparse_flags()
    for name in flags.FLAGS.flags_by_module_dict()["export.predict"]:
        name.using_default_value, name.value, name.present = True, name.default, 0
    rest = flags.FLAGS(["predict", *arguments])[1:]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            predict.main(rest)
        except SystemExit as exit:
            code = exit.code
        except ValueError as error:
            code = str(error)
    results.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(results), flush=True)
"""


@pytest.fixture(scope="module")
def posters(synthetic_posters):
    return sorted((synthetic_posters / "Images").glob("*.jpg"))[:12]


@pytest.fixture(scope="module")
def expected(run_dir, posters):
    """The run's own logits for the posters, and its decision."""
    model, facts = checkpoints.restore_model(run_dir)
    pixels = [preprocessing.decode_and_resize(p.read_bytes(), facts["image_size"]) for p in posters]
    run = directory.RunDirectory(run_dir)
    return model(np.stack(pixels), training=False).numpy(), decision.read(run.thresholds)


@pytest.mark.slow
def test_the_command_prints_what_the_run_answers_in_each_form(
    version, run_dir, synthetic_posters, posters, expected, tmp_path
):
    logits, decided = expected
    names, predicted, calibrated = (
        list(decided.table.index),
        decided.predict(logits),
        decided.calibrate(logits),
    )
    for folder in ("posters/Images/deeper", "empty"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "posters/Images/bad.jpg").write_bytes(b"junk")
    (tmp_path / "posters/Images/notes.txt").write_text("no poster")
    (tmp_path / "list.txt").write_text(f"{posters[0]}\n\nnone.jpg\n")
    (tmp_path / "no list.txt").write_text("\n")
    bad = tmp_path / "posters/Images/bad.jpg"
    listed, nothing = (f"--list={tmp_path / name}" for name in ("list.txt", "no list.txt"))
    of_version, of_run = f"--model={version.parent}", f"--run_dir={run_dir}"
    plain = list(map(str, posters))
    with stand_in_server.serve_rest("mine", stand_in_server.Model(version, busy=2)) as address:
        server = (f"--server={address}", "--name=mine", "--batch_size=3")
        asked = [
            [*server, "--json", "--top_k=8", listed, str(bad.parent), *plain],
            [of_run, "--csv", "--top_k=8", *plain],
            [of_version, "--threshold=0.3", "--top_k=8", *plain],
            [of_version, "--annotations", *plain, str(bad)],
            [of_version, f"--explain={tmp_path / 'explained'}", "--top_k=2", str(bad), plain[0]],
            [of_version, nothing],
            [of_version, f"{nothing}.gone"],
            [of_version, str(tmp_path / "empty")],
            ["x.jpg"],
            ["--model=a", "--server=b", "x.jpg"],
            ["--model=a"],
            ["--model=a", "--json", "--csv", "x.jpg"],
            ["--server=ftp://b:1", "x.jpg"],
            ["--server=b:1", "--explain=d", "x.jpg"],
        ]
        out = conftest.run(sys.executable, "-c", MANY, json.dumps(asked)).stdout
    of_server, of_csv, of_threshold, of_annotations, explained, *refused = json.loads(out)

    code, out, err = of_server
    records = [json.loads(line) for line in out.splitlines()]
    assert code == 1 and [r["poster"] for r in records if "error" in r] == [str(bad), "none.jpg"]
    assert f"{bad}: not an image that can be read" in err and "none.jpg: No such file" in err
    assert "Requests sent again: 2." in err.splitlines()
    passed_over = f"Files passed over, no images by their names: 1 ({bad.parent / 'notes.txt'})."
    assert passed_over in err.splitlines()
    found = {record["poster"]: record for record in records}
    for poster, row, of_poster in zip(plain, calibrated, predicted, strict=True):
        assert set(found[poster]["predicted"]) == set(np.array(names)[of_poster])
        shares = [found[poster]["calibrated"][name] for name in names]
        assert shares == pytest.approx(row, abs=1e-5)

    of_run = {(row["poster"], row["genre"]): row for row in csv.DictReader(io.StringIO(of_csv[1]))}
    for poster, row in zip(plain, calibrated, strict=True):
        shares = [float(of_run[poster, name]["calibrated"]) for name in names]
        assert shares == pytest.approx(row, abs=1e-5)

    for line, row in zip(of_threshold[1].splitlines(), calibrated, strict=True):
        marked = {name for name in names if "*" in line.split(f"{name} ")[1][:20]}
        assert marked == {name for name, share in zip(names, row, strict=True) if share >= 0.3}

    assert of_annotations[0] == 1 and str(bad) in of_annotations[2]
    new = tmp_path / "new"
    (new / "Images").mkdir(parents=True)
    for poster in posters:
        shutil.copy(poster, new / "Images")
    (new / "train.csv").write_text(of_annotations[1])
    draft = source.PosterSource(
        epath.Path(new), poster_tfds_dataset_builder.PosterConfig(name="new", split="reference")
    )
    assert [row[1:3] for row in draft.rows("train", "test")] == [
        (poster.stem, tuple(draft.genres.index(names[i]) for i in np.flatnonzero(of_poster)))
        for poster, of_poster in zip(posters, predicted, strict=True)
    ]

    picture = tmp_path / "explained" / f"{posters[0].stem}.png"
    assert f"Wrote {picture}" in explained[2] and [picture] == list(picture.parent.iterdir())

    said = [str(code) + err for code, _, err in refused]
    for complaint, words in zip(
        (
            f"No posters: {nothing} names none.",
            f"{nothing}.gone: No such file or directory.",
            f"a folder without images ({', '.join(poster_files.SUFFIXES)})",
            "Give one of --model=DIR, --run_dir=DIR and --server",
            "Give one of --model=DIR, --run_dir=DIR and --server",
            "Name posters or folders",
            "Give one of --json, --csv and --annotations",
            "--server=ftp://b:1: give HOST:PORT",
            "Instead of --server=b:1 give --model=DIR",
        ),
        said,
        strict=True,
    ):
        assert complaint in words


def test_an_answer_is_printed_with_its_predicted_genres():
    drama, crime, noir = (
        answers_lib.Genre("Drama", 0.9, 0.8, True),
        answers_lib.Genre("Crime", 0.5, 0.4, False),
        answers_lib.Genre("Noir", 0.25, 0.3, True),
    )
    answer = answers_lib.Answer([drama, crime, noir])
    assert answer.describe(2).split() == ["Drama", "0.900*", "Crime", "0.500"]
    assert answer.to_json(2) == {
        "genres": {"Drama": 0.9, "Crime": 0.5},
        "calibrated": {"Drama": 0.8, "Crime": 0.4},
        "predicted": ["Drama", "Noir"],
    }
    assert answers_lib.Answer([], "junk").to_json(2) == {"error": "junk"}


def test_a_table_has_what_the_run_answers_for_each_poster(
    version, run_dir, posters, expected, tmp_path
):
    """Of an export and of the run itself; a poster twice is two rows, a bad one has a reason."""
    logits, decided = expected
    (tmp_path / "bad.jpg").write_bytes(b"junk")
    paths = [*posters, tmp_path / "bad.jpg", posters[0]]
    for path in (version.parent, run_dir):
        predictor = export.load(path)
        frame = predictor(map(str, paths), batch_size=5)
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
    frame = predictor([tmp_path / "bad.jpg", tmp_path / "gone.jpg"])
    assert frame["error"].str.len().min() > 0
    assert predictor([]).empty


def test_a_folder_is_searched_and_what_is_no_image_is_counted(tmp_path):
    folder = tmp_path / "posters"
    for name in ("b.JPG", "deeper/a.png", *"abcdefg", ".DS_Store", "._b.jpg", ".hidden/x.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text("\nx.jpg\n")
    names = [str(folder), str(tmp_path / "empty"), "none.jpg"]
    files = poster_files.PosterFiles(names, str(tmp_path / "list.txt"))
    found = list(map(str, files))
    assert found == [
        *(str(folder / name) for name in ("b.JPG", "deeper/a.png")),
        *names[1:],
        "x.jpg",
    ]
    named = ", ".join(str(folder / name) for name in "abcde")
    passed_over = f"Files passed over, no images by their names: 7 ({named} and 2 more)."
    assert files.describe_passed_over() == passed_over
    with pytest.raises(config.UsageError, match=r"--list=gone: No such file"):
        list(poster_files.PosterFiles([], "gone"))


@pytest.mark.slow
def test_an_interrupt_does_not_wait_for_a_silent_server(synthetic_posters):
    with socket.create_server(("localhost", 0)) as silent:
        server = f"--server=localhost:{silent.getsockname()[1]}"
        command = (sys.executable, "-m", "export.predict", server, "--timeout=100000")
        process = conftest.start(*command, synthetic_posters / "Images")
        silent.accept()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    assert (process.returncode, out, err) == (130, "", "")


def test_a_file_of_any_format_is_answered_as_the_stored_poster_is(
    version, tmp_path, wire, local_client
):
    picture = test_images.PICTURE
    files = {
        "a.png": test_images.encode(picture, "PNG"),
        "b.webp": test_images.encode(picture, "WEBP", lossless=True),
        "c.GIF": test_images.TWO_FRAMES,
        "d.jpg": make_jpeg(60, 80, mode="CMYK"),
        "e.jpg": test_images.turned(6),
        "f.bmp": test_images.encode(picture, "BMP"),
        "g.tiff": test_images.encode(picture, "TIFF"),
        "h.jpg": test_images.JPEG,
        "i.png": test_images.encode(picture, "PNG", icc_profile=test_images.swapped_profile()),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "z.jpg").write_bytes(test_images.cut_ended(test_images.LARGE))
    posters = list(poster_files.PosterFiles([tmp_path]))
    stored = [images.as_stored(content).jpeg for content in files.values()]
    with wire("posters", stand_in_server.Model(version)) as address:
        for client in (
            clients.connect(address, "posters", 60),
            local_client,
        ):
            answers = dict(clients.ask_all(client, posters, len(posters), 1))
            assert answers.pop(tmp_path / "z.jpg").error.startswith("the JPEG is damaged inside")
            assert list(answers) == [tmp_path / name for name in files]
            assert list(answers.values()) == client.ask(stored)


def test_larger_posters_are_reduced_as_the_dataset_did(version, tmp_path, local_client):
    (tmp_path / "a.jpg").write_bytes(test_images.LARGE)
    ((_, answer),) = clients.ask_all(local_client, [tmp_path / "a.jpg"], 1, 1, max_side=100)
    assert [answer] == local_client.ask([images.as_stored(test_images.LARGE, 100).jpeg])
    assert [answer] != local_client.ask([test_images.LARGE])
