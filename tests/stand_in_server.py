"""A stand-in for tensorflow_model_server, which no package registry has.

It answers over the real PredictionService and the real REST form from a session over
the SavedModel, as the server does, but joins no requests into batches.
"""

import base64
import concurrent.futures
import contextlib
import http.server
import json
import threading

import grpc
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc


class Model:
    """A version in a session; says `busy` so many times before it answers."""

    def __init__(self, version, busy=0):
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        with self._session.graph.as_default():
            meta_graph = tf.compat.v1.saved_model.load(self._session, ["serve"], str(version))
        self._signatures = meta_graph.signature_def
        self.busy = busy
        self.requests = 0
        self._lock = threading.Lock()

    def is_busy(self):
        with self._lock:
            self.requests += 1
            self.busy -= 1
            return self.busy >= 0

    def run(self, signature, **inputs):
        signature = self._signatures[signature]
        return self._session.run(
            {name: tensor.name for name, tensor in signature.outputs.items()},
            {signature.inputs[name].name: value for name, value in inputs.items()},
        )


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, name, model):
        self._name, self._model = name, model

    def Predict(self, request, context):  # noqa: N802  (the service's name for it)
        if self._model.is_busy():
            context.abort(grpc.StatusCode.UNAVAILABLE, "busy")
        if request.model_spec.name != self._name:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no model {request.model_spec.name}")
        inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
        response = predict_pb2.PredictResponse()
        for name, value in self._model.run(request.model_spec.signature_name, **inputs).items():
            response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
        return response


@contextlib.contextmanager
def serve_grpc(name, model):
    """Yields the address of a server."""
    server = grpc.server(
        concurrent.futures.ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", -1)]
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        PredictionService(name, model), server
    )
    port = server.add_insecure_port("localhost:0")
    server.start()
    try:
        yield f"grpc://localhost:{port}"
    finally:
        server.stop(None).wait()


@contextlib.contextmanager
def serve_rest(name, model):
    """Yields the address of a server."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if model.is_busy():
                return self._reply(503, {"error": "busy"})
            if self.path != f"/v1/models/{name}:predict":
                return self._reply(404, {"error": f"no model at {self.path}"})
            images = [
                base64.b64decode(instance["image_bytes"]["b64"])
                for instance in request["instances"]
            ]
            outputs = model.run(request["signature_name"], image_bytes=images)
            columns = {key: value.tolist() for key, value in outputs.items()}
            rows = [{key: column[i] for key, column in columns.items()} for i in range(len(images))]
            return self._reply(200, {"predictions": rows})

        def _reply(self, status, content):
            body = json.dumps(content, default=bytes.decode).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"localhost:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
