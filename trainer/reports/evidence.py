"""Where a model sees a genre: what hiding each part of a poster does to its answer.

    evidence = evidence_lib.occlude(answer, pixels)
    evidence.map_of(genre)  # Over the poster.
    png = evidence_lib.draw(jpeg, evidence, {genre: "Horror"})

This is the occlusion of Zeiler and Fergus (https://arxiv.org/abs/1311.2901, section 4.2). It needs
nothing but a function of pixels to logits, and so explains any model and any export.
"""

import io
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import matplotlib.cm
import matplotlib.colors
import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageOps

from poster_tfds.pages import rendering

# A patch is two cells wide and high, about a head or a word of the title. Patches of one cell
# change the logit half as much; those of three blur the map.
NUM_CELLS = 8  # In a row and in a column.
# A patch is at each corner of the cells, so that four cover each cell, also at the edges.
NUM_PASSES = (NUM_CELLS + 1) ** 2 + 1  # Through the model, a poster: all patches, and without any.

_BATCH_PIXELS, _MAX_BATCH = 4 << 20, 16
_MIN_SCALE = 0.5  # Logits: what changes less is drawn as faint as it is.
# Orange and blue differ for the colour-blind too, and are not the greys that posters become.
_FOR, _AGAINST = "#f57c00", "#0a6fd0"
_OPACITY = 0.85
_PANEL = (300, 444)  # Pixels that a poster is fitted in.
_GAP, _HEADER, _SCALE_WIDTH = 10, 50, 130  # Pixels between panels, above and beside them.
_SCALE_GREY = 0.6
_PIXELS_AN_INCH = 100  # Of `rendering.plot`.


class Evidence(NamedTuple):
    """What hiding parts of a poster does to its logits.

    Attributes:
        logits: float64 [G], of the poster.
        hidden: float64 [NUM_CELLS + 1, NUM_CELLS + 1, G], of the poster without the patch whose
            middle is the upper left corner of cell [i, j].
    """

    logits: np.ndarray
    hidden: np.ndarray

    def map_of(self, genre: int) -> np.ndarray:
        """Returns how much each cell speaks for a genre, float64 [NUM_CELLS, NUM_CELLS].

        That is the fall of its logit, the mean over the four patches that cover the cell; negative
        where the cell speaks against it.
        """
        falls = self.logits[genre] - self.hidden[..., genre]
        rows = falls[:-1] + falls[1:]
        return (rows[:, :-1] + rows[:, 1:]) / 4

    def strongest(self, genre: int) -> tuple[int, int] | None:
        """Returns the place of the patch that the genre needs most, None if it needs none."""
        hidden = self.hidden[..., genre]
        row, column = np.unravel_index(hidden.argmin(), hidden.shape)
        return (int(row), int(column)) if hidden.min() < self.logits[genre] else None

    def describe(self, genre: int) -> tuple[str, str]:
        """Returns a genre's score, and what hiding the strongest patch makes of it, in words."""
        score = f"{_sigmoid(self.logits[genre]):.2f}"
        if place := self.strongest(genre):
            hidden = _sigmoid(self.hidden[(*place, genre)])
            return score, f"{hidden:.2f} with the framed part hidden"
        return score, "hiding no part lowers it"


def occlude(answer: Callable[[np.ndarray], np.ndarray], pixels: np.ndarray) -> Evidence:
    """Hides one patch of a poster after the other, in its mean colour, and looks at the answers.

    Args:
        answer: function of pixels, uint8 [N, H, W, 3], to logits [N, G]. It is given NUM_PASSES
            in all, few at a time.
        pixels: uint8 [H, W, 3].
    """
    height, width, _ = pixels.shape
    batch_size = int(np.clip(_BATCH_PIXELS // (height * width), 1, _MAX_BATCH))
    images, logits = _with_patches(pixels), [answer(pixels[None])]
    while batch := list(itertools.islice(images, batch_size)):
        logits.append(answer(np.stack(batch)))
    whole, *hidden = np.concatenate(logits).astype(np.float64)
    return Evidence(whole, np.reshape(hidden, (NUM_CELLS + 1, NUM_CELLS + 1, -1)))


def draw(jpeg: bytes, evidence: Evidence, names: Mapping[int, str]) -> bytes:
    """Draws a poster beside its maps, as a PNG with a scale.

    Args:
        jpeg: the poster, in any size.
        evidence: of the poster.
        names: of the genres to draw, by their numbers.
    """
    panels, scale = _draw_panels(jpeg, evidence, list(names))
    strip = _side_by_side(panels, _PANEL[0])

    def on_axes(axes):
        axes.imshow(strip)
        axes.set_ylim(strip.height, -_HEADER)
        axes.axis("off")
        for i, (genre, name) in enumerate(names.items(), start=1):
            score, hidden = evidence.describe(genre)
            left = i * (_PANEL[0] + _GAP)
            axes.text(left, -_HEADER, f"{name} {score}", fontsize=12, weight="bold", va="top")
            axes.text(left, -_GAP, hidden, fontsize=10)
        levels = np.linspace(-1, 1, 64)
        colors = matplotlib.colors.ListedColormap(_blend(levels, _SCALE_GREY))
        shown = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(-scale, scale), colors)
        bar = axes.figure.colorbar(shown, ax=axes, shrink=0.8, pad=0.02)
        # Short enough for a poster that is wider than high.
        bar.set_ticks([-scale, 0, scale], labels=[f"{-scale:.1f} against", "0", f"{scale:.1f} for"])
        bar.set_label("fall of the logit if hidden", fontsize=8)

    width, height = strip.width + _SCALE_WIDTH, strip.height + _HEADER
    return rendering.plot(on_axes, (width / _PIXELS_AN_INCH, height / _PIXELS_AN_INCH), "png")


def draw_pair(jpeg: bytes, evidence: Evidence, genre: int) -> bytes:
    """Draws a poster beside its map for a genre, as a JPEG without text."""
    panels, _ = _draw_panels(jpeg, evidence, [genre])
    picture = io.BytesIO()
    _side_by_side(panels, panels[0].width).save(picture, "JPEG", quality=85)
    return picture.getvalue()


def _with_patches(pixels: np.ndarray) -> Iterator[np.ndarray]:
    mean = pixels.mean(axis=(0, 1)).round()
    for row in range(NUM_CELLS + 1):
        for column in range(NUM_CELLS + 1):
            top, bottom = _patch_ends(row, pixels.shape[0])
            left, right = _patch_ends(column, pixels.shape[1])
            hidden = pixels.copy()
            hidden[top:bottom, left:right] = mean
            yield hidden


def _patch_ends(place: int, side: int) -> tuple[int, int]:
    """Returns between which pixels of a side a patch is."""
    cells = np.clip([place - 1, place + 1], 0, NUM_CELLS)
    begin, end = np.round(cells * side / NUM_CELLS).astype(int)
    return int(begin), int(end)


def _draw_panels(
    jpeg: bytes, evidence: Evidence, genres: Sequence[int]
) -> tuple[list[PIL.Image.Image], float]:
    """Returns a poster and its maps, in one size, and the logits at which they are full."""
    with PIL.Image.open(io.BytesIO(jpeg)) as image:
        poster = PIL.ImageOps.contain(image.convert("RGB"), _PANEL)
    maps = [evidence.map_of(genre) for genre in genres]
    scale = max(_MIN_SCALE, float(np.abs(maps).max()))
    panels = [poster]
    for genre, cells in zip(genres, maps, strict=True):
        panel = _overlay(poster, cells / scale)
        if place := evidence.strongest(genre):
            _outline(panel, *place)
        panels.append(panel)
    return panels, scale


def _overlay(poster: PIL.Image.Image, cells: np.ndarray) -> PIL.Image.Image:
    """Returns a poster in greys, coloured as far as its cells, -1 to 1, say."""
    levels = PIL.Image.fromarray(cells.astype(np.float32)).resize(
        poster.size, PIL.Image.Resampling.BICUBIC
    )
    # Neither black nor white, on which a colour would be hard to see.
    greys = 0.3 + 0.6 * np.asarray(poster.convert("L"), np.float64) / 255
    return PIL.Image.fromarray(np.uint8(255 * _blend(np.asarray(levels), greys)))


def _blend(levels: np.ndarray, greys: np.ndarray) -> np.ndarray:
    """Returns the colours [..., 3] of levels from -1, full blue, to 1, full orange, over greys."""
    levels = np.clip(levels, -1, 1)[..., None]
    colors = np.where(levels > 0, *map(matplotlib.colors.to_rgb, (_FOR, _AGAINST)))
    opacity = _OPACITY * np.abs(levels)
    return opacity * colors + (1 - opacity) * np.asarray(greys)[..., None]


def _outline(panel: PIL.Image.Image, row: int, column: int) -> None:
    """Draws the outline of a patch, which is seen on any ground."""
    top, bottom = _patch_ends(row, panel.height)
    left, right = _patch_ends(column, panel.width)
    canvas = PIL.ImageDraw.Draw(panel)
    canvas.rectangle((left, top, right - 1, bottom - 1), outline="black", width=4)
    canvas.rectangle((left + 1, top + 1, right - 2, bottom - 2), outline="white", width=2)


def _side_by_side(panels: Sequence[PIL.Image.Image], width: int) -> PIL.Image.Image:
    """Returns panels in a row, each in a place of this width, in pixels."""
    size = len(panels) * (width + _GAP) - _GAP, panels[0].height
    strip = PIL.Image.new("RGB", size, "white")
    for i, panel in enumerate(panels):
        strip.paste(panel, (i * (width + _GAP), 0))
    return strip


def _sigmoid(logit: float) -> float:
    return 1 / (1 + np.exp(-logit))
