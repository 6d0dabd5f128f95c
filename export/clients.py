"""Ways to ask for the genres of posters: a SavedModel at hand, or a server by REST or gRPC.

Each client's `ask` takes image files' bytes and returns an `Answer` for each.
"""

import base64
import collections
import concurrent.futures
import ipaddress
import itertools
import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from export import poster_files
from trainer import config as config_lib

_RETRIES = 5
_CONNECT_SECONDS = 5
_BUSY = (429, 503)  # HTTP: too many requests, unavailable.
_SIGNATURE = "serving_default"
_NO_IMAGES = f"a folder without images ({', '.join(poster_files.SUFFIXES)})"
_HTTP2_SETTINGS = "\x04"  # The type of the frame with which a gRPC server begins, its fourth byte.


class Answer(NamedTuple):
    """What is known of one poster."""

    genres: list[tuple[str, float]]  # With their probabilities, best first.
    error: str = ""  # Why there is none.


class ServerError(RuntimeError):
    """A server does not answer, or not as it should; the message says what to do."""


class SavedModelClient:
    """Asks a SavedModel in this process."""

    def __init__(self, version: pathlib.Path):
        import tensorflow as tf

        self._tf = tf
        self._model = tf.saved_model.load(str(version))  # The signature alone does not keep it.
        self._serve = self._model.signatures[_SIGNATURE]

    def ask(self, images: list[bytes]) -> list[Answer]:
        """Returns an answer for each image."""
        answers = self._serve(image_bytes=self._tf.constant(images, self._tf.string))
        return _answers({name: tensor.numpy() for name, tensor in answers.items()})


class RestClient:
    """Asks a server at its REST port."""

    def __init__(self, host: str, model: str, timeout: float):
        """Prepares to ask.

        Args:
            host: HOST:PORT.
            model: the name under which it is served.
            timeout: seconds that an answer may take; one that does not come is asked for once more.
        """
        import requests
        from urllib3.util import retry

        self._requests, self._host = requests, host
        self._url = f"http://{host}/v1/models/{model}:predict"
        self._timeout = timeout
        self._session = requests.Session()
        self._session.trust_env = not _is_this_machine(host)  # Else http_proxy counts here, too.
        retries = retry.Retry(
            _RETRIES,
            read=1,  # A connection that was closed meanwhile; not again and again a timeout.
            backoff_factor=0.2,
            status_forcelist=_BUSY,
            allowed_methods=None,
            raise_on_status=False,
        )
        self._session.mount("http://", requests.adapters.HTTPAdapter(max_retries=retries))

    def ask(self, images: list[bytes]) -> list[Answer]:
        """Returns an answer for each image.

        Raises:
            ServerError: the server cannot be reached or refuses.
        """
        instances = [{"image_bytes": {"b64": base64.b64encode(image).decode()}} for image in images]
        body = json.dumps({"signature_name": _SIGNATURE, "instances": instances})
        try:
            timeout = (min(_CONNECT_SECONDS, self._timeout), self._timeout)
            response = self._session.post(self._url, data=body, timeout=timeout)
            if not response.ok:
                raise ServerError(f"{self._url}: {response.status_code} {response.text.strip()}")
            rows = response.json()["predictions"]
        except self._requests.RequestException as error:
            if _speaks_http2(error):
                raise config_lib.UsageError(
                    f"--server={self._host} answers gRPC, not HTTP: give "
                    f"--server=grpc://{self._host}."
                ) from error
            raise ServerError(f"{self._url} does not answer: {error}") from error
        return _answers({name: [row[name] for row in rows] for name in rows[0]})


class GrpcClient:
    """Asks a server at its gRPC port."""

    def __init__(self, host: str, model: str, timeout: float):
        """Prepares to ask.

        Args:
            host: HOST:PORT.
            model: the name under which it is served.
            timeout: seconds that an answer may take.

        Raises:
            config.UsageError: the extra `serving` is not installed.
        """
        try:
            import grpc
            from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
        except ImportError as error:
            raise config_lib.UsageError(
                f"--server=grpc://{host}: needs `pip install tensorflow-serving-api`, the extra "
                "`serving`."
            ) from error
        import tensorflow as tf

        self._tf, self._grpc, self._predict_pb2 = tf, grpc, predict_pb2
        self._host, self._name, self._timeout = host, model, timeout
        policy = {
            "maxAttempts": _RETRIES,
            "initialBackoff": "0.2s",
            "maxBackoff": "5s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
        }
        method = {"name": [{}], "retryPolicy": policy}  # Of every service.
        channel = grpc.insecure_channel(
            host,
            options=[
                ("grpc.enable_http_proxy", int(not _is_this_machine(host))),
                ("grpc.service_config", json.dumps({"methodConfig": [method]})),
                ("grpc.max_receive_message_length", -1),
            ],
        )
        self._predict = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict

    def ask(self, images: list[bytes]) -> list[Answer]:
        """Returns an answer for each image.

        Raises:
            ServerError: the server cannot be reached or refuses.
        """
        request = self._predict_pb2.PredictRequest()
        request.model_spec.name = self._name
        request.model_spec.signature_name = _SIGNATURE
        request.inputs["image_bytes"].CopyFrom(
            self._tf.make_tensor_proto(images, self._tf.string, [len(images)])
        )
        try:
            response = self._predict(request, timeout=self._timeout)
        except self._grpc.RpcError as error:
            if "http1.x server" in error.details():
                raise config_lib.UsageError(
                    f"--server=grpc://{self._host} answers HTTP, not gRPC: give "
                    f"--server={self._host} without grpc://."
                ) from error
            raise ServerError(
                f"grpc://{self._host}: {error.code().name}: {error.details()}"
            ) from error
        return _answers(
            {name: self._tf.make_ndarray(value) for name, value in response.outputs.items()}
        )


def connect(server: str, model: str, timeout: float) -> RestClient | GrpcClient:
    """Returns a client for `HOST:PORT`, `http://HOST:PORT` (REST) or `grpc://HOST:PORT`."""
    scheme, _, host = server.rpartition("://")
    kinds = {"": RestClient, "http": RestClient, "grpc": GrpcClient}
    if scheme not in kinds or not host:
        raise config_lib.UsageError(
            f"--server={server}: give HOST:PORT, http://HOST:PORT or grpc://HOST:PORT."
        )
    return kinds[scheme](host, model, timeout)


def ask_all(
    client, posters: Iterable[pathlib.Path], batch_size: int, parallel: int, max_side: int = 0
) -> Iterator[tuple[pathlib.Path, Answer]]:
    """Yields each poster with its answer, in order; no more is held than is being asked.

    What is sent is what a dataset would store of it, so that the answer is that poster's.

    Args:
        client: one of the above.
        posters: paths of image files.
        batch_size: posters a request.
        parallel: requests at a time.
        max_side: that of the dataset, in pixels, if its larger posters were reduced.

    Raises:
        ServerError: a server does not answer.
    """
    from poster_tfds import images as images_lib  # Imports TensorFlow.

    def ask(batch):
        images, answers = [], {}
        for poster in batch:
            try:
                images.append(images_lib.as_stored(poster.read_bytes(), max_side).jpeg)
            except IsADirectoryError:
                answers[poster] = Answer([], _NO_IMAGES)
            except OSError as error:
                answers[poster] = Answer([], error.strerror)
            except images_lib.ImageError as error:
                answers[poster] = Answer([], str(error))
        asked = [poster for poster in batch if poster not in answers]
        if images:
            answers.update(zip(asked, client.ask(images), strict=True))
        return [(poster, answers[poster]) for poster in batch]

    posters = iter(posters)
    waiting = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
        try:
            while True:
                while len(waiting) < 2 * parallel and (
                    batch := list(itertools.islice(posters, batch_size))
                ):
                    waiting.append(pool.submit(ask, batch))
                if not waiting:
                    return
                yield from waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _is_this_machine(host: str) -> bool:
    name = host.rpartition(":")[0].strip("[]")  # [] are around an IPv6 address.
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _speaks_http2(error: Exception) -> bool:
    """Returns whether a request failed since its answer was the first frame of a gRPC server."""
    cause = error.args[0] if error.args else error
    cause = getattr(cause, "reason", cause)  # Of the last attempt.
    return getattr(cause.args[-1], "line", "")[3:4] == _HTTP2_SETTINGS


def _answers(outputs) -> list[Answer]:
    answers = []
    rows = (outputs[name] for name in ("genres", "scores", "ok", "error"))
    for genres, scores, ok, error in zip(*rows, strict=True):
        pairs = zip(map(_text, genres), map(float, scores), strict=True)
        ranked = sorted(pairs, key=lambda pair: -pair[1])
        answers.append(Answer(ranked) if ok else Answer([], _text(error)))
    return answers


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
