"""Sends mutations of real images to an exported model, in batches with good ones.

    python -m tests.fuzz --model=exports/imdb/1 --images=20000 --posters=FOLDER

Fails if a batch raises, a good neighbour's scores are not, bit for bit, those of a batch of good
images, or memory grows.
"""

import argparse
import itertools
import pathlib
import random
import sys

import numpy as np
from PIL import Image

from tests import stand_in_server, test_serving
from trainer.benchmark import turns

_BATCH = 30
_GROWTH = 200e6  # Bytes that the second half may add to the peak.


def main() -> None:
    """Runs until all images are sent and prints what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--posters", type=pathlib.Path, required=True)
    parser.add_argument("--images", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    paths = itertools.islice(sorted(arguments.posters.glob("*.jpg")), 50)
    posters = [path.read_bytes() for path in paths]
    posters += [
        test_serving.png(Image.open(path).convert("RGB"))
        for path in itertools.islice(sorted(arguments.posters.glob("*.jpg")), 50, 60)
    ]
    model = stand_in_server.Model(arguments.model)
    size = _BATCH + 2
    among_good = [*posters, *posters[: -len(posters) % size]]
    batches = [among_good[i : i + size] for i in range(0, len(among_good), size)]
    expected = np.concatenate(
        [model.run("serving_default", image_bytes=batch)["scores"] for batch in batches]
    )
    sent = refused = 0
    halfway = None
    while sent < arguments.images:
        first, last = rng.randrange(len(posters)), rng.randrange(len(posters))
        bad = [test_serving.mutated(rng.choice(posters), rng) for _ in range(_BATCH)]
        answer = model.run("serving_default", image_bytes=[posters[first], *bad, posters[last]])
        assert answer["ok"][[0, -1]].all()
        np.testing.assert_array_equal(answer["scores"][[0, -1]], expected[[first, last]])
        sent += len(bad)
        refused += int((~answer["ok"]).sum())
        if sent >= arguments.images // 2 and halfway is None:
            halfway = turns.peak_memory()
    growth = turns.peak_memory() - halfway
    print(
        f"{sent} mutations, {refused} refused; no error, neighbours' scores the same bits; peak "
        f"{turns.peak_memory() / 1e9:.2f} GB, {growth / 1e6:.0f} MB of it from the second half"
    )
    assert growth < _GROWTH


if __name__ == "__main__":
    sys.exit(main())
