"""A built dataset as a page that a person can look at: `dataset.html` and its pictures."""

from collections.abc import Callable
from typing import NamedTuple

import matplotlib.axes
import numpy as np
import pandas as pd
import tensorflow_datasets as tfds

from poster_tfds.built import numbers
from poster_tfds.pages import rendering

# Of the dataset's metadata: rows and posters that were not taken as they came.
_COUNTS = ("rejected", "duplicates", "converted", "damaged")


class Plot(NamedTuple):
    """A picture of the page."""

    heading: str
    draw: Callable[[matplotlib.axes.Axes], None]
    size: tuple[float, float]  # In inches.


def describe(builder: tfds.core.DatasetBuilder, statistics: numbers.Statistics) -> str:
    """Returns the dataset's numbers as text."""
    tables = make_tables(builder, statistics).values()
    blocks = [table.to_string(float_format="{:.4f}".format) for table in tables]
    return "\n\n".join([builder.info.full_name, *blocks])


def make_tables(
    builder: tfds.core.DatasetBuilder, statistics: numbers.Statistics
) -> dict[str, pd.DataFrame]:
    """Returns the tables of the page by their headings; those without a row are left out."""
    splits = numbers.describe_splits(statistics)
    splits.insert(2, "shards", [builder.info.splits[name].num_shards for name in splits.index])
    left_out = pd.DataFrame({"rows": {name: builder.info.metadata[name] for name in _COUNTS}})
    tables = {
        "Splits": splits,
        "Leaks between splits": numbers.find_leaks(statistics),
        "Genres": numbers.genre_shares(statistics),
        "Not taken as they came": left_out.rename_axis("while building"),
    }
    return {heading: table for heading, table in tables.items() if len(table)}


def make_plots(statistics: numbers.Statistics) -> dict[str, Plot]:
    """Returns the pictures of the page by their names."""
    counts, posters = statistics.counts, statistics.posters
    splits, names = list(counts.columns), list(counts.index)

    def genres(axes):
        counts.plot.barh(stacked=True, ax=axes, width=0.8)
        axes.invert_yaxis()
        axes.set(xlabel="posters", ylabel="")
        axes.legend(loc="lower right")

    def labels_per_poster(axes):
        shares = pd.crosstab(posters["num_genres"], posters["split"], normalize="columns")
        shares.plot(ax=axes, marker="o", xlabel="genres of a poster", ylabel="share of the split")
        axes.set_ylim(bottom=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()

    def together(axes):
        pairs = statistics.together.to_numpy()
        shares = pairs / np.maximum(np.diag(pairs), 1)[:, None]
        np.fill_diagonal(shares, np.nan)
        image = axes.imshow(shares, cmap="Blues", vmin=0)
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        axes.figure.colorbar(image, label="share of the row's posters")

    def sizes(axes):
        # Many posters of one size are one point.
        distinct = posters[["split", "width", "height"]].drop_duplicates()
        for split in splits:
            of_split = distinct[distinct["split"] == split]
            axes.scatter(of_split["width"], of_split["height"], s=4, alpha=0.4, label=split)
        axes.set(xlabel="width, pixels", ylabel="height, pixels")
        axes.legend(markerscale=4)

    height = max(3.0, 0.28 * len(names))
    return {
        "genres": Plot("Posters of each genre", genres, (9, height)),
        "labels_per_poster": Plot("Genres of a poster", labels_per_poster, (7, 3.5)),
        "together": Plot("Genres together", together, (height + 3, height + 1.5)),
        "sizes": Plot("Sizes", sizes, (7, 4.5)),
    }


def render(builder: tfds.core.DatasetBuilder, statistics: numbers.Statistics) -> str:
    """Returns the page: one HTML file with everything in it."""
    plots = make_plots(statistics).values()
    return rendering.render(
        "dataset.html",
        title=builder.info.full_name,
        description=builder.builder_config.description or "",
        tables=make_tables(builder, statistics),
        plots=[(p.heading, rendering.plot(p.draw, p.size, "svg")) for p in plots],
        samples={
            split: [
                {"jpeg": jpeg, "genres": ", ".join(genres) or "no genre"} for jpeg, genres in found
            ]
            for split, found in statistics.samples.items()
        },
    )
