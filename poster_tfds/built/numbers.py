"""What a built dataset contains, in numbers."""

import hashlib
import io
import itertools
from typing import NamedTuple

import numpy as np
import pandas as pd
import PIL.Image
import tensorflow_datasets as tfds
import tqdm

from poster_tfds import source
from poster_tfds.built import counts as counts_lib

_SAMPLES = 12
# 26 bytes a poster: of its Id and of its bytes a hash is enough to find them again.
_ROW = np.dtype(
    [
        ("poster_id", "u8"),
        ("poster", "u8"),
        ("num_bytes", "u4"),
        ("width", "u2"),
        ("height", "u2"),
        ("num_genres", "u2"),
    ]
)


class Statistics(NamedTuple):
    """Numbers of a dataset.

    Attributes:
        posters: a row each: `split`, hashes of its Id (`poster_id`) and of its bytes
            (`poster`), `num_bytes`, `width` and `height` in pixels, `num_genres`.
        counts: posters of each genre (rows) in each split (columns), the commonest first.
        together: posters with both genres, in the same order; the diagonal is a genre's own.
        samples: split -> JPEG and names of the genres of its first posters.
    """

    posters: pd.DataFrame
    counts: pd.DataFrame
    together: pd.DataFrame
    samples: dict[str, list[tuple[bytes, list[str]]]]


def collect(builder: tfds.core.DatasetBuilder) -> Statistics:
    """Reads every example of a dataset once."""
    genres = builder.info.features["genres"].feature.names
    splits = [name for name in source.SPLITS if name in builder.info.splits]
    rows, together, samples = {}, {}, {}
    for split in splits:
        rows[split], samples[split] = _collect_split(builder, split, genres)
        together[split] = np.array(builder.info.metadata[counts_lib.KEY][split]["together"])
    counts = pd.DataFrame({split: np.diag(pairs) for split, pairs in together.items()}, genres)
    order = counts.sum(axis=1).sort_values(ascending=False, kind="stable").index
    pairs = pd.DataFrame(sum(together.values()), genres, genres)
    posters = pd.concat(rows, names=["split"]).reset_index("split")
    posters["split"] = pd.Categorical(posters["split"], splits)
    return Statistics(posters, counts.loc[order], pairs.loc[order, order], samples)


def describe_splits(statistics: Statistics) -> pd.DataFrame:
    """Returns a row a split: its posters, MB, genres a poster, repeated Ids and posters."""
    of_splits = statistics.posters.groupby("split", observed=True)
    posters = of_splits.size()
    return pd.DataFrame(
        {
            "posters": posters,
            "MB": of_splits["num_bytes"].sum() / 1e6,
            "genres a poster": of_splits["num_genres"].mean(),
            "repeated Ids": posters - of_splits["poster_id"].nunique(),
            "repeated posters": posters - of_splits["poster"].nunique(),
        }
    )


def find_leaks(statistics: Statistics) -> pd.DataFrame:
    """Returns a row a pair of splits: how many Ids and how many posters are in both."""
    posters = statistics.posters
    seen = {
        name: {column: set(of_split[column]) for column in ("poster_id", "poster")}
        for name, of_split in posters.groupby("split", observed=True)
    }
    leaks = {
        f"{a} and {b}": [len(seen[a][c] & seen[b][c]) for c in ("poster_id", "poster")]
        for a, b in itertools.combinations(seen, 2)
    }
    columns = ["Ids in both", "posters in both"]
    return pd.DataFrame.from_dict(leaks, "index", columns=columns).rename_axis("splits")


def genre_shares(statistics: Statistics) -> pd.DataFrame:
    """Returns a row a genre: its posters, and their share of each split."""
    counts = statistics.counts
    shares = counts / statistics.posters["split"].value_counts().reindex(counts.columns)
    shares = shares.add_prefix("share of ")
    shares.insert(0, "posters", counts.sum(axis=1))
    return shares.rename_axis("genre")


def _collect_split(
    builder: tfds.core.DatasetBuilder, split: str, genres: list[str]
) -> tuple[pd.DataFrame, list[tuple[bytes, list[str]]]]:
    """Returns a row a poster, and the first posters."""
    size = builder.info.splits[split].num_examples
    rows = np.zeros(size, _ROW)
    samples = []
    dataset = builder.as_dataset(
        split,
        decoders={"image": tfds.decode.SkipDecoding()},
        read_config=tfds.ReadConfig(try_autocache=False),
    )
    examples = tqdm.tqdm(tfds.as_numpy(dataset), split, size, unit="img", leave=False, disable=None)
    for i, example in enumerate(examples):
        image, indices = example["image"], example["genres"]
        with PIL.Image.open(io.BytesIO(image)) as header:
            rows[i] = (
                _hash(example["poster_id"]),
                _hash(image),
                len(image),
                *header.size,
                len(indices),
            )
        if i < _SAMPLES:
            samples.append((image, [genres[index] for index in indices]))
    return pd.DataFrame(rows), samples


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")
