"""A picture of posters side by side."""

import io
import pathlib
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_WIDTH, _HEIGHT, _CAPTION = 180, 250, 50  # Pixels of a poster, and of the text below it.
_MARGIN = 8
_FONT_SIZE = 12
MAX_ROWS, MAX_COLUMNS = 50, 12  # A picture that can still be looked at.


def draw(rows: Sequence[Sequence[tuple[pathlib.Path, str]]]) -> bytes:
    """Returns a PNG of posters, each above its caption; of many, those of `MAX_ROWS` rows.

    Args:
        rows: files that `poster_tfds.images` can read, with captions; at most `MAX_COLUMNS` of each
            row are drawn.
    """
    rows = [row[:MAX_COLUMNS] for row in rows[:MAX_ROWS]]
    width, height = _WIDTH + _MARGIN, _HEIGHT + _CAPTION
    sheet = Image.new("RGB", (width * max(map(len, rows)), height * len(rows)), "white")
    for y, row in enumerate(rows):
        for x, (poster, caption) in enumerate(row):
            sheet.paste(_draw_poster(poster, caption), (width * x, height * y))
    png = io.BytesIO()
    sheet.save(png, "PNG")
    return png.getvalue()


def _draw_poster(path: pathlib.Path, caption: str) -> Image.Image:
    """Returns a poster above its caption, of which what is too long is cut off."""
    from poster_tfds import images as images_lib  # Imports TensorFlow.

    cell = Image.new("RGB", (_WIDTH, _HEIGHT + _CAPTION), "white")
    poster = Image.open(io.BytesIO(images_lib.as_stored(path.read_bytes()).jpeg))
    poster.thumbnail((_WIDTH, _HEIGHT))
    cell.paste(poster, (0, _HEIGHT - poster.height))
    font = ImageFont.load_default(_FONT_SIZE)
    ImageDraw.Draw(cell).text((0, _HEIGHT + 2), caption, "black", font)
    return cell
