"""The real tensorflow_model_server, started by README's own line; and the same of a stand-in.

The stand-in shows that the questions can be answered and are not answered by chance; of the
server it shows nothing. Set TENSORFLOW_MODEL_SERVER to the server's path to ask it.
"""

import concurrent.futures
import contextlib
import os
import random
import re
import shlex
import shutil
import socket
import subprocess
import threading
import time
import warnings
from typing import NamedTuple

import pytest
import requests
import tensorflow as tf

pytest.importorskip("tensorflow_serving", reason="NOT TESTED: needs the extra `serving`")


from export import clients, saved_model, server_settings
from tests import conftest, stand_in_server
from tests.test_clients import scores_of

pytestmark = pytest.mark.slow
SERVER = os.environ.get("TENSORFLOW_MODEL_SERVER") or shutil.which("tensorflow_model_server")
SECONDS_TO_START = 120


class Server(NamedTuple):
    export_dir: os.PathLike
    rest: str
    grpc: str
    log: os.PathLike | None = None  # What the real one has printed.
    joined: stand_in_server.Joined | None = None  # The stand-in's batches.


@pytest.fixture(scope="module", params=["real", "stand_in"])
def server(request, export_dir, tmp_path_factory):
    """A server of a copy of `export_dir`, with batching, that serves version 1."""
    if request.param == "real" and not SERVER:
        message = (
            "tensorflow_model_server is NOT TESTED: set TENSORFLOW_MODEL_SERVER to its path or "
            "put it on the PATH"
        )
        warnings.warn(message, stacklevel=1)
        pytest.skip(message)
    directory = tmp_path_factory.mktemp("served") / "posters"
    shutil.copytree(export_dir / "1", directory / "1")
    server_settings.write_server_files(directory, server_settings.CPU, os.cpu_count())
    start = start_real if request.param == "real" else start_stand_in
    with start(directory) as started:
        wait_for_version(started, 1)
        yield started


@contextlib.contextmanager
def start_real(directory):
    ports = free_port(), free_port()
    log = directory.parent / "log.txt"
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "0"}  # Else the log says nothing.
    with log.open("w") as output:
        command = [SERVER, *readme_flags(directory, *ports)]
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        try:
            yield Server(directory, f"localhost:{ports[1]}", f"grpc://localhost:{ports[0]}", log)
        finally:
            process.kill()
            process.wait()
            print(log.read_text()[-5000:])  # Shown where a test fails.


@contextlib.contextmanager
def start_stand_in(directory):
    with stand_in_server.serve(directory, port="0", rest_api_port="0") as (rest, remote, joined):
        yield Server(directory, rest, remote, joined=joined)


def readme_flags(directory, grpc_port, rest_port):
    """The flags that README's line gives the server, for other files and ports."""
    flags = directory / "server_flags.txt"
    for name, port in (("port", grpc_port), ("rest_api_port", rest_port)):
        text, found = re.subn(rf"^--{name}=\d+$", f"--{name}={port}", flags.read_text(), flags=re.M)
        assert found == 1
        flags.write_text(text)
    readme = (conftest.PROJECT / "export/README.md").read_text()
    (line,) = re.findall("^xargs .* tensorflow_model_server$", readme, re.MULTILINE)
    line = line.replace("exports/imdb", shlex.quote(str(directory)))
    line = line.replace("tensorflow_model_server", r"printf '%s\n'")
    return conftest.run("bash", "-c", line).stdout.splitlines()


def free_port():
    with socket.socket() as unused:
        unused.bind(("localhost", 0))
        return unused.getsockname()[1]


def wait_for_version(server, version):
    """Waits until a version is the one that is served."""
    end = time.monotonic() + SECONDS_TO_START
    status = None
    while time.monotonic() < end:
        with contextlib.suppress(requests.ConnectionError):
            status = requests.get(f"http://{server.rest}/v1/models/posters", timeout=60).json()
            served = [
                int(found["version"])
                for found in status.get("model_version_status", [])
                if found["state"] == "AVAILABLE"
            ]
            if served == [version]:
                return
        time.sleep(0.1)
    raise AssertionError(f"version {version} is not served: {status}")


@pytest.fixture(scope="module")
def posters(synthetic_posters):
    paths = sorted((synthetic_posters / "Images").glob("*.jpg"))
    return [path.read_bytes() for path in paths[:12]]


@pytest.mark.parametrize("wire", ["rest", "grpc"])
def test_a_server_answers_as_the_saved_model_does(server, posters, wire):
    images = [*posters[:3], b"junk", b"", *posters[3:6]]
    version = saved_model.resolve_version(server.export_dir)
    expected = clients.LocalClient.of_version(version).ask(images)
    answers = clients.connect(getattr(server, wire), "posters", 60).ask(images)
    assert [answer.error for answer in answers] == [answer.error for answer in expected]
    assert sum(bool(answer.error) for answer in answers) == 2
    for ours, theirs in zip(answers, expected, strict=True):
        assert scores_of(ours) == pytest.approx(scores_of(theirs), abs=1e-5)


def test_a_second_version_takes_over_under_load_and_no_request_fails(server, posters):
    """Sixteen clients ask for one poster after the other, one in twenty bad."""
    version = saved_model.resolve_version(server.export_dir)
    expected = list(map(scores_of, clients.LocalClient.of_version(version).ask(posters)))
    stopped = threading.Event()

    def ask(seed):
        rng = random.Random(seed)
        client = clients.connect((server.rest, server.grpc)[seed % 2], "posters", 60)
        answered = 0
        while not stopped.is_set():
            i = rng.randrange(len(posters))
            is_bad = rng.random() < 0.05
            (answer,) = client.ask([b"junk" if is_bad else posters[i]])
            assert bool(answer.error) == is_bad
            assert is_bad or scores_of(answer) == pytest.approx(expected[i], abs=1e-5)
            answered += 1
        return answered, client.sent_again

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(ask, seed) for seed in range(16)]
        try:
            time.sleep(1)
            shutil.copytree(version, server.export_dir / "incomplete")
            (server.export_dir / "incomplete").rename(server.export_dir / "2")
            wait_for_version(server, 2)
            time.sleep(1)  # Under the new version.
        finally:
            stopped.set()
        answered, sent_again = zip(*(future.result() for future in asked), strict=True)
    assert min(answered) > 3 and not sum(sent_again)
    if server.joined:
        assert max(server.joined.batches) > 1


def test_the_real_server_has_warmed_up_and_batches(server, posters):
    """By its own words: `saved_model_warmup_util.cc`, `batching_session.cc` of its source."""
    if not server.log:
        pytest.skip("a stand-in neither warms up nor logs")
    version = server.export_dir / "1"
    warmup = version / "assets.extra" / "tf_serving_warmup_requests"
    records = sum(1 for _ in tf.data.TFRecordDataset(str(warmup)))
    assert (
        f"Finished reading warmup data for model at {warmup}. "
        f"Number of warmup records read: {records}." in server.log.read_text()
    )
    clients.connect(server.rest, "posters", 60).ask(posters)
    monitoring = f"http://{server.rest}/monitoring/prometheus/metrics"
    metrics = requests.get(monitoring, timeout=60).text
    warmed = rf'^:tensorflow:serving:model_warmup_latency_count{{model_path="{version}".*}} 1$'
    assert re.search(warmed, metrics, re.MULTILINE)
    queued = r"^:tensorflow:serving:batching_session:queuing_latency_count{.*} [1-9]"
    assert re.search(queued, metrics, re.MULTILINE)
