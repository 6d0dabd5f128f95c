"""Prints what a built dataset contains and writes it as a page.

    python -m poster_tfds --data_dir=data --config=imdb

The page, `dataset.html`, has everything in it; its pictures are written beside it as PNGs.
"""

import pathlib
import sys

from absl import app, flags, logging

from poster_tfds import faults
from poster_tfds.built import numbers, opening, page
from poster_tfds.pages import rendering

_DATA_DIR = flags.DEFINE_string("data_dir", "data", "Where the dataset is built.")
_CONFIG = flags.DEFINE_string("config", "imdb", "Configuration to look at.")
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Where to write the page; DATA_DIR/pages/CONFIG if not given."
)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        sys.exit(f"Unknown argument {argv[1]!r}: settings are given as --name=value.")
    logging.set_verbosity(logging.ERROR)
    try:
        builder = opening.open_built(_CONFIG.value, _DATA_DIR.value)
    except faults.UserError as error:
        sys.exit(str(error))
    statistics = numbers.collect(builder)
    print(page.describe(builder, statistics))
    directory = pathlib.Path(
        _OUTPUT_DIR.value or pathlib.Path(_DATA_DIR.value) / "pages" / _CONFIG.value
    )
    files = {
        f"{name}.png": rendering.plot(plot.draw, plot.size, "png")
        for name, plot in page.make_plots(statistics).items()
    }
    files["dataset.html"] = page.render(builder, statistics).encode()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            temporary = directory / f".{name}.incomplete"
            temporary.write_bytes(content)
            temporary.replace(directory / name)
    except OSError as error:
        sys.exit(f"--output_dir={directory} could not be written: {error.strerror}.")
    print(f"\nWrote {directory / 'dataset.html'}")


if __name__ == "__main__":
    app.run(main)
