"""What a built dataset holds, in numbers."""

import collections
import dataclasses
import hashlib
import io

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds
import tqdm

_SAMPLES = 12


@dataclasses.dataclass
class SplitStatistics:
    """Numbers of one split.

    Attributes:
        num_posters: examples.
        num_bytes: size of all JPEGs.
        genre_counts: int [G], posters of each genre.
        labels_per_poster: number of genres -> posters with so many.
        together: int [G, G], posters with both genres; the diagonal is `genre_counts`.
        sizes: int [N, 2], width and height of each poster in pixels.
        poster_ids: hash of each Id -> how often it occurs.
        posters: hash of each poster's bytes -> how often it occurs.
        samples: (JPEG, names of its genres) of the first few posters.
    """

    num_posters: int
    num_bytes: int
    genre_counts: np.ndarray
    labels_per_poster: collections.Counter
    together: np.ndarray
    sizes: np.ndarray
    poster_ids: collections.Counter
    posters: collections.Counter
    samples: list[tuple[bytes, list[str]]]


def collect(builder: tfds.core.DatasetBuilder) -> dict[str, SplitStatistics]:
    """Reads every example of a dataset once and returns the numbers of its splits."""
    names = sorted(builder.info.splits, key=("train", "validation", "test").index)
    return {name: _collect_split(builder, name) for name in names}


def find_leaks(splits: dict[str, SplitStatistics]) -> dict[tuple[str, str], tuple[int, int]]:
    """Returns, for each pair of splits, how many Ids and how many posters stand in both."""
    names = list(splits)
    return {
        (a, b): (
            len(splits[a].poster_ids.keys() & splits[b].poster_ids.keys()),
            len(splits[a].posters.keys() & splits[b].posters.keys()),
        )
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    }


def count_repeated(counter: collections.Counter) -> int:
    """Returns how many of the things counted came before."""
    return counter.total() - len(counter)


def _collect_split(builder: tfds.core.DatasetBuilder, split: str) -> SplitStatistics:
    names = builder.info.features["genres"].feature.names
    labels, sizes, samples = [], [], []
    poster_ids, posters = collections.Counter(), collections.Counter()
    num_bytes = 0
    dataset = builder.as_dataset(
        split,
        decoders={"image": tfds.decode.SkipDecoding()},
        read_config=tfds.ReadConfig(try_autocache=False),
    )
    total = builder.info.splits[split].num_examples
    for example in tqdm.tqdm(
        tfds.as_numpy(dataset), split, total, unit="img", leave=False, disable=None
    ):
        row = np.zeros(len(names), np.int64)
        row[example["genres"]] = 1
        labels.append(row)
        with PIL.Image.open(io.BytesIO(example["image"])) as header:
            sizes.append(header.size)
        num_bytes += len(example["image"])
        poster_ids[hash(example["poster_id"])] += 1
        posters[hashlib.blake2b(example["image"], digest_size=8).digest()] += 1
        if len(samples) < _SAMPLES:
            samples.append((example["image"], [names[i] for i in example["genres"]]))
    labels = np.array(labels)
    return SplitStatistics(
        num_posters=len(labels),
        num_bytes=num_bytes,
        genre_counts=labels.sum(axis=0),
        labels_per_poster=collections.Counter(labels.sum(axis=1).tolist()),
        together=labels.T @ labels,
        sizes=np.array(sizes),
        poster_ids=poster_ids,
        posters=posters,
        samples=samples,
    )
