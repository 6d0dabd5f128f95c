"""Eight clients ask a server for genres, one image in twenty bad.

    python -m tests.load --model=exports/imdb/1 --posters=FOLDER --minutes=2

Asks the server at --server, or a stand-in for one (REST and gRPC) that joins the clients'
requests into batches as `batching.config` beside the version says. Fails if a good image is
refused, a bad one answered, or an answer differs from the SavedModel's.
"""

import argparse
import concurrent.futures
import contextlib
import itertools
import pathlib
import random
import sys
import time

import numpy as np

from export import clients
from tests import stand_in_server

_SHARE_BAD = 0.05
_BAD = (b"", b"junk", b"\xff\xd8\xff and junk")
_TOLERANCE = 1e-5


def main() -> None:
    """Runs for some minutes and prints what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--posters", type=pathlib.Path, required=True)
    parser.add_argument("--server", help="HOST:PORT or grpc://HOST:PORT; else a stand-in")
    parser.add_argument("--name", default="posters")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=2)
    arguments = parser.parse_args()
    paths = itertools.islice(sorted(arguments.posters.glob("*.jpg")), 64)
    posters = [path.read_bytes() for path in paths]
    expected = [dict(a.genres) for a in clients.SavedModelClient(arguments.model).ask(posters)]
    with contextlib.ExitStack() as stack:
        servers = [arguments.server]
        if not arguments.server:
            config = arguments.model.parent / "batching.config"
            model = stand_in_server.Joined(stand_in_server.Model(arguments.model), config)
            servers = [
                stack.enter_context(serve(arguments.name, model))
                for serve in (stand_in_server.serve_rest, stand_in_server.serve_grpc)
            ]
        for server in servers:
            end = time.monotonic() + arguments.minutes * 60 / len(servers)

            def ask(seed, server=server, end=end):
                client = clients.connect(server, arguments.name, 60)
                size, go_on = arguments.batch_size, lambda: time.monotonic() < end
                return load(client, posters, expected, size, go_on, seed)

            with concurrent.futures.ThreadPoolExecutor(arguments.clients) as pool:
                seconds = np.concatenate(list(pool.map(ask, range(arguments.clients))))
            p50, p95, p99 = np.percentile(seconds, (50, 95, 99)) * 1e3
            print(
                f"{server}: {len(seconds)} requests of {arguments.batch_size} images, no wrong "
                f"answer; ms: median {p50:.0f}, 95% {p95:.0f}, 99% {p99:.0f}, "
                f"longest {seconds.max() * 1e3:.0f}"
            )
        if not arguments.server:
            print(f"The stand-in joined {np.mean(model.batches):.1f} requests in the mean.")


def load(client, posters, expected, batch_size, go_on, seed) -> np.ndarray:
    """Asks while `go_on()` and checks each answer; returns the seconds that each request took."""
    rng, seconds = random.Random(seed), []
    while go_on():
        chosen = [
            None if rng.random() < _SHARE_BAD else rng.randrange(len(posters))
            for _ in range(batch_size)
        ]
        begin = time.monotonic()
        answers = client.ask([rng.choice(_BAD) if i is None else posters[i] for i in chosen])
        seconds.append(time.monotonic() - begin)
        for i, answer in zip(chosen, answers, strict=True):
            assert (i is None) == bool(answer.error), answer
            if i is not None:
                difference = max(abs(expected[i][name] - score) for name, score in answer.genres)
                assert difference < _TOLERANCE, f"the scores differ by {difference}"
    return np.array(seconds)


if __name__ == "__main__":
    sys.exit(main())
