"""Runs `tfds build poster_tfds` from any folder.

    python -m poster_tfds.build --config=imdb --manual_dir=posters --data_dir=data

It takes the flags of `tfds build`, which by itself finds this dataset in the project's folder only.
"""

import pathlib
import sys

from tensorflow_datasets.scripts.cli import main as tfds_cli

from poster_tfds import user_errors


def main() -> None:
    user_errors.install()
    sys.argv[1:] = ["build", str(pathlib.Path(__file__).resolve().parent), *sys.argv[1:]]
    tfds_cli.launch_cli()


if __name__ == "__main__":
    main()
