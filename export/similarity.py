"""Which posters are alike, by the features that a SavedModel gives of them.

Two posters are as similar as the cosine of the angle between their features says: 1 if they point
in one direction, 0 if at right angles.
"""

import io
import pathlib
from typing import NamedTuple

import numpy as np
import sklearn.cluster
import sklearn.metrics
import sklearn.neighbors
from PIL import Image

from export import clients

_NUM_COPIED = 64  # Posters; with other 32 of the real ones the median is within 0.005.
_COPY_QUALITY = 90  # As a JPEG.
_ROUNDING = 1e-6  # Of the similarity of equal features, in float32.


class Embedding(NamedTuple):
    """The features of one poster."""

    features: np.ndarray | None  # float32 [F].
    error: str = ""  # Why there are none.


class EmbeddingClient:
    """Asks a model in this process for features, as `clients.LocalClient` does for genres."""

    def __init__(self, client: clients.LocalClient):
        """Takes a client of the model.

        Raises:
            config.UsageError: the model has no signature `embed`.
        """
        self._embed = client.signature("embed")

    def ask(self, images: list[bytes]) -> list[Embedding]:
        """Returns an embedding of each image."""
        import tensorflow as tf

        outputs = self._embed(image_bytes=tf.constant(images, tf.string))
        rows = zip(*(outputs[name].numpy() for name in ("features", "ok", "error")), strict=True)
        return [
            Embedding(features) if ok else Embedding(None, error.decode())
            for features, ok, error in rows
        ]


class Embedded(NamedTuple):
    """Posters with their features."""

    posters: list[pathlib.Path]
    features: np.ndarray  # float32 [N, F].


class Group(NamedTuple):
    """A poster, and others with their similarities to it, the most similar first."""

    poster: pathlib.Path
    others: list[tuple[pathlib.Path, float]]


def find_neighbours(asked: Embedded, index: Embedded, k: int) -> list[Group]:
    """Returns a group of each poster and the K of an index that are most similar to it.

    A poster that is itself in the index is not among its neighbours.

    Args:
        asked: N posters.
        index: M posters.
        k: how many to find; all others, if there are fewer.
    """
    finder = sklearn.neighbors.NearestNeighbors(
        n_neighbors=min(k + 1, len(index.posters)), metric="cosine"
    ).fit(index.features)
    groups = []
    paths = [path.resolve() for path in index.posters]
    for poster, distances, rows in zip(
        asked.posters, *finder.kneighbors(asked.features), strict=True
    ):
        others = [
            (index.posters[row], float(1 - distance))
            for row, distance in zip(rows, distances, strict=True)
            if paths[row] != poster.resolve()
        ]
        groups.append(Group(poster, others[:k]))
    return groups


def measure_copies(client: EmbeddingClient, index: Embedded, max_side: int = 0) -> float:
    """Returns how similar posters are to copies of half their size: the median of some of an index.

    As a threshold of duplicates it fits any model. Features of one that was not pretrained have a
    large part in common, which no fixed threshold allows for.

    Args:
        client: where the features are from.
        index: N >= 1 posters.
        max_side: that of the dataset, in pixels, if its larger posters were reduced.
    """
    rows = np.unique(np.linspace(0, len(index.posters) - 1, _NUM_COPIED).astype(int))
    copies = [client.ask([_halve(index.posters[row], max_side)])[0].features for row in rows]
    distances = sklearn.metrics.pairwise.paired_cosine_distances(index.features[rows], copies)
    return float(1 - np.median(distances))


def _halve(path: pathlib.Path, max_side: int) -> bytes:
    """Returns a JPEG of half the size of a poster."""
    from poster_tfds import images as images_lib  # Imports TensorFlow.

    jpeg = images_lib.as_stored(path.read_bytes(), max_side).jpeg
    copy = io.BytesIO()
    Image.open(io.BytesIO(jpeg)).reduce(2).save(copy, "JPEG", quality=_COPY_QUALITY)
    return copy.getvalue()


def find_duplicates(index: Embedded, threshold: float) -> list[Group]:
    """Returns the groups of posters that are alike, each begun by its first in the index.

    Two that are not alike are in one group if others between them are, one like the next.

    Args:
        index: N posters.
        threshold: similarity from which two are alike.
    """
    # With neighbourhoods of two and more, DBSCAN's clusters are these groups; -1 is in none.
    clusters = sklearn.cluster.DBSCAN(
        eps=1 - threshold + _ROUNDING, min_samples=2, metric="cosine"
    ).fit_predict(index.features)
    groups = []
    for number in range(clusters.max() + 1):
        rows = np.flatnonzero(clusters == number)
        first, others = (
            Embedded([index.posters[row] for row in part], index.features[part])
            for part in (rows[:1], rows[1:])
        )
        groups += find_neighbours(first, others, len(others.posters))
    return groups
