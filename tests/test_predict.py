"""From files to answers: what is taken, reduced, passed over and named on the way."""

import csv
import io
import json
import signal
import socket
import sys

import pytest

pytest.importorskip("tensorflow_serving", reason="NOT TESTED: needs the extra `serving`")

from export import clients, poster_files
from poster_tfds import images
from tests import conftest, stand_in_server, test_images
from tests.test_preprocessing import make_jpeg


def ask(*arguments, returncode=0):
    result = conftest.run(sys.executable, "-m", "export.predict", *arguments, check=False)
    assert result.returncode == returncode, result.stderr
    assert "Traceback" not in result.stderr
    return result


def test_a_folder_a_list_and_a_bad_file_go_through_a_server(
    version, synthetic_posters, tmp_path, wire
):
    folder = tmp_path / "posters"
    (folder / "deeper").mkdir(parents=True)
    for i in range(11):
        name = f"synthetic{i:07}.jpg"
        (folder / ("deeper" if i % 2 else "") / name).write_bytes(
            (synthetic_posters / "Images" / name).read_bytes()
        )
    (folder / "bad.jpg").write_bytes(b"junk")
    for name in (*"abcdefg", ".DS_Store", "._bad.jpg", "deeper/.hidden/x.png"):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("no poster")
    listed = tmp_path / "list.txt"
    listed.write_text(f"{synthetic_posters / 'Images' / 'synthetic0000020.jpg'}\n\nnone.jpg\n")
    with wire("mine", stand_in_server.Model(version, busy=2)) as address:
        flags = (f"--server={address}", "--name=mine", "--batch_size=3", f"--list={listed}")
        result = ask(*flags, "--json", folder, returncode=1)
        table = ask(*flags, "--csv", folder, returncode=1).stdout
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(records) == 14
    assert [r["poster"] for r in records if "error" in r] == [str(folder / "bad.jpg"), "none.jpg"]
    assert f"{folder / 'bad.jpg'}: not an image that can be read" in result.stderr
    assert "none.jpg: No such file" in result.stderr
    named = ", ".join(str(folder / name) for name in "abcde")
    assert "Requests sent again: 2." in result.stderr.splitlines()
    passed_over = f"Files passed over, no images by their names: 7 ({named} and 2 more)."
    assert passed_over in result.stderr.splitlines()
    rows = list(csv.DictReader(io.StringIO(table)))
    assert len(rows) == 12 * 3 + 2
    genres = {(row["poster"], row["genre"]): float(row["score"]) for row in rows if row["genre"]}
    for record in records:
        for genre, score in record.get("genres", {}).items():
            assert genres[record["poster"], genre] == pytest.approx(score, abs=1e-6)


def test_nothing_to_do_is_said_once_and_is_a_failure(tmp_path):
    folder = tmp_path / "posters"
    (folder / "deeper").mkdir(parents=True)
    (folder / "notes.txt").write_text("no poster")
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    result = ask("--server=localhost:1", folder, returncode=1)
    without, passed_over = result.stderr.splitlines()[-2:]
    assert without == f"{folder}: a folder without images ({', '.join(poster_files.SUFFIXES)})"
    assert str(folder / "notes.txt") in passed_over
    result = ask("--server=localhost:1", f"--list={empty}", returncode=1)
    assert result.stderr.splitlines()[-1] == f"No posters: --list={empty} names none."
    result = ask("--server=localhost:1", f"--list={empty}.gone", returncode=1)
    assert result.stderr.splitlines()[-1] == f"--list={empty}.gone: No such file or directory."


def test_an_interrupt_does_not_wait_for_a_silent_server(synthetic_posters):
    with socket.create_server(("localhost", 0)) as silent:
        server = f"--server=localhost:{silent.getsockname()[1]}"
        command = (sys.executable, "-m", "export.predict", server, "--timeout=100000")
        process = conftest.start(*command, synthetic_posters / "Images")
        silent.accept()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    assert (process.returncode, out, err) == (130, "", "")


def test_a_file_of_any_format_is_answered_as_the_stored_poster_is(version, tmp_path, wire):
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
            clients.LocalClient.of_version(version),
        ):
            answers = dict(clients.ask_all(client, posters, len(posters), 1))
            assert answers.pop(tmp_path / "z.jpg").error.startswith("the JPEG is damaged inside")
            assert list(answers) == [tmp_path / name for name in files]
            assert list(answers.values()) == client.ask(stored)


def test_larger_posters_are_reduced_as_the_dataset_did(version, tmp_path):
    (tmp_path / "a.jpg").write_bytes(test_images.LARGE)
    client = clients.LocalClient.of_version(version)
    ((_, answer),) = clients.ask_all(client, [tmp_path / "a.jpg"], 1, 1, max_side=100)
    assert [answer] == client.ask([images.as_stored(test_images.LARGE, 100).jpeg])
    assert [answer] != client.ask([test_images.LARGE])


def test_no_more_posters_are_held_than_are_being_asked(tmp_path):
    """However many there are: a client that counts shows how far the reading is ahead."""
    poster = tmp_path / "poster.jpg"
    poster.write_bytes(test_images.JPEG)
    taken = 0

    def posters():
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield poster

    class Client:
        def ask(self, images):
            return [clients.Answer([])] * len(images)

    given = 0
    for _ in clients.ask_all(Client(), posters(), batch_size=4, parallel=2):
        given += 1
        assert taken - given <= 4 * 2 * 2 + 4
    assert given == taken == 1000


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("x.jpg",), "Give one of --model=DIR, --run_dir=DIR and --server"),
        (
            ("--model=a", "--server=b", "x.jpg"),
            "Give one of --model=DIR, --run_dir=DIR and --server",
        ),
        (("--model=a",), "Name posters or folders"),
        (("--server=ftp://b:1", "x.jpg"), "--server=ftp://b:1: give HOST:PORT"),
        (("--server=b", "x.jpg"), "--server=b: give HOST:PORT"),
        (("--server=b:1", "--explain=d", "x.jpg"), "Instead of --server=b:1 give --model=DIR"),
    ],
)
def test_what_is_not_clear_is_asked_for(arguments, complaint):
    assert complaint in ask(*arguments, returncode=1).stderr
