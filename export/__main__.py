"""Command line of the export.

python -m export --run_dir=runs/imdb --export_dir=exports/imdb
"""

import sys

from absl import app, flags

from trainer import config as config_lib, startup

_RUN_DIR = flags.DEFINE_string("run_dir", None, "Directory of the run to export.", required=True)
_EXPORT_DIR = flags.DEFINE_string(
    "export_dir", None, "Directory of versions; a new one is added to it.", required=True
)
_VERBOSE = flags.DEFINE_bool("verbose", False, "Show TensorFlow's own messages.")


def main(argv: list[str]) -> None:
    """Exports as the flags say; a user's mistake ends in one message."""
    if len(argv) > 1:
        sys.exit(f"Unknown argument {argv[1]!r}: settings are given as --name=value.")
    startup.import_tensorflow(_VERBOSE.value)
    from export import saved_model

    try:
        version = saved_model.export_saved_model(_RUN_DIR.value, _EXPORT_DIR.value)
    except config_lib.UsageError as error:
        sys.exit(str(error))
    print(f"Published {version}")


if __name__ == "__main__":
    app.run(main)
