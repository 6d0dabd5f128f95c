"""A browser draws all of a report, sorts its tables and asks nobody for anything."""

import shutil
import warnings

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def browser():
    """Chromium, which is skipped where it is not, loudly."""
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not executable:
        message = (
            "there is no Chromium (Debian's package `chromium`): the report is NOT TESTED in one"
        )
        warnings.warn(message, stacklevel=1)
        pytest.skip(message)
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield opened
        opened.close()


def column(table, heading):
    """Returns the texts of a table's column."""
    headings = table.locator("thead th").all_inner_texts()
    return table.locator(f"tbody tr > :nth-child({headings.index(heading) + 1})").all_inner_texts()


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (1200, "dark")])
def test_a_browser_draws_all_and_sorts_by_mouse_and_keyboard(browser, run_dir, width, scheme):
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True
    )
    tab = context.new_page()
    said, asked = [], []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto((run_dir / "report.html").as_uri())
    assert tab.locator(".summary").count() == 2
    # Those further down are loaded once they are seen.
    tab.evaluate("document.querySelectorAll('img').forEach((image) => (image.loading = 'eager'))")
    tab.evaluate("Promise.all([...document.images].map((image) => image.decode()))")
    widths = tab.evaluate("[...document.images].map((image) => image.naturalWidth)")
    assert len(widths) > 40 and min(widths) > 0
    # Wide tables scroll in themselves, the page does not.
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")

    genres = tab.get_by_role("region", name="Genres").locator("table")
    rows = column(genres, "genre")
    heading = genres.get_by_role("columnheader", name="AP", exact=True)
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    found = list(map(float, column(genres, "AP")))
    assert found == sorted(found, reverse=True)
    genres.get_by_role("button", name="genre", exact=True).focus()
    tab.keyboard.press("Enter")
    assert column(genres, "genre") == sorted(rows)
    assert heading.get_attribute("aria-sort") is None
    tab.keyboard.press("Enter")
    assert column(genres, "genre") == sorted(rows, reverse=True)
    assert not said
    assert all(url.startswith(("file:", "data:")) for url in asked)
    context.close()
