"""Ways to ask for the genres of posters: a SavedModel at hand, or a server by REST or gRPC.

Each client's `ask` takes image files' bytes and returns an `Answer` for each.
"""

import collections
import concurrent.futures
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator

from export import poster_files, server_client
from export.answers import Answer, ServerError, SilentError, from_outputs
from trainer import config as config_lib

_NO_IMAGES = f"a folder without images ({', '.join(poster_files.SUFFIXES)})"
_GONE = 3  # Requests in a row that find a server silent before it is no longer asked.


class LocalClient:
    """Asks a model in this process."""

    sent_again = 0

    def __init__(self, model):
        self._model = model  # A signature alone does not keep it.
        self.signatures = model.signatures  # Of tensors to dicts of tensors, as a server has them.

    @classmethod
    def of_version(cls, version: str | os.PathLike) -> "LocalClient":
        import tensorflow as tf

        try:
            return cls(tf.saved_model.load(os.fspath(version)))
        except OSError as error:
            raise config_lib.UsageError(f"{version}: {error}") from error

    @classmethod
    def of_run(cls, run_dir: str | os.PathLike) -> "LocalClient":
        """Returns a client of what a run would be exported as."""
        from export import saved_model

        return cls(saved_model.open_run(run_dir).module)

    @classmethod
    def of_path(cls, path: str | os.PathLike) -> "LocalClient":
        """Returns a client of a run, a version, or the newest version of a directory of them.

        Raises:
            config.UsageError: it is none of these.
        """
        from export import saved_model
        from trainer.run import directory

        if directory.RunDirectory(path).has_begun():
            return cls.of_run(path)
        return cls.of_version(saved_model.resolve_version(path))

    def ask(self, images: list[bytes]) -> list[Answer]:
        import tensorflow as tf

        outputs = self.signatures[server_client.SIGNATURE](
            image_bytes=tf.constant(images, tf.string)
        )
        return from_outputs({name: tensor.numpy() for name, tensor in outputs.items()})


def connect(server: str, model: str, timeout: float) -> server_client.ServerClient:
    """Returns a client for `HOST:PORT`, `http://HOST:PORT` (REST) or `grpc://HOST:PORT`.

    An answer may take `timeout` seconds, all attempts together.

    Raises:
        config.UsageError: it is none of these, or the extra `serving` is not installed.
    """
    scheme, _, host = server.rstrip("/").rpartition("://")
    port = host.rpartition(":")[2]
    if scheme not in ("", "http", "grpc") or not port.isdecimal() or host == f":{port}":
        raise config_lib.UsageError(
            f"--server={server}: give HOST:PORT, http://HOST:PORT or grpc://HOST:PORT."
        )
    if scheme != "grpc":
        from export import rest_client

        return rest_client.RestClient(host, model, timeout)
    try:
        from export import grpc_client
    except ImportError as error:
        raise config_lib.UsageError(
            f"--server={server}: needs `pip install tensorflow-serving-api`, the extra `serving`."
        ) from error
    return grpc_client.GrpcClient(host, model, timeout)


def ask_all(
    client, posters: Iterable[pathlib.Path], batch_size: int, parallel: int, max_side: int = 0
) -> Iterator[tuple[pathlib.Path, Answer]]:
    """Yields each poster with its answer, in order; no more is held than is being asked.

    What is sent is what a dataset would store of it, so that the answer is that poster's. A request
    that fails leaves its posters with the reason; the others are asked all the same.

    Raises:
        ServerError: a server has answered no request yet and fails one, or is silent at several in
            a row. What has been answered is yielded before.
    """
    posters = iter(posters)
    waiting, silent = collections.deque(), 0
    pool = concurrent.futures.ThreadPoolExecutor(parallel)
    try:
        while True:
            while len(waiting) < 2 * parallel and (
                batch := list(itertools.islice(posters, batch_size))
            ):
                waiting.append(pool.submit(_ask, client, batch, max_side))
            if not waiting:
                return
            answers, error = waiting.popleft().result()
            silent = silent + 1 if isinstance(error, SilentError) else 0
            if error and not client.answered:
                raise error
            yield from answers
            if silent == _GONE:
                for future in filter(concurrent.futures.Future.done, waiting):
                    yield from future.result()[0]
                raise error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # Whoever stops is not kept waiting.


def _ask(client, batch: list[pathlib.Path], max_side: int):
    """Returns each poster of a batch with its answer, and the `ServerError` if it was one."""
    from poster_tfds import images as images_lib  # Imports TensorFlow.

    images, answers, failure = [], {}, None
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
        try:
            answers.update(zip(asked, client.ask(images), strict=True))
        except ServerError as error:
            failure = error
            answers.update(dict.fromkeys(asked, Answer([], str(error))))
    return [(poster, answers[poster]) for poster in batch], failure
