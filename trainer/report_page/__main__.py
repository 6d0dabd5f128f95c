"""Command line of the report: writes `report.html` into a run directory.

    python -m trainer.report_page --run_dir=runs/imdb

The run's best model, in float32, goes once through a split of its dataset. The page has the
scores with and without the posters that were trained on too, each genre's average precision,
and the posters that the model is most wrong about; the tables are printed as well.
"""

import sys

from absl import app, flags

from trainer import config as config_lib, startup

_RUN_DIR = flags.DEFINE_string("run_dir", None, "Directory of the run to look at.", required=True)
_SPLIT = flags.DEFINE_string("split", "test", "Split, or part of one, to evaluate on.")
_DATA_DIR = flags.DEFINE_string(
    "data_dir", "", "Where the dataset is built; empty: where the run has read it."
)
_VERBOSE = flags.DEFINE_bool("verbose", False, "Show TensorFlow's own messages.")


def main(argv: list[str]) -> None:
    """Writes the page and prints its tables; a user's mistake ends in one message."""
    if len(argv) > 1:
        sys.exit(f"Unknown argument {argv[1]!r}: settings are given as --name=value.")
    startup.import_tensorflow(_VERBOSE.value)
    from trainer.report_page import evaluated, pages

    try:
        answers = evaluated.evaluate_run(_RUN_DIR.value, _SPLIT.value, _DATA_DIR.value)
        path = pages.write(answers)
    except config_lib.UsageError as error:
        sys.exit(str(error))
    print(f"{pages.describe(answers)}\n\nWrote {path}")


if __name__ == "__main__":
    app.run(main)
