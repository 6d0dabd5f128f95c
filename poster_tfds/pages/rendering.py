"""Fills the templates of pages."""

import base64
import contextlib
import hashlib
import importlib.resources
import io
import warnings
from collections.abc import Callable
from typing import Any

import jinja2
import matplotlib
import matplotlib.axes
import matplotlib.figure
import pandas as pd

_OWN_PACKAGE = "poster_tfds.pages"


def render(template: str, package: str = _OWN_PACKAGE, **values: Any) -> str:
    """Returns a page: a template of `package`, which can use those of this one, with `values`."""
    loaders = [jinja2.PackageLoader(name, "") for name in dict.fromkeys((package, _OWN_PACKAGE))]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_url"] = _data_url
    script = importlib.resources.files(_OWN_PACKAGE).joinpath("sort.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals |= {
        "isna": pd.isna,
        "has_words": pd.api.types.is_string_dtype,
        "script": script,
        "script_hash": f"sha256-{digest}",  # By which a browser lets it run, and no other.
    }
    return environment.get_template(template).render(values)


def plot(
    draw: Callable[..., None],
    size: tuple[float, float],
    form: str,
    shape: tuple[int, int] = (1, 1),
) -> bytes:
    """Returns as a picture what a function draws.

    The text of an SVG stays text, so that the reader's fonts show any genre's name; a dollar in
    it is a dollar.

    Args:
        draw: takes the axes to draw on; with a shape (rows, columns), an array of them.
        size: width and height in inches.
        form: svg or png, of 100 pixels an inch.
        shape: of the axes.
    """
    with _any_text():
        figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
        draw(figure.subplots(*shape))
        return save(figure, form)


def save(figure: matplotlib.figure.Figure, form: str) -> bytes:
    """Returns a figure as an svg or png; the same figures give the same bytes."""
    picture = io.BytesIO()
    with _any_text():
        metadata = {"Date": None} if form == "svg" else {}
        figure.savefig(picture, format=form, dpi=100, metadata=metadata)
    return picture.getvalue()


@contextlib.contextmanager
def _any_text():
    """Has matplotlib take any name for text, also one with dollars or of another script."""
    settings = {"svg.fonttype": "none", "svg.hashsalt": "", "text.parse_math": False}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        yield


def _data_url(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
