"""A page that a person can look at: one HTML file with its tables, plots and posters in it."""

import base64
import html
import io
from collections.abc import Callable, Iterable

import matplotlib.axes
import matplotlib.figure

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
img.plot { max-width: 100%; }
.posters { display: flex; flex-wrap: wrap; gap: 1rem; }
.posters figure { margin: 0; width: 10rem; }
.posters img { width: 10rem; height: 14rem; object-fit: contain; background: #eee; }
figcaption { font-size: .8rem; }
"""


def document(title: str, parts: Iterable[str]) -> str:
    """Returns a page of parts that are HTML."""
    title = html.escape(title)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style><h1>{title}</h1>{''.join(parts)}</html>\n"
    )


def html_table(table: list[list[str]]) -> str:
    """Returns a table as HTML; its first row names the columns."""
    header, *rows = (
        "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
        for tag, row in zip(["th"] + ["td"] * len(table), table, strict=False)
    )
    return f"<table><tr>{header}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def text_table(table: list[list[str]]) -> str:
    """Returns a table as lines for a terminal."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        )
        for row in table
    )


def gallery(posters: Iterable[tuple[bytes, str]]) -> str:
    """Returns posters, JPEGs with captions that are HTML, side by side."""
    figures = "".join(
        f'<figure><img alt="" src="{_data_url(jpeg, "jpeg")}">'
        f"<figcaption>{caption}</figcaption></figure>"
        for jpeg, caption in posters
    )
    return f'<div class="posters">{figures}</div>'


def picture(heading: str, png: bytes) -> str:
    """Returns a plot under its heading."""
    heading = html.escape(heading)
    url = _data_url(png, "png")
    return f'<h2>{heading}</h2><img class="plot" alt="{heading}" src="{url}">'


def plot(draw: Callable[[matplotlib.axes.Axes], None], size: tuple[float, float]) -> bytes:
    """Returns as a PNG what a function draws.

    Args:
        draw: takes the axes to draw on.
        size: width and height in inches of 100 pixels.
    """
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    draw(figure.subplots())
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=100)
    return png.getvalue()


def _data_url(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
