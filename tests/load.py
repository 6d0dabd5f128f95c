"""Many clients ask a server for genres, one image in twenty bad.

    python -m tests.load --model=exports/imdb/1 --posters=FOLDER --minutes=2

Asks the server at --server, or a stand-in for one (REST and gRPC) with the settings beside the
version. Fails if a good image is refused, a bad one answered, or an answer differs from the
SavedModel's. Compares the images/s with those of the model alone on batches of 32.
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
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=2)
    arguments = parser.parse_args()
    paths = itertools.islice(sorted(arguments.posters.glob("*.jpg")), 64)
    posters = [path.read_bytes() for path in paths]
    local = clients.LocalClient.of_version(arguments.model)
    expected = [scores_of(a) for a in local.ask(posters)]
    alone = [images_per_second(local, posters)]
    with contextlib.ExitStack() as stack:
        servers = [arguments.server]
        if not arguments.server:
            ports = {"port": "0", "rest_api_port": "0"}
            served = stand_in_server.serve(arguments.model.parent.resolve(), **ports)
            *servers, joined = stack.enter_context(served)
            arguments.name = arguments.model.resolve().parent.name
        for server in servers:
            end = time.monotonic() + arguments.minutes * 60 / len(servers)

            def ask(seed, server=server, end=end):
                client = clients.connect(server, arguments.name, 60)
                size, go_on = arguments.batch_size, lambda: time.monotonic() < end
                seconds = load(client, posters, expected, size, go_on, seed)
                return seconds, client.sent_again

            begin = time.monotonic()
            with concurrent.futures.ThreadPoolExecutor(arguments.clients) as pool:
                seconds, sent_again = zip(*pool.map(ask, range(arguments.clients)), strict=True)
            taken, seconds = time.monotonic() - begin, np.concatenate(seconds)
            alone.append(images_per_second(local, posters))
            rate = len(seconds) * arguments.batch_size / taken
            p50, p95, p99 = np.percentile(seconds, (50, 95, 99)) * 1e3
            print(
                f"{server}: {len(seconds)} requests of {arguments.batch_size} images, no wrong "
                f"answer, {sum(sent_again)} sent again; ms: median {p50:.0f}, 95% {p95:.0f}, 99% "
                f"{p99:.0f}, longest {seconds.max() * 1e3:.0f}\n{rate:.0f} images/s, "
                f"{rate / np.mean(alone[-2:]):.2f} of the model alone on batches of 32, before "
                f"and after ({alone[-2]:.0f} and {alone[-1]:.0f})"
            )
        if not arguments.server:
            print(f"The stand-in joined {np.mean(joined.batches):.1f} requests in the mean.")


def scores_of(answer) -> dict[str, float]:
    """Returns the scores of a client's answer by the genres' names."""
    return {genre.name: genre.score for genre in answer.genres}


def images_per_second(client: clients.LocalClient, posters, seconds=10) -> float:
    """Returns how many images the model alone answers, in batches of 32."""
    begin, answered = time.monotonic(), 0
    while (taken := time.monotonic() - begin) < seconds:
        client.ask(posters[answered % 64 :][:32])
        answered += 32
    return answered / taken


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
                scores = scores_of(answer)
                difference = max(abs(expected[i][name] - scores[name]) for name in scores)
                assert difference < _TOLERANCE, f"the scores differ by {difference}"
    return np.array(seconds)


if __name__ == "__main__":
    sys.exit(main())
