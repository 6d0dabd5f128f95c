"""Pages escape what they are given, ask nobody for anything, and look alike."""

import base64
import hashlib
import re

import numpy as np
import pandas as pd
import pytest

from poster_tfds.pages import rendering

HOSTILE = ["<b>Noir</b>", 'R$B$ & "Co"', "\u9ed1\u8272\u7535\u5f71"]


@pytest.fixture(scope="module")
def page():
    """The dataset's page, with genres that are no plain names."""
    table = pd.DataFrame({"posters": [3, 2, 1], "share": [0.5, np.nan, 0.25]}, index=HOSTILE)
    bars = rendering.plot(lambda axes: axes.barh(HOSTILE, [3, 2, 1]), (6, 3), "svg")
    return rendering.render(
        "dataset.html",
        title="<script>alert(1)</script>",
        description=HOSTILE[1],
        tables={"Genres & more": table},
        plots=[("Bars", bars)],
        samples={"train": [{"jpeg": b"\xff\xd8", "genres": HOSTILE[0]}]},
    )


def test_what_a_page_is_given_reaches_it_escaped(page):
    assert page.count("<script") == 1 and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<b>" not in page
    assert page.count("&lt;b&gt;Noir&lt;/b&gt;") == 3  # In the table, as caption and in words.
    assert "R$B$ &amp; &#34;Co&#34;" in page
    assert "<h2>Genres &amp; more</h2>" in page


def test_a_page_runs_its_own_script_and_no_other(page):
    """By its digest, as browsers compute it."""
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'\"" in page


def test_a_page_asks_nobody_for_anything(page):
    assert not re.search(r'(src|href)="(?!data:)|@import|https?://', page)


def test_a_table_has_headings_for_rows_and_columns_and_a_dash_for_nothing(page):
    assert '<th scope="col">posters</th>' in page
    assert '<th scope="row">' + HOSTILE[2] + "</th>" in page
    assert re.findall(r"<td>(.*?)</td>", page) == ["3", "0.5000", "2", "-", "1", "0.2500"]


def test_a_plot_shows_any_name_as_it_is():
    """As text, in the reader's fonts, with a dollar that is no formula."""
    svg = rendering.plot(lambda axes: axes.barh(HOSTILE, [3, 2, 1]), (6, 3), "svg").decode()
    assert "R$B$ &amp; " in svg and "&lt;b&gt;Noir" in svg and HOSTILE[2] in svg
    assert rendering.plot(lambda axes: axes.barh(HOSTILE, [3, 2, 1]), (6, 3), "svg").decode() == svg
