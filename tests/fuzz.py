"""Sends mutations of real images to an exported model, in batches with good ones.

    python -m tests.fuzz --model=exports/imdb/1 --images=20000 --posters=FOLDER

Fails if a batch raises, a good neighbour's scores change, or memory grows.
"""

import argparse
import itertools
import pathlib
import random
import resource
import sys

import numpy as np
from PIL import Image

from tests import stand_in_server, test_serving

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
    expected = model.run("serving_default", image_bytes=posters)["scores"]
    sent = refused = 0
    largest = 0.0
    halfway = None
    while sent < arguments.images:
        first, last = rng.randrange(len(posters)), rng.randrange(len(posters))
        bad = [test_serving.mutated(rng.choice(posters), rng) for _ in range(_BATCH)]
        answer = model.run("serving_default", image_bytes=[posters[first], *bad, posters[last]])
        assert answer["ok"][[0, -1]].all()
        difference = np.abs(answer["scores"][[0, -1]] - expected[[first, last]]).max()
        largest = max(largest, float(difference))
        assert largest < 1e-5, f"a neighbour's scores changed by {difference}"
        sent += len(bad)
        refused += int((~answer["ok"]).sum())
        if sent >= arguments.images // 2 and halfway is None:
            halfway = peak_memory()
    growth = peak_memory() - halfway
    print(
        f"{sent} mutations, {refused} refused; no error, neighbours' scores within {largest:.1e}; "
        f"peak {peak_memory() / 1e9:.2f} GB, {growth / 1e6:.0f} MB of it from the second half"
    )
    assert growth < _GROWTH


def peak_memory() -> int:
    """Returns the most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    sys.exit(main())
