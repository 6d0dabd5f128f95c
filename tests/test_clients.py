"""The clients' wires, against a stand-in for the server."""

import contextlib
import json
import re
import socket
import time

import pytest
import tensorflow as tf

pytest.importorskip("tensorflow_serving", reason="NOT TESTED: needs the extra `serving`")

import grpc

from export import clients, server_client, serving_files
from tests import conftest, stand_in_server
from trainer import config


def scores_of(answer):
    return {genre.name: genre.score for genre in answer.genres}


@pytest.fixture(name="images")
def posters_bytes(synthetic_posters):
    posters = [synthetic_posters / "Images" / f"synthetic{i:07}.jpg" for i in range(5)]
    return [poster.read_bytes() for poster in posters]


def test_a_server_answers_as_the_saved_model_does(version, images, wire, local_client):
    images = [*images[:2], b"junk", *images[2:]]
    expected = local_client.ask(images)
    with wire("posters", stand_in_server.Model(version)) as address:
        answers = clients.connect(address, "posters", 60).ask(images)
    assert [bool(answer.error) for answer in answers] == [False, False, True, False, False, False]
    for ours, theirs in zip(answers, expected, strict=True):
        assert ours.error == theirs.error
        assert scores_of(ours) == pytest.approx(scores_of(theirs), abs=1e-6)
        scores = [genre.score for genre in ours.genres]
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("served", "code"),
    [
        ("rest", grpc.StatusCode.UNAVAILABLE),
        ("rest", grpc.StatusCode.DEADLINE_EXCEEDED),
        ("grpc", grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
def test_a_busy_server_is_asked_again(version, images, served, code, monkeypatch):
    monkeypatch.setattr(server_client, "_LONGEST_PAUSE", 0.1)
    model = stand_in_server.Model(version, busy=7, code=code)
    with stand_in_server.SERVE[served]("posters", model) as address:
        client = clients.connect(address, "posters", 60)
        answers = client.ask(images)
    assert model.requests == 8
    assert client.sent_again == 7
    assert not any(answer.error for answer in answers)


def test_a_refused_request_harms_only_its_posters(version, synthetic_posters, wire):
    posters = sorted((synthetic_posters / "Images").glob("*.jpg"))[:9]
    refused = posters[3].read_bytes()

    class Model(stand_in_server.Model):
        def run(self, signature, *, image_bytes):
            if refused in list(image_bytes):
                raise stand_in_server.RefusedError(grpc.StatusCode.INVALID_ARGUMENT, "unwanted")
            return super().run(signature, image_bytes=image_bytes)

    with wire("posters", Model(version)) as address:
        client = clients.connect(address, "posters", 60)
        answers = list(clients.ask_all(client, posters, batch_size=2, parallel=1))
    assert [poster for poster, _ in answers] == posters
    assert [i for i, (_, answer) in enumerate(answers) if "unwanted" in answer.error] == [2, 3]
    assert all(answer.genres for i, (_, answer) in enumerate(answers) if i not in (2, 3))


def test_a_server_that_goes_away_ends_the_asking(version, synthetic_posters, wire):
    posters = sorted((synthetic_posters / "Images").glob("*.jpg"))[:32]
    asked, failed, model = 0, [], stand_in_server.Model(version)
    model.run("serving_default", image_bytes=[posters[0].read_bytes()])  # Or it takes seconds.
    with wire("posters", model) as address:
        client = clients.connect(address, "posters", 1)
        answers = clients.ask_all(client, posters, batch_size=1, parallel=1)
        assert next(answers)[1].genres
    with pytest.raises(clients.ServerError, match="localhost"):
        for _, answer in answers:
            asked += 1
            failed += [answer.error] if answer.error else []
    assert 3 <= len(failed) <= 5 and asked <= len(failed) + 3
    assert not any("DEADLINE" in error or "400" in error for error in failed)


def test_a_server_that_starts_again_is_waited_for(version, images, wire, monkeypatch):
    with contextlib.ExitStack() as again:

        def start_again(seconds):
            monkeypatch.undo()
            again.enter_context(wire("posters", stand_in_server.Model(version), port))

        with wire("posters", stand_in_server.Model(version)) as address:
            client = clients.connect(address, "posters", 60)
            expected = client.ask(images)
        port = int(address.rpartition(":")[2])
        monkeypatch.setattr(time, "sleep", start_again)
        answers = client.ask(images)
    assert client.sent_again
    assert answers == expected


def test_a_server_that_is_always_busy_or_has_no_such_model_is_named(version, images, wire):
    busy, good = stand_in_server.Model(version, busy=10**6), stand_in_server.Model(version)
    with wire("posters", busy) as address, pytest.raises(clients.ServerError, match="busy"):
        clients.connect(address, "posters", 1).ask(images)
    with (
        wire("posters", good) as address,
        pytest.raises(clients.ServerError, match=r"not found.*films"),
    ):
        clients.connect(address, "films", 60).ask(images)


@pytest.mark.parametrize("server", ["localhost:1", "grpc://localhost:1"])
def test_a_server_that_is_not_there_is_named_at_once(server, images):
    client = clients.connect(server, "posters", 60)
    with pytest.raises(clients.ServerError, match="localhost:1"):
        client.ask(images)
    assert not client.sent_again


@pytest.mark.parametrize("scheme", ["", "grpc://"])
def test_a_server_that_does_not_answer_in_time_is_named(scheme, images):
    with socket.create_server(("localhost", 0)) as silent:
        server = f"{scheme}localhost:{silent.getsockname()[1]}"
        with pytest.raises(clients.ServerError, match=r"localhost.*no answer within 0.3 s"):
            clients.connect(server, "posters", 0.3).ask(images)
        silent.setblocking(False)
        asked = 0
        with contextlib.suppress(BlockingIOError):
            while silent.accept():
                asked += 1
        assert 1 <= asked <= 2


@pytest.mark.parametrize(
    ("served", "scheme", "words"),
    [
        ("rest", "grpc://", "answers HTTP, not gRPC: give --server=localhost:PORT without grpc://"),
        ("grpc", "", "answers gRPC, not HTTP: give --server=grpc://localhost:PORT"),
    ],
)
def test_the_other_protocols_port_is_named_as_such(version, images, served, scheme, words):
    with stand_in_server.SERVE[served]("posters", stand_in_server.Model(version)) as address:
        host = address.removeprefix("grpc://")
        with pytest.raises(config.UsageError) as error:
            clients.connect(scheme + host, "posters", 60).ask(images)
    assert words.replace("PORT", host.partition(":")[2]) in str(error.value)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_server_on_this_machine_is_asked_without_a_proxy(
    version, images, wire, host, monkeypatch
):
    for name in ("http_proxy", "HTTP_PROXY", "grpc_proxy"):
        monkeypatch.setenv(name, "http://localhost:1")
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    with wire("posters", stand_in_server.Model(version)) as address:
        answers = clients.connect(address.replace("localhost", host), "posters", 60).ask(images)
    assert not any(answer.error for answer in answers)


@pytest.mark.slow
def test_readmes_curl_lines_are_answered_as_the_saved_model_does(version, synthetic_posters):
    """One for each API; the Classify API knows its signature only by name."""
    readme = (conftest.PROJECT / "export/README.md").read_text()
    (script,) = re.findall(r"```bash\n([^`]*curl[^`]*)```", readme)
    poster = synthetic_posters / "Images" / "synthetic0000003.jpg"
    with stand_in_server.serve_rest("imdb", stand_in_server.Model(version)) as address:
        script = script.replace("posters/saaho.jpg", str(poster))
        script = script.replace("localhost:8501", address)
        predicted, classified = conftest.run("bash", "-c", script).stdout.split("}{")
        without = re.sub('"signature_name": "classify", ', "", script)
        assert "No inputs inputs found" in conftest.run("bash", "-c", without).stdout
    served = tf.saved_model.load(str(version)).signatures
    best = served["top_k"](image_bytes=tf.constant([poster.read_bytes()]))
    (row,) = json.loads(predicted + "}")["predictions"]
    assert row["genres"] == [genre.decode() for genre in best["genres"].numpy()[0]]
    assert row["scores"] == pytest.approx(best["scores"].numpy()[0], abs=1e-6)
    example = serving_files.example(poster.read_bytes()).SerializeToString()
    every = served["classify"](inputs=tf.constant([example]))
    ((*pairs,),) = json.loads("{" + classified)["results"]
    assert [genre.encode() for genre, _ in pairs] == every["classes"].numpy()[0].tolist()
    assert [score for _, score in pairs] == pytest.approx(every["scores"].numpy()[0], abs=1e-6)
