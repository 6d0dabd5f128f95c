"""Movie posters and their genres as a TFDS dataset.

Importing this package registers `poster_tfds`, so that
`tfds.load("poster_tfds/imdb", data_dir=...)` finds it.
"""

from poster_tfds.frames import build
from poster_tfds.poster_tfds_dataset_builder import Builder

__all__ = ["Builder", "build"]
