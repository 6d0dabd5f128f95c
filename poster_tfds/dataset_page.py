"""A built dataset as a page that a person can look at: `dataset.html` and its pictures."""

import html

import numpy as np
import tensorflow_datasets as tfds

from poster_tfds import page, statistics


def describe(builder: tfds.core.DatasetBuilder, splits) -> str:
    """Returns the dataset's numbers as text.

    Args:
        builder: an open dataset.
        splits: what `statistics.collect` found.
    """
    blocks = [builder.info.full_name]
    blocks += [page.text_table(table) for _, table in _tables(builder, splits)]
    return "\n\n".join(blocks)


def draw_plots(builder: tfds.core.DatasetBuilder, splits) -> dict[str, bytes]:
    """Returns the page's pictures: file name -> PNG."""
    names = builder.info.features["genres"].feature.names
    totals = sum(split.genre_counts for split in splits.values())
    order = np.argsort(-totals)

    def genres(axes):
        left = np.zeros(len(names))
        for name, split in splits.items():
            axes.barh(range(len(names)), split.genre_counts[order], left=left, label=name)
            left += split.genre_counts[order]
        axes.set_yticks(range(len(names)), [names[i] for i in order])
        axes.invert_yaxis()
        axes.set_xlabel("posters")
        axes.legend(loc="lower right")

    def labels_per_poster(axes):
        for name, split in splits.items():
            numbers = sorted(split.labels_per_poster)
            shares = [split.labels_per_poster[n] / split.num_posters for n in numbers]
            axes.plot(numbers, shares, marker="o", label=name)
        axes.set_xlabel("genres of a poster")
        axes.set_ylabel("share of the split")
        axes.set_ylim(bottom=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()

    def together(axes):
        counts = sum(split.together for split in splits.values())[np.ix_(order, order)]
        shares = counts / np.maximum(np.diag(counts), 1)[:, None]
        np.fill_diagonal(shares, np.nan)
        image = axes.imshow(shares, cmap="viridis", vmin=0)
        axes.set_xticks(range(len(names)), [names[i] for i in order], rotation=90)
        axes.set_yticks(range(len(names)), [names[i] for i in order])
        axes.figure.colorbar(image, label="share of the row's posters that have the column's genre")

    def sizes(axes):
        for name, split in splits.items():
            axes.scatter(*split.sizes.T, s=4, alpha=0.4, label=name)
        axes.set_xlabel("width, pixels")
        axes.set_ylabel("height, pixels")
        axes.legend(markerscale=4)

    height = max(3.0, 0.28 * len(names))
    return {
        "genres.png": page.plot(genres, (9, height)),
        "labels_per_poster.png": page.plot(labels_per_poster, (7, 3.5)),
        "together.png": page.plot(together, (height + 3, height + 1.5)),
        "sizes.png": page.plot(sizes, (7, 4.5)),
    }


def render(builder: tfds.core.DatasetBuilder, splits, plots: dict[str, bytes]) -> str:
    """Returns the page: one HTML file with everything in it."""
    parts = [f"<p>{html.escape(builder.builder_config.description or '')}</p>"]
    for heading, table in _tables(builder, splits):
        parts.append(f"<h2>{html.escape(heading)}</h2>{page.html_table(table)}")
    headings = ("Posters of each genre", "Genres of a poster", "Genres together", "Sizes")
    for heading, png in zip(headings, plots.values(), strict=True):
        parts.append(page.picture(heading, png))
    for name, split in splits.items():
        samples = [
            (jpeg, html.escape(", ".join(genres) or "no genre")) for jpeg, genres in split.samples
        ]
        parts.append(f"<h2>Posters of {html.escape(name)}</h2>{page.gallery(samples)}")
    return page.document(builder.info.full_name, parts)


def _tables(builder: tfds.core.DatasetBuilder, splits) -> list[tuple[str, list[list[str]]]]:
    """Returns heading and rows of each table; the first row names the columns."""
    names = builder.info.features["genres"].feature.names
    overview = [
        ["split", "posters", "MB", "shards", "genres a poster", "repeated Ids", "repeated posters"]
    ]
    for name, split in splits.items():
        overview.append(
            [
                name,
                str(split.num_posters),
                f"{split.num_bytes / 1e6:.1f}",
                str(builder.info.splits[name].num_shards),
                f"{split.genre_counts.sum() / split.num_posters:.2f}",
                str(statistics.count_repeated(split.poster_ids)),
                str(statistics.count_repeated(split.posters)),
            ]
        )
    leaks = [["splits", "Ids in both", "posters in both"]]
    for pair, counts in statistics.find_leaks(splits).items():
        leaks.append([" and ".join(pair), *map(str, counts)])
    shares = [["genre", "posters", *(f"share of {name}" for name in splits)]]
    totals = sum(split.genre_counts for split in splits.values())
    for i in np.argsort(-totals):
        row = [f"{split.genre_counts[i] / split.num_posters:.4f}" for split in splits.values()]
        shares.append([names[i], str(totals[i]), *row])
    tables = [("Splits", overview), ("Leaks between splits", leaks), ("Genres", shares)]
    if builder.info.metadata:
        left_out = [["left out while building", "rows"]]
        left_out += [[name, str(count)] for name, count in builder.info.metadata.items()]
        tables.append(("Left out", left_out))
    return [(heading, table) for heading, table in tables if len(table) > 1]
