"""Draws a small labelled poster set whose genres can be seen in the pictures.

Every genre has a sign of its own colour and shape. A poster of one to three genres
shows their signs, at random places and of random size, on a noisy grey ground. The result is
a CSV and JPEGs of the same form as the real data, read by the same code.
"""

import csv
import shutil
import uuid

import numpy as np
from etils import epath
from PIL import Image, ImageDraw

# Name, colour and number of corners of a genre's sign (0: a disc).
_SIGNS = {
    "Action": ((225, 70, 30), 3),
    "Animation": ((250, 215, 40), 0),
    "Comedy": ((60, 190, 75), 4),
    "Drama": ((40, 85, 200), 5),
    "Horror": ((20, 20, 25), 6),
    "Romance": ((240, 120, 180), 0),
    "Sci-Fi": ((60, 220, 230), 3),
    "Western": ((150, 90, 40), 4),
}
GENRES = tuple(_SIGNS)


def ensure_posters(directory: epath.PathLike, count: int, seed: int = 0) -> None:
    """Draws `count` posters into `directory`, unless they are there already.

    Writes `train.csv` and `Images/<Id>.jpg`. The directory appears complete or not
    at all.
    """
    directory = epath.Path(directory)
    if directory.exists():
        with (directory / "train.csv").open() as file:
            if sum(1 for _ in file) == count + 1:
                return
        directory.rmtree()
    for leftover in directory.parent.glob(f"{directory.name}.incomplete-*"):
        leftover.rmtree()
    unfinished = directory.parent / f"{directory.name}.incomplete-{uuid.uuid4().hex}"
    try:
        (unfinished / "Images").mkdir(parents=True)
        with (unfinished / "train.csv").open("w") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["Id", "Genre", *GENRES])
            for index in range(count):
                rng = np.random.default_rng([seed, index])
                chosen = sorted(rng.choice(len(GENRES), size=rng.integers(1, 4), replace=False))
                poster_id = f"synthetic{index:07d}"
                with (unfinished / "Images" / f"{poster_id}.jpg").open("wb") as image_file:
                    _draw(rng, chosen).save(image_file, "JPEG", quality=85)
                labels = [int(i in chosen) for i in range(len(GENRES))]
                writer.writerow([poster_id, [GENRES[i] for i in chosen], *labels])
        unfinished.rename(directory)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _draw(rng: np.random.Generator, genre_indices) -> Image.Image:
    width, height = (int(v) for v in rng.integers((90, 130), (131, 191)))
    ground = rng.integers(90, 191)
    noise = rng.normal(ground, 12, size=(height, width, 1)).repeat(3, axis=2)
    image = Image.fromarray(noise.clip(0, 255).astype(np.uint8))
    canvas = ImageDraw.Draw(image)
    # Each sign has a band of its own, so that none hides another.
    for band, index in zip(rng.permutation(len(genre_indices)), genre_indices, strict=True):
        colour, corners = _SIGNS[GENRES[index]]
        radius = rng.uniform(0.14, 0.22) * width
        x = rng.uniform(radius, width - radius)
        y = height * (band + rng.uniform(0.35, 0.65)) / len(genre_indices)
        if corners:
            angle = rng.uniform(0, 360)
            canvas.regular_polygon((x, y, radius), corners, rotation=angle, fill=colour)
        else:
            canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return image
