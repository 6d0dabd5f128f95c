"""Runs `tfds build poster_tfds` from any folder.

    python -m poster_tfds.build --config=imdb --manual_dir=posters --data_dir=data

It takes the flags of `tfds build`, which by itself finds this dataset in the project's folder only.
"""

import pathlib
import sys

from tensorflow_datasets.scripts.cli import main as tfds_cli

from poster_tfds import directory_lock, faults, settings


def main() -> None:
    """Hands the command line over to TFDS."""
    package = pathlib.Path(__file__).resolve().parent
    sys.argv[1:] = ["build", str(package), *sys.argv[1:]]
    try:
        for argument, following in zip(sys.argv, [*sys.argv[1:], ""], strict=False):
            name, _, value = argument.partition("=")
            if name == "--config" and (value or following).startswith("{"):
                settings.parse(value or following)
        tfds_cli.launch_cli()
    except (faults.UserError, directory_lock.HeldError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
