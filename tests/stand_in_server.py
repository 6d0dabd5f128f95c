"""A stand-in for tensorflow_model_server, which no package registry has.

It answers over the real PredictionService and the real REST forms from a session over
the SavedModel, as the server does, can join requests into batches and take up new versions,
and refuses what the server has no room for, in its words. What it is written from is the
server's source; it proves nothing of the server.

    python -m tests.stand_in_server --export_dir=exports/imdb

serves the newest version under the directory's name until it is interrupted.
"""

import argparse
import base64
import collections
import concurrent.futures
import contextlib
import functools
import http.server
import json
import os
import pathlib
import re
import threading
import time

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from export import saved_model, serving_files

DEFAULT = "serving_default"
POLL_SECONDS = 1  # Between two looks for new versions, as the server's default is.
THREADS = 4 * os.cpu_count()  # Of each port, where no flag says otherwise.
POLLING_THREADS = 3  # Of gRPC's, which answer nothing: 8 had room for 5 requests.
# How the server's REST port says what its gRPC port does.
HTTP_STATUS = {
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}


class RefusedError(Exception):
    """A request that the server does not answer."""

    def __init__(self, code: grpc.StatusCode, message: str):
        super().__init__(message)
        self.code = code


@functools.cache  # Models of one version share it.
def load(version):
    """Returns a version in a session, as the server has it, and its signatures."""
    session = tf.compat.v1.Session(graph=tf.Graph())
    with session.graph.as_default():
        meta_graph = tf.compat.v1.saved_model.load(session, ["serve"], str(version))
    return session, meta_graph.signature_def


class Model:
    """A version in a session; refuses so many requests with `code` before it answers."""

    def __init__(self, version, busy=0, code=grpc.StatusCode.UNAVAILABLE):
        self.version = int(version.name)
        self._session, self.signatures = load(version)
        self.busy, self.code = busy, code
        self.requests = 0
        self._lock = threading.Lock()

    def run(self, signature, **inputs):
        with self._lock:
            self.requests += 1
            self.busy -= 1
            if self.busy >= 0:
                raise RefusedError(self.code, "busy")
        signature = self.signatures[signature]
        if missing := inputs.keys() - signature.inputs.keys():
            message = f"No inputs {', '.join(missing)} found in SignatureDef"
            raise RefusedError(grpc.StatusCode.FAILED_PRECONDITION, message)
        return self._session.run(
            {name: tensor.name for name, tensor in signature.outputs.items()},
            {signature.inputs[name].name: value for name, value in inputs.items()},
        )


class Newest:
    """The newest version in a directory; the one before answers while it is loaded."""

    def __init__(self, export_dir):
        self._export_dir = export_dir
        self._model = self._load()
        threading.Thread(target=self._poll, daemon=True).start()

    @property
    def version(self):
        return self._model.version

    def run(self, *arguments, **inputs):
        return self._model.run(*arguments, **inputs)

    def _load(self):
        newest = saved_model.published_versions(self._export_dir)[-1]
        return Model(self._export_dir / str(newest))

    def _poll(self):
        while True:
            time.sleep(POLL_SECONDS)
            newest = saved_model.published_versions(self._export_dir)[-1:]  # Empty: all is gone.
            if newest and newest[0] != self._model.version:
                self._model = self._load()


class Joined:
    """Joins requests into batches as the server does, by the settings of `batching.config`."""

    def __init__(self, model, batching_config: pathlib.Path):
        settings = re.findall(r"^(\w+) { value: (\d+) }$", batching_config.read_text(), re.M)
        settings = {name: int(value) for name, value in settings}
        self._model = model
        self._largest = settings["max_batch_size"]
        self._seconds = settings["batch_timeout_micros"] / 1e6
        self._threads = threading.Semaphore(settings["num_batch_threads"])
        self._most_waiting = settings["max_enqueued_batches"]
        self._waiting = collections.Counter()  # Batches of each signature, the open one included.
        self._open = {}  # The batch of each signature that still takes requests.
        self._lock = threading.Lock()
        self.batches = []  # How many requests each had.

    @property
    def version(self):
        return self._model.version

    def run(self, signature, **inputs):
        ((name, value),) = inputs.items()
        value = np.asarray(value, None if isinstance(value, np.ndarray) else object)
        if len(value) > self._largest:
            raise RefusedError(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"Task size {len(value)} is larger than maximum input batch size {self._largest}",
            )
        with self._lock:
            batch = self._open.get(signature)
            if batch is None or batch.size + len(value) > self._largest:
                self._make_room(signature)
                batch = self._open[signature] = Batch()
            # An empty list begins no batch: it waits for the first request that has something.
            leads = len(value) > 0 and batch.size == 0
            rows = slice(batch.size, batch.size + len(value))
            batch.parts.append(value)
            batch.size = rows.stop
            if batch.size == self._largest:
                batch.full.set()
        if leads:
            batch.full.wait(self._seconds)
            with self._threads:
                self._answer(batch, signature, name)
        return {key: value[rows] for key, value in batch.outputs.result().items()}

    def _answer(self, batch, signature, name):
        with self._lock:
            if self._open.get(signature) is batch:
                del self._open[signature]
            self._waiting[signature] -= 1
            self.batches.append(len(batch.parts))
        try:
            joined = np.concatenate(batch.parts)
            batch.outputs.set_result(self._model.run(signature, **{name: joined}))
        except Exception as error:
            batch.outputs.set_exception(error)  # Of every client in the batch.

    def _make_room(self, signature):
        waiting = self._waiting[signature]
        if waiting >= self._most_waiting:
            raise RefusedError(
                grpc.StatusCode.UNAVAILABLE,
                "The batch scheduling queue to which this task was submitted is full; currently "
                f"{waiting} batches enqueued and max_enqueued_batches is {self._most_waiting}",
            )
        self._waiting[signature] += 1


class Batch:
    """Requests that are answered together."""

    def __init__(self):
        self.parts, self.size = [], 0
        self.full = threading.Event()
        self.outputs = concurrent.futures.Future()


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Has so many threads, and refuses beyond."""

    def __init__(self, name, model, threads):
        self._name, self._model = name, model
        self._threads = threading.Semaphore(threads - POLLING_THREADS)

    def _run(self, context, model_spec, **inputs):
        if not self._threads.acquire(blocking=False):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "Server Threadpool Exhausted")
        try:
            check_name(model_spec.name, self._name)
            return self._model.run(model_spec.signature_name or DEFAULT, **inputs)
        except RefusedError as error:
            context.abort(error.code, str(error))
        finally:
            self._threads.release()

    def Predict(self, request, context):  # noqa: N802  (the service's name for it)
        inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
        response = predict_pb2.PredictResponse()
        for name, value in self._run(context, request.model_spec, **inputs).items():
            response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
        return response


def check_name(asked, served):
    if asked != served:
        message = f"Servable not found for request: Latest({asked})"
        raise RefusedError(grpc.StatusCode.NOT_FOUND, message)


@contextlib.contextmanager
def serve_grpc(name, model, port=0, threads=THREADS):
    """Yields the address of a server."""
    pool = concurrent.futures.ThreadPoolExecutor(threads + 4)  # The last refuse.
    server = grpc.server(pool, options=[("grpc.max_receive_message_length", -1)])
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        PredictionService(name, model, threads), server
    )
    port = server.add_insecure_port(f"localhost:{port}")
    server.start()
    try:
        yield f"grpc://localhost:{port}"
    finally:
        server.stop(None).wait()


@contextlib.contextmanager
def serve_rest(name, model, port=0, threads=THREADS):
    """Yields the address of a server; what its threads have no time for waits, unlike by gRPC."""
    free_threads = threading.Semaphore(threads)

    class Handler(http.server.BaseHTTPRequestHandler):
        # What is not HTTP/1 is refused with a status line, as the server does it.
        default_request_version = "HTTP/1.0"

        def do_GET(self):
            if self.path != f"/v1/models/{name}":
                return self._reply(404, {"error": f"Not found: {self.path}"})
            status = {"version": str(model.version), "state": "AVAILABLE"}
            return self._reply(200, {"model_version_status": [status]})

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked, verb = re.fullmatch(r"/v1/models/(.+):(\w+)", self.path).groups()
            try:
                check_name(asked, name)
                answer = {"predict": predict, "classify": classify}[verb]
                with free_threads:
                    outputs = answer(model, request)
                self._reply(200, outputs)
            except RefusedError as error:
                self._reply(HTTP_STATUS[error.code], {"error": str(error)})

        def _reply(self, status, content):
            body = json.dumps(content, default=bytes.decode).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 1024  # Connections that wait to be accepted; Python's 5 drop some.

    server = Server(("localhost", port), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"localhost:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


SERVE = {"rest": serve_rest, "grpc": serve_grpc}


def predict(model, request):
    """Answers a REST request in the row format."""
    images = [base64.b64decode(row["image_bytes"]["b64"]) for row in request["instances"]]
    outputs = model.run(request.get("signature_name", DEFAULT), image_bytes=images)
    columns = {key: value.tolist() for key, value in outputs.items()}
    rows = [{key: column[i] for key, column in columns.items()} for i in range(len(images))]
    return {"predictions": rows}


def classify(model, request):
    """Answers a REST request to the Classify API."""
    images = [base64.b64decode(row["image_bytes"]["b64"]) for row in request["examples"]]
    examples = [serving_files.example(image).SerializeToString() for image in images]
    outputs = model.run(request.get("signature_name", DEFAULT), inputs=examples)
    rows = zip(outputs["classes"].tolist(), outputs["scores"].tolist(), strict=True)
    return {"results": [list(zip(labels, scores, strict=True)) for labels, scores in rows]}


@contextlib.contextmanager
def serve(export_dir: pathlib.Path, **flags):
    """Serves a directory's newest version with the flags that are beside it.

    Args:
        export_dir: directory of versions.
        flags: other values of the flags, as text.

    Yields:
        The addresses of the REST and the gRPC port, and the batches.
    """
    lines = (export_dir / "server_flags.txt").read_text().splitlines()
    flags = dict(line.removeprefix("--").partition("=")[::2] for line in lines) | flags
    joined = Joined(Newest(export_dir), pathlib.Path(flags["batching_parameters_file"]))
    rest = serve_rest(
        export_dir.name,
        joined,
        int(flags["rest_api_port"]),
        int(flags["rest_api_num_threads"]),
    )
    remote = serve_grpc(export_dir.name, joined, int(flags["port"]), int(flags["grpc_max_threads"]))
    with rest as rest, remote as remote:
        yield rest, remote, joined


def main() -> None:
    """Serves an export, as README's line of the real server does."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--export_dir", type=pathlib.Path, required=True)
    parser.add_argument("--port", default="8500", help="of gRPC")
    parser.add_argument("--rest_api_port", default="8501")
    arguments = vars(parser.parse_args())
    directory = arguments.pop("export_dir").resolve()
    with serve(directory, **arguments) as served, contextlib.suppress(KeyboardInterrupt):
        rest, remote, _ = served
        print(f"A stand-in serves {directory.name} at {remote} and {rest}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
