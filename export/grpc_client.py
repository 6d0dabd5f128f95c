"""Asks a server at its gRPC port; needs the extra `serving`."""

from typing import Any

import grpc
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from export import answers, server_client
from trainer import config as config_lib

_BUSY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
# What gRPC says, under the same code as a server that is busy.
_NOT_REACHED = ("failed to connect", "errors resolving", "DNS resolution failed")
_NOT_GRPC = "http1.x server"
_RECONNECT_MS = 2000  # At most between two attempts to connect, where gRPC would wait minutes.


class GrpcClient(server_client.ServerClient):
    """Asks a server at HOST:PORT."""

    def __init__(self, host: str, model: str, timeout: float):
        super().__init__(timeout)
        self._host, self._name = host, model
        channel = grpc.insecure_channel(
            host,
            options=[
                ("grpc.enable_http_proxy", int(not server_client.is_this_machine(host))),
                ("grpc.enable_retries", 0),
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_reconnect_backoff_ms", _RECONNECT_MS),
            ],
        )
        self._predict = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict

    def _encode(self, images: list[bytes]) -> predict_pb2.PredictRequest:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = self._name
        request.model_spec.signature_name = server_client.SIGNATURE
        request.inputs["image_bytes"].CopyFrom(
            tf.make_tensor_proto(images, tf.string, [len(images)])
        )
        return request

    def _send(self, request: predict_pb2.PredictRequest, seconds: float) -> dict[str, Any]:
        try:
            response = self._predict(request, timeout=seconds)
        except grpc.RpcError as error:
            raise self._failure(error.code(), error.details()) from error
        return {name: tf.make_ndarray(value) for name, value in response.outputs.items()}

    def _failure(self, code: grpc.StatusCode, details: str) -> Exception:
        if _NOT_GRPC in details:
            return config_lib.UsageError(
                f"--server=grpc://{self._host} answers HTTP, not gRPC: give "
                f"--server={self._host} without grpc://."
            )
        kind = answers.BusyError if code in _BUSY else answers.ServerError
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            kind, details = answers.SilentError, f"no answer within {self._timeout:g} seconds"
        elif details.startswith(_NOT_REACHED):
            kind = answers.SilentError
        return kind(f"grpc://{self._host}: {code.name}: {details}")
