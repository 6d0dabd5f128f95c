"""What a genre rests on is where its sign is, in numbers, in pictures and in the client's files."""

import io

import numpy as np
import pytest
from PIL import Image

from trainer.reports import analysis, evidence as evidence_lib

CELLS = evidence_lib.NUM_CELLS


@pytest.mark.parametrize("cell", [(0, 0), (3, 6), (7, 7)])
def test_a_map_is_highest_in_the_cell_that_an_answer_rests_on(cell):
    """A black poster with a white pixel in the middle of a cell, whose level is the logit."""
    pixels = np.zeros((97, 51, 3), np.uint8)
    row, column = (int((at + 0.5) * side / CELLS) for at, side in zip(cell, (97, 51), strict=True))
    pixels[row, column] = 255
    seen = []

    def answer(images):
        seen.append(len(images))
        level = images[:, row, column, 0] / 255
        return np.stack([level, -2 * level, 0 * level], axis=1)

    evidence = evidence_lib.occlude(answer, pixels)
    assert sum(seen) == evidence_lib.NUM_PASSES == 82
    # Of the four patches over a cell as many hide the pixel.
    near = [np.maximum(0, 1 - np.abs(np.arange(CELLS) - at) / 2) for at in cell]
    expected = np.outer(*near)
    np.testing.assert_allclose(evidence.map_of(0), expected)
    np.testing.assert_allclose(evidence.map_of(1), -2 * expected)
    assert not evidence.map_of(2).any()
    place = evidence.strongest(0)
    assert evidence.hidden[place][0] == 0
    assert all(at <= patch <= at + 1 for at, patch in zip(cell, place, strict=True))
    assert evidence.describe(0) == ("0.73", "0.50 with the framed part hidden")
    assert evidence.strongest(1) is None
    assert evidence.describe(1) == ("0.12", "hiding no part lowers it")


def test_a_poster_is_hidden_in_its_mean_colour_and_large_ones_go_few_at_a_time():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2048, 1024, 3)).astype(np.uint8)
    sizes, middles = [], []

    def answer(images):
        sizes.append(len(images))
        middles.extend(images[:, 1023, 511])
        return np.zeros((len(images), 1))

    evidence_lib.occlude(answer, pixels)
    assert max(sizes) == 2
    hidden = [not np.array_equal(middle, pixels[1023, 511]) for middle in middles]
    assert sum(hidden) == 4
    mean = np.round(pixels.reshape(-1, 3).mean(axis=0))
    assert all(np.array_equal(middles[i], mean) for i in np.flatnonzero(hidden))


def test_a_name_is_over_its_map_whatever_it_is_and_none_over_the_poster():
    poster = io.BytesIO()
    Image.new("RGB", (30, 44), "gray").save(poster, "JPEG")
    evidence = evidence_lib.Evidence(np.zeros(2), np.zeros((CELLS + 1, CELLS + 1, 2)))
    picture = evidence_lib.draw(poster.getvalue(), evidence, {1: "R$_$", 0: "<Noir>"})
    top = pixels_of(io.BytesIO(picture))[:40].mean(axis=2)
    has_text = (top < 100).any(axis=0)
    assert not has_text[:300].any()
    assert has_text[330:550].any() and has_text[640:860].any()


def pixels_of(png):
    with Image.open(png) as image:
        return np.asarray(image.convert("RGB"), float)


def test_the_surest_answers_are_of_different_genres():
    labels = np.array([[1, 0, 1], [1, 1, 1], [0, 0, 1]])
    logits = np.array([[3.0, 9, -1], [2, -4, 0], [5, 1, -2]])
    assert analysis.surest(labels, logits, True, 9) == [(0, 0), (1, 2), (1, 1)]
    assert analysis.surest(labels, logits, False, 9) == [(0, 1), (2, 0)]
    assert analysis.surest(labels, logits, False, 1) == [(0, 1)]
