"""Opening a dataset that was built."""

import shlex

import tensorflow_datasets as tfds

import poster_tfds  # noqa: F401  (registers the dataset)
from poster_tfds import faults


def open_built(config: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """Opens a configuration of `poster_tfds`.

    Raises:
        faults.UserError: it is not built; the message has the command that builds it.
    """
    name = f"poster_tfds/{config}"
    try:
        builder = tfds.builder(name, data_dir=data_dir)
        built = builder.is_prepared()
    except (tfds.core.DatasetNotFoundError, ValueError):  # The latter for an unknown config.
        built = False
    if not built:
        raise faults.UserError(
            f"{name} is not built in --data_dir={data_dir}. Build it with\n\n  tfds build "
            f"poster_tfds --config={shlex.quote(config)} --data_dir={shlex.quote(data_dir)} "
            "--manual_dir=FOLDER"
        )
    return builder
