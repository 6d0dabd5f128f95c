"""A dataset from a `pandas.DataFrame`, in a notebook.

frame = pandas.DataFrame({"Id": ["a", "b"], "Genre": [["Noir"], ["Noir", "Heist"]]})
builder = poster_tfds.build(frame, images="Images", data_dir="data", name="mine")
dataset = builder.as_dataset(split="train")
"""

import csv
import os
import tempfile

import pandas as pd
import tensorflow_datasets as tfds
from etils import epath

from poster_tfds import poster_tfds_dataset_builder
from poster_tfds.annotations import tables


def build(
    frame: pd.DataFrame, images: os.PathLike, data_dir: os.PathLike, name: str, **settings
) -> tfds.core.DatasetBuilder:
    """Builds `poster_tfds/NAME` from annotations in memory and returns its builder.

    The rows are understood as those of the CSV that the frame would be written as: labels may be
    of any dtype, cells may be lists of genres, and an index with a name is a column too. Where
    messages name lines, the frame's first row is line 2. `settings` are those of a `PosterConfig`.

    Raises:
        faults.UserError: a setting, the frame or an image cannot be used; the message says why.
    """
    images = os.fspath(epath.Path(images).expanduser().absolute())
    config = poster_tfds_dataset_builder.PosterConfig(name=name, images=images, **settings)
    if any(frame.index.names):
        frame = frame.reset_index()
    with tempfile.TemporaryDirectory() as directory:
        texts = frame.astype(object).map(tables.text_of)
        path = os.path.join(directory, "DataFrame.csv")
        texts.to_csv(path, index=False, quoting=csv.QUOTE_ALL, errors="backslashreplace")
        builder = poster_tfds_dataset_builder.Builder(config=config, data_dir=data_dir)
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(manual_dir=directory)
        )
    return builder
