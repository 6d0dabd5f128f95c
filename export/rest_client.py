"""Asks a server at its REST port."""

import base64
import json
from typing import Any

import requests
import urllib3

from export import answers, server_client
from trainer import config as config_lib

_BUSY = (429, 503, 504)  # Too many requests, unavailable, the server's own limit of time.
_CONNECT_SECONDS = 5
_MOST_CONNECTIONS = 1000  # Beyond requests' 10 each request would make its own.
_HTTP2_SETTINGS = "\x04"  # The type of a gRPC server's first frame, in its fourth byte.


class RestClient(server_client.ServerClient):
    """Asks a server at HOST:PORT."""

    def __init__(self, host: str, model: str, timeout: float):
        super().__init__(timeout)
        self._host = host
        self._url = f"http://{host}/v1/models/{model}:predict"
        self._session = requests.Session()
        self._session.trust_env = not server_client.is_this_machine(host)  # Or http_proxy counts.
        adapter = requests.adapters.HTTPAdapter(pool_maxsize=_MOST_CONNECTIONS)
        self._session.mount("http://", adapter)

    def _encode(self, images: list[bytes]) -> str:
        instances = [{"image_bytes": {"b64": base64.b64encode(image).decode()}} for image in images]
        return json.dumps({"signature_name": server_client.SIGNATURE, "instances": instances})

    def _send(self, request: str, seconds: float) -> dict[str, Any]:
        timeout = (min(_CONNECT_SECONDS, seconds), seconds)
        try:
            response = self._session.post(self._url, data=request, timeout=timeout)
            if response.ok:
                rows = response.json()["predictions"]
                return {name: [row[name] for row in rows] for name in rows[0]}
        except (requests.RequestException, KeyError) as error:
            raise self._failure(error) from error
        kind = answers.BusyError if response.status_code in _BUSY else answers.ServerError
        raise kind(f"{self._url}: {response.status_code} {response.text.strip()}")

    def _failure(self, error: Exception) -> Exception:
        cause = error.args[0] if error.args else None
        if isinstance(error, requests.ReadTimeout):
            return answers.SilentError(f"{self._url}: no answer within {self._timeout:g} seconds")
        if isinstance(cause, urllib3.exceptions.MaxRetryError):
            return answers.SilentError(f"{self._url} cannot be reached: {cause.reason}")
        if isinstance(cause, urllib3.exceptions.ProtocolError):
            if getattr(cause.args[-1], "line", "")[3:4] == _HTTP2_SETTINGS:
                return config_lib.UsageError(
                    f"--server={self._host} answers gRPC, not HTTP: give "
                    f"--server=grpc://{self._host}."
                )
            return answers.BusyError(f"{self._url}: {cause}")
        return answers.ServerError(f"{self._url} does not answer as TensorFlow Serving: {error!r}")
