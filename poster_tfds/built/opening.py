"""Opening a dataset that was built."""

import shlex

import tensorflow_datasets as tfds
from google.protobuf import json_format

import poster_tfds  # noqa: F401  (registers the dataset)
from poster_tfds import faults

_NAMES_OF_GENRES = "genres.labels.txt"


def open_built(config: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """Opens a configuration of `poster_tfds`.

    Raises:
        faults.UserError: it is not built, or what describes it is damaged; the message has the
            command that builds it.
    """
    try:
        builder = tfds.builder(f"poster_tfds/{config}", data_dir=data_dir)
        built = builder.is_prepared()
    except (tfds.core.DatasetNotFoundError, ValueError):  # The latter for an unknown config.
        built = False
    except json_format.ParseError as error:
        raise _error(config, data_dir, f"has a damaged dataset_info.json ({error})") from None
    if not built:
        raise _error(config, data_dir, "is not built")
    # Without it TFDS numbers the genres, and says nothing.
    if not (builder.data_path / _NAMES_OF_GENRES).exists():
        raise _error(config, data_dir, f"has lost {_NAMES_OF_GENRES}")
    return builder


def _error(config: str, data_dir: str, problem: str) -> faults.UserError:
    return faults.UserError(
        f"poster_tfds/{config} {problem} in --data_dir={data_dir}. Build it with\n\n  tfds build "
        f"poster_tfds --config={shlex.quote(config)} --data_dir={shlex.quote(data_dir)} "
        "--manual_dir=FOLDER"
    )
