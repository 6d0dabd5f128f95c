"""Puts mutations of images of every format through the builder's check.

    python -m tests.fuzz_images --images=20000

Fails if one ends in anything but a stored poster, which training decodes, or a reason; or if
looking at it once more gives another result.
"""

import argparse
import collections
import random

import tensorflow as tf
from PIL import Image

from poster_tfds import images
from tests import test_images, test_serving
from trainer.data import preprocessing

_MAX_SIDE = 64


def originals() -> dict[str, bytes]:
    """Returns an image of each kind."""
    picture = test_images.PICTURE
    kinds = {name: jpeg for name, jpeg in test_images.ACCEPTED.items() if name != "1x1"}
    for image_format in ("BMP", "PNG", "TIFF", "WEBP"):
        kinds[image_format] = test_images.encode(picture, image_format)
    kinds["GIF"] = test_images.TWO_FRAMES
    kinds["CMYK"] = test_images.make_jpeg(60, 80, mode="CMYK")
    kinds["turned"] = test_images.turned(6)
    kinds["profile"] = test_images.encode(picture, "PNG", icc_profile=test_images.swapped_profile())
    kinds["transparent"] = test_images.encode(picture.convert("LA"), "PNG")
    kinds["compressed TIFF"] = test_images.encode(picture, "TIFF", compression="tiff_lzw")
    kinds["16 bits"] = test_images.encode(Image.new("I;16", (40, 30), 40000), "PNG")
    return kinds


def main() -> None:
    """Runs until all images are looked at and prints what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    kinds = originals()
    found = {kind: collections.Counter() for kind in kinds}
    for _ in range(arguments.images):
        kind = rng.choice(list(kinds))
        settings = (rng.choice((0, _MAX_SIDE)), rng.random() < 0.5)
        outcome = look(test_serving.mutated(kinds[kind], rng), settings)
        found[kind][outcome] += 1
    for kind, counts in found.items():
        print(f"{kind:<36}" + ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items())))


def look(image: bytes, settings: tuple[int, bool]) -> str:
    """Returns what becomes of an image: a word."""
    try:
        poster = images.as_stored(image, *settings)
    except images.ImageError as error:
        assert str(error), image
        assert "\n" not in str(error) and " at 0x" not in str(error), str(error)
        return "refused"
    assert poster == images.as_stored(image, *settings)
    height, width, _ = preprocessing.decode(tf.constant(poster.jpeg)).shape
    assert not settings[0] or max(height, width) <= settings[0]
    assert images.as_stored(poster.jpeg, *settings).jpeg == poster.jpeg
    return "converted" if poster.converted else "damaged" if poster.damaged else "taken"


if __name__ == "__main__":
    main()
