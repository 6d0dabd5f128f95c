"""Asks a server again while it is busy, in the same way by every protocol."""

import abc
import ipaddress
import random
import threading
import time
from typing import Any

from export import answers

SIGNATURE = "serving_default"
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.1, 5  # Seconds.


class ServerClient(abc.ABC):
    """Asks a server at one of its ports.

    A request is sent again after a random share of a pause that doubles each time, so that clients
    that are refused together do not come back together: "full jitter" of
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/. That the protocols'
    libraries send nothing again keeps this the only count and the only limit; gRPC's own would
    leave out requests over 256 KiB, which is what eight posters have.

    Attributes:
        answered: whether the server has ever answered.
        sent_again: how often a request was sent again.
    """

    def __init__(self, timeout: float):
        self.answered = False
        self.sent_again = 0
        self._timeout = timeout  # Seconds that an answer may take, all attempts together.
        self._lock = threading.Lock()

    def ask(self, images: list[bytes]) -> list[answers.Answer]:
        """Returns an answer for each image.

        Raises:
            answers.ServerError: the server refuses, is busy for too long, or cannot be reached.
            config.UsageError: the port is that of another protocol.
        """
        request, refusal = self._encode(images), None
        pause, end = _SHORTEST_PAUSE, time.monotonic() + self._timeout
        while True:
            try:
                outputs = self._send(request, end - time.monotonic())
                self.answered = True
                return answers.from_outputs(outputs)
            except answers.BusyError as error:
                refusal = error
            except answers.SilentError as error:
                if not self.answered and not refusal:
                    raise  # Nothing is at this address. One that was there may be starting again.
                refusal = refusal or error
            seconds = random.uniform(0, pause)
            if time.monotonic() + seconds >= end:
                raise refusal
            with self._lock:
                self.sent_again += 1
            time.sleep(seconds)
            pause = min(2 * pause, _LONGEST_PAUSE)

    @abc.abstractmethod
    def _encode(self, images: list[bytes]) -> Any:
        """Returns a request, as `_send` takes it."""

    @abc.abstractmethod
    def _send(self, request: Any, seconds: float) -> dict[str, Any]:
        """Sends a request once; returns the signature's outputs, each with the batch first."""


def is_this_machine(host: str) -> bool:
    """Returns whether HOST:PORT is here, so that no proxy is to be asked for it."""
    name = host.rpartition(":")[0].strip("[]")  # [] are around an IPv6 address.
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"
